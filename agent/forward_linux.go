package agent

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/pump"
	"decoynet/internal/relay"
)

// Forwarder is the relay's handler on a node that has segments but no gateway:
// what the engine accepts at steered sockets goes to a Carrier. The engine hands
// over connections (relay.Flow.Take); of UDP, where the socket is shared, it
// carries the datagrams to one end of a pair of sockets and the carrier goes on
// from the other.
type Forwarder struct {
	carrier Carrier
	node    string
	index   atomic.Pointer[decoyIndex]
	failed  atomic.Uint64
	udp     sync.Map // deception.SessionID -> pump.Handle of flows over UDP
}

// NewForwarder returns a forwarder that knows no decoys.
func NewForwarder(node string, carrier Carrier) *Forwarder {
	f := &Forwarder{carrier: carrier, node: node}
	f.index.Store(newDecoyIndex(&deception.State{}))
	return f
}

// SetState makes the decoys of state those that new flows are taken for, and
// ends flows of segments whose decoy is gone or leads elsewhere, with reason
// unbound.
func (f *Forwarder) SetState(state *deception.State) {
	index := newDecoyIndex(state)
	f.index.Store(index)
	f.carrier.CloseFlows(func(s *deception.Session) bool {
		if s.Segment == deception.HostSegment {
			return false
		}
		d, b := index.lookup(s.Segment, s.Transport, s.Destination)
		return d == nil || d.Name != s.Decoy || b.Service != s.Service
	}, deception.EndUnbound)
}

// Failed returns how many flows were lost because a socket could not be had.
func (f *Forwarder) Failed() uint64 { return f.failed.Load() }

// Accept names the session, and takes a connection away from the engine.
func (f *Forwarder) Accept(flow *relay.Flow) bool {
	s := &flow.Session
	d, b := f.index.Load().lookup(flow.Listener.Name, s.Transport, s.Destination)
	if d == nil {
		return false
	}
	s.ID = deception.NewSessionID(s.Start)
	s.Node, s.Segment, s.Path = f.node, flow.Listener.Name, deception.PathRelay
	s.Decoy, s.Service = d.Name, b.Service
	if s.Transport == deception.UDP {
		flow.Idle = min(d.Idle, udpIdle)
		if d.Idle <= 0 {
			flow.Idle = udpIdle
		}
		return true
	}
	session, idle := *s, d.Idle // the flow is the engine's again when Take returns
	flow.Take = func(fd int) { f.take(fd, &session, idle) }
	return true
}

// take hands a connection to the carrier. It runs on the relay's loop.
func (f *Forwarder) take(fd int, s *deception.Session, idle time.Duration) {
	// Data of a flow mostly comes in small pieces that are waited for.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	intruder, err := pump.NewSocket(fd, "intruder", false)
	if err != nil {
		f.failed.Add(1)
		_ = unix.Close(fd)
		return
	}
	if f.carrier.Carry(intruder, s, idle) == nil {
		intruder.Reset(deception.EndOverload)
	}
}

// Open returns the engine's end of a pair of sockets for a UDP flow. They are of
// datagrams, not of SOCK_SEQPACKET: there the end of the other side would look
// like an empty datagram, again and again. When the carrier ends the flow, the
// engine hears ECONNREFUSED with the intruder's next datagram.
func (f *Forwarder) Open(flow *relay.Flow, _ bool) (int, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		f.failed.Add(1)
		return -1, fmt.Errorf("make sockets for a flow: %w", err)
	}
	intruder, err := pump.NewSocket(ends[1], "intruder", true)
	if err != nil {
		f.failed.Add(1)
		_ = unix.Close(ends[0])
		return -1, err
	}
	handle := f.carrier.Carry(intruder, &flow.Session, flow.Idle)
	if handle == nil {
		intruder.Reset(deception.EndOverload)
		_ = unix.Close(ends[0])
		return -1, unix.ENOBUFS // the carrier has said why
	}
	f.udp.Store(flow.Session.ID, handle)
	return ends[0], nil
}

// Opened has nothing to do: whether the service takes the flow shows later.
func (f *Forwarder) Opened(*relay.Flow) {}

// Close ends the carrier's half of a UDP flow that the engine has ended.
func (f *Forwarder) Close(flow *relay.Flow) {
	if handle, ok := f.udp.LoadAndDelete(flow.Session.ID); ok {
		handle.(pump.Handle).End(flow.Session.Reason)
	}
}
