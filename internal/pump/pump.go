// Package pump carries the bytes of one flow between two streams of which at
// least one is no socket that the relay engine could watch: a stream of the
// tunnel, a connection on a machine without epoll. Two goroutines carry a flow,
// one a direction. FIN is carried as FIN and RST as RST, and the session learns
// who was first.
//
// A flow that is silent holds no buffer: where a stream can tell that there is
// something to read, a buffer is taken from a pool only then.
package pump

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"decoynet/deception"
)

// Stream is one side of a flow. Read and Write are called by one goroutine
// each, CloseWrite by the one that writes, Reset by any.
//
// A Stream that is an io.Closer as well is closed when the flow is over.
type Stream interface {
	// Read returns io.EOF after the other end's FIN, and an error after a reset,
	// whoever sent it. An error that has a method EndReason() deception.EndReason
	// says itself how the flow ended.
	io.Reader
	io.Writer
	// CloseWrite sends a FIN behind what was written.
	CloseWrite() error
	// Reset ends the stream at once and in both directions, and lets the other
	// end know (RST); Read and Write that wait return. The reason is for streams
	// that can carry it. Reset of a stream that is over does nothing.
	Reset(reason deception.EndReason)
}

// Lender is a Stream that brings its own buffer, and only when there is
// something in it.
type Lender interface {
	// Lend waits for bytes and returns them, or the error that Read would
	// return. They are the caller's until it calls Return, which it must do
	// before the next call.
	Lend() ([]byte, error)
	Return()
}

// Waiter is a Stream that can wait until there is something to read.
type Waiter interface {
	// WaitRead returns when Read would not wait, be it for an error.
	WaitRead() error
}

// Handle is what whoever handed a flow over keeps of it.
type Handle interface {
	// End ends the flow with a reset to both sides.
	End(reason deception.EndReason)
	// Quiet returns how long no byte has passed.
	Quiet() time.Duration
}

// Watcher is shown what a flow carries: bytes when they were read and before they
// are written on, so that no answer comes before its question. Its methods are
// called by both directions' goroutines and must not block.
type Watcher interface {
	// Data is told of one read of a side, or of one datagram. b is the caller's
	// again when it returns.
	Data(side int, b []byte, at time.Time)
	// Fin is told that a side ended its stream, after total bytes.
	Fin(side int, total uint64, at time.Time)
}

// Options are how a flow is carried.
type Options struct {
	// Idle ends the flow when no byte went either way for this long; 0 never does.
	Idle time.Duration
	// Heads keeps the first deception.HeadBytes of each side.
	Heads bool
	// Datagrams says that each Read and Write is one datagram. There is no half
	// close then: the end of one side is the end of the flow.
	Datagrams bool
	// Watch is shown the flow; nil: nobody.
	Watch Watcher
}

// Sides of a flow, and indexes into its arrays.
const (
	client = 0
	server = 1
)

// Flow is one flow. Make it with New, run it with Run.
type Flow struct {
	opts  Options
	side  [2]side
	first atomic.Uint32 // deception.EndReason of the first FIN
	ended atomic.Uint32 // deception.EndReason, set once
	last  atomic.Int64  // monotonic ns of the last byte
	timer *time.Timer   // nil without Options.Idle
}

// side is one stream as the source of a direction. Its fields belong to the
// goroutine that carries this direction.
type side struct {
	stream Stream
	source Lender // the stream, or what makes a Lender of it
	bytes  atomic.Uint64
	head   []byte
}

// New returns the flow between the intruder's stream and the service's. Both
// are the flow's from now on.
func New(clientSide, serverSide Stream, opts Options) *Flow {
	f := &Flow{opts: opts}
	for i, stream := range [...]Stream{client: clientSide, server: serverSide} {
		f.side[i].stream, f.side[i].source = stream, sourceOf(stream, opts.Datagrams)
	}
	f.last.Store(now())
	return f
}

// Run carries the session's bytes until both sides are done, and fills in how
// that came: End, Reason, bytes and heads.
func Run(s *deception.Session, clientSide, serverSide Stream, opts Options) {
	f := New(clientSide, serverSide, opts)
	f.Run()
	f.Fill(s)
}

