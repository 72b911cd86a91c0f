// Package capture feeds analysis with flows that packet sockets see on a link. A
// [Capture] takes those between gateways, and package strip takes the gateways out
// of them. It serves gateways that are not decoynet's (HAProxy with send-proxy), and
// machines that see the flows of decoynet's own gateways pass by. A [Mirror] takes
// those of the kernel path, as they are.
package capture

import (
	"net/netip"
	"time"

	"decoynet/deception"
	"decoynet/internal/proxyheader"
	"decoynet/internal/strip"
)

// Feed is where packets go. Its methods never block.
type Feed interface {
	// Frame shows an IP packet that a side of the session sent, at a time in Unix
	// nanoseconds. It keeps nothing of ip.
	Frame(s *deception.Session, side int, at int64, ip []byte)
	// Know says what is known of a session.
	Know(s *deception.Session)
	// Done says that a session shows no more packets; what else there is to know of
	// its end may come later, or never.
	Done(k deception.SessionKey)
}

// Recorder takes the sessions of flows that nobody else records. Its methods
// never block.
type Recorder interface {
	Started(s *deception.Session)
	Ended(s *deception.Session)
}

// sessions makes sessions of flows. It is a strip.Sink.
type sessions struct {
	node     string
	feed     Feed
	recorder Recorder
	service  func(deception.Transport, netip.AddrPort) string
	fed      func(deception.SessionKey) bool
	foreign  uint64 // flows that had no session before
}

// flow is what a strip.Flow's value holds.
type flow struct {
	session deception.Session
	own     bool // the session is recorded by the gateway that made it
}

// isOwn tells whether a gateway of decoynet made the identifier: others may use
// any bytes.
func isOwn(id deception.SessionID) bool {
	return !id.IsZero() && id.Key().ID() == id
}

// Begin makes the session of a flow, or finds it in the header.
func (s *sessions) Begin(f *strip.Flow) bool {
	h := &f.Header
	v := &flow{own: isOwn(h.Session)}
	if v.own && s.fed != nil && s.fed(h.Session.Key()) {
		return false
	}
	start := time.Unix(0, f.Start)
	v.session = deception.Session{
		Start: start, Transport: h.Transport, Path: deception.PathRelay,
		Source: h.Source, Destination: h.Destination, DestinationNAT: f.To,
	}
	v.name(h)
	if v.own {
		v.session.ID = h.Session
	} else {
		v.session.ID = deception.NewSessionID(start)
		v.session.Node, v.session.SourceNAT, v.session.SourceMode = s.node, f.From, deception.SourceMasquerade
		if s.service != nil && v.session.Service == "" {
			v.session.Service = s.service(h.Transport, f.To)
		}
		s.foreign++
	}
	f.Value = v
	s.feed.Know(&v.session)
	if !v.own {
		s.recorder.Started(&v.session)
	}
	return true
}

// name takes over what the header says of where the flow came in.
func (v *flow) name(h *proxyheader.Header) {
	v.session.Node, v.session.Segment, v.session.Decoy, v.session.Service = h.Node, h.Segment, h.Decoy, h.Service
	if v.own && h.Target.IsValid() {
		v.session.DestinationNAT = h.Target
	}
}

// Packet shows a packet of a flow.
func (s *sessions) Packet(f *strip.Flow, side int, at int64, ip []byte) {
	s.feed.Frame(&f.Value.(*flow).session, side, at, ip)
}

// End records how the flow ended.
func (s *sessions) End(f *strip.Flow, at int64, reason deception.EndReason) {
	v := f.Value.(*flow)
	v.session.End, v.session.Reason = time.Unix(0, at), reason
	v.session.SourceBytes, v.session.DestinationBytes = f.Bytes[strip.Client], f.Bytes[strip.Server]
	s.feed.Know(&v.session)
	if !v.own {
		s.recorder.Ended(&v.session)
	}
}
