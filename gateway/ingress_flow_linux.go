package gateway

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/proxyheader"
	"decoynet/internal/pump"
	"decoynet/internal/relay"
	"decoynet/internal/tunnel"
)

// The five steps of flow.go for flows that come through the tunnel, or from this
// machine's own addresses: not on a relay's loop, but on goroutines of their own,
// which may wait.

// inflow is one such flow.
type inflow struct {
	relay.Flow
	bound deception.Session // the session as it was bound; it does not change
	in    *Ingress
	agent pump.Stream // the intruder's side

	mu     sync.Mutex // guards the rest
	socket *pump.Socket
	flow   *pump.Flow // once it relays
	ended  deception.EndReason
}

const (
	connectTimeout = 5 * time.Second // until a service must have accepted
	openAttempts   = 6
)

// openPauses are the waits before each further attempt to dial, as the relay's.
var openPauses = [openAttempts]time.Duration{0, 200 * time.Microsecond, time.Millisecond, 2 * time.Millisecond, 4 * time.Millisecond, 8 * time.Millisecond}

// Serve takes a stream of an agent: it reads whose flow it is, checks that the
// agent may bring it, and carries it to its end.
func (in *Ingress) Serve(name string, stream *tunnel.Stream) {
	node, _ := nodeOf(name)
	s, h, err := in.accept(name, stream.Header(), stream.Datagrams())
	if err != nil {
		stream.Reset(deception.EndDenied)
		in.refused.note(time.Now(), h.Source, h.Destination, "header", fmt.Sprintf("a flow of node %s was refused: %v", node, err))
		return
	}
	if h.Node != node {
		stream.Reset(deception.EndDenied)
		in.claims.note(time.Now(), &s, &h)
		return
	}
	f := &inflow{in: in, agent: pump.NewTunnel(stream)}
	f.Session = s
	if reason := in.bind(f, &h); reason != deception.EndNone {
		stream.Reset(reason)
		return
	}
	f.run()
}

// Carry takes a flow of this machine's own addresses, which needs no tunnel. It
// is what an agent's listen mode hands its flows to on a gateway's node.
func (in *Ingress) Carry(intruder pump.Stream, s *deception.Session, _ time.Duration) pump.Handle {
	f := &inflow{in: in, agent: intruder}
	f.Session = *s
	if s.ID.IsZero() {
		f.Session.ID = deception.NewSessionID(s.Start)
	}
	select {
	case <-in.done:
		intruder.Reset(deception.EndShutdown)
		return nil
	default:
	}
	if reason := in.bind(f, nil); reason != deception.EndNone {
		intruder.Reset(reason)
		return nil
	}
	in.wg.Go(f.run)
	return f
}

// accept reads a stream's header and makes a session of it. The clock is this
// machine's; the identifier is the agent's, under which it records what this
// side cannot know.
func (in *Ingress) accept(name string, header []byte, datagrams bool) (deception.Session, proxyheader.Header, error) {
	h, n, err := proxyheader.Parse(header)
	node, _ := nodeOf(name)
	switch {
	case err != nil:
		return deception.Session{}, h, err
	case n != len(header):
		err = fmt.Errorf("%d bytes follow the header", len(header)-n)
	case h.Local:
		err = errors.New("the header is for no flow")
	case datagrams != (h.Transport == deception.UDP):
		err = fmt.Errorf("a flow over %s in a stream of another kind", h.Transport)
	case h.Node == "":
		err = errors.New("the header names no node")
	case h.Session[6]>>4 != 7 || h.Session[8]>>6 != 2:
		err = fmt.Errorf("session identifier %s is no UUID of version 7", h.Session)
	case !unicast(h.Source) || !unicast(h.Destination):
		err = fmt.Errorf("a flow from %s to %s cannot be", h.Source, h.Destination)
	}
	if err == nil {
		err = in.check(name) // cut off since
	}
	return deception.Session{
		ID: h.Session, Start: time.Now(), Node: node, Segment: h.Segment, Transport: h.Transport,
		Source: h.Source, Destination: h.Destination,
	}, h, err
}

