// Package strip turns packets between gateways back into those that the intruder
// and the decoy exchanged. A gateway begins each flow with a PROXY protocol
// header (version 1 or 2) that says whose it is; a sensor that looks on finds
// the gateways' addresses, and bytes before the first request that hide the
// protocol from it. A [Stripper] follows each flow from its SYN on, reads the
// header, takes it out, moves the sequence numbers behind it and gives the
// packets the addresses that it names.
//
// It does no input or output and knows no clock but that of the packets, so that
// any sequence of packets can be tried on it. Packets come from a network: what
// is not understood is passed over and counted, and memory is bounded.
package strip

import (
	"math"
	"net/netip"
	"time"

	"decoynet/deception"
	"decoynet/internal/proxyheader"
)

// The sides of a flow.
const (
	Client = 0 // the intruder, or the gateway that speaks for it
	Server = 1
)

// Flow is a flow whose header was read.
type Flow struct {
	Header proxyheader.Header
	// From and To are the addresses of its packets: a gateway's and a server's.
	From, To netip.AddrPort
	Start    int64     // when its first packet came, Unix nanoseconds
	Bytes    [2]uint64 // of payload, by side, without the header
	// Value is the sink's.
	Value any
}

// Sink is told of flows. Its methods must not call the Stripper.
type Sink interface {
	// Begin is called when a header is whole; false passes the flow over.
	Begin(f *Flow) bool
	// Packet is given an IP packet that a side of the flow sent, valid during the
	// call. Those that came before the header was whole follow Begin at once, with
	// the times at which they came.
	Packet(f *Flow, side int, at int64, ip []byte)
	// End is called once for each flow that began. Its last packets (the
	// acknowledgement of the last FIN) may follow.
	End(f *Flow, at int64, reason deception.EndReason)
}

// Limits of a Stripper. Fields that are zero have a default.
type Limits struct {
	Waiting    int           // flows whose header is not whole; 8192
	Flows      int           // flows behind their header; 65536
	FlowBytes  int           // held of one flow until its header is whole; 256 KiB
	Held       int           // held of all of them; 32 MiB
	HeaderTime time.Duration // in which a header is to be whole; 10 s
	Idle       time.Duration // without a packet, after which a flow has ended; 1 h
	IdleUDP    time.Duration // likewise; 2 min
}

func (l *Limits) defaults() {
	set(&l.Waiting, 8192)
	set(&l.Flows, 65536)
	set(&l.FlowBytes, 256<<10)
	set(&l.Held, 32<<20)
	set(&l.HeaderTime, 10*time.Second)
	set(&l.Idle, time.Hour)
	set(&l.IdleUDP, 2*time.Minute)
}

func set[T int | time.Duration](field *T, value T) {
	if *field <= 0 {
		*field = value
	}
}

// linger is how long a flow that has ended is known, for the packets that follow.
const linger = 2 * time.Second

// Stats counts what became of packets and flows.
type Stats struct {
	Packets uint64 `json:"packets"`
	Emitted uint64 `json:"emitted"` // packets given to the sink

	// Packets that were passed over.
	Malformed uint64 `json:"malformed"`         // no TCP or UDP over IP, or lengths that contradict each other
	Fragments uint64 `json:"fragments"`         // parts of larger packets
	Corrupt   uint64 `json:"bad_checksums"`     // wrong checksums
	Stray     uint64 `json:"of_unknown_flows"`  // of flows whose beginning was not seen, or that are passed over
	NoHeaders uint64 `json:"without_header"`    // datagrams without a header, of no flow that has one
	Flows     uint64 `json:"flows"`             // flows that began
	Refused   uint64 `json:"flows_not_wanted"`  // flows that the sink did not want
	NoHeader  uint64 `json:"flows_no_header"`   // flows that began with something else
	BadHeader uint64 `json:"flows_bad_header"`  // flows with a header that contradicts itself, or names no host
	Local     uint64 `json:"flows_local"`       // the gateway's own, as health checks are (LOCAL, UNKNOWN)
	Early     uint64 `json:"flows_ended_early"` // flows that ended before a header was whole, or sent none in time
	Holes     uint64 `json:"flows_with_holes"`  // flows of whose header a part was not captured
	Overflow  uint64 `json:"flows_beyond_limit"`
	Gaps      uint64 `json:"gaps"`      // holes in flows behind their header: packets that were not captured
	GapBytes  uint64 `json:"gap_bytes"` // bytes in them

	Active  int `json:"active"`  // flows that run
	Waiting int `json:"waiting"` // flows whose header is not whole
	Held    int `json:"held"`    // bytes that are held for those
}

// key names a flow by who sent its first packet. The transport tells TCP from UDP.
type key struct {
	client, server netip.AddrPort
	transport      deception.Transport
}

// Stripper follows flows. It is not safe for concurrent use.
type Stripper struct {
	sink   Sink
	limits Limits
	stats  Stats
	flows  map[key]*flow
	// Each flow is in one of these, the one whose time is up first in front.
	waiting, running, datagrams, closing list
	// plain is nil where flows begin with a header. Else they have none, and those
	// to destinations that it names are followed.
	plain func(t deception.Transport, destination netip.AddrPort) bool
	late  map[*flow]struct{} // flows behind their header of which packets wait
	seg   Segment            // scratch
	out   builder
	// options is scratch, too: as long as TCP's can be (RFC 9293, section 3.1).
	options [40]byte
}

// New returns a Stripper that knows of no flow.
func New(sink Sink, limits Limits) *Stripper {
	limits.defaults()
	s := &Stripper{sink: sink, limits: limits, flows: map[key]*flow{}, late: map[*flow]struct{}{}}
	for _, l := range []*list{&s.waiting, &s.running, &s.datagrams, &s.closing} {
		l.init()
	}
	return s
}

