package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/health"
	"decoynet/internal/relay"
)

// Egress is the edge of zones whose ingress gateways are other machines: it
// takes their flows by the PROXY v2 header and dials the service as the
// intruder. It records no sessions, the ingress does.
type Egress struct {
	gateway *Gateway
	cfg     EgressConfig

	watchers watchers

	mu     sync.Mutex    // serialises Apply, Status and Close; guards the rest
	engine *relay.Engine // made when there is something to serve
	posts  map[netip.AddrPort]*post
	failed map[netip.AddrPort]failedEdge // where one could not listen
	closed bool
}

type failedEdge struct {
	*edge
	err error
}

// EgressConfig is what an egress is made with.
type EgressConfig struct {
	// Ports tells what is known of the services' ports, for ingress gateways
	// that ask. Nil: nothing is.
	Ports func() map[health.Port]health.State
	Log   *slog.Logger
}

// EgressStatus is what is true of an egress at one address.
type EgressStatus struct {
	Listen    string   `json:"listen"`
	Zones     []string `json:"zones"`
	Listening bool     `json:"listening"`
	Flows     int64    `json:"flows"`
	Taken     uint64   `json:"taken"`     // flows since the start
	Ingresses int      `json:"ingresses"` // that ask for the services' health at the moment
	// Refused counts connections and datagrams by cause.
	Refused  map[string]uint64 `json:"refused,omitempty"`
	Problems []string          `json:"problems,omitempty"`
}

// NewEgress returns an egress that serves nothing yet. It shares the gateway's
// recorder, and its book of UDP sources, since both may dial the same service.
func NewEgress(g *Gateway, cfg EgressConfig) *Egress {
	if cfg.Ports == nil {
		cfg.Ports = func() map[health.Port]health.State { return nil }
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	e := &Egress{gateway: g, cfg: cfg, posts: map[netip.AddrPort]*post{}}
	e.watchers.init(cfg.Ports)
	return e
}

// Apply serves the zones of state whose egress this node is, and no others.
// What could not be listened at is in the error and tried again by the next
// call. Flows that lead where nothing of a zone is any more are ended.
func (e *Egress) Apply(ctx context.Context, state *deception.State) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return errors.New("egress is closed")
	}
	edges := edgesOf(state)
	for _, at := range slices.Collect(maps.Keys(e.posts)) {
		if edges[at] == nil {
			e.drop(at)
		}
	}
	e.failed = map[netip.AddrPort]failedEdge{}
	var errs []error
	for _, at := range slices.SortedFunc(maps.Keys(edges), netip.AddrPort.Compare) {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		if p := e.posts[at]; p != nil {
			p.refused.flush(time.Now())
			e.change(p, edges[at])
			continue
		}
		if err := e.open(edges[at]); err != nil {
			e.failed[at] = failedEdge{edges[at], err}
			errs = append(errs, err)
		}
	}
	e.watchers.look()
	return errors.Join(errs...)
}

// change gives a post its new edge and ends what it does not lead to.
func (e *Egress) change(p *post, now *edge) {
	p.edge.Store(now)
	e.engine.CloseFlows(func(f *relay.Flow) bool {
		if f.Listener != &p.listener {
			return false
		}
		_, err := now.service(f.Peer.Addr(), f.Session.Transport, f.Session.DestinationNAT)
		return err != nil
	}, deception.EndUnbound)
}

// open begins to listen for an edge.
func (e *Egress) open(at *edge) error {
	if e.engine == nil {
		engine, err := relay.New((*egressFlows)(e), relay.Config{})
		if err != nil {
			return fmt.Errorf("start the egress's relay: %w", err)
		}
		e.engine = engine
	}
	p := newPost(e, at)
	var err error
	if p.tcp, p.udp, err = listenEdge(at.listen, e.engine.Loops()); err != nil {
		return fmt.Errorf("listen at %s for %s: %w", at.listen, at.zoneNames(), explainListen(err))
	}
	if err := e.engine.Add(&p.listener, []int{p.tcp}, p.udp); err != nil {
		e.engine.Remove(&p.listener)
		p.close()
		return err
	}
	e.posts[at.listen] = p
	return nil
}

// explainListen says what to do about the usual reasons.
func explainListen(err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%w: another program has the port; end it or change zones[].egress.listen (tried again by itself)", err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("%w: no interface has this address (tried again by itself)", err)
	}
	return err
}

// drop ends a post and its flows.
func (e *Egress) drop(at netip.AddrPort) {
	p := e.posts[at]
	e.engine.Remove(&p.listener)
	e.engine.CloseFlows(func(f *relay.Flow) bool { return f.Listener == &p.listener }, deception.EndShutdown)
	p.close()
	p.refused.flush(time.Now())
	e.watchers.leave(p)
	delete(e.posts, at)
}

// NoteHealth has ingress gateways told at once of what Ports says now. Without
// it they hear within a second.
func (e *Egress) NoteHealth() { e.watchers.look() }

// Status tells what is true of every address that the egress is to listen at.
func (e *Egress) Status() []EgressStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []EgressStatus
	for at, p := range e.posts {
		out = append(out, EgressStatus{
			Listen: at.String(), Zones: p.edge.Load().names(), Listening: true,
			Flows: p.flows.Load(), Taken: p.taken.Load(), Ingresses: e.watchers.count(p), Refused: p.refused.counts(),
		})
	}
	for at, f := range e.failed {
		out = append(out, EgressStatus{Listen: at.String(), Zones: f.names(), Problems: []string{f.err.Error()}})
	}
	slices.SortFunc(out, func(a, b EgressStatus) int { return strings.Compare(a.Listen, b.Listen) })
	return out
}

// Close ends all flows and stops listening. It waits no longer than ctx allows.
func (e *Egress) Close(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	for _, at := range slices.Collect(maps.Keys(e.posts)) {
		e.drop(at)
	}
	e.watchers.close()
	if e.engine == nil {
		return nil
	}
	return e.engine.Close(ctx)
}
