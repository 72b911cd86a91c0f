package capture

import (
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"decoynet/deception"
	"decoynet/internal/kernel/wire"
	"decoynet/internal/strip"
)

// MirrorConfig says what a Mirror is made with.
type MirrorConfig struct {
	Node      string // this machine
	Feed      Feed
	RingBytes int // of each segment; 0: DefaultMirrorRing
	Log       *slog.Logger
}

// DefaultMirrorRing is the ring of one segment. There may be hundreds.
const DefaultMirrorRing = 4 << 20

// Mirror feeds the flows of the kernel path, whose bytes no process sees, with
// packets as they are at their segment's link. Their sessions are recorded by
// somebody else, who asks Session for their identifiers.
type Mirror struct {
	config MirrorConfig
	flows  *rendezvous

	mu       sync.Mutex // guards the rest
	segments map[string]*segment
}

// NewMirror returns a Mirror that listens nowhere.
func NewMirror(c MirrorConfig) *Mirror {
	if c.RingBytes <= 0 {
		c.RingBytes = DefaultMirrorRing
	}
	return &Mirror{config: c, flows: newRendezvous(), segments: map[string]*segment{}}
}

// segment is one at whose link the mirror listens.
type segment struct {
	mirror *Mirror
	name   string

	mu       sync.Mutex // guards the rest
	stripper *strip.Stripper
	table    *deception.Table
	link     string
	take     wire.Selection
	listener *listener // nil while Watch has not made the first one
	over     []over    // in the order in which they were told
}

// over is a session whose end was told. Its last packets may still wait in the ring:
// where its port is used again at once, connection tracking tells of the end in that
// moment.
type over struct {
	session deception.Session
	told    int64 // Unix nanoseconds
}

// ringDelay is how long a packet may take from the link to takePacket.
const ringDelay = time.Second

