package tunnel

import (
	"sync"
	"sync/atomic"
	"time"

	"decoynet/deception"
)

// Stream is one flow over a tunnel. Its methods may be called by several
// goroutines at once; Read and Write do not hold up each other.
//
// A stream ends when both ends have called CloseWrite, with Reset, or with its
// connection. What had arrived until then can still be read.
type Stream struct {
	conn      *conn
	header    []byte
	id        uint32
	datagrams bool
	next      *Stream // in a queue of the writer

	reading sync.Mutex // one Read at a time; guards rest and eaten
	rest    bufferList // taken out of arrived, but not read to the end
	eaten   int        // read since in was last told

	writing sync.Mutex // one Write at a time, so that their bytes do not mix

	mu       sync.Mutex // of all below
	readable sync.Cond
	writable sync.Cond

	arrived  bufferList
	heldNow  atomic.Int64 // memory in arrived; written under mu
	whole    int          // datagrams in arrived that are complete
	piece    int          // bytes of the one that is not
	in       window
	grant    int // to tell the peer
	deadline time.Time
	alarm    *time.Timer

	leaving bufferList // each buffer has room for a header before its data
	backlog int        // bytes in leaving
	out     int        // bytes the peer allows us to send
	dropped uint64     // datagrams

	reset *ResetError // why the stream ended before its time

	queued     bool // in a queue of the writer
	openDue    bool // the peer does not know of the stream yet
	resetDue   bool // the peer is to be told of our reset
	finDue     bool // nothing more will be written
	finSent    bool
	finArrived bool
	discard    bool // nobody reads any more
	ended      bool // its place on the connection is free
}

func newStream(c *conn, header []byte, datagrams bool) *Stream {
	s := &Stream{conn: c, header: header, datagrams: datagrams}
	s.readable.L, s.writable.L = &s.mu, &s.mu
	first := s.firstWindow()
	s.in = window{size: first, credit: first}
	s.out = int(c.cfg.peer.window)
	if datagrams {
		s.out *= datagramFirst
	}
	return s
}

// firstWindow is what the peer may send before it is told more.
func (s *Stream) firstWindow() int {
	if s.datagrams {
		return firstWindow * datagramFirst
	}
	return firstWindow
}

// Header returns the bytes that the stream was opened with.
func (s *Stream) Header() []byte { return s.header }

// Datagrams tells whether each Read and each Write carries one datagram.
func (s *Stream) Datagrams() bool { return s.datagrams }

// Dropped returns how many datagrams were not sent because the peer, or the way
// to it, took no more.
func (s *Stream) Dropped() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dropped
}

// CloseWrite tells the peer that nothing more will be written (FIN); it reads
// io.EOF after what was. Reading goes on. It returns a *ResetError if the stream
// was reset, and nil if it was closed before.
func (s *Stream) CloseWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reset != nil {
		return s.reset
	}
	if !s.finDue {
		s.finDue = true
		s.writable.Broadcast()
		s.scheduleLocked()
	}
	return nil
}

// Reset ends the stream in both directions. The peer gets what was written
// before, as far as it may be sent now, then a *ResetError with the reason
// (EndNone becomes EndShutdown); calls that wait at this end get the same. A
// stream that has ended stays as it is, but what it holds unread is given up.
func (s *Stream) Reset(reason deception.EndReason) {
	if reason == deception.EndNone {
		reason = deception.EndShutdown
	}
	s.mu.Lock()
	s.discardLocked()
	if s.reset == nil && !s.ended && !(s.closedLocked() && s.leaving.head == nil) {
		s.reset = &ResetError{reason}
		s.resetDue = true
		// Also where the peer has not heard of the stream yet: a flow that is over
		// before its first byte, such as a port scan's, is told of by the peer alone.
		s.scheduleLocked()
	}
	s.readable.Broadcast()
	s.writable.Broadcast()
	s.mu.Unlock()
	if s.reading.TryLock() {
		s.rest.free()
		s.reading.Unlock()
	}
}

// Close resets the stream with EndShutdown unless both ends have called
// CloseWrite; then what was written before still goes to the peer. A stream that
// was read to its end and closed for writing needs no Close.
func (s *Stream) Close() error {
	s.mu.Lock()
	closed := s.closedLocked()
	if closed {
		s.discardLocked()
	}
	s.mu.Unlock()
	if !closed {
		s.Reset(deception.EndShutdown)
	}
	return nil
}

// closedLocked tells whether both ends have called CloseWrite.
func (s *Stream) closedLocked() bool { return s.finDue && s.finArrived }

// discardLocked gives up what arrived and whatever arrives.
func (s *Stream) discardLocked() {
	s.discard = true
	s.whole = 0
	if held := s.arrived.free(); held > 0 {
		s.heldNow.Store(0)
		s.conn.hold(-held)
	}
}

// broke ends the stream because its connection has ended.
func (s *Stream) broke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	if s.reset == nil {
		s.reset = &ResetError{deception.EndGateway}
	}
	s.endLocked()
}

// wasReset ends the stream because the peer reset it.
func (s *Stream) wasReset(reason deception.EndReason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	if s.reset == nil {
		s.reset = &ResetError{reason}
	}
	s.endLocked()
}

// endLocked frees the stream's place on the connection, and who waits.
func (s *Stream) endLocked() {
	s.ended = true
	s.leaving.free()
	s.backlog = 0
	s.grant = 0
	if s.alarm != nil {
		s.alarm.Stop() // no Read waits any more
	}
	s.conn.remove(s)
	s.readable.Broadcast()
	s.writable.Broadcast()
}

// scheduleLocked lets the writer look at the stream.
func (s *Stream) scheduleLocked() {
	if !s.queued && !s.ended {
		s.queued = true
		s.conn.schedule(s)
	}
}
