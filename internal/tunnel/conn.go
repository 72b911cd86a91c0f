package tunnel

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"decoynet/deception"
)

// started is what the package's clock counts from.
var started = time.Now()

// clock is monotonic and cheap to keep in a structure.
func clock() time.Duration { return time.Since(started) }

// connConfig says what a conn is and whom it tells.
type connConfig struct {
	dialed  bool // this end opens the streams
	silence int  // ticks without a byte until the peer counts as dead
	streams int  // at once, at most
	budget  *budget
	peer    hello

	serve  func(*Stream)                                 // of the end that does not open, own goroutine
	served *sync.WaitGroup                               // of these goroutines
	told   func(instance, number uint64, message []byte) // must not wait
}

// conn is one connection: the streams on it, and what waits to be written.
type conn struct {
	cfg  connConfig
	wire transport
	trip roundTrip

	held    atomic.Int64 // bytes of received data that nobody has read
	extra   atomic.Int64 // what windows grew by
	live    atomic.Int32 // streams in slots
	serving atomic.Int32 // calls of serve that run
	dropped atomic.Uint64
	quiet   atomic.Bool // no byte or no pong for a second: others come first for new streams

	done chan struct{} // closed when reader and writer are gone

	mu      sync.Mutex // of all below. A stream's mu may be held when it is taken, never the other way round
	work    sync.Cond  // the writer waits on it
	waiting bool       // it does
	slots   []slot
	free    []uint16 // slots to use again
	ready   streams  // have something to send
	bulk    streams  // had more than a frame when it was their turn
	control control
	err     error // why the connection ended
	bye     string
	timer   *time.Timer
	ticks   int
	last    uint64        // what wire.Received said at the last tick
	silent  int           // ticks since it changed
	batches int           // written since the last tick
	asked   time.Duration // when the first ping without a pong since was sent, 0 for none
}

// slot is a place for a stream, as the identifier names it.
type slot struct {
	stream *Stream
	use    uint16 // the upper half of the identifier
	used   bool
}

func streamID(place, use uint16) uint32 { return uint32(use)<<16 | uint32(place) }

// control is what waits to be written for the connection itself. Each thing is
// there once, so that a peer that asks much and reads nothing makes no queue.
type control struct {
	ping, pong bool
	echo       [8]byte   // of the pong
	refused    []refusal // streams
	message    []byte    // not begun, prefix included; nil for none
	rest       []byte    // of the message being sent
	prefix     [messagePrefix]byte
}

type refusal struct {
	id     uint32
	reason deception.EndReason
}

// maxRefusals bounds the answers to a peer that opens streams without end.
const maxRefusals = MaxStreams

// newConn makes a conn over a transport on which both ends said hello. run
// starts it.
func newConn(t transport, cfg connConfig) *conn {
	c := &conn{cfg: cfg, wire: t, done: make(chan struct{})}
	c.work.L = &c.mu
	return c
}

// run carries frames until the connection ends and returns why. first is the
// scanner that read the hello.
func (c *conn) run(first *scanner) error {
	var writer sync.WaitGroup
	writer.Go(c.writeLoop)
	c.mu.Lock()
	c.control.ping = true
	c.timer = time.AfterFunc(tickEvery, c.tick)
	c.wakeLocked()
	c.mu.Unlock()

	err := c.readLoop(first)
	bye := ""
	if errors.Is(err, ErrProtocol) {
		bye = err.Error()
	}
	c.fail(err, bye)
	first.close()
	writer.Wait()
	close(c.done)
	return c.reason()
}

// reason returns why the connection ended, nil while it runs.
func (c *conn) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// fail ends the connection and all its streams. bye is told to the peer if it
// can be.
func (c *conn) fail(err error, bye string) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err, c.bye = err, bye
	if c.timer != nil {
		c.timer.Stop()
	}
	slots := c.slots
	c.slots, c.free = nil, nil
	c.live.Store(0)
	c.wakeLocked()
	c.mu.Unlock()

	if bye == "" {
		c.wire.Close()
	} else {
		// The writer says it, if it is not stuck, and closes.
		time.AfterFunc(byePatience, func() { c.wire.Close() })
	}
	for _, s := range slots {
		if s.stream != nil {
			s.stream.broke()
		}
	}
}

// tick pings, and finds connections that are dead. It counts ticks instead of
// looking at the clock, so that a process that was stopped itself for some
// seconds does not take its peers for dead.
func (c *conn) tick() {
	c.wire.Tune()
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	received := c.wire.Received()
	if received == c.last {
		c.silent++
	} else {
		c.last, c.silent = received, 0
	}
	c.quiet.Store(c.silent >= doubtSilence || c.asked != 0 && clock()-c.asked > doubtPatience)
	var dead error
	switch {
	case c.silent >= c.cfg.silence:
		dead = fmt.Errorf("%w: no byte for %v", errSilent, time.Duration(c.silent)*tickEvery)
	case c.asked != 0 && clock()-c.asked > pongPatience && c.silent == 0 && c.ticks > 0:
		dead = fmt.Errorf("%w: no answer to a ping for %v", errNoPong, pongPatience)
	}
	// A server's pongs tell the client that it lives. It needs a ping of its own
	// where the client's are stuck, and now and then for the round trip.
	c.ticks++
	if dead == nil {
		if c.cfg.dialed || c.batches == 0 || c.ticks%8 == 0 {
			c.control.ping = true
			c.wakeLocked()
		}
		c.batches = 0
		c.timer.Reset(tickEvery)
	}
	c.mu.Unlock()
	if dead != nil {
		c.fail(dead, "")
	}
}