func unicast(a netip.AddrPort) bool {
	return a.Port() != 0 && a.Addr().IsValid() && !a.Addr().IsUnspecified() && !a.Addr().IsMulticast()
}

// bind leads the flow by the table and books its place, or says why not. The
// header is nil for a flow that no agent brought.
func (in *Ingress) bind(f *inflow, h *proxyheader.Header) deception.EndReason {
	s := &f.Session
	table := in.gateway.Table()
	target, idle, ok := in.gateway.bind(s)
	if !ok || target.Decoy.Node != s.Node {
		return in.unbound(f, h)
	}
	f.Idle, f.bound = idle, *s
	in.flowsMu.Lock()
	_, replayed := in.flows[s.ID]
	full := len(in.flows) >= in.cfg.MaxFlows
	if !replayed && !full {
		in.flows[s.ID] = f
	}
	in.flowsMu.Unlock()
	switch {
	case replayed:
		in.refused.note(time.Now(), s.Source, s.Destination, "replayed session",
			fmt.Sprintf("node %s opened session %s a second time while it runs", s.Node, s.ID))
		return deception.EndDenied
	case full:
		in.overload.Add(1)
		in.record(s, deception.EndOverload)
		return deception.EndOverload
	}
	in.accepted.Add(1)
	f.Watch = in.watch(s)
	if in.gateway.Table() != table && in.misled(&f.bound) {
		f.End(deception.EndUnbound) // the table was exchanged before CloseFlows could know of the flow
	}
	return deception.EndNone
}

// unbound ends a flow that the table leads nowhere. Where the decoy is the
// node's, its service just has no address of that family; else the agent speaks
// for what it was not given.
func (in *Ingress) unbound(f *inflow, h *proxyheader.Header) deception.EndReason {
	s := &f.Session
	if d, b := decoyAt(in.state.Load(), s); d != nil {
		s.Decoy, s.Service, s.Path = d.Name, b.Service, deception.PathRelay
		in.record(s, deception.EndRefused)
		return deception.EndRefused
	}
	if h == nil {
		return deception.EndUnbound // withdrawn in this moment
	}
	in.claims.note(time.Now(), s, h)
	return deception.EndDenied
}

// decoyAt returns the decoy of the session's node that stands at its
// destination, and the binding, whatever they lead to.
func decoyAt(state *deception.State, s *deception.Session) (*deception.Decoy, *deception.Binding) {
	for i := range state.Decoys {
		d := &state.Decoys[i]
		if d.Node != s.Node || d.Segment != s.Segment {
			continue
		}
		b := d.Lookup(s.Transport, s.Destination.Port())
		if b == nil {
			continue
		}
		if d.Any {
			return d, b
		}
		for _, r := range d.Addresses {
			if r.Contains(s.Destination.Addr()) {
				return d, b
			}
		}
	}
	return nil, nil
}

// watch has a flow shown to who analyses. It has no loop: the flows of the tunnel
// are spread over the lanes by their identifiers.
func (in *Ingress) watch(s *deception.Session) relay.Watcher {
	if in.gateway.cfg.Feed == nil {
		return nil
	}
	return in.gateway.cfg.Feed.Begin(s, int(s.ID[len(s.ID)-1]))
}

// record writes down a session that was over before it had begun. The intruder saw
// a handshake and a reset.
func (in *Ingress) record(s *deception.Session, reason deception.EndReason) {
	s.End, s.Reason = time.Now(), reason
	if w := in.watch(s); w != nil {
		w.Close(s, s.End)
	}
	in.gateway.cfg.Recorder.Ended(s)
}

// run opens the flow, relays it and closes it.
func (f *inflow) run() {
	g := f.in.gateway
	s := &f.Session
	flow, reason := f.open()
	if flow == nil {
		f.agent.Reset(reason)
		f.forget()
		s.End, s.Reason = time.Now(), reason
	} else {
		flow.Run()
		f.forget()
		flow.Fill(s)
	}
	if f.Watch != nil {
		f.Watch.Close(s, s.End)
	}
	g.Close(&f.Flow)
}