// Run carries the flow until it is over: both sides closed in order, one was
// reset, or End was called. The streams are closed then.
func (f *Flow) Run() {
	if f.opts.Idle > 0 {
		f.timer = time.AfterFunc(time.Hour, f.checkIdle)
		f.timer.Reset(f.opts.Idle)
	}
	var back sync.WaitGroup
	back.Go(func() { f.carry(server) })
	f.carry(client)
	back.Wait()
	f.ended.CompareAndSwap(0, f.first.Load()) // both FINs have passed
	if f.timer != nil {
		f.timer.Stop()
	}
	for i := range f.side {
		if c, ok := f.side[i].stream.(io.Closer); ok {
			_ = c.Close() // nothing is owed any more: it was reset, or both FINs were passed on
		}
	}
}

// End ends the flow from outside: both sides get a reset. Only the first end of
// a flow counts.
func (f *Flow) End(reason deception.EndReason) {
	if !f.ended.CompareAndSwap(0, uint32(reason)) {
		return
	}
	for i := range f.side {
		f.side[i].stream.Reset(reason)
	}
}

// Reason returns how the flow ended, EndNone while it runs.
func (f *Flow) Reason() deception.EndReason { return deception.EndReason(f.ended.Load()) }

// Quiet returns how long no byte has passed.
func (f *Flow) Quiet() time.Duration { return time.Duration(now() - f.last.Load()) }

// Fill writes what the flow knows about its end into the session. It must not
// be called before Run has returned.
func (f *Flow) Fill(s *deception.Session) {
	s.End = time.Now()
	if !s.End.After(s.Start) {
		s.End = s.Start.Add(time.Nanosecond)
	}
	s.Reason = f.Reason()
	s.SourceBytes, s.DestinationBytes = f.side[client].bytes.Load(), f.side[server].bytes.Load()
	s.SourceHead, s.DestinationHead = f.side[client].head, f.side[server].head
}

// checkIdle ends a flow that is silent for too long. The timer is set anew only
// when it runs out, not at every read.
func (f *Flow) checkIdle() {
	left := f.opts.Idle - f.Quiet()
	if left <= 0 {
		f.End(deception.EndIdle)
		return
	}
	if f.ended.Load() == 0 {
		f.timer.Reset(left)
	}
}

// carry moves what comes from side i to the other until there is no more.
func (f *Flow) carry(i int) {
	from, to := &f.side[i], f.side[1-i].stream
	for {
		b, err := from.source.Lend()
		if len(b) > 0 || f.opts.Datagrams && err == nil {
			from.count(b, f.opts.Heads)
			f.touch()
			if f.opts.Watch != nil {
				f.opts.Watch.Data(i, b, time.Now())
			}
			_, failed := to.Write(b)
			f.touch() // the bytes may have waited for long to be taken
			from.source.Return()
			if failed != nil {
				f.End(reasonOf(1-i, failed))
				return
			}
		} else {
			from.source.Return()
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			f.endOfStream(i)
			return
		default:
			f.End(reasonOf(i, err))
			return
		}
	}
}

// endOfStream passes the FIN of side i on.
func (f *Flow) endOfStream(i int) {
	reason := deception.EndClientClosed
	if i == server {
		reason = deception.EndServiceClosed
	}
	if f.opts.Datagrams {
		f.End(reason)
		return
	}
	f.first.CompareAndSwap(0, uint32(reason))
	if f.opts.Watch != nil {
		f.opts.Watch.Fin(i, f.side[i].bytes.Load(), time.Now())
	}
	if err := f.side[1-i].stream.CloseWrite(); err != nil {
		// It cannot be half-closed: it is gone altogether.
		f.End(reasonOf(1-i, err))
	}
}

func (f *Flow) touch() { f.last.Store(now()) }

func (s *side) count(b []byte, heads bool) {
	s.bytes.Add(uint64(len(b)))
	if missing := deception.HeadBytes - len(s.head); heads && missing > 0 {
		s.head = append(s.head, b[:min(missing, len(b))]...)
	}
}

// reasonOf says what an error of side i means for the session.
func reasonOf(i int, err error) deception.EndReason {
	var knows interface{ EndReason() deception.EndReason }
	if errors.As(err, &knows) {
		if reason := knows.EndReason(); reason != deception.EndNone {
			return reason
		}
	}
	if i == client {
		return deception.EndClientReset
	}
	if errors.Is(err, syscall.ECONNREFUSED) { // ICMP port unreachable for a datagram
		return deception.EndRefused
	}
	return deception.EndServiceReset
}

// epoch makes monotonic readings plain integers.
var epoch = time.Now()

func now() int64 { return int64(time.Since(epoch)) }
