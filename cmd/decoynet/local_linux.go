package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"decoynet/agent"
	"decoynet/deception"
	"decoynet/gateway"
	"decoynet/inspect"
	"decoynet/internal/health"
	"decoynet/internal/kernel/firewall"
	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/route"
	"decoynet/internal/pump"
	"decoynet/internal/relay"
)

// localRoles are those that live in the kernel: segments, zones, and the
// gateways, which need privileges. They are made when a desired state first
// asks for one of them, so that an agent in listen mode runs without.
type localRoles struct {
	node *node
	// made is nil until then; who asks for the status may come at any time.
	made atomic.Pointer[kernelRoles]
}

// kernelRoles are the roles once they are made.
type kernelRoles struct {
	engine  *relay.Engine
	gateway *gateway.Gateway
	zones   *gateway.Zones
	agent   *agent.Agent
	forward *agent.Forwarder
	checker *health.Checker
	links   *gateway.Links   // to egresses on other machines
	egress  *gateway.Egress  // for ingress gateways on other machines
	ingress *gateway.Ingress // for agents on other machines, and this one's listen mode
	inspect *inspect.Inspector
}

func newLocalRoles(n *node) *localRoles { return &localRoles{node: n} }

// asked tells whether the state has anything for the kernel's roles.
func asked(s *deception.State) bool { return len(s.Segments)+len(s.Zones) > 0 || s.HasGateway(s.Node) }

// spareProcs are for everything that is not a relay loop.
const spareProcs = 2

func (l *localRoles) make() (k *kernelRoles, err error) {
	if err := checkCapabilities(); err != nil {
		return nil, err
	}
	// A relay loop waits in a system call of its own, so it holds one of the
	// scheduler's places. Without a free one besides, the runtime starts and stops
	// a thread to look for work each time a loop goes to sleep (handoffp in
	// runtime/proc.go): a third of the system's time at 32 flows at once.
	runtime.GOMAXPROCS(runtime.NumCPU() + spareProcs)
	n := l.node
	k = &kernelRoles{}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.close(context.Background()))
		}
	}()
	if k.zones, err = gateway.NewZones(); err != nil {
		return k, err
	}
	k.inspect = inspect.New(inspect.Config{
		Node: n.cfg.name, Dir: inspectPath(n.cfg.data), Packets: packetsPath(n.cfg.data), Host: k.zones.Host(), Lanes: runtime.NumCPU(), Recorder: n.cfg.recorder, Log: n.cfg.log,
	})
	k.checker = health.New(health.Config{Changed: n.noteHealth, Mark: firewall.MarkSelf})
	k.links = gateway.NewLinks(gateway.LinksConfig{Changed: n.noteHealth, Log: n.cfg.log})
	k.gateway = gateway.New(gateway.Config{Node: n.cfg.name, Recorder: n.cfg.recorder, Suspect: k.checker.Suspect, Links: k.links, Feed: gateway.FeedTo(k.inspect.Feed())})
	k.forward = agent.NewForwarder(n.cfg.name, n.courier)
	if k.engine, err = relay.New(&handlers{node: n, gateway: k.gateway, forward: k.forward}, relay.Config{Loops: runtime.NumCPU()}); err != nil {
		return k, err
	}
	if k.agent, err = agent.New(agent.Config{
		Node: n.cfg.name, Engine: k.engine, Recorder: n.cfg.recorder, Forwarded: n.courier.Up, Mirror: k.inspect, CloseFlows: k.closeFlows(n), Claimed: n.noteHealth, Log: n.cfg.log,
	}); err != nil {
		return k, err
	}
	k.egress = gateway.NewEgress(k.gateway, gateway.EgressConfig{Ports: k.checker.States, Log: n.cfg.log})
	k.ingress = gateway.NewIngress(k.gateway, gateway.IngressConfig{Identity: n.cfg.identity, Recorder: n.cfg.recorder, Up: k.up, Log: n.cfg.log})
	return k, nil
}

// closeFlows ends flows of segments, wherever they are carried.
func (k *kernelRoles) closeFlows(n *node) func(match func(*deception.Session) bool, reason deception.EndReason) {
	return func(match func(*deception.Session) bool, reason deception.EndReason) {
		k.engine.CloseFlows(func(f *relay.Flow) bool { return match(&f.Session) }, reason)
		n.courier.CloseFlows(match, reason)
	}
}

// handlers has a flow carried by this machine's gateway, or where it has none,
// to one on another node.
type handlers struct {
	node    *node
	gateway *gateway.Gateway
	forward *agent.Forwarder
}

func (h *handlers) Accept(f *relay.Flow) bool {
	var to relay.Handler = h.gateway
	if h.node.away.Load() {
		to = h.forward
	}
	f.Value = to
	return to.Accept(f)
}

func (h *handlers) Open(f *relay.Flow, last bool) (int, error) {
	return f.Value.(relay.Handler).Open(f, last)
}
func (h *handlers) Opened(f *relay.Flow) { f.Value.(relay.Handler).Opened(f) }
func (h *handlers) Close(f *relay.Flow)  { f.Value.(relay.Handler).Close(f) }

// up tells whether a service's port is known to be open: asked by this machine,
// or by the egress on another.
func (k *kernelRoles) up(p health.Port) bool { return k.checker.Up(p) || k.links.Up(p) }

