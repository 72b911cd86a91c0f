// Package health tells which services' ports are open. A TCP port is asked with
// a SYN of our own whose answer the kernel resets: no server accepts a
// connection, and no server's log fills with checks, which an analyst would have
// to tell from intruders. A UDP port is sent an empty datagram and counts as open
// until an ICMP port unreachable comes back; a server that logs every datagram
// shows these, from this machine's own address.
package health

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"decoynet/deception"
)

// Port is one port of a service, at one of its addresses.
type Port struct {
	Service   string
	Transport deception.Transport
	Address   netip.AddrPort // its first port where it stands for a range
	Range     bool           // any answer counts as open
}

// State is what is known about a port.
type State struct {
	Up    bool
	Since time.Time // of the last change
	Err   string    // why it is down
}

// Checker looks at ports in regular intervals. Make one with New, Close it.
type Checker struct {
	cfg  Config
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu       sync.Mutex // guards the rest
	services map[string]*watch
	state    map[Port]State
}

// Config is what a checker is made with. Zero values take the defaults.
type Config struct {
	Interval time.Duration // between checks (default 1 s)
	Timeout  time.Duration // for an answer (default 1 s)
	Mark     uint32        // SO_MARK of UDP checks, by which a zone's containment knows them; 0 for none
	// Changed is called after a port went up or down, from any goroutine, never
	// twice at once for one service.
	Changed func()
	// Probe asks one port; nil is the prober of this package (needs CAP_NET_RAW).
	Probe func(ctx context.Context, ports []Port, timeout time.Duration, mark uint32) map[Port]error
}

// failuresToDown is how many unanswered checks in a row close a port. A refusal
// closes it at once.
const failuresToDown = 2

// watch is the goroutine of one service.
type watch struct {
	ports  []Port
	stop   context.CancelFunc
	hurry  chan struct{}
	first  chan struct{} // closed after the first round
	misses map[Port]int
}

// New starts a checker that looks at nothing yet.
func New(cfg Config) *Checker {
	if cfg.Interval <= 0 {
		cfg.Interval = time.Second
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = time.Second
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	if cfg.Probe == nil {
		cfg.Probe = Probe
	}
	c := &Checker{cfg: cfg, services: map[string]*watch{}, state: map[Port]State{}}
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c
}

// Watch makes ports the whole set that is looked at, and waits until each has
// been looked at once or ctx ends.
func (c *Checker) Watch(ctx context.Context, ports []Port) {
	byService := map[string][]Port{}
	for _, p := range ports {
		byService[p.Service] = append(byService[p.Service], p)
	}
	c.mu.Lock()
	for name, w := range c.services {
		if !slices.Equal(w.ports, byService[name]) {
			w.stop()
			delete(c.services, name)
		}
	}
	maps.DeleteFunc(c.state, func(p Port, _ State) bool { return !slices.Contains(byService[p.Service], p) })
	var fresh []*watch
	for name, ports := range byService {
		if c.services[name] == nil {
			w := c.start(ports)
			c.services[name] = w
			fresh = append(fresh, w)
		}
	}
	c.mu.Unlock()
	for _, w := range fresh {
		select {
		case <-w.first:
		case <-ctx.Done():
			return
		}
	}
}

// start must be called with mu held.
func (c *Checker) start(ports []Port) *watch {
	ctx, stop := context.WithCancel(c.ctx)
	w := &watch{
		ports: ports, stop: stop, misses: map[Port]int{},
		hurry: make(chan struct{}, 1), first: make(chan struct{}),
	}
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		c.run(ctx, w)
	}()
	return w
}

func (c *Checker) run(ctx context.Context, w *watch) {
	ticker := time.NewTicker(c.cfg.Interval)
	defer ticker.Stop()
	first := w.first
	for {
		c.round(ctx, w)
		if first != nil {
			close(first)
			first = nil
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-w.hurry:
		}
	}
}

func (c *Checker) round(ctx context.Context, w *watch) {
	answers := c.cfg.Probe(ctx, w.ports, c.cfg.Timeout, c.cfg.Mark)
	if ctx.Err() != nil {
		return
	}
	changed := false
	c.mu.Lock()
	for _, p := range w.ports {
		changed = c.judge(w, p, answers[p]) || changed
	}
	c.mu.Unlock()
	if changed {
		c.cfg.Changed()
	}
}

// judge takes one answer and tells whether the port's state changed. It must be
// called with mu held.
func (c *Checker) judge(w *watch, p Port, err error) bool {
	old, known := c.state[p]
	if err == nil {
		w.misses[p] = 0
		if known && old.Up {
			return false
		}
		c.state[p] = State{Up: true, Since: time.Now()}
		return true
	}
	w.misses[p]++
	if known && old.Up && w.misses[p] < failuresToDown && !refused(err) {
		return false
	}
	now := State{Err: err.Error(), Since: time.Now()}
	if known && !old.Up {
		now.Since = old.Since
	}
	c.state[p] = now
	return !known || old.Up
}

// Suspect has a service looked at now: a flow was just refused by it.
func (c *Checker) Suspect(service string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.services[service]; w != nil {
		select {
		case w.hurry <- struct{}{}:
		default:
		}
	}
}

// Up tells whether the port is known to be open.
func (c *Checker) Up(p Port) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state[p].Up
}

// States returns what is known about every port.
func (c *Checker) States() map[Port]State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.state)
}

// Close stops all checks and waits for them.
func (c *Checker) Close() {
	c.stop()
	c.wg.Wait()
}
