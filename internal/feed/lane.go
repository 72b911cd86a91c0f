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
	// flowSize is a Flow, which is kept in memory by the records that wait.
	flowSize = 416
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
	flows   int64 // that begin in it
	// ahead is what is to be added to the times, none of which is later than latest.
	ahead, latest int64
	refs          atomic.Int32 // the outputs that still need it, and who made it
}

// chunks are those to be used again. They are all of the full size.
var chunks = sync.Pool{New: func() any {
	return &chunk{records: make([]record, 0, chunkRecords), data: make([]byte, 0, chunkBytes)}
}}

func newChunk() *chunk { return chunks.Get().(*chunk) }

// size is the memory that a chunk holds.
func (c *chunk) size() int64 { return int64(cap(c.data)+cap(c.records)*recordSize) + c.flows*flowSize }

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
	c.records, c.data, c.flows = c.records[:0], c.data[:0], 0
	chunks.Put(c)
}

// lane is where one loop of the relay writes to.
type lane struct {
	feed   *Feed
	number int

	mu    sync.Mutex // guards the rest
	batch uint64     // that chunk is of
	chunk *chunk     // being filled
	spare *chunk     // to be filled next; nil: any
	ended []*Flow    // whose end was told since the last batch
	// What is left of the batch before, for flush to take.
	sealed      *chunk
	sealedEnded []*Flow
}

// add appends a record. l.mu is held.
func (l *lane) add(r record, data []byte) {
	if batch := l.feed.filling.Load(); batch != l.batch {
		l.seal(batch)
	}
	c := l.chunk
	if len(c.records) == cap(c.records) || len(c.data)+len(data) > cap(c.data) {
		l.chunk = newChunk()
		l.feed.offer(item{chunk: c, lane: l.number, batch: l.batch})
		l.feed.now()
		c = l.chunk
	}
	if len(c.records) == 0 {
		l.feed.soon()
	}
	if r.kind == kindBegin {
		c.flows++
	}
	r.begin, r.n = uint32(len(c.data)), uint32(len(data))
	c.data = append(c.data, data...)
	c.records = append(c.records, r)
}

// seal puts what the lane holds aside, and begins with another batch. l.mu is held.
func (l *lane) seal(batch uint64) {
	l.batch = batch
	if len(l.chunk.records) > 0 {
		l.sealed, l.chunk, l.spare = l.chunk, l.spare, nil
		if l.chunk == nil {
			l.chunk = newChunk()
		}
	}
	l.sealedEnded, l.ended = l.ended, nil
}

// take returns what the lane told of the batches before this one.
func (l *lane) take(batch uint64) (c *chunk, ended []*Flow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.batch != batch {
		l.seal(batch)
	}
	if l.spare == nil {
		l.spare = newChunk() // so that the relay need not make one
	}
	c, ended = l.sealed, l.sealedEnded
	l.sealed, l.sealedEnded = nil, nil
	return c, ended
}

// soon has what waits in lanes handed over in a moment.
func (f *Feed) soon() {
	select {
	case f.dirty <- struct{}{}:
	default:
	}
}

// now has it handed over at once.
func (f *Feed) now() {
	select {
	case f.hurry <- struct{}{}:
	default:
	}
}

// flush hands over what lanes hold, as one batch. What was told before something
// else is in the same batch as that or in an earlier one, whatever their lanes are:
// from the first line on lanes write to the next batch. So no lane waits for another.
func (f *Feed) flush() {
	f.flushing.Lock()
	defer f.flushing.Unlock()
	next := f.filling.Add(1)
	var ended []*Flow
	for _, l := range f.lanes {
		c, over := l.take(next)
		if c != nil {
			f.offer(item{chunk: c, lane: l.number, batch: next - 1})
		}
		ended = append(ended, over...)
	}
	f.whole.Store(next - 1)
	for _, o := range *f.outputs.Load() {
		o.poke()
	}
	for _, w := range ended {
		f.tuples.remove(w)
	}
}

// offer hands a chunk over to the outputs.
func (f *Feed) offer(it item) {
	c := it.chunk
	if len(c.data) < trimBytes && len(c.records) < trimRecords {
		it.chunk = &chunk{
			records: append(make([]record, 0, len(c.records)), c.records...),
			data:    append(make([]byte, 0, len(c.data)), c.data...),
			flows:   c.flows,
		}
		c.recycle()
		c = it.chunk
	}
	now, ahead := f.clock.now()
	c.ahead, c.latest = ahead, now+int64(clockSlack)
	c.refs.Store(1)
	for _, o := range *f.outputs.Load() {
		o.offer(it)
	}
	c.release()
}