// Watch has flows of the kernel path to the decoys of a segment fed from now on,
// as table binds them. link is the segment's interface in the namespace, which must
// stay open until Unwatch. For one segment it is called by one goroutine at a time.
func (m *Mirror) Watch(name string, ns wire.Namespace, link string, decoys []*deception.Decoy, table *deception.Table) {
	take := selectionOf(decoys)
	if len(take.Addresses) == 0 {
		m.Unwatch(name)
		return
	}
	m.mu.Lock()
	s := m.segments[name]
	if s == nil {
		s = &segment{mirror: m, name: name}
		s.stripper = strip.NewPlain(s, strip.Limits{IdleUDP: time.Hour}, s.bound) // connection tracking tells of ends
		m.segments[name] = s
	}
	m.mu.Unlock()
	s.mu.Lock()
	s.table = table
	same := s.listener != nil && s.link == link && slices.Equal(s.take.Ports, take.Ports) && slices.Equal(s.take.Addresses, take.Addresses)
	before := s.listener
	s.mu.Unlock()
	if same {
		return
	}
	// Flows that run go on to be followed; a few of their packets are missed.
	if before != nil {
		before.close()
	}
	after := listen(listenerConfig{
		ns: ns, name: link, take: take, ringBytes: m.config.RingBytes, log: m.config.Log, handle: s.takePacket, tick: s.expire,
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.link, s.take, s.listener = link, take, after
}

// selectionOf are the addresses and ports that are bound on the kernel path.
func selectionOf(decoys []*deception.Decoy) wire.Selection {
	var out wire.Selection
	for _, d := range decoys {
		if d.Path != deception.PathKernel {
			continue
		}
		out.Addresses = append(out.Addresses, d.Addresses...)
		for _, b := range d.Bind {
			out.Ports = append(out.Ports, b.Ports...)
		}
	}
	return out
}

// Unwatch ends what Watch has begun.
func (m *Mirror) Unwatch(name string) {
	m.mu.Lock()
	s := m.segments[name]
	delete(m.segments, name)
	m.mu.Unlock()
	if s == nil {
		return
	}
	s.mu.Lock()
	l := s.listener
	s.mu.Unlock()
	if l != nil {
		l.close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stripper.Close(time.Now().UnixNano())
}

// Close ends all listening.
func (m *Mirror) Close() {
	m.mu.Lock()
	var names []string
	for name := range m.segments {
		names = append(names, name)
	}
	m.mu.Unlock()
	for _, name := range names {
		m.Unwatch(name)
	}
}

// Session returns the identifier of the flow that connection tracking says began
// at start: the one that its packets are fed under.
func (m *Mirror) Session(segment string, t deception.Transport, source, destination netip.AddrPort, start time.Time) deception.SessionID {
	return m.flows.id(flowKey{segment, t, source, destination}, start, false)
}

// Know tells what is known of a session: that it began, more about it, or its end.
func (m *Mirror) Know(s *deception.Session) {
	m.config.Feed.Know(s)
	if s.Running() {
		return
	}
	m.mu.Lock()
	seg := m.segments[s.Segment]
	m.mu.Unlock()
	if seg == nil {
		return
	}
	seg.mu.Lock()
	defer seg.mu.Unlock()
	seg.over = append(seg.over, over{*s, time.Now().UnixNano()})
}

// finish ends the flows whose end was told before a time. mu is held.
func (s *segment) finish(before int64) {
	n := 0
	for n < len(s.over) && s.over[n].told < before {
		ended := &s.over[n].session
		s.stripper.Finish(ended.Transport, ended.Source, ended.Destination, ended.End.UnixNano(), ended.Reason, func(f *strip.Flow) bool {
			return f.Value.(*deception.Session).ID == ended.ID
		})
		n++
	}
	s.over = slices.Delete(s.over, 0, n)
}

// Stats tells what has been counted, by segment.
func (m *Mirror) Stats() []Stats {
	m.mu.Lock()
	var list []*segment
	for _, s := range m.segments {
		list = append(list, s)
	}
	m.mu.Unlock()
	slices.SortFunc(list, func(a, b *segment) int {
		if a.name < b.name {
			return -1
		}
		return 1
	})
	var out []Stats
	for _, s := range list {
		out = append(out, s.stats())
	}
	return out
}

func (s *segment) stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{Interface: s.link + "@" + s.name}
	if s.listener != nil {
		st.Listening, st.Problem, st.Dropped = s.listener.stats()
	}
	st.Stats = s.stripper.Stats()
	return st
}

func (s *segment) takePacket(p *wire.Captured) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finish(p.At)
	s.stripper.Take(packetOf(p))
}

func (s *segment) expire(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finish(now.Add(-ringDelay).UnixNano())
	s.stripper.Expire(now.UnixNano())
}

// bound tells whether flows to the destination go the kernel path.
func (s *segment) bound(t deception.Transport, destination netip.AddrPort) bool {
	target, ok := s.table.Lookup(s.name, t, destination)
	return ok && target.Decoy.Path == deception.PathKernel
}

// Begin is strip.Sink's. It is called with mu held, like the others.
func (s *segment) Begin(f *strip.Flow) bool {
	h, start := &f.Header, time.Unix(0, f.Start)
	session := &deception.Session{
		ID:    s.mirror.flows.id(flowKey{s.name, h.Transport, h.Source, h.Destination}, start, true),
		Start: start, Node: s.mirror.config.Node, Segment: s.name, Transport: h.Transport, Path: deception.PathKernel,
		Source: h.Source, Destination: h.Destination,
	}
	if target, ok := s.table.Lookup(s.name, h.Transport, h.Destination); ok {
		session.Decoy, session.Service, session.DestinationNAT = target.Decoy.Name, target.Service.Name, target.Address
	}
	f.Value = session
	s.mirror.config.Feed.Know(session)
	return true
}

// Packet shows a packet of a flow.
func (s *segment) Packet(f *strip.Flow, side int, at int64, ip []byte) {
	s.mirror.config.Feed.Frame(f.Value.(*deception.Session), side, at, ip)
}

// End is the record's to tell, where it knows of the flow: connection tracking takes
// two first packets of one flow for one, and not every packet for one of a flow.
func (s *segment) End(f *strip.Flow, _ int64, _ deception.EndReason) {
	s.mirror.config.Feed.Done(f.Value.(*deception.Session).ID.Key())
}
