package relay

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
)

// loop is one event loop: one goroutine, one epoll instance. All fields but
// those under mu belong to that goroutine.
type loop struct {
	engine *Engine
	number int // of the engine's loops
	epoll  int
	wakeFD int
	// spareFD is given up for a moment when descriptors run out.
	spareFD int
	events  []unix.EpollEvent
	buf     []byte // what is read and written in one go
	now     int64  // monotonic ns, read once a round
	wall    time.Time

	slots []slot
	freed []uint32 // indexes of free slots
	pool  []*Flow  // flows to use again
	udp   map[udpKey]*Flow
	peers map[peerKey]*Flow // of those with headers, the newest one of each peer

	retry     []retryAt // flows whose Open said ErrAgain
	ready     []sideRef // sides that have more to read although epoll will not say so again
	nextSweep int64
	pipes     pipePool
	scratch   Flow // what a datagram's header says goes here first

	mu       sync.Mutex
	commands []command
	stopping bool
}

// slot is what one registration with epoll leads to. Its index and generation
// ride in the event, so an event that was already fetched for a closed
// descriptor is recognised and dropped.
type slot struct {
	generation uint32
	flow       *Flow
	listener   *listener
}

type listener struct {
	*Listener
	fd        int
	transport deception.Transport
	family    int  // AF_INET or AF_INET6
	wildcard  bool // bound to no address
}

type sideRef struct {
	flow  *Flow
	index uint8
	slot  uint32
	gen   uint32
}

type retryAt struct {
	sideRef
	due int64
}

type command struct {
	run  func() error
	done chan error
}

const (
	bufferSize   = 64 << 10 // bytes; also the most that a stalled flow keeps a direction
	eventsARound = 256
	sweepEvery   = int64(time.Second)
	wakeSlot     = 0 // slot 0 is the loop's own eventfd
	// edgeIn is what an intruder's side is registered with, edgeInOut a
	// service's, whose connect ends with EPOLLOUT, and any side that once would
	// not take bytes: registered for writing from the start, every new socket
	// would raise an event that says nothing. EPOLLRDHUP tells that FIN stands in
	// the queue, which saves the read that would only find EAGAIN.
	edgeIn    = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff
	edgeInOut = edgeIn | unix.EPOLLOUT
)

func newLoop(e *Engine, number int) (*loop, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll instance: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(ep)
		return nil, fmt.Errorf("create eventfd: %w", err)
	}
	l := &loop{
		engine: e, number: number, epoll: ep, wakeFD: wake, spareFD: spareDescriptor(),
		events: make([]unix.EpollEvent, eventsARound),
		buf:    make([]byte, bufferSize),
		slots:  make([]slot, 1, 1024),
		udp:    map[udpKey]*Flow{},
		peers:  map[peerKey]*Flow{},
		pipes:  pipePool{limit: 256},
	}
	if e := rawEpoll(ep, unix.EPOLL_CTL_ADD, wake, unix.EPOLLIN, wakeSlot); e != 0 {
		l.free()
		return nil, fmt.Errorf("watch eventfd: %w", e)
	}
	return l, nil
}

func (l *loop) free() {
	l.pipes.close()
	unix.Close(l.epoll)
	unix.Close(l.wakeFD)
	unix.Close(l.spareFD)
}

// spareDescriptor returns a descriptor that stands for nothing, or -1.
func spareDescriptor() int {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return -1
	}
	return fd
}

// do runs f on the loop's goroutine and waits for it.
func (l *loop) do(f func() error) error {
	done := make(chan error, 1)
	l.mu.Lock()
	if l.stopping {
		l.mu.Unlock()
		return fmt.Errorf("relay loop is stopped")
	}
	l.commands = append(l.commands, command{run: f, done: done})
	l.mu.Unlock()
	l.wake()
	return <-done
}

func (l *loop) stop() {
	l.mu.Lock()
	l.stopping = true
	l.mu.Unlock()
	l.wake()
}

func (l *loop) wake() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(l.wakeFD, one[:]) // EAGAIN means it is awake already
}

