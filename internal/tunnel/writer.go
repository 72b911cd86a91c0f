package tunnel

import (
	"encoding/binary"
	"runtime"
	"time"
)

const (
	minBatch = maxFrame
	// slowFlush is how long the socket may hold up a batch until batches become
	// smaller: on a slow way a batch is what a new flow has to wait for.
	slowFlush = 10 * time.Millisecond
	// sparseShare is how many bytes streams with little to send may send until
	// one with much gets a turn.
	sparseShare = 2 * maxFrame
	// directSize is from where on a frame is a record of its own instead of being
	// copied next to others.
	directSize = maxFrame / 4
)

// streams is a queue of streams, linked through them. A stream is in one queue
// at most: its queued says so.
type streams struct {
	head, tail *Stream
}

func (q *streams) push(s *Stream) {
	s.next = nil
	if q.tail == nil {
		q.head = s
	} else {
		q.tail.next = s
	}
	q.tail = s
}

func (q *streams) pop() *Stream {
	s := q.head
	if s == nil {
		return nil
	}
	q.head = s.next
	if q.head == nil {
		q.tail = nil
	}
	s.next = nil
	return s
}

// prepend puts a queue before this one.
func (q *streams) prepend(first streams) {
	if first.head == nil {
		return
	}
	first.tail.next = q.head
	q.head = first.head
	if q.tail == nil {
		q.tail = first.tail
	}
}

// batch is what goes to the socket in one write. Small frames are gathered into
// one record.
type batch struct {
	wire   transport
	gather *buffer
	size   int
	err    error
}

// frame adds a frame by copying it.
func (b *batch) frame(kind frameType, flags uint8, stream uint32, payload []byte) {
	b.header(kind, flags, stream, len(payload))
	b.gather.fill(payload)
}

// header adds a frame's header and makes sure that the payload fits after it.
func (b *batch) header(kind frameType, flags uint8, stream uint32, length int) {
	if b.gather == nil {
		b.gather = getBuffer(largeBuffer)
	}
	if b.gather.room() < headerSize+length {
		b.record()
	}
	g := b.gather
	putHeader(g.b[g.w:g.w+headerSize], kind, flags, stream, length)
	g.w += headerSize
	b.size += headerSize + length
}

// record makes a record of what was gathered.
func (b *batch) record() {
	if b.gather != nil && b.gather.len() > 0 {
		b.write(b.gather.data())
		b.gather.r, b.gather.w = 0, 0
	}
}

// direct adds a frame, header included, as a record of its own.
func (b *batch) direct(frame []byte) {
	b.record()
	b.write(frame)
	b.size += len(frame)
}

func (b *batch) write(p []byte) {
	if b.err == nil {
		_, b.err = b.wire.Write(p)
	}
}

// flush writes the batch to the socket.
func (b *batch) flush() error {
	b.record()
	if b.gather != nil {
		b.gather.free()
		b.gather = nil
	}
	b.size = 0
	if b.err == nil {
		b.err = b.wire.Flush()
	}
	return b.err
}

// writeLoop writes what streams and the connection have to send, until the
// connection ends.
func (c *conn) writeLoop() {
	b := &batch{wire: c.wire}
	limit := batchSize
	for c.await() {
		// Whoever runs now may add to the batch: one system call for many.
		runtime.Gosched()
		c.gather(b, limit)
		began := clock()
		if err := b.flush(); err != nil {
			// The peer may have said why it closes: leave that to the reader.
			time.AfterFunc(byePatience, func() { c.fail(writeError(err), "") })
			return
		}
		if clock()-began > slowFlush {
			limit = max(limit/2, minBatch)
		} else {
			limit = min(limit*2, batchSize)
		}
	}
	c.mu.Lock()
	bye := c.bye
	c.mu.Unlock()
	if bye != "" {
		b.frame(frameBye, 0, 0, []byte(bye[:min(len(bye), maxBye)]))
		_ = b.flush()
		c.wire.Close()
	}
}

// await waits for something to write. It returns false when the connection has
// ended.
func (c *conn) await() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && c.ready.head == nil && c.bulk.head == nil && !c.control.due() {
		c.waiting = true
		c.work.Wait()
	}
	c.waiting = false
	c.batches++
	return c.err == nil
}

func (k *control) due() bool {
	return k.ping || k.pong || len(k.refused) > 0 || k.message != nil || k.rest != nil
}

// gather fills a batch: first what the connection itself has to say, then the
// streams. Those with little to send come before those that had more than a
// frame, as in the flow queueing of RFC 8290, so that bulk data does not hold up
// a keystroke.
func (c *conn) gather(b *batch, limit int) {
	c.mu.Lock()
	k := c.control
	c.control = control{message: k.message, rest: k.rest, prefix: k.prefix}
	ready, bulk := c.ready, c.bulk
	c.ready, c.bulk = streams{}, streams{}
	if k.ping && c.asked == 0 {
		c.asked = clock()
	}
	c.mu.Unlock()

	if k.pong {
		b.frame(framePong, 0, 0, k.echo[:])
	}
	if k.ping {
		p := pingPayload(clock())
		b.frame(framePing, 0, 0, p[:])
	}
	for _, r := range k.refused {
		b.frame(frameReset, 0, r.id, []byte{byte(r.reason)})
	}
	if k.message != nil || k.rest != nil {
		c.gatherMessage(b)
	}
	sparse := 0
	for b.size < limit {
		var s *Stream
		if ready.head != nil && (sparse < sparseShare || bulk.head == nil) {
			s = ready.pop()
		} else {
			s, sparse = bulk.pop(), 0
		}
		if s == nil {
			break
		}
		before := b.size
		if s.emit(b) {
			bulk.push(s)
		}
		sparse += b.size - before
	}
	if ready.head != nil || bulk.head != nil {
		c.mu.Lock()
		c.ready.prepend(ready)
		c.bulk.prepend(bulk)
		c.mu.Unlock()
	}
}

// gatherMessage adds a piece of the message to tell. A newer one waits until the
// one under way is out.
func (c *conn) gatherMessage(b *batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := &c.control
	if k.rest == nil {
		copy(k.prefix[:], k.message)
		k.rest, k.message = k.message[messagePrefix:], nil
	}
	n := min(len(k.rest), maxPayload-messagePrefix)
	var flags uint8
	if n < len(k.rest) {
		flags = flagMore
	}
	b.header(frameMessage, flags, 0, messagePrefix+n)
	b.gather.fill(k.prefix[:])
	b.gather.fill(k.rest[:n])
	if k.rest = k.rest[n:]; flags == 0 {
		k.rest = nil
	}
}

// tell queues a message, in the place of one that was not begun.
func (c *conn) tell(instance, number uint64, message []byte) {
	b := make([]byte, 0, messagePrefix+len(message))
	b = binary.BigEndian.AppendUint64(b, instance)
	b = binary.BigEndian.AppendUint64(b, number)
	b = append(b, message...)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.control.message = b
		c.wakeLocked()
	}
}
