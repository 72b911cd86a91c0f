package spool

import (
	"encoding/binary"
	"slices"
)

const (
	chunkSize = 64 << 10
	// takeChunks is how many chunks the writer takes at once.
	takeChunks = 16
	// spareChunks are kept for reuse.
	spareChunks = 4
)

// chunk is a run of records, framed as they will be in the file but for their
// checksums.
type chunk struct {
	first uint64 // number of its first record
	count int
	buf   []byte
	// shared: records in the consumer's hands lie in buf.
	shared bool
}

func (c *chunk) end() uint64 { return c.first + uint64(c.count) }

// queue holds records between those who hand them over and the writer. Every
// record has a number, one more than the record before it; where records
// are given up, numbers are missing.
type queue struct {
	limit int
	chunk int

	next   uint64   // number of the next record
	acked  uint64   // number of the oldest record that is not acknowledged
	chunks []*chunk // oldest first
	inHand []*chunk // what the writer has taken, older than all chunks
	count  int      // records in both
	bytes  int      // what they take
	spare  []*chunk
}

// newQueue makes a queue of at most limit bytes, in chunks of at most chunk.
func newQueue(limit, chunk int, next uint64) queue {
	return queue{limit: limit, chunk: min(chunk, max(limit/16, 1<<10)), next: next}
}

// makeRoom takes the oldest chunks away for a record. What is in them may be read
// until something is put.
func (q *queue) makeRoom(record []byte) (given []*chunk) {
	for len(q.chunks) > 0 && q.bytes+frameHeader+len(record) > q.limit {
		given = append(given, q.chunks[0])
		q.shift()
	}
	return given
}

// put copies the record to the end. first tells that the writer has to be woken,
// ok that there was room.
func (q *queue) put(record []byte) (first, ok bool) {
	need := frameHeader + len(record)
	if q.bytes+need > q.limit {
		return false, false
	}
	var c *chunk
	if n := len(q.chunks); n > 0 {
		c = q.chunks[n-1]
	}
	if c == nil || cap(c.buf)-len(c.buf) < need {
		first = c == nil
		c = q.newChunk(need)
		q.chunks = append(q.chunks, c)
	}
	c.buf = binary.LittleEndian.AppendUint32(append(c.buf, 0, 0, 0, 0), uint32(len(record)))
	c.buf = append(c.buf, record...)
	c.count++
	q.next++
	q.count++
	q.bytes += need
	return first, true
}

func (q *queue) newChunk(need int) *chunk {
	if n := len(q.spare); n > 0 && need <= q.chunk {
		c := q.spare[n-1]
		q.spare = q.spare[:n-1]
		*c = chunk{first: q.next, buf: c.buf[:0]}
		return c
	}
	return &chunk{first: q.next, buf: make([]byte, 0, max(q.chunk, need))}
}

// shift takes the oldest chunk away.
func (q *queue) shift() {
	c := q.chunks[0]
	q.chunks = slices.Delete(q.chunks, 0, 1)
	q.forget(c)
}

func (q *queue) forget(c *chunk) {
	q.count -= c.count
	q.bytes -= len(c.buf)
	if !c.shared && cap(c.buf) == q.chunk && len(q.spare) < spareChunks {
		q.spare = append(q.spare, c)
	}
}

// take hands the oldest chunks to the writer, which must have no others.
func (q *queue) take() []*chunk {
	n := min(len(q.chunks), takeChunks)
	q.inHand = append(q.inHand[:0], q.chunks[:n]...)
	q.chunks = slices.Delete(q.chunks, 0, n)
	return q.inHand
}

// done takes the first of the chunks in the writer's hand away.
func (q *queue) done() {
	c := q.inHand[0]
	q.inHand = slices.Delete(q.inHand, 0, 1)
	q.forget(c)
}

// ack takes away what is acknowledged without having been written. The writer
// passes over such chunks in its own hand.
func (q *queue) ack(end uint64) {
	q.acked = max(q.acked, end)
	for len(q.chunks) > 0 && q.chunks[0].end() <= end {
		q.shift()
	}
}

// read appends the records from number from on, without copying them, and
// returns the number after the last. The first one is taken whatever its size
// if there are none yet.
func (q *queue) read(records [][]byte, from uint64, maxRecords, maxBytes int) ([][]byte, uint64) {
	for _, chunks := range [2][]*chunk{q.inHand, q.chunks} {
		for _, c := range chunks {
			if c.end() <= from {
				continue
			}
			number := c.first
			for b := c.buf; len(b) > 0; number++ {
				n := frameHeader + int(binary.LittleEndian.Uint32(b[4:]))
				record := b[frameHeader:n:n]
				b = b[n:]
				if number < from {
					continue
				}
				if len(records) > 0 && (len(records) >= maxRecords || len(record) > maxBytes) {
					return records, from
				}
				records = append(records, record)
				maxBytes -= len(record)
				c.shared = true
				from = number + 1
			}
		}
	}
	return records, from
}

// waiting returns how many records are not acknowledged. Those that are may be in
// the writer's hand still.
func (q *queue) waiting() (records, bytes int) {
	records, bytes = q.count, q.bytes
	for _, c := range q.inHand {
		if c.first < q.acked {
			done := min(c.count, int(q.acked-c.first))
			records -= done
			bytes -= len(c.buf) * done / c.count
		}
	}
	return records, bytes
}

// clear takes everything away.
func (q *queue) clear() {
	q.inHand, q.chunks, q.spare = nil, nil, nil
	q.count, q.bytes = 0, 0
}