func (l *loop) run() {
	// Locked, because UDP flows move this thread into a segment's namespace
	// for the length of one socket call.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	l.tick()
	l.nextSweep = l.now + sweepEvery
	for {
		n, errno := epollWait(l.epoll, l.events, l.timeout())
		l.tick()
		if errno != 0 && errno != unix.EINTR {
			panic(fmt.Sprintf("relay: epoll_pwait: %v", errno)) // EBADF or EFAULT: a bug of ours
		}
		for i := range max(n, 0) {
			l.dispatch(&l.events[i])
		}
		l.drainReady()
		l.runRetries()
		if l.now >= l.nextSweep {
			l.sweep()
			l.nextSweep = l.now + sweepEvery
		}
		if !l.runCommands() {
			return
		}
		if n > 0 {
			// Where others wait for this processor, they are mostly those who
			// will bring the next events: let them, and wake once for all of it.
			// Where nobody waits it costs a third of a microsecond.
			unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		}
	}
}

func (l *loop) tick() {
	l.wall = time.Now()
	l.now = int64(time.Since(epoch))
}

// epoch makes monotonic readings plain integers.
var epoch = time.Now()

// timeout returns how many milliseconds the loop may sleep.
func (l *loop) timeout() int {
	if len(l.ready) > 0 {
		return 0
	}
	due := l.nextSweep
	for i := range l.retry {
		due = min(due, l.retry[i].due)
	}
	if due <= l.now {
		return 0
	}
	return int((due-l.now)/int64(time.Millisecond)) + 1
}

func (l *loop) dispatch(ev *unix.EpollEvent) {
	data := eventData(ev)
	index, gen := uint32(data), uint32(data>>32)
	if index == wakeSlot {
		var b [8]byte
		_, _ = rawRead(l.wakeFD, b[:])
		return
	}
	sideIndex := uint8(index >> 31)
	index &= 1<<31 - 1
	s := &l.slots[index]
	if s.generation != gen {
		return
	}
	switch {
	case s.listener != nil && s.listener.transport == deception.TCP:
		l.acceptTCP(s.listener)
	case s.listener != nil:
		l.acceptUDP(s.listener)
	case s.flow != nil && s.flow.Session.Transport == deception.UDP:
		l.udpReady(s.flow, sideIndex, ev.Events)
	case s.flow != nil:
		l.tcpReady(s.flow, sideIndex, ev.Events)
	}
}

// runCommands does what other goroutines asked for. It returns false when the
// loop is to end.
func (l *loop) runCommands() bool {
	l.mu.Lock()
	commands, stopping := l.commands, l.stopping
	l.commands = nil
	l.mu.Unlock()
	for _, c := range commands {
		c.done <- c.run()
	}
	return !stopping
}

func (l *loop) runRetries() {
	if len(l.retry) == 0 {
		return
	}
	due := l.retry
	l.retry = nil
	for _, r := range due {
		if !l.valid(r.sideRef) {
			continue
		}
		if r.due > l.now {
			l.retry = append(l.retry, r)
			continue
		}
		l.engine.retries.Add(1)
		l.open(r.flow)
	}
}

// drainReady goes on with sides that had more to give than one turn allows.
func (l *loop) drainReady() {
	turn := l.ready
	l.ready = nil
	for _, r := range turn {
		if !l.valid(r) {
			continue
		}
		r.flow.side[r.index].queued = false
		if r.flow.Session.Transport == deception.UDP {
			l.pumpUDP(r.flow, int(r.index))
			continue
		}
		l.pump(r.flow, int(r.index))
	}
	if l.ready == nil {
		l.ready = turn[:0]
	}
}

func (l *loop) valid(r sideRef) bool {
	return l.slots[r.slot].generation == r.gen && l.slots[r.slot].flow == r.flow
}

func (l *loop) ref(f *Flow, sideIndex int) sideRef {
	return sideRef{flow: f, index: uint8(sideIndex), slot: f.index, gen: l.slots[f.index].generation}
}

