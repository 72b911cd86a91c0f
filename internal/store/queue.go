package store

import (
	"sync"
	"unsafe"

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

// lane is a queue of sessions of one kind.
type lane struct {
	chunks []*chunk
	count  int
	bytes  int
}

// load is what there is to write, of all kinds.
type load struct {
	ends, starts lane
	keys         []bindingKey // what the sessions' binding numbers stand for

	seen   []deception.SourceSeen
	events []deception.Event
	probes map[deception.SessionID]*deception.Probe // as told last
	notes  int                                      // memory that seen, events and probes take

	findings     []*finding
	findingBytes int
}

func (l *load) count() int {
	return l.ends.count + l.starts.count + len(l.seen) + len(l.events) + len(l.probes) + len(l.findings)
}
func (l *load) bytes() int  { return l.ends.bytes + l.starts.bytes + l.notes + l.findingBytes }
func (l *load) empty() bool { return l.count() == 0 }

// addProbe takes a probe, or what is newly told of one that waits. It tells
// whether it was not there before.
func (l *load) addProbe(p *deception.Probe) (added bool) {
	have := l.probes[p.ID]
	if have == nil || newerProbe(p, have) {
		if l.probes == nil {
			l.probes = make(map[deception.SessionID]*deception.Probe)
		}
		l.probes[p.ID] = p
	}
	return have == nil
}

// queue holds what is recorded between the relay's threads and the writer. It
// is bounded by bytes, and never waits.
//
// Starts and ends have lanes of their own because an end is worth more: it
// holds all that its start holds. Starts may fill half of the queue. When it is
// three quarters full an end makes room for itself: all waiting starts are given
// up, and from then on the first bytes of each side.
//
// Beside it wait deliveries, which do not count: their callers wait.
type queue struct {
	limit     int
	wake      chan struct{} // a token when the queue is no longer empty
	urgent    chan struct{} // a token when a whole batch waits
	delivered chan struct{} // a token when a delivery came

	mu         sync.Mutex // guards everything below
	waiting    load
	inHand     batch // what the writer has taken and not yet finished
	deliveries []*delivery
	spare      []*chunk
	bindings   map[bindingKey]uint32
	closed     bool
	lost       losses
}

// losses counts what did not fit.
type losses struct {
	starts, ends, heads, seen, events, probes, findings uint64
}

// batch is what the writer works on.
type batch struct {
	load
	deliveries []*delivery
	drained    bool // no session or finding was left behind
}

func (b *batch) empty() bool { return b.load.empty() && len(b.deliveries) == 0 }

func newQueue(limit int) *queue {
	return &queue{
		limit:     limit,
		wake:      make(chan struct{}, 1),
		urgent:    make(chan struct{}, 1),
		delivered: make(chan struct{}, 1),
		bindings:  make(map[bindingKey]uint32),
	}
}

func (q *queue) putStart(s *deception.Session) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.bytes() > q.limit/2 {
		q.lost.starts++
		return
	}
	q.put(&q.waiting.starts, s, true)
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
	if used > tight && q.waiting.starts.count > 0 {
		q.lost.starts += uint64(q.waiting.starts.count)
		q.recycle(&q.waiting.starts)
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
	q.put(&q.waiting.ends, s, heads)
}

// putSeen, putEvent and putProbe have half of the queue, as starts do.
func (q *queue) putSeen(s *deception.SourceSeen) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.bytes() > q.limit/2 {
		q.lost.seen++
		return
	}
	q.waiting.seen = append(q.waiting.seen, *s)
	q.noted(seenBytes)
}

func (q *queue) putEvent(e *deception.Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.bytes() > q.limit/2 {
		q.lost.events++
		return
	}
	q.waiting.events = append(q.waiting.events, *e)
	q.noted(eventBytes(e))
}

// putProbe has room for what is told of a probe that waits already.
func (q *queue) putProbe(p *deception.Probe) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.bytes() > q.limit/2 && q.waiting.probes[p.ID] == nil {
		q.lost.probes++
		return
	}
	if q.waiting.addProbe(p) {
		q.noted(probeBytes(p))
	}
}

const seenBytes = int(unsafe.Sizeof(deception.SourceSeen{}))

func eventBytes(e *deception.Event) int {
	return int(unsafe.Sizeof(*e)) + len(e.Message) + len(e.Node) + len(e.Segment) + len(e.Decoy)
}

func probeBytes(p *deception.Probe) int {
	return int(unsafe.Sizeof(*p)) + len(p.Node) + len(p.Segment) + len(p.SourceMAC) + len(p.Scanner)
}

func (q *queue) noted(bytes int) {
	q.waiting.notes += bytes
	if q.waiting.count() == 1 {
		signal(q.wake)
	}
}

func (q *queue) bytes() int { return q.waiting.bytes() + q.inHand.bytes() }

// put appends the session to a lane; q.mu is held.
func (q *queue) put(l *lane, s *deception.Session, heads bool) {
	if l.full() {
		l.chunks = append(l.chunks, q.newChunk())
		if len(l.chunks) >= batchChunks {
			signal(q.urgent)
		}
	}
	l.append(s, q.binding(keyOf(s)), heads)
	if q.waiting.count() == 1 {
		signal(q.wake)
	}
}

// full tells whether the lane needs another chunk before the next append.
func (l *lane) full() bool {
	if len(l.chunks) == 0 {
		return true
	}
	buf := l.chunks[len(l.chunks)-1].buf
	return cap(buf)-len(buf) < recordMax
}

func (l *lane) append(s *deception.Session, binding uint32, heads bool) {
	c := l.chunks[len(l.chunks)-1]
	before := len(c.buf)
	c.buf = appendRecord(c.buf, s, binding, heads)
	c.count++
	l.count++
	l.bytes += len(c.buf) - before
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
		n = uint32(len(q.waiting.keys))
		q.bindings[key] = n
		q.waiting.keys = append(q.waiting.keys, key)
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

// take hands to the writer the deliveries, the oldest ends and, when all is
// wanted and none of these are left behind, the oldest starts. By then most starts
// have had their end.
func (q *queue) take(all bool) *batch {
	q.mu.Lock()
	defer q.mu.Unlock()
	b, w := &q.inHand, &q.waiting
	b.ends = w.ends.cut(batchChunks)
	if all && w.ends.count == 0 {
		b.starts = w.starts.cut(batchChunks)
	}
	b.findings, b.findingBytes = w.cutFindings(maxFindings)
	b.drained = w.ends.count+w.starts.count+len(w.findings) == 0
	b.keys = w.keys[:len(w.keys):len(w.keys)]
	b.seen, b.events, b.probes, b.notes = w.seen, w.events, w.probes, w.notes
	w.seen, w.events, w.probes, w.notes = nil, nil, nil, 0
	b.deliveries = q.cutDeliveries()
	return b
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
	q.lost.add(&q.inHand.load)
	q.mu.Unlock()
	q.done()
}

func (l *losses) add(o *load) {
	l.starts += uint64(o.starts.count)
	l.ends += uint64(o.ends.count)
	l.seen += uint64(len(o.seen))
	l.events += uint64(len(o.events))
	l.probes += uint64(len(o.probes))
	l.findings += uint64(len(o.findings))
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
	q.lost.add(&q.waiting)
	q.recycle(&q.waiting.starts)
	q.recycle(&q.waiting.ends)
	q.waiting = load{keys: q.waiting.keys}
}

func (q *queue) usage() (count, bytes int, lost losses) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.waiting.count() + q.inHand.count(), q.bytes(), q.lost
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