// open dials the service and waits until it has accepted. Without a flow the
// reason says why not.
func (f *inflow) open() (*pump.Flow, deception.EndReason) {
	s := &f.Session
	fd, err := f.dial()
	if err != nil {
		return nil, f.whyNot(err)
	}
	datagrams := s.Transport == deception.UDP
	socket, err := pump.NewSocket(fd, "service "+s.Service, datagrams)
	if err != nil {
		_ = unix.Close(fd)
		return nil, f.whyNot(err)
	}
	socket.Abortive = f.Abortive
	f.mu.Lock()
	f.socket = socket // so that End can end the wait
	f.mu.Unlock()
	if !datagrams {
		err = socket.Connected(connectTimeout)
		if err == nil && len(f.Prelude) > 0 {
			_, err = socket.Write(f.Prelude)
		}
	}
	if err != nil {
		socket.Reset(deception.EndRefused)
		return nil, f.whyNot(err)
	}
	var service pump.Stream = socket
	if datagrams && len(f.Prelude) > 0 {
		service = &prefixed{Socket: socket, prefix: f.Prelude}
	}
	opts := pump.Options{Idle: f.Idle, Heads: !f.in.gateway.noHeads.Load(), Datagrams: datagrams}
	if f.Watch != nil {
		opts.Watch = f.Watch
	}
	flow := pump.New(f.agent, service, opts)
	f.mu.Lock()
	f.flow = flow
	ended := f.ended
	f.mu.Unlock()
	if ended != deception.EndNone {
		flow.End(ended) // meanwhile
	}
	f.in.gateway.Opened(&f.Flow)
	return flow, deception.EndNone
}

// dial calls Gateway.Open, again after a pause where that may help.
func (f *inflow) dial() (int, error) {
	for attempt := range openAttempts {
		time.Sleep(openPauses[attempt])
		if f.endedBy() != deception.EndNone {
			return -1, errEnded
		}
		fd, err := f.in.gateway.Open(&f.Flow, attempt == openAttempts-1)
		if !errors.Is(err, relay.ErrAgain) {
			return fd, err
		}
	}
	return -1, relay.ErrAgain // Open does not say so to the last attempt
}

var errEnded = errors.New("the flow was ended while it was opened")

func (f *inflow) endedBy() deception.EndReason {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ended
}

// whyNot says how a session ends that could not be opened.
func (f *inflow) whyNot(err error) deception.EndReason {
	if reason := f.endedBy(); reason != deception.EndNone {
		return reason
	}
	f.in.cfg.Log.Debug("flow not opened", "session", f.Session.ID.String(), "service", f.Session.Service, "error", err)
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOBUFS) {
		f.in.overload.Add(1)
		return deception.EndOverload
	}
	return deception.EndRefused
}

// forget gives the flow's place back.
func (f *inflow) forget() {
	f.in.flowsMu.Lock()
	defer f.in.flowsMu.Unlock()
	if f.in.flows[f.bound.ID] == f {
		delete(f.in.flows, f.bound.ID)
	}
}

// End implements pump.Handle.
func (f *inflow) End(reason deception.EndReason) {
	f.mu.Lock()
	if f.ended == deception.EndNone {
		f.ended = reason
	}
	flow, socket := f.flow, f.socket
	f.mu.Unlock()
	switch {
	case flow != nil:
		flow.End(reason)
	case socket != nil:
		socket.Reset(reason) // nobody waits for the service any more
	}
}

// Quiet implements pump.Handle.
func (f *inflow) Quiet() time.Duration {
	f.mu.Lock()
	flow := f.flow
	f.mu.Unlock()
	if flow == nil {
		return 0
	}
	return flow.Quiet()
}

// prefixed is a socket of datagrams each of which begins with the same bytes.
type prefixed struct {
	*pump.Socket
	prefix []byte
	buf    []byte
}

// Write sends one datagram behind the prefix.
func (p *prefixed) Write(b []byte) (int, error) {
	p.buf = append(append(p.buf[:0], p.prefix...), b...)
	_, err := p.Socket.Write(p.buf)
	return len(b), err
}