// sweep ends what has been idle for too long. Once a second over all flows
// costs less than a timer a flow.
func (l *loop) sweep() {
	for i := range l.slots {
		f := l.slots[i].flow
		if f == nil {
			continue
		}
		switch quiet := time.Duration(l.now - f.last); {
		case f.state == stateHeader && quiet > HeaderTimeout:
			l.failHeader(f, ErrHeaderTimeout)
		case f.state == stateConnecting && quiet > l.engine.cfg.ConnectTimeout:
			l.end(f, deception.EndRefused, true)
		case f.state == stateRelaying && f.Idle > 0 && quiet > f.Idle:
			l.end(f, deception.EndIdle, true)
		}
	}
}

// newFlow takes a slot and a flow for it.
func (l *loop) newFlow(from *listener) *Flow {
	var f *Flow
	if n := len(l.pool); n > 0 {
		f = l.pool[n-1]
		l.pool = l.pool[:n-1]
	} else {
		f = new(Flow)
	}
	f.loop, f.Listener, f.last = l, from.Listener, l.now
	f.index = l.takeSlot()
	f.side[Client].fd, f.side[Server].fd = -1, -1
	l.slots[f.index].flow = f
	return f
}

func (l *loop) takeSlot() uint32 {
	if n := len(l.freed); n > 0 {
		index := l.freed[n-1]
		l.freed = l.freed[:n-1]
		return index
	}
	l.slots = append(l.slots, slot{})
	return uint32(len(l.slots) - 1)
}

func (l *loop) releaseSlot(index uint32) {
	s := &l.slots[index]
	*s = slot{generation: s.generation + 1}
	l.freed = append(l.freed, index)
}

// maxPooled bounds the flows kept for use again; about a kilobyte each.
const maxPooled = 4096

// drop takes a flow off the loop without a word to the handler.
func (l *loop) drop(f *Flow) {
	l.releaseSlot(f.index)
	for i := range f.side {
		if p := f.side[i].pipe; p != nil {
			l.pipes.put(p)
		}
	}
	prelude := f.Prelude[:0]
	*f = Flow{}
	f.Prelude = prelude
	if len(l.pool) < maxPooled {
		l.pool = append(l.pool, f)
	}
}

// epollData is what rides in the events of one side of a flow.
func (l *loop) epollData(index uint32, sideIndex int) uint64 {
	return uint64(index|uint32(sideIndex)<<31) | uint64(l.slots[index].generation)<<32
}

func (l *loop) addListener(owner *Listener, fd int, t deception.Transport) error {
	var sa sockaddr
	if e := rawGetsockname(fd, &sa); e != 0 {
		return fmt.Errorf("read a listening socket's address: %w", e)
	}
	index := l.takeSlot()
	l.slots[index].listener = &listener{
		Listener: owner, fd: fd, transport: t, family: int(sa.Family), wildcard: addrPort(&sa).Addr().IsUnspecified(),
	}
	// Level triggered: a round takes a bounded number of connections and comes
	// back for the rest after it has served the flows there are. Exclusive: a TCP
	// listener is watched by every loop, and one of them is woken.
	if e := rawEpoll(l.epoll, unix.EPOLL_CTL_ADD, fd, unix.EPOLLIN|unix.EPOLLEXCLUSIVE, l.epollData(index, 0)); e != 0 {
		l.releaseSlot(index)
		return fmt.Errorf("watch listener: %w", e)
	}
	return nil
}

func (l *loop) removeListener(owner *Listener) {
	l.dropHeaders(owner)
	for i := range l.slots {
		if f := l.slots[i].flow; f != nil && f.Listener == owner && f.answer != nil {
			l.end(f, deception.EndShutdown, false)
		}
		if s := l.slots[i].listener; s != nil && s.Listener == owner {
			_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, s.fd, nil)
			l.releaseSlot(uint32(i))
		}
	}
	l.retry = slices.DeleteFunc(l.retry, func(r retryAt) bool { return !l.valid(r.sideRef) })
}
