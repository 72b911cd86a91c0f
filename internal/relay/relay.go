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

// Errors of a listener's Header, and what Listener.Failed is told.
var (
	// ErrShort is returned by Listener.Header where more bytes are needed.
	ErrShort = errors.New("more bytes are needed")
	// ErrHeaderTimeout: the header was not whole within HeaderTimeout.
	ErrHeaderTimeout = errors.New("no whole header within 3 s")
	// ErrHeaderSize: it was not whole after HeaderSize bytes, or is longer.
	ErrHeaderSize = errors.New("header of more than 1024 bytes")
	// ErrHeaderEnd: the peer ended or reset the connection before it was whole, or
	// the datagram ends before it does.
	ErrHeaderEnd = errors.New("ended within the header")
)

// Limits of what a listener with a Header waits for.
const (
	HeaderTimeout = 3 * time.Second // looked at once a second
	HeaderSize    = 1024            // bytes
)

var pauses = [attempts]time.Duration{0, 0, 1 * time.Millisecond, 2 * time.Millisecond, 4 * time.Millisecond, 8 * time.Millisecond}

// Handler decides about flows. Its methods are called on the loop's own
// goroutine and must not block: no disk, no lock that is held for long.
type Handler interface {
	// Accept is told of a new flow: Session.Source, Destination, Transport and
	// Start are set, Listener says where it came in. It fills in the session and
	// may set Idle and Watch, or Take. False refuses the flow: the intruder gets a reset,
	// and Close is not called.
	Accept(f *Flow) bool
	// Open returns a nonblocking socket whose connect to the service is under
	// way, and may set Prelude. last is set on the last attempt, when ErrAgain is
	// no answer.
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

	// The rest is for listeners at which other machines hand over flows. The
	// functions are called on the loops' goroutines and must not block.

	// Allowed tells whether a peer may connect, or send datagrams. A connection
	// of another one is reset before any byte of it is read. Nil allows all.
	Allowed func(peer netip.AddrPort) bool
	// Header reads what every connection, and every datagram, begins with: it
	// sets Transport, Source and Destination of f.Session, and what else it
	// finds, and returns its size; ErrShort where buf holds only its beginning.
	// Flow.Peer is set. Accept is called when it is through; what follows is
	// data. A connection whose header is refused, does not come within
	// HeaderTimeout or is longer than HeaderSize is reset.
	Header func(buf []byte, f *Flow) (n int, err error)
	// Failed is told why a peer got no further than its header: what Header
	// returned, ErrHeaderTimeout, ErrHeaderSize or ErrHeaderEnd.
	Failed func(peer netip.AddrPort, err error)
	// Abortive says that the TCP sockets have SO_LINGER with a time of zero,
	// which those that are accepted at them inherit: should this process die,
	// the kernel resets the flows, where it would otherwise end them in order.
	Abortive bool
}

// Flow is one relayed connection, or one UDP exchange.
type Flow struct {
	Session  deception.Session
	Listener *Listener
	Idle     time.Duration // ended when no byte passed for this long
	Watch    Watcher       // may be set by Accept; nil: nobody
	Value    any           // the handler's own

	// Peer is the other end of the accepted socket; it is set where the listener
	// has a Header, elsewhere Session.Source is it.
	Peer netip.AddrPort
	// Prelude may be set by Open: bytes that the server's side gets before any
	// data, over UDP before the data of each datagram. They are in no counter.
	// The array stays with the flow's memory: append to Prelude[:0].
	Prelude []byte
	// Abortive may be set by Open: the socket that it returns has SO_LINGER with
	// a time of zero (see Listener).
	Abortive bool
	// Take may be set by Accept for a TCP flow: the engine calls it with the
	// accepted, nonblocking socket, which is the callee's from then on, and
	// forgets the flow. Neither Open nor Close is called.
	Take func(fd int)

	loop    *loop
	index   uint32 // slot on the loop
	state   flowState
	attempt uint8
	side    [2]side
	last    int64 // loop clock (ns) of the last byte or of the accept
	head    [2][deception.HeadBytes]byte
	headLen [2]uint16
	ended   deception.EndReason // what the first sign of the end was
	partial []byte              // TCP: what has come of the header; UDP: the header
	answer  *answerWay          // of a UDP flow at a listener with a Header
}

type flowState uint8

const (
	stateFree   flowState = iota
	stateHeader           // not accepted yet: its header is still to come
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
	watched    bool   // registered with epoll (the client's side only)
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
	Barred    uint64 // connections and datagrams of peers that are not allowed
	BadHeader uint64 // connections and datagrams whose header failed
	Taken     uint64 // connections that the handler took over
}

// StartOf returns the first bytes that came from one side, at most
// deception.HeadBytes. They are valid until Close returns.
func (f *Flow) StartOf(sideIndex int) []byte { return f.head[sideIndex][:f.headLen[sideIndex]] }

// Early returns what came behind the client's header in the same read, for a
// handler that takes the flow over. It is valid during Accept.
func (f *Flow) Early() []byte { return f.side[Server].pending }

// abortive tells whether the socket of a side is one whose plain close would be
// a reset.
func (f *Flow) abortive(sideIndex int) bool {
	if sideIndex == Client {
		return f.Listener.Abortive && f.answer == nil
	}
	return f.Abortive
}

func (f *Flow) keepHead(sideIndex int, b []byte) {
	if n := f.headLen[sideIndex]; n < deception.HeadBytes {
		f.headLen[sideIndex] = n + uint16(copy(f.head[sideIndex][n:], b))
	}
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
