package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"decoynet/deception"
)

// ListenConfig is what listen mode is made with.
type ListenConfig struct {
	Carrier  Carrier
	Recorder FlowRecorder // for events
	Log      *slog.Logger

	retry time.Duration // between attempts; default retryEvery
}

const (
	// retryEvery is the pause between attempts to open what could not be opened.
	retryEvery = 2 * time.Second
	// addressesEvery is how often the machine's addresses are looked at.
	addressesEvery = 10 * time.Second
)

// Listen holds the decoys of segment host: plain listeners on the machine's own
// addresses, without any privilege but that of binding ports below 1024.
//
// A port that is in use by the machine's own service is never shared with it and
// never taken from it. It is reported and tried again.
type Listen struct {
	cfg   ListenConfig
	index atomic.Pointer[decoyIndex]
	node  atomic.Pointer[string]
	// broadcasts are the machine's IPv4 broadcast addresses: what is sent there
	// is for everybody, and nobody may answer from there.
	broadcasts atomic.Pointer[map[netip.Addr]struct{}]

	done chan struct{}
	wg   sync.WaitGroup // the goroutine of retries and those of all sockets

	turnedAway atomic.Uint64 // connections that could not be accepted or were for nobody

	mu        sync.Mutex // serialises Apply, Refresh and Close; guards the rest
	closed    bool
	state     *deception.State
	endpoints map[endpointKey]*endpoint
	looked    time.Time // when the machine's addresses were looked at
}

// ListenStatus is what is true about listen mode.
type ListenStatus struct {
	Ready    bool         `json:"ready"` // every port is open
	Ports    []PortStatus `json:"ports"`
	Turned   uint64       `json:"turned_away"` // connections that were for no decoy
	Problems []string     `json:"problems,omitempty"`
}

// PortStatus is what is true about one port of the machine.
type PortStatus struct {
	Port    string `json:"port"`    // 445/tcp
	Address string `json:"address"` // an address, or every address of a family
	Decoy   string `json:"decoy"`
	Open    bool   `json:"open"`
	Flows   int    `json:"udp_flows,omitempty"`
	Problem string `json:"problem,omitempty"`
}

// NewListen returns listen mode without a port. Close it.
func NewListen(cfg ListenConfig) *Listen {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.retry <= 0 {
		cfg.retry = retryEvery
	}
	l := &Listen{cfg: cfg, done: make(chan struct{}), state: &deception.State{}, endpoints: map[endpointKey]*endpoint{}}
	l.index.Store(newDecoyIndex(l.state))
	l.node.Store(new(string))
	l.broadcasts.Store(&map[netip.Addr]struct{}{})
	l.wg.Go(l.keepTrying)
	return l
}

// Apply makes the machine listen as state says, as far as up allows; nil allows
// everything. Ports that are not in state are closed, flows of decoys that are
// gone or lead elsewhere are ended with reason unbound. One port that cannot be
// opened does not stop the others: the errors are joined, and it is tried again
// every two seconds.
func (l *Listen) Apply(ctx context.Context, state *deception.State, up Up) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	l.state = state
	index := newDecoyIndex(state)
	l.node.Store(&state.Node)
	l.index.Store(index)
	l.cfg.Carrier.CloseFlows(func(s *deception.Session) bool {
		if s.Segment != deception.HostSegment {
			return false
		}
		d, b := index.lookup(s.Segment, s.Transport, s.Destination)
		return d == nil || d.Name != s.Decoy || b.Service != s.Service
	}, deception.EndUnbound)
	return l.refresh(ctx, up)
}

// Refresh opens and closes ports after what up says has changed.
func (l *Listen) Refresh(ctx context.Context, up Up) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	return l.refresh(ctx, up)
}

