package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"decoynet/agent"
	"decoynet/deception"
	"decoynet/internal/outbound"
	"decoynet/internal/pki"
	"decoynet/internal/pump"
	"decoynet/internal/rpc"
	"decoynet/internal/tunnel"
)

const (
	// retryEvery is the pause between attempts to mend what could not be
	// applied: the parent NIC may be back, a service's namespace there at last.
	retryEvery = 2 * time.Second
	// driftEvery is how often everything is compared with the kernel, for what
	// others have changed. It writes nothing where nothing differs.
	driftEvery = 10 * time.Second
)

// recorder takes what a node has to tell: into the store of this machine, or
// into a spool from which a controller is told.
type recorder interface {
	Started(s *deception.Session)
	Ended(s *deception.Session)
	Event(e *deception.Event)
	SourceSeen(s *deception.SourceSeen)
	Probe(p *deception.Probe)
	Finding(f *deception.Finding)
	// Room tells whether findings would be taken: who reads them from a file waits
	// until then, since nothing else ever does.
	Room() bool
}

// desired is what this machine is to be.
type desired struct {
	revision string
	state    deception.State
	heads    bool              // keep the first bytes of each side
	peers    map[string]uint32 // nodes that may bring flows here, and the generation of their certificates
}

// nodeConfig is what a node is made with.
type nodeConfig struct {
	name, data string
	origin     string // where the desired state comes from, for status
	recorder   recorder
	recording  func() recordingStatus
	identity   *pki.Identity // nil where the machine belongs to no controller
	log        *slog.Logger
}

// node is one machine with its roles: agent, ingress and egress in one process,
// so that a hop between them is a function call.
type node struct {
	cfg     nodeConfig
	started time.Time
	scanner *marker        // puts their names on what known scanners do; cfg.recorder
	local   *localRoles    // what lives in the kernel: segments, zones, gateways
	away    atomic.Bool    // flows leave for ingress gateways on other nodes
	links   *tunnel.Client // to ingress gateways on other nodes; nil without an identity
	courier *agent.Courier // carries flows there
	listen  *agent.Listen  // decoys at this machine's own addresses

	healthChanged chan struct{} // holds one token; a token means: look again

	applying sync.Mutex // serialises apply, refresh and close

	mu      sync.Mutex // guards the rest, never held for long
	now     desired
	problem error // of the last apply
	applied bool
	broken  bool              // it was applied in full once, and then something changed
	uplink  func() rpc.Status // where a controller is asked; nil otherwise
}

func newNode(cfg nodeConfig) (*node, error) {
	scanner := &marker{recorder: cfg.recorder}
	cfg.recorder = scanner
	n := &node{cfg: cfg, started: time.Now(), scanner: scanner, healthChanged: make(chan struct{}, 1)}
	n.now.state.Node = cfg.name
	var upstream agent.Upstream = noUpstream{}
	if id := cfg.identity; id != nil {
		dialer, err := outbound.New(id.Proxy())
		if err != nil {
			return nil, fmt.Errorf("use the proxy of this node: %w", err)
		}
		n.links = tunnel.NewClient(tunnel.ClientConfig{
			TLS: id.GatewayTLS, Dial: dialer.DialContext, Told: n.told, Explain: pki.Explain, Log: cfg.log,
		})
		upstream = agent.Tunnel(n.links)
	}
	n.courier = agent.NewCourier(agent.CourierConfig{Node: cfg.name, Upstream: upstream, Recorder: cfg.recorder, Changed: n.noteHealth, Log: cfg.log})
	n.local = newLocalRoles(n)
	n.listen = agent.NewListen(agent.ListenConfig{Carrier: (*carrier)(n), Recorder: cfg.recorder, Log: cfg.log})
	return n, nil
}

// noUpstream is the way to gateways of a machine that no controller has made a
// node.
type noUpstream struct{}

func (noUpstream) Open(context.Context, []byte, bool) (pump.Stream, error) {
	return nil, fmt.Errorf("%w: this machine is not enrolled with a controller", tunnel.ErrNoGateway)
}
func (noUpstream) Gateways() []agent.GatewayLink { return nil }

// carrier brings flows of this machine's own addresses to where their service
// is known: this process's own gateway, or one on another node.
type carrier node