// apply makes the kernel what is desired.
//
// The order keeps every midpoint safe: zones are contained before anything
// leads into them, services are known to be up before their ports open, the
// table knows a binding before its port opens, who analyses stands before there is
// anything to analyse, and flows that it leads elsewhere
// or nowhere are ended while the decoy's address still stands to reset them from.
func (l *localRoles) apply(ctx context.Context, want desired) error {
	state := &want.state
	k := l.made.Load()
	if k == nil {
		if !asked(state) {
			return nil
		}
		var err error
		if k, err = l.make(); err != nil {
			return fmt.Errorf("segments, zones and gateways of this machine: %w", err)
		}
		l.made.Store(k)
	}
	// What the document leaves to the machine: links that are found by their
	// addresses. What is not found is a problem of that zone only.
	interfaces, err := link.Interfaces(k.zones.Host())
	resolved, err2 := state.OnMachine(interfaces)
	err = errors.Join(err, err2)
	state = &resolved
	table := deception.NewTable(state)
	errs := []error{err, k.zones.Apply(ctx, state)}
	errs = append(errs, k.applyHostRoutes(ctx, state))
	errs = append(errs, k.inspect.Apply(ctx, state))
	k.checker.Watch(ctx, health.PortsOf(state))
	k.links.Watch(ctx, state)
	k.gateway.KeepHeads(want.heads)
	k.gateway.SetState(state, table)
	k.forward.SetState(state)
	k.engine.CloseFlows(misled(state, table), deception.EndUnbound)
	errs = append(errs, k.agent.Apply(ctx, state, table, k.up))
	errs = append(errs, k.applyHostRoutes(ctx, state)) // now with the links of the kernel path
	errs = append(errs, k.egress.Apply(ctx, state), k.ingress.Apply(ctx, state, want.peers))
	return errors.Join(errs...)
}

// doubt has the next apply compare a part of the segments with the kernel.
func (l *localRoles) doubt(turn, oneIn int) {
	if k := l.made.Load(); k != nil {
		k.agent.Doubt(turn, oneIn)
	}
}

func (k *kernelRoles) applyHostRoutes(ctx context.Context, state *deception.State) error {
	d := gateway.HostRoutes(state)
	uplinks := k.agent.HostRoutes()
	d.Routes = append(d.Routes, uplinks.Routes...)
	d.Rules = append(d.Rules, uplinks.Rules...)
	if _, err := route.Apply(ctx, k.zones.Host(), d); err != nil {
		return fmt.Errorf("host routes: %w", err)
	}
	return nil
}

// misled tells of a flow whether the table leads it elsewhere, or nowhere. Flows
// of segments that go are the agent's, which ends them with the segment.
func misled(state *deception.State, table *deception.Table) func(*relay.Flow) bool {
	return func(f *relay.Flow) bool {
		s := &f.Session
		if state.Tunnels() {
			d := state.Decoy(s.Decoy)
			return d == nil || d.Lookup(s.Transport, s.Destination.Port()) == nil
		}
		target, ok := table.Lookup(s.Segment, s.Transport, s.Destination)
		if !ok {
			return state.Segment(s.Segment) != nil
		}
		return target.Service.Name != s.Service || target.Decoy.Path != deception.PathRelay || target.Address != s.DestinationNAT
	}
}

func (l *localRoles) refresh(ctx context.Context) error {
	k := l.made.Load()
	if k == nil {
		return nil
	}
	k.egress.NoteHealth()
	k.ingress.NoteHealth()
	return k.agent.Refresh(ctx, k.up)
}

// carry takes a flow of this machine's own addresses into this process's gateway.
func (l *localRoles) carry(intruder pump.Stream, s *deception.Session, idle time.Duration) pump.Handle {
	k := l.made.Load()
	if k == nil {
		return nil
	}
	return k.ingress.Carry(intruder, s, idle)
}

// closeCarried ends flows of this machine's own addresses that match; those that
// agents on other nodes brought are none of listen mode's here.
func (l *localRoles) closeCarried(match func(*deception.Session) bool, reason deception.EndReason) {
	if k := l.made.Load(); k != nil {
		k.ingress.CloseFlows(func(s *deception.Session) bool { return s.Node == l.node.cfg.name && match(s) }, reason)
	}
}

// decoyUp tells whether the service behind a port of a decoy is known to be up.
func (l *localRoles) decoyUp(d *deception.Decoy, t deception.Transport, port uint16, ipv6 bool) bool {
	k := l.made.Load()
	return k != nil && k.ingress.Up(d, t, port, ipv6)
}

func (l *localRoles) close(ctx context.Context) error {
	k := l.made.Load()
	if k == nil {
		return nil
	}
	return k.close(ctx)
}

func (k *kernelRoles) close(ctx context.Context) error {
	if k.checker != nil {
		k.checker.Close()
		k.links.Close()
	}
	var errs []error
	if k.ingress != nil {
		errs = append(errs, k.ingress.Close(ctx))
	}
	if k.egress != nil {
		errs = append(errs, k.egress.Close(ctx))
	}
	if k.agent != nil {
		errs = append(errs, k.agent.Close(ctx))
	}
	if k.engine != nil {
		errs = append(errs, k.engine.Close(ctx))
	}
	if k.inspect != nil { // it needs the zones' namespace
		errs = append(errs, k.inspect.Close(ctx))
	}
	if k.zones != nil {
		errs = append(errs, k.zones.Close(ctx))
	}
	if k.gateway != nil {
		k.gateway.Settle()
	}
	return errors.Join(errs...)
}
