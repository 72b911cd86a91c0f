package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"decoynet/deception"
)

// Batch is what a node delivers at once: sessions as they start and as they
// end, what egresses saw, events, probes as they grow, findings.
type Batch struct {
	// Node is who delivers, where that is known: the sessions that it says run
	// are lost when it is (Lost), also those of agents whose flows it takes.
	Node string

	Sessions []deception.Session
	Seen     []deception.SourceSeen
	Events   []deception.Event
	Probes   []deception.Probe
	Findings []deception.Finding
}

// ErrRecord says that a record can never be written; delivering it again is of
// no use.
var ErrRecord = errors.New("not a record")

const (
	// maxDeliveries are encoded at the same time, others wait for their turn.
	maxDeliveries = 64
	// maxName and maxMessage are how much of a name and of a message are kept,
	// in bytes.
	maxName    = 255
	maxMessage = 4096
)

// delivery is a batch on its way to the writer.
type delivery struct {
	load
	node string
	done chan error // takes one result without waiting
}

// Commit records the batch and returns when it is in the database, together
// with what others committed meanwhile; a power failure cannot take it back.
//
// What was delivered before, in whole or in part, changes nothing, and the order
// of deliveries does not matter. While the database cannot be written to, Commit
// waits until ctx is done; then the batch may or may not be recorded, and can be
// delivered again. It returns ErrRecord for a record without an identifier, and
// where the database refuses the data, having recorded nothing of the batch; and
// ErrClosed after Close.
func (r *Recorder) Commit(ctx context.Context, b Batch) error {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-r.ended:
		return ErrClosed
	case <-ctx.Done():
		return r.tooLate(ctx, "commit records")
	}
	d, err := newDelivery(&b)
	if err != nil {
		return fmt.Errorf("commit records: %w", err)
	}
	if d.empty() {
		return nil
	}
	if !r.queue.deliver(d) {
		return fmt.Errorf("commit records: %w", ErrClosed)
	}
	select {
	case err := <-d.done:
		if err != nil {
			return fmt.Errorf("commit records: %w", err)
		}
		return nil
	case <-ctx.Done():
		r.queue.withdraw(d)
		return r.tooLate(ctx, "commit records")
	}
}

// tooLate says why something did not happen before ctx was done.
func (r *Recorder) tooLate(ctx context.Context, what string) error {
	err := fmt.Errorf("%s: %w", what, ctx.Err())
	if s := r.Stats(); !s.FailingSince.IsZero() {
		return fmt.Errorf("%w; the store fails since %s: %w", err, s.FailingSince.Format(time.TimeOnly), s.LastError)
	}
	return err
}

// Event records an event. It never waits and may be called from any thread. An
// event without an identifier gets one; one without a time happens now.
func (r *Recorder) Event(e *deception.Event) {
	event := *e
	if event.Time.IsZero() {
		event.Time = time.Now()
	}
	if event.ID.IsZero() {
		event.ID = deception.NewSessionID(event.Time)
	}
	cleanEvent(&event)
	r.queue.putEvent(&event)
}

// Probe records what a source has done so far; the same probe is told again, with
// higher numbers, while it goes on. It copies what it needs, never waits and may be
// called from any thread. A probe without an identifier is none.
func (r *Recorder) Probe(p *deception.Probe) {
	if p.ID.IsZero() {
		return
	}
	probe := *p
	cleanProbe(&probe)
	r.queue.putProbe(&probe)
}

// SourceSeen records what a session's service saw as its peer. It never waits
// and may be called from any thread.
func (r *Recorder) SourceSeen(s *deception.SourceSeen) { r.queue.putSeen(s) }

// newDelivery encodes the batch, on its caller's time.
func newDelivery(b *Batch) (*delivery, error) {
	d := &delivery{node: clean(b.Node, maxName), done: make(chan error, 1)}
	bindings := make(map[bindingKey]uint32)
	var last bindingKey
	var number uint32
	for i := range b.Sessions {
		s := &b.Sessions[i]
		if s.ID.IsZero() {
			d.recycle()
			return nil, fmt.Errorf("session %d of %d has no identifier: %w", i+1, len(b.Sessions), ErrRecord)
		}
		if key := keyOf(s); len(d.keys) == 0 || key != last {
			n, ok := bindings[key]
			if !ok {
				n = uint32(len(d.keys))
				bindings[key], d.keys = n, append(d.keys, key)
			}
			last, number = key, n
		}
		l := &d.ends
		if s.Running() {
			l = &d.starts
		}
		if l.full() {
			l.chunks = append(l.chunks, chunks.Get().(*chunk))
		}
		l.append(s, number, true)
	}
	for i := range d.keys {
		cleanKey(&d.keys[i])
	}
	if err := d.note(b); err != nil {
		d.recycle()
		return nil, err
	}
	return d, nil
}

