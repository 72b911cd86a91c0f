package load

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrSpec is returned for a Spec that cannot be run.
var ErrSpec = errors.New("bad load")

// sweepEvery is how often connections are looked through for expired ones.
const sweepEvery = 250 * time.Millisecond

// Run generates the load and returns what it measured. For Hold it calls held
// once all connections stand, and closes them when held returns.
func Run(ctx context.Context, spec Spec, held func(Result)) (Result, error) {
	if len(spec.Targets) == 0 || spec.Parallel < 1 {
		return Result{}, fmt.Errorf("%w: no targets or no connections", ErrSpec)
	}
	for _, t := range spec.Targets {
		if !t.Is4() {
			return Result{}, fmt.Errorf("%w: target %s is not an IPv4 address", ErrSpec, t)
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	switch spec.Kind {
	case Connect, Hold:
		return runConnect(ctx, spec, held)
	case Download, Upload:
		return runStreams(ctx, spec)
	}
	return Result{}, fmt.Errorf("%w: unknown kind %q", ErrSpec, spec.Kind)
}

// client is the loop behind Connect and Hold: a fixed number of slots, each of
// which holds one connection at a time.
type client struct {
	spec    Spec
	epoll   int
	targets []unix.RawSockaddrInet4
	next    int // of targets
	slots   []slot
	// waiting lists slots whose last attempt failed; they try again on the next
	// turn, so that a dead gateway is not hammered in a tight loop.
	waiting []int32
	open    int // slots with a connection
	base    time.Time
	opening bool // the window is open: finished slots start over
	end     time.Duration
	opened  uint64
	held    int
	hist    Histogram
	res     Result
}

type slot struct {
	fd    int
	start time.Duration // since base; of the connect
	state slotState
}

type slotState uint8

const (
	slotFree slotState = iota
	slotConnecting
	slotClosing // banner seen, the server is to close
	slotHeld
)

func newClient(spec Spec, port int) (*client, error) {
	epoll, err := newEpoll()
	if err != nil {
		return nil, err
	}
	c := &client{
		spec: spec, epoll: epoll, slots: make([]slot, spec.Parallel),
		targets: rawTargets(spec.Targets, port), waiting: make([]int32, 0, 2*spec.Parallel),
		base: time.Now(), opening: true, end: spec.Duration,
		res: Result{Failed: map[string]uint64{}},
	}
	return c, nil
}

func rawTargets(targets []netip.Addr, port int) []unix.RawSockaddrInet4 {
	raw := make([]unix.RawSockaddrInet4, len(targets))
	for i, t := range targets {
		raw[i] = rawAddr(t, port)
	}
	return raw
}

func runConnect(ctx context.Context, spec Spec, held func(Result)) (Result, error) {
	port := PortBanner
	if spec.ServerCloses {
		port = PortCloser
	}
	c, err := newClient(spec, port)
	if err != nil {
		return Result{}, err
	}
	defer c.close()
	for i := range c.slots {
		c.waiting = append(c.waiting, int32(i))
	}
	if err := c.loop(ctx); err != nil {
		return Result{}, err
	}
	c.res.P50, c.res.P99, c.res.Max = c.hist.Quantile(0.50), c.hist.Quantile(0.99), c.hist.Max()
	if spec.Kind == Hold && held != nil {
		held(c.res)
		c.countLost()
	}
	return c.res, ctx.Err()
}

// countLost looks for held flows that ended while nobody looked.
func (c *client) countLost() {
	var b [1]byte
	for i := range c.slots {
		if c.slots[i].state != slotHeld {
			continue
		}
		if _, e := rawRecv(c.slots[i].fd, b[:]); e != syscall.EAGAIN {
			c.res.Failed["lost"]++
		}
	}
}

// openAtOnce bounds how many connections a Hold load opens in one turn: a
// burst of thousands of SYNs would measure listen queues.
const openAtOnce = 64

func (c *client) loop(ctx context.Context) error {
	events := make([]unix.EpollEvent, 512)
	var swept time.Duration
	for {
		now := time.Since(c.base)
		if c.opening && (now >= c.end || ctx.Err() != nil) {
			c.stopOpening(now)
		}
		if c.opening {
			c.retry()
		}
		if c.finished() {
			return nil
		}
		ms := 50
		if len(c.waiting) > 0 {
			ms = 1
		}
		n, err := wait(c.epoll, events, ms)
		if err != nil {
			return err
		}
		for i := range events[:n] {
			c.handle(events[i].Fd, events[i].Events)
		}
		if now = time.Since(c.base); now-swept >= sweepEvery {
			swept = now
			c.sweep(now)
		}
	}
}

// stopOpening ends the measured window; what is still open may finish, uncounted.
func (c *client) stopOpening(now time.Duration) {
	c.opening = false
	c.res.Elapsed = now
}

func (c *client) finished() bool {
	if c.spec.Kind == Hold && c.held == len(c.slots) {
		if c.opening {
			c.stopOpening(time.Since(c.base))
		}
		return true
	}
	return !c.opening && c.open == c.held
}

func (c *client) retry() {
	todo := len(c.waiting)
	if c.spec.Kind == Hold {
		todo = min(todo, openAtOnce)
	}
	for i := range todo {
		c.connect(c.waiting[i])
	}
	c.waiting = append(c.waiting[:0], c.waiting[todo:]...)
}

func (c *client) connect(id int32) {
	if c.spec.Limit > 0 && c.opened >= c.spec.Limit {
		if c.opening {
			c.stopOpening(time.Since(c.base))
		}
		return
	}
	to := &c.targets[c.next]
	if c.next++; c.next == len(c.targets) {
		c.next = 0
	}
	s := &c.slots[id]
	start := time.Since(c.base)
	fd, e := rawSocket()
	if e != 0 {
		c.fail(id, e.Error())
		return
	}
	c.opened++
	if e = rawConnect(fd, to); e == 0 || e == syscall.EINPROGRESS {
		e = rawWatch(c.epoll, unix.EPOLL_CTL_ADD, fd, unix.EPOLLIN|unix.EPOLLRDHUP, id)
	}
	if e != 0 {
		rawClose(fd)
		if e == syscall.EADDRNOTAVAIL {
			c.res.Exhausted++
			c.waiting = append(c.waiting, id)
			return
		}
		c.fail(id, unix.ErrnoName(e))
		return
	}
	*s = slot{fd: fd, start: start, state: slotConnecting}
	c.open++
}

func (c *client) handle(id int32, events uint32) {
	s := &c.slots[id]
	var b [64]byte
	n, e := rawRecv(s.fd, b[:])
	switch {
	case e == syscall.EAGAIN:
		if events&unix.EPOLLERR == 0 {
			return
		}
		e = sockError(s.fd)
		c.drop(id)
		c.fail(id, unix.ErrnoName(e))
	case e != 0:
		c.drop(id)
		c.fail(id, unix.ErrnoName(e))
	case s.state == slotConnecting && n == 0:
		c.drop(id)
		c.fail(id, "EOF")
	case s.state == slotConnecting:
		c.greet(id, b[:n])
	case n == 0:
		c.hangUp(id)
	}
}

// hangUp handles the server's FIN behind the banner: asked for in a load whose
// server closes first, the loss of a flow that should have stood otherwise.
func (c *client) hangUp(id int32) {
	held := c.slots[id].state == slotHeld
	c.drop(id)
	if held {
		c.held--
		c.fail(id, "lost")
		return
	}
	if c.opening {
		c.connect(id)
	}
}

// greet checks the banner and counts the connection.
func (c *client) greet(id int32, b []byte) {
	s := &c.slots[id]
	took := time.Since(c.base) - s.start
	addr, port, ok := parseBanner(b)
	if !ok {
		c.drop(id)
		c.fail(id, "bad banner")
		return
	}
	var local unix.RawSockaddrInet4
	if e := rawLocal(s.fd, &local); e != 0 {
		c.drop(id)
		c.fail(id, unix.ErrnoName(e))
		return
	}
	if c.opening || c.spec.Limit > 0 {
		c.res.Done++
		c.hist.Record(took)
	}
	c.res.Served++
	switch {
	case addr != local.Addr:
		c.res.WrongSource++
		c.res.WrongSeen = netip.AddrPortFrom(netip.AddrFrom4(addr), port).String()
	case port != swap16(local.Port):
		c.res.MovedPorts++
	}
	switch {
	case c.spec.Kind == Hold:
		s.state = slotHeld
		c.held++
	case c.spec.ServerCloses:
		s.state = slotClosing
	default:
		c.drop(id)
		if c.opening {
			c.connect(id)
		}
	}
}

// drop closes the slot's connection, which takes it out of the epoll set too.
func (c *client) drop(id int32) {
	rawClose(c.slots[id].fd)
	c.slots[id] = slot{}
	c.open--
}

func (c *client) fail(id int32, why string) {
	c.res.Failed[why]++
	c.waiting = append(c.waiting, id)
}

func (c *client) sweep(now time.Duration) {
	for id := range c.slots {
		s := &c.slots[id]
		if (s.state == slotConnecting || s.state == slotClosing) && now-s.start > c.spec.Timeout {
			c.drop(int32(id))
			c.fail(int32(id), "timeout")
		}
	}
}

func (c *client) close() {
	for i := range c.slots {
		if c.slots[i].state != slotFree {
			rawClose(c.slots[i].fd)
		}
	}
	rawClose(c.epoll)
}
