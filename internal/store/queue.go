package store

import (
	"sync"

	"decoynet/deception"
)

const (
	chunkSize = 64 << 10
	// batchChunks is how much the writer takes at once, so that a transaction
	// after a long failure takes some tens of milliseconds, not seconds.
	batchChunks = 16
	// spareChunks are kept for reuse.
	spareChunks = 32
)

// chunk is a run of records.
type chunk struct {
	buf   []byte
	count int
}

// lane is a queue of records of one kind.
type lane struct {
	chunks []*chunk
	count  int
	bytes  int
}

// queue holds sessions between the relay's threads and the writer. It is
// bounded by bytes, and never waits.
//
// Starts and ends have lanes of their own because an end is worth more: it
// holds all that its start holds. Starts may fill half of the queue. When it is
// three quarters full an end makes room for itself: all waiting starts are given
// up, and from then on the first bytes of each side.
type queue struct {
	limit  int
	wake   chan struct{} // a token when the queue is no longer empty
	urgent chan struct{} // a token when a whole batch waits

	mu           sync.Mutex // guards everything below
	starts, ends lane
	inHand       batch // what the writer has taken and not yet finished
	spare        []*chunk
	bindings     map[bindingKey]uint32
	keys         []bindingKey
	closed       bool
	lost         losses
}

// losses counts what did not fit.
type losses struct {
	starts, ends, heads uint64
}

// batch is what the writer works on.
type batch struct {
	ends, starts lane
	drained      bool         // nothing was left behind
	keys         []bindingKey // what the records' binding numbers stand for
}

func (b batch) count() int  { return b.ends.count + b.starts.count }
func (b batch) bytes() int  { return b.ends.bytes + b.starts.bytes }
func (b batch) empty() bool { return b.count() == 0 }

func newQueue(limit int) *queue {
	return &queue{
		limit:    limit,
		wake:     make(chan struct{}, 1),
		urgent:   make(chan struct{}, 1),
		bindings: make(map[bindingKey]uint32),
	}
}

func (q *queue) putStart(s *deception.Session) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.bytes() > q.limit/2 {
		q.lost.starts++
		return
	}
	q.put(&q.starts, s, true)
}

func (q *queue) putEnd(s *deception.Session) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		q.lost.ends++
		return
	}
	tight := q.limit / 4 * 3
	used := q.bytes()
	if used > tight && q.starts.count > 0 {
		q.lost.starts += uint64(q.starts.count)
		q.recycle(&q.starts)
		used = q.bytes()
	}
	if used+recordMax > q.limit {
		q.lost.ends++
		return
	}
	heads := used <= tight
	if !heads && len(s.SourceHead)+len(s.DestinationHead) > 0 {
		q.lost.heads++
	}
	q.put(&q.ends, s, heads)
}

func (q *queue) bytes() int { return q.starts.bytes + q.ends.bytes + q.inHand.bytes() }

// put appends the session to a lane; q.mu is held.
func (q *queue) put(l *lane, s *deception.Session, heads bool) {
	var c *chunk
	if n := len(l.chunks); n > 0 {
		c = l.chunks[n-1]
	}
	if c == nil || cap(c.buf)-len(c.buf) < recordMax {
		c = q.newChunk()
		l.chunks = append(l.chunks, c)
		if len(l.chunks) >= batchChunks {
			signal(q.urgent)
		}
	}
	before := len(c.buf)
	c.buf = appendRecord(c.buf, s, q.binding(keyOf(s)), heads)
	c.count++
	l.count++
	l.bytes += len(c.buf) - before
	if q.starts.count+q.ends.count == 1 {
		signal(q.wake)
	}
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// binding returns the number of a key, a new one where it was not seen before.
// There are as many as the document has bindings, and more after each change
// of it; they are never given up.
func (q *queue) binding(key bindingKey) uint32 {
	n, ok := q.bindings[key]
	if !ok {
		n = uint32(len(q.keys))
		q.bindings[key] = n
		q.keys = append(q.keys, key)
	}
	return n
}

func (q *queue) newChunk() *chunk {
	if n := len(q.spare); n > 0 {
		c := q.spare[n-1]
		q.spare = q.spare[:n-1]
		return c
	}
	return &chunk{buf: make([]byte, 0, chunkSize)}
}

// recycle empties a lane; q.mu is held.
func (q *queue) recycle(l *lane) {
	for _, c := range l.chunks {
		if len(q.spare) == spareChunks {
			break
		}
		c.buf, c.count = c.buf[:0], 0
		q.spare = append(q.spare, c)
	}
	clear(l.chunks)
	*l = lane{chunks: l.chunks[:0]}
}

// take hands the oldest ends to the writer and, when none are left behind them,
// the oldest starts. By then most starts have had their end.
func (q *queue) take() batch {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.inHand.ends = q.ends.cut(batchChunks)
	if q.ends.count == 0 {
		q.inHand.starts = q.starts.cut(batchChunks)
	}
	q.inHand.drained = q.ends.count+q.starts.count == 0
	q.inHand.keys = q.keys[:len(q.keys):len(q.keys)]
	return q.inHand
}

// done gives the room of the batch back.
func (q *queue) done() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.recycle(&q.inHand.ends)
	q.recycle(&q.inHand.starts)
	q.inHand = batch{}
}

// drop is done for a batch that could not be written.
func (q *queue) drop() {
	q.mu.Lock()
	q.lost.starts += uint64(q.inHand.starts.count)
	q.lost.ends += uint64(q.inHand.ends.count)
	q.mu.Unlock()
	q.done()
}

// close refuses what comes from now on; it counts as lost.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
}

// dropAll counts what is still there as lost.
func (q *queue) dropAll() {
	q.drop()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lost.starts += uint64(q.starts.count)
	q.lost.ends += uint64(q.ends.count)
	q.recycle(&q.starts)
	q.recycle(&q.ends)
}

func (q *queue) usage() (count, bytes int, lost losses) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.starts.count + q.ends.count + q.inHand.count(), q.bytes(), q.lost
}

// cut takes the first n chunks off the lane.
func (l *lane) cut(n int) lane {
	n = min(n, len(l.chunks))
	head := lane{chunks: l.chunks[:n:n]}
	for _, c := range head.chunks {
		head.count += c.count
		head.bytes += len(c.buf)
	}
	*l = lane{chunks: l.chunks[n:], count: l.count - head.count, bytes: l.bytes - head.bytes}
	return head
}