// NewPlain returns a Stripper for flows without a header: those to destinations
// that bound names are followed, with the addresses that their packets have. Their
// packets come out as they are, but for super-segments and checksums that are not
// there yet.
func NewPlain(sink Sink, limits Limits, bound func(t deception.Transport, destination netip.AddrPort) bool) *Stripper {
	s := New(sink, limits)
	s.plain = bound
	return s
}

// Stats tells what has been counted.
func (s *Stripper) Stats() Stats {
	st := s.stats
	st.Active, st.Waiting = s.running.n+s.datagrams.n, s.waiting.n
	return st
}

// Take takes the next packet. Its data is not kept.
func (s *Stripper) Take(p *Packet) {
	s.stats.Packets++
	switch s.seg.parse(p) {
	case malformed:
		s.stats.Malformed++
		return
	case fragment:
		s.stats.Fragments++
		return
	case corrupt:
		s.stats.Corrupt++
		return
	}
	if s.seg.Transport == deception.UDP {
		s.takeDatagram(p)
		return
	}
	s.takeSegment(p)
}

// find returns the flow that the packet belongs to, and which side sent it.
func (s *Stripper) find() (f *flow, side int) {
	k := key{s.seg.Source, s.seg.Destination, s.seg.Transport}
	if f := s.flows[k]; f != nil {
		return f, Client
	}
	k.client, k.server = k.server, k.client
	return s.flows[k], Server
}

// Expire ends what has not moved for too long. It is to be called every second
// or so.
func (s *Stripper) Expire(now int64) {
	for f := s.waiting.first(); f != nil && now-f.Start > int64(s.limits.HeaderTime); f = s.waiting.first() {
		if f.hole != 0 {
			s.pass(f, &s.stats.Holes)
			continue
		}
		s.pass(f, &s.stats.Early)
	}
	s.flushLate(now)
	for f := s.closing.first(); f != nil && now-f.last > int64(linger); f = s.closing.first() {
		s.forget(f)
	}
	for f := s.running.first(); f != nil && now-f.last > int64(s.limits.Idle); f = s.running.first() {
		s.end(f, now, f.idleReason())
		s.forget(f)
	}
	for f := s.datagrams.first(); f != nil && now-f.last > int64(s.limits.IdleUDP); f = s.datagrams.first() {
		s.end(f, f.last, deception.EndIdle)
		s.forget(f)
	}
}

// Close ends all flows.
func (s *Stripper) Close(now int64) {
	s.flushLate(math.MaxInt64)
	for _, f := range s.flows {
		s.end(f, now, deception.EndShutdown)
		s.forget(f)
	}
}

// Finish ends the flow of these addresses that match names, for a reason that is
// known from elsewhere.
func (s *Stripper) Finish(t deception.Transport, client, server netip.AddrPort, at int64, reason deception.EndReason, match func(*Flow) bool) {
	f := s.flows[key{client, server, t}]
	if f == nil || !f.began || !match(&f.Flow) {
		return
	}
	s.end(f, at, reason)
	s.forget(f)
}

// forget drops all that is known of a flow.
func (s *Stripper) forget(f *flow) {
	s.release(f)
	delete(s.late, f)
	f.unlink()
	delete(s.flows, f.key)
}

// pass forgets a flow whose packets are of no use.
func (s *Stripper) pass(f *flow, count *uint64) {
	*count++
	s.forget(f)
}

// end tells the sink that the flow has ended, if it ever began.
func (s *Stripper) end(f *flow, at int64, reason deception.EndReason) {
	if !f.began || f.ended {
		return
	}
	f.ended = true
	s.sink.End(&f.Flow, at, reason)
}

// begin tells the sink that the flow's header is whole. False means that it is
// forgotten.
func (s *Stripper) begin(f *flow) bool {
	for s.running.n+s.datagrams.n >= s.limits.Flows {
		oldest := s.running.first()
		if oldest == nil {
			oldest = s.datagrams.first()
		}
		s.stats.Overflow++
		s.end(oldest, f.last, deception.EndOverload)
		s.forget(oldest)
	}
	if !s.sink.Begin(&f.Flow) {
		s.pass(f, &s.stats.Refused)
		return false
	}
	f.began = true
	s.stats.Flows++
	return true
}

// readHeader reads the header that b begins with, in either version. It returns
// proxyheader.ErrShort where more bytes are needed, and what is counted where it
// is of no use.
func (s *Stripper) readHeader(b []byte, transport deception.Transport) (h proxyheader.Header, n int, passed *uint64) {
	parse := proxyheader.ParseForeign
	if len(b) > 0 && b[0] == 'P' && transport == deception.TCP {
		parse = proxyheader.ParseText
	}
	h, n, err := parse(b)
	switch {
	case err == nil && h.Local:
		return h, n, &s.stats.Local
	case err == nil && (h.Transport != transport || !isHost(h.Source) || !isHost(h.Destination)):
		return h, n, &s.stats.BadHeader
	case err == nil:
		return h, n, nil
	case isShort(err):
		return h, 0, nil
	case proxyheader.Begins(b):
		return h, 0, &s.stats.BadHeader
	}
	return h, 0, &s.stats.NoHeader
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// isHost tells whether the address can be that of one host's port.
func isHost(a netip.AddrPort) bool {
	ip := a.Addr()
	return a.Port() != 0 && !ip.IsUnspecified() && !ip.IsMulticast() && ip != broadcast
}
