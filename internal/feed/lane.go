package feed

import (
	"sync"
	"sync/atomic"
)

// Sizes of a chunk. A record with nothing behind it takes a slot of records only.
const (
	chunkBytes   = 256 << 10
	chunkRecords = 4096
	recordSize   = 40
	// What fills less than a quarter of a chunk is copied into a smaller one, so
	// that a queue holds many of them.
	trimBytes   = chunkBytes / 4
	trimRecords = chunkRecords / 4
)

type kind uint8

const (
	kindBegin kind = iota
	kindData
	kindFin
	kindClientClosed
	kindServiceClosed
	kindClientReset
	kindServerReset
	kindPacket // a ready IP packet
)

// record is one thing that happened to a flow.
type record struct {
	flow *Flow
	at   int64 // Unix nanoseconds
	// offset is where the data stands in what the side sent, or how much it sent in
	// all; other is the same of the server's side where a flow ends. Both of them
	// without their upper 32 bits, as in sequence numbers.
	offset, other uint32
	begin, n      uint32 // the data's place in the chunk
	kind          kind
	side          uint8
}

// chunk holds records in their order, and what was sent in them.
type chunk struct {
	records []record
	data    []byte
	refs    atomic.Int32 // the outputs that still need it, and who made it
}

// chunks are those to be used again. They are all of the full size.
var chunks = sync.Pool{New: func() any {
	return &chunk{records: make([]record, 0, chunkRecords), data: make([]byte, 0, chunkBytes)}
}}

func newChunk() *chunk { return chunks.Get().(*chunk) }

// size is the memory that a chunk holds.
func (c *chunk) size() int64 { return int64(cap(c.data) + cap(c.records)*recordSize) }

// release gives a chunk back when it is the last that needed it.
func (c *chunk) release() {
	if c.refs.Add(-1) == 0 {
		c.recycle()
	}
}

func (c *chunk) recycle() {
	if cap(c.data) != chunkBytes {
		return
	}
	clear(c.records) // flows that ended are not kept in memory
	c.records, c.data = c.records[:0], c.data[:0]
	chunks.Put(c)
}

// lane is where one loop of the relay writes to.
type lane struct {
	feed  *Feed
	mu    sync.Mutex // guards the rest
	chunk *chunk     // being filled
	ended []*Flow    // whose end is in chunk
}

// add appends a record. l.mu is held.
func (l *lane) add(r record, data []byte) {
	c := l.chunk
	if len(c.records) == cap(c.records) || len(c.data)+len(data) > cap(c.data) {
		l.handOver()
		c = l.chunk
	}
	if len(c.records) == 0 {
		select {
		case l.feed.dirty <- struct{}{}:
		default:
		}
	}
	r.begin, r.n = uint32(len(c.data)), uint32(len(data))
	c.data = append(c.data, data...)
	c.records = append(c.records, r)
}

// handOver offers what the lane holds to the outputs. l.mu is held, so that
// chunks stay in order.
func (l *lane) handOver() {
	c := l.chunk
	if len(c.records) == 0 {
		return
	}
	if len(c.data) < trimBytes && len(c.records) < trimRecords {
		small := &chunk{
			records: append(make([]record, 0, len(c.records)), c.records...),
			data:    append(make([]byte, 0, len(c.data)), c.data...),
		}
		clear(c.records)
		c.records, c.data = c.records[:0], c.data[:0]
		c = small
	} else {
		l.chunk = newChunk()
	}
	c.refs.Store(1)
	for _, o := range *l.feed.outputs.Load() {
		o.offer(c)
	}
	c.release()
	for i, w := range l.ended {
		l.feed.tuples.remove(w)
		l.ended[i] = nil
	}
	l.ended = l.ended[:0]
}
