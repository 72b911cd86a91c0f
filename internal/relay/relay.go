// Package relay carries bytes between two sockets for very many flows at once.
//
// It is an event loop of our own on epoll(7), edge triggered, not two
// goroutines and two netpoll registrations a connection: a short connection
// then costs the system calls it cannot do without and about five microseconds
// of user space, and an idle flow costs a kilobyte. Each [Engine] runs a few
// loops; a flow lives on the loop that accepted it from first packet to close,
// so nothing about a flow is ever locked.
//
// The package knows nothing of decoys: a [Handler] says where a flow leads and
// hears how it ended. Half-close is carried as half-close and reset as reset.
// Data is copied through one buffer a loop; a direction that proves large is
// spliced through a pipe, which it holds only while bytes are in it.
package relay

import (
	"errors"
	"net/netip"
	"time"

	"decoynet/deception"
)

// Sides of a flow, and indexes into its arrays.
const (
	Client = 0 // the intruder's side
	Server = 1 // the service's side
)

// ErrAgain is returned by Handler.Open where the same call may work in a moment
// (a source port still held by a connection that is closing). The engine calls
// again, with pauses that add up to about 15 ms, and says which attempt it is.
var ErrAgain = errors.New("try again")

// attempts is how often Open is called at most; the last call must not return
// ErrAgain. pauses are the waits before each further attempt: the first is only
// "after all that this loop has already heard", which is enough for nearly all.
const attempts = 6

var pauses = [attempts]time.Duration{0, 0, 1 * time.Millisecond, 2 * time.Millisecond, 4 * time.Millisecond, 8 * time.Millisecond}

// Handler decides about flows. Its methods are called on the loop's own
// goroutine and must not block: no disk, no lock that is held for long.
type Handler interface {
	// Accept is told of a new flow: Session.Source, Destination, Transport and
	// Start are set, Listener says where it came in. It fills in the session and
	// may set Idle. False refuses the flow: the intruder gets a reset, and Close
	// is not called.
	Accept(f *Flow) bool
	// Open returns a nonblocking socket whose connect to the service is under
	// way. last is set on the last attempt, when ErrAgain is no answer.
	Open(f *Flow, last bool) (fd int, err error)
	// Close is told, exactly once for each accepted flow, that it is over.
	// Session.End, Reason, bytes and heads are set. The flow must not be kept.
	Close(f *Flow)
	// Opened is told that the service accepted (TCP) or that the socket stands
	// (UDP). SourceNAT and DestinationNAT are the handler's to set before.
	Opened(f *Flow)
}

// Listener is what sockets were registered with; it comes back in each flow.
type Listener struct {
	Name string // the segment
	// Socket makes a socket in the namespace that the listener lives in; UDP
	// flows answer the intruder from one bound to the decoy's address and port.
	// It is called on a loop's goroutine.
	Socket func(domain, typ int) (fd int, err error)
}

// Flow is one relayed connection, or one UDP exchange.
type Flow struct {
	Session  deception.Session
	Listener *Listener
	Idle     time.Duration // ended when no byte passed for this long
	Value    any           // the handler's own

	loop    *loop
	index   uint32 // slot on the loop
	state   flowState
	attempt uint8
	side    [2]side
	last    int64 // loop clock (ns) of the last byte or of the accept
	head    [2][deception.HeadBytes]byte
	headLen [2]uint16
	ended   deception.EndReason // what the first sign of the end was
}

type flowState uint8

const (
	stateFree flowState = iota
	stateOpening
	stateConnecting
	stateRelaying
)

// side is one socket of a flow, as the source of one direction and the
// destination of the other.
type side struct {
	fd         int
	pending    []byte // bytes read from the other side that this socket would not take yet
	pipe       *pipe  // the same in splice mode: holds bytes meant for this socket
	noDelay    bool   // TCP_NODELAY is set
	outWatched bool   // registered with EPOLLOUT
	writes     bool   // something was written already
	eof        bool   // FIN was read from this socket
	shut       bool   // FIN was sent on this socket
	hup        bool   // epoll said that FIN is in the receive queue
	spliced    bool   // what comes from it went through a pipe at least once
	queued     bool   // on the loop's list of sides to read on
	bytes      uint64 // payload read from this socket
}

// Config is what an engine is made with. Zero values take the defaults.
type Config struct {
	Loops          int           // event loops (default: one per CPU)
	MaxFlows       int           // flows at once over all loops (default: by RLIMIT_NOFILE)
	MaxUDPFlows    int           // of those, UDP (default: a quarter)
	ConnectTimeout time.Duration // until a service must have accepted (default 5 s)
	SpliceAfter    uint64        // bytes of one direction after which it is spliced (default 256 KiB; 0 takes the default)
	NoSplice       bool          // never splice
}

// Stats are counters since the engine started.
type Stats struct {
	Active    int64  // flows now
	ActiveUDP int64  // of those, UDP
	Accepted  uint64 // flows accepted
	Refused   uint64 // flows the handler did not take
	Overload  uint64 // flows and datagrams turned away because a limit was reached
	Retries   uint64 // calls of Open beyond the first
	Spliced   uint64 // directions that went over to splice
	Truncated uint64 // UDP datagrams lost to a full or failing socket
}

// StartOf returns the first bytes that came from one side, at most
// deception.HeadBytes. They are valid until Close returns.
func (f *Flow) StartOf(sideIndex int) []byte { return f.head[sideIndex][:f.headLen[sideIndex]] }

func (f *Flow) keepHead(sideIndex int, b []byte) {
	if n := f.headLen[sideIndex]; n < deception.HeadBytes {
		f.headLen[sideIndex] = n + uint16(copy(f.head[sideIndex][n:], b))
	}
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