// wakeLocked starts the writer if it waits.
func (c *conn) wakeLocked() {
	if c.waiting {
		c.waiting = false
		c.work.Signal()
	}
}

// schedule puts a stream into the writer's queue. The caller holds the stream's
// mu and has seen that it is not queued.
func (c *conn) schedule(s *Stream) {
	c.mu.Lock()
	c.ready.push(s)
	c.wakeLocked()
	c.mu.Unlock()
}

// open makes a stream. Nothing is waited for: data may follow at once.
func (c *conn) open(header []byte, datagrams bool) (*Stream, error) {
	s := newStream(c, header, datagrams)
	s.openDue, s.queued = true, true
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	if int(c.live.Load()) >= int(c.cfg.peer.streams) {
		return nil, errFull
	}
	var place uint16
	if n := len(c.free); n > 0 {
		place, c.free = c.free[n-1], c.free[:n-1]
	} else {
		place = uint16(len(c.slots))
		c.slots = append(c.slots, slot{})
	}
	p := &c.slots[place]
	p.stream, p.used = s, true
	p.use++
	s.id = streamID(place, p.use)
	c.live.Add(1)
	c.ready.push(s)
	c.wakeLocked()
	return s, nil
}

// accept makes the stream that the peer opens. It returns nil if it refuses it.
func (c *conn) accept(f frame) (*Stream, error) {
	place, use := int(uint16(f.stream)), uint16(f.stream>>16)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	if place >= len(c.slots) {
		c.slots = append(c.slots, make([]slot, place+1-len(c.slots))...)
	}
	p := &c.slots[place]
	if p.stream != nil {
		return nil, violation("stream %#x is opened in the place of stream %#x, which has not ended", f.stream, p.stream.id)
	}
	p.use, p.used = use, true
	if int(c.live.Load()) >= c.cfg.streams || int(c.serving.Load()) >= c.cfg.streams {
		if len(c.control.refused) >= maxRefusals {
			return nil, violation("it opens streams without end")
		}
		c.control.refused = append(c.control.refused, refusal{f.stream, deception.EndOverload})
		c.wakeLocked()
		return nil, nil
	}
	s := newStream(c, append([]byte(nil), f.payload...), f.flags&flagDatagrams != 0)
	s.id = f.stream
	p.stream = s
	c.live.Add(1)
	c.serving.Add(1)
	return s, nil
}

// find returns the stream of a frame, or nil if it has ended here and the peer
// did not know that yet.
func (c *conn) find(f frame) (*Stream, error) {
	place, use := int(uint16(f.stream)), uint16(f.stream>>16)
	c.mu.Lock()
	defer c.mu.Unlock()
	if place >= len(c.slots) || !c.slots[place].used {
		if c.err != nil {
			return nil, c.err
		}
		return nil, violation("%v frame for stream %#x, which was never opened", f.kind, f.stream)
	}
	p := &c.slots[place]
	if p.use != use {
		// A server's frames may be late for a stream that the client reset, and
		// whose place it used again. The client's own are in order.
		if c.cfg.dialed {
			return nil, nil
		}
		return nil, violation("%v frame for stream %#x, while its place is that of %#x", f.kind, f.stream, streamID(uint16(place), p.use))
	}
	return p.stream, nil
}

// remove frees the place of a stream that has ended. The caller holds the
// stream's mu.
func (c *conn) remove(s *Stream) {
	c.extra.Add(-int64(s.in.extra(s.firstWindow())))
	c.mu.Lock()
	defer c.mu.Unlock()
	place := uint16(s.id)
	if int(place) >= len(c.slots) || c.slots[place].stream != s {
		return // the connection has ended, and its places with it
	}
	c.slots[place].stream = nil
	c.live.Add(-1)
	if c.cfg.dialed {
		c.free = append(c.free, place)
	}
}

// extend books memory for windows. It refuses where the connection holds much
// that nobody reads, and one stream more than half of what is left for all.
func (c *conn) extend(delta int) bool {
	if delta > 0 && (c.held.Load() > maxHeld/4 || int64(delta) > (maxExtra-c.extra.Load())/2) {
		return false
	}
	c.extra.Add(int64(delta))
	return true
}

// hold books n bytes of received data, or less than 0 for data that was read.
func (c *conn) hold(n int) {
	c.held.Add(int64(n))
	if c.cfg.budget != nil {
		c.cfg.budget.held.Add(int64(n))
	}
}

// relieve resets the stream that holds most, if the connection holds more than
// it may. So a peer that fills thousands of windows does not take the machine's
// memory, and those that are read go on.
func (c *conn) relieve() {
	held := c.held.Load()
	if held <= maxHeld && !c.cfg.budget.exceeded(held) {
		return
	}
	c.mu.Lock()
	var most *Stream
	for i := range c.slots {
		if s := c.slots[i].stream; s != nil && (most == nil || s.heldNow.Load() > most.heldNow.Load()) {
			most = s
		}
	}
	c.mu.Unlock()
	if most != nil {
		most.Reset(deception.EndOverload)
	}
}