// refresh must be called with mu held. What is not wanted is closed first: a
// single address cannot be opened while a socket for every address stands, nor
// the other way round.
func (l *Listen) refresh(ctx context.Context, up Up) error {
	want := planEndpoints(l.state, up)
	for key, e := range l.endpoints {
		if _, still := want[key]; !still {
			e.close()
			delete(l.endpoints, key)
		}
	}
	for _, key := range sortedKeys(want) {
		e := l.endpoints[key]
		if e == nil {
			e = &endpoint{listen: l, key: key, parts: map[netip.Addr]part{}}
			l.endpoints[key] = e
		}
		e.decoy = want[key]
	}
	l.lookAtAddresses(time.Now())
	l.openAll(ctx)
	var errs []error
	for _, key := range sortedKeys(l.endpoints) {
		if e := l.endpoints[key]; e.problem != "" {
			errs = append(errs, errors.New(e.problem))
		}
	}
	return errors.Join(errs...)
}

// holds tells whether some socket of ours has the key's port. mu must be held.
func (l *Listen) holds(key endpointKey) bool {
	for other, e := range l.endpoints {
		if other.transport == key.transport && other.port == key.port && len(e.parts) > 0 {
			return true
		}
	}
	return false
}

// openAll opens what is not open yet. mu must be held.
func (l *Listen) openAll(ctx context.Context) {
	attempt := &attempt{ctx: ctx}
	for _, key := range sortedKeys(l.endpoints) {
		l.endpoints[key].open(attempt)
	}
}

// keepTrying opens in time what could not be opened.
func (l *Listen) keepTrying() {
	ticker := time.NewTicker(l.cfg.retry)
	defer ticker.Stop()
	for {
		select {
		case <-l.done:
			return
		case now := <-ticker.C:
			l.mu.Lock()
			if !l.closed {
				if now.Sub(l.looked) >= addressesEvery {
					l.lookAtAddresses(now)
				}
				l.openAll(context.Background())
			}
			l.mu.Unlock()
		}
	}
}

// lookAtAddresses notes the machine's broadcast addresses, where some socket can
// get datagrams for them. mu must be held.
func (l *Listen) lookAtAddresses(now time.Time) {
	l.looked = now
	for key := range l.endpoints {
		if key.transport == deception.UDP && key.every() && key.addr.Is4() {
			found := broadcasts()
			l.broadcasts.Store(&found)
			return
		}
	}
}

// event records what happened to a port.
func (l *Listen) event(kind deception.EventKind, e *endpoint, message string) {
	now := time.Now()
	l.cfg.Recorder.Event(&deception.Event{
		ID: deception.NewSessionID(now), Time: now, Kind: kind, Node: *l.node.Load(), Segment: deception.HostSegment,
		Decoy: e.decoy, Destination: netip.AddrPortFrom(e.key.addr, e.key.port), Message: message,
	})
}

// session names a flow that has come in, and its idle time. False where no decoy
// stands there.
func (l *Listen) session(t deception.Transport, source, destination netip.AddrPort) (deception.Session, time.Duration, bool) {
	d, b := l.index.Load().lookup(deception.HostSegment, t, destination)
	if d == nil {
		return deception.Session{}, 0, false
	}
	now := time.Now()
	return deception.Session{
		ID: deception.NewSessionID(now), Start: now, Node: *l.node.Load(), Segment: deception.HostSegment,
		Decoy: d.Name, Service: b.Service, Transport: t, Path: deception.PathRelay, Source: source, Destination: destination,
	}, d.Idle, true
}

// Status tells what is true about every port.
func (l *Listen) Status() ListenStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := ListenStatus{Ready: true, Turned: l.turnedAway.Load()}
	for _, key := range sortedKeys(l.endpoints) {
		e := l.endpoints[key]
		p := PortStatus{Port: portName(key.transport, key.port), Address: key.where(), Decoy: e.decoy, Open: len(e.parts) > 0, Problem: e.problem}
		for _, part := range e.parts {
			p.Flows += part.flows()
		}
		s.Ports = append(s.Ports, p)
		if e.problem != "" {
			s.Ready = false
			s.Problems = append(s.Problems, e.problem)
		}
	}
	return s
}

// Close closes every port. Flows over TCP go on until the carrier is closed;
// those over UDP end. It waits no longer than ctx allows.
func (l *Listen) Close(ctx context.Context) error {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.done)
		for key, e := range l.endpoints {
			e.close()
			delete(l.endpoints, key)
		}
	}
	l.mu.Unlock()
	gone := make(chan struct{})
	go func() { l.wg.Wait(); close(gone) }()
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close listeners: %w", ctx.Err())
	}
}