// note takes what is no session.
func (d *delivery) note(b *Batch) error {
	for i := range b.Seen {
		if b.Seen[i].Session.IsZero() {
			return fmt.Errorf("what was seen of session %d of %d has no identifier: %w", i+1, len(b.Seen), ErrRecord)
		}
	}
	d.seen = slices.Clone(b.Seen)
	d.events = make([]deception.Event, len(b.Events))
	for i := range b.Events {
		if b.Events[i].ID.IsZero() {
			return fmt.Errorf("event %d of %d has no identifier: %w", i+1, len(b.Events), ErrRecord)
		}
		d.events[i] = b.Events[i]
		cleanEvent(&d.events[i])
	}
	for i := range b.Probes {
		if b.Probes[i].ID.IsZero() {
			return fmt.Errorf("probe %d of %d has no identifier: %w", i+1, len(b.Probes), ErrRecord)
		}
		probe := b.Probes[i]
		cleanProbe(&probe)
		d.addProbe(&probe)
	}
	for i := range b.Findings {
		if b.Findings[i].ID.IsZero() {
			return fmt.Errorf("finding %d of %d has no identifier: %w", i+1, len(b.Findings), ErrRecord)
		}
		d.addFinding(newFinding(&b.Findings[i]))
	}
	return nil
}

// clean makes text from elsewhere what both databases can hold: UTF-8 without
// a zero character, of a bounded length.
func clean(s string, limit int) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "")
	}
	return s
}

func cleanKey(k *bindingKey) {
	k.node, k.segment = clean(k.node, maxName), clean(k.segment, maxName)
	k.decoy, k.service = clean(k.decoy, maxName), clean(k.service, maxName)
	k.path = deception.Path(clean(string(k.path), maxName))
	k.scanner = clean(k.scanner, maxName)
}

func cleanEvent(e *deception.Event) {
	e.Kind = deception.EventKind(clean(string(e.Kind), maxName))
	e.Node, e.Segment, e.Decoy = clean(e.Node, maxName), clean(e.Segment, maxName), clean(e.Decoy, maxName)
	e.Message = clean(e.Message, maxMessage)
}

// chunks are reused by deliveries.
var chunks = sync.Pool{New: func() any { return &chunk{buf: make([]byte, 0, chunkSize)} }}

// recycle gives the delivery's memory back. Only the writer calls it, once the
// delivery is in the queue.
func (d *delivery) recycle() {
	for _, l := range []*lane{&d.ends, &d.starts} {
		for _, c := range l.chunks {
			c.buf, c.count = c.buf[:0], 0
			chunks.Put(c)
		}
		*l = lane{}
	}
}

// finish tells the caller, who may have gone, what became of the delivery.
func (d *delivery) finish(err error) {
	d.recycle()
	d.done <- err
}

// deliver lines a delivery up, except where the queue is closed.
func (q *queue) deliver(d *delivery) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.deliveries = append(q.deliveries, d)
	signal(q.delivered)
	return true
}

// withdraw takes a delivery back, if the writer does not have it yet.
func (q *queue) withdraw(d *delivery) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range q.deliveries {
		if q.deliveries[i] == d {
			q.deliveries = append(q.deliveries[:i], q.deliveries[i+1:]...)
			d.recycle()
			return
		}
	}
}

// cutDeliveries takes as many deliveries as one transaction should hold, one at
// least; q.mu is held.
func (q *queue) cutDeliveries() []*delivery {
	n, bytes := 0, 0
	for n < len(q.deliveries) && (n == 0 || bytes+q.deliveries[n].bytes() <= batchChunks*chunkSize) {
		bytes += q.deliveries[n].bytes()
		n++
	}
	taken := q.deliveries[:n:n]
	q.deliveries = q.deliveries[n:]
	return taken
}

// remind signals deliveries that still wait.
func (q *queue) remind() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.deliveries) > 0 {
		signal(q.delivered)
	}
}

// idle tells whether nothing waits.
func (q *queue) idle() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.waiting.empty() && len(q.deliveries) == 0
}

// refuse ends all deliveries that wait.
func (q *queue) refuse(err error) {
	q.mu.Lock()
	waiting := q.deliveries
	q.deliveries = nil
	q.mu.Unlock()
	for _, d := range waiting {
		d.finish(err)
	}
}