func (c *carrier) Carry(intruder pump.Stream, s *deception.Session, idle time.Duration) pump.Handle {
	n := (*node)(c)
	if n.away.Load() {
		return n.courier.Carry(intruder, s, idle)
	}
	return n.local.carry(intruder, s, idle)
}

func (c *carrier) CloseFlows(match func(*deception.Session) bool, reason deception.EndReason) {
	n := (*node)(c)
	n.courier.CloseFlows(match, reason)
	n.local.closeCarried(match, reason)
}

// up tells whether a port of this machine's own addresses is to be open.
func (n *node) up(d *deception.Decoy, t deception.Transport, port uint16, ipv6 bool) bool {
	if n.away.Load() {
		return n.courier.Up(d, t, port, ipv6)
	}
	return n.local.decoyUp(d, t, port, ipv6)
}

// told hears from a gateway which of this node's ports have no healthy service.
func (n *node) told(gateway string, message []byte) {
	if err := n.courier.Told(gateway, message); err != nil {
		n.cfg.log.Warn("what the gateway says cannot be read", "gateway", gateway, "error", err)
	}
}

func (n *node) noteHealth() {
	select {
	case n.healthChanged <- struct{}{}:
	default:
	}
}

// apply makes the machine what is desired. What can be brought up is up when it
// returns; the joined errors name the rest.
//
// Gateways that flows leave by are known before a port opens here.
func (n *node) apply(ctx context.Context, want desired) error {
	n.applying.Lock()
	defer n.applying.Unlock()
	return n.applyLocked(ctx, want)
}

// applyLocked must be called with applying held.
func (n *node) applyLocked(ctx context.Context, want desired) error {
	n.scanner.know(&want.state)
	n.away.Store(want.state.Tunnels())
	if n.links != nil {
		n.links.SetGateways(gatewaysOf(&want.state))
	}
	err := errors.Join(n.local.apply(ctx, want), n.listen.Apply(ctx, &want.state, n.up))
	n.mu.Lock()
	defer n.mu.Unlock()
	n.broken = err != nil && n.applied && n.problem == nil && n.now.revision == want.revision
	n.now, n.problem, n.applied = want, err, true
	return err
}

// gatewaysOf returns the ingress gateways that this node's flows go to.
func gatewaysOf(s *deception.State) []deception.Gateway {
	if !s.Tunnels() {
		return nil
	}
	return s.Gateways
}

// refresh opens and closes ports after a change of health.
func (n *node) refresh(ctx context.Context) {
	n.applying.Lock()
	defer n.applying.Unlock()
	err := errors.Join(n.local.refresh(ctx), n.listen.Refresh(ctx, n.up))
	if err != nil && ctx.Err() == nil { // else this node ends
		n.cfg.log.Error("open and close ports", "error", err)
		n.mu.Lock()
		n.problem = err // and so tried again
		n.mu.Unlock()
	}
}

// mend applies the desired state again: soon while something is not as it
// should be, now and then otherwise.
func (n *node) mend(ctx context.Context, turn int) {
	n.mu.Lock()
	problem, applied := n.problem, n.applied
	n.mu.Unlock()
	if !applied {
		return
	}
	// A part of the segments each time: all of hundreds together would hold up a
	// reload for a second.
	const parts = int(driftEvery / retryEvery)
	n.local.doubt(turn, parts)
	if problem == nil && turn%parts != 0 {
		n.refresh(ctx)
		return
	}
	n.applying.Lock()
	n.mu.Lock()
	want := n.now // not what was desired before a reload that was waited for
	n.mu.Unlock()
	err := n.applyLocked(ctx, want)
	n.applying.Unlock()
	switch {
	case err == nil && problem != nil:
		n.cfg.log.Info("everything is applied now")
	case err != nil && (problem == nil || err.Error() != problem.Error()):
		n.cfg.log.Error("not everything could be applied", "error", err)
	}
}

// close ends all flows and leaves nothing of ours in the kernel. It works on a
// node that came up in part.
func (n *node) close(ctx context.Context) error {
	n.applying.Lock()
	defer n.applying.Unlock()
	errs := []error{n.listen.Close(ctx), n.courier.Close(ctx), n.local.close(ctx)}
	if n.links != nil {
		n.links.Close()
	}
	if err := os.Remove(socketPath(n.cfg.data)); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("remove status socket: %w", err))
	}
	return errors.Join(errs...)
}

// platform names what the binary was built for.
const platform = runtime.GOOS + "/" + runtime.GOARCH
