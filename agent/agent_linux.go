// Package agent realises segments and decoys on a machine: each segment gets a
// network namespace with a macvlan on its NIC, the decoys' addresses become the
// namespace's own, and bound ports are steered to the relay.
//
// Planning (plan.go) is pure; what stands in the kernel follows from the
// document and the services' health alone, and is found again after a crash.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"decoynet/deception"
	"decoynet/internal/claim"
	"decoynet/internal/health"
	"decoynet/internal/kernel/disguise"
	"decoynet/internal/kernel/firewall"
	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/route"
	"decoynet/internal/kernel/wire"
	"decoynet/internal/relay"
	"decoynet/internal/sense"
)

// Recorder takes the sessions of the kernel path, and what is seen of a segment's
// network. Its methods never block.
type Recorder interface {
	Started(s *deception.Session)
	Ended(s *deception.Session)
	Event(e *deception.Event)
	Probe(p *deception.Probe)
}

// Mirror shows flows of the kernel path to analysis. Its methods do not wait for it.
type Mirror interface {
	// Watch has the packets of flows to the segment's decoys of the kernel path
	// shown from now on, as table binds them. link is the segment's interface in ns,
	// which stays open until Unwatch.
	Watch(segment string, ns wire.Namespace, link string, decoys []*deception.Decoy, table *deception.Table)
	Unwatch(segment string)
	// Session returns the identifier of the flow that began at start: the one that
	// its packets are shown under.
	Session(segment string, t deception.Transport, source, destination netip.AddrPort, start time.Time) deception.SessionID
	// Know tells what is known of a session, its end at last.
	Know(s *deception.Session)
}

// Config is what an agent is made with.
type Config struct {
	Node     string
	Engine   *relay.Engine
	Recorder Recorder
	// Forwarded tells of a decoy whose service only the gateway on another node
	// knows whether a port is to be open; nil: all are.
	Forwarded Up
	// CloseFlows ends flows, wherever they are carried, whose session matches.
	CloseFlows func(match func(*deception.Session) bool, reason deception.EndReason)
	// Mirror is shown the flows of the kernel path; nil: nobody is.
	Mirror Mirror
	// Claimed is called when addresses were claimed or given up; nil: nobody is.
	Claimed func()
	Log     *slog.Logger
}

// Agent holds the segments of one machine.
type Agent struct {
	cfg  Config
	host *netns.NS

	senses *sense.Aggregator
	pace   *claim.Limiter // of claims of all segments
	hurry  chan struct{}  // holds one token: tend is to look at once
	stop   context.CancelFunc
	done   chan struct{} // closed when tend has ended

	// What the goroutines that watch see; written by publish.
	watched atomic.Pointer[[]*segment]
	macs    atomic.Pointer[map[claim.MAC]struct{}]
	onTrunk atomic.Pointer[map[int][]*watcher] // by the index of the VLAN's device

	trunk    *netns.NS  // of VLAN devices; nil where there are none; guarded by mu
	trunkTap *wire.Tap  // sees all of them; likewise
	mu       sync.Mutex // serialises Apply, Refresh and Close; guards the rest
	segments map[string]*segment
	groupIDs map[string]uint32
	indexes  map[string]int
	state    *deception.State
	table    *deception.Table
}

// SegmentStatus is what is true about one segment.
type SegmentStatus struct {
	Name       string   `json:"name"`
	Parent     string   `json:"parent"`
	VLAN       uint16   `json:"vlan,omitempty"`
	Lower      string   `json:"lower,omitempty"` // what the segment's macvlan stands on, where that is not Parent
	Ready      bool     `json:"ready"`
	Steering   string   `json:"steering,omitempty"`
	Decoys     int      `json:"decoys"`
	Addresses  uint64   `json:"addresses"`
	OpenPorts  int      `json:"open_ports"`
	Claimed    uint64   `json:"claimed"`            // of the addresses, those that are the decoys' now
	Claiming   uint64   `json:"claiming,omitempty"` // those that are being asked for
	Conflicts  []string `json:"conflicts,omitempty"`
	KernelPath int      `json:"kernel_path_bindings,omitempty"`
	KernelLost uint64   `json:"kernel_path_events_lost,omitempty"`
	MAC        string   `json:"mac,omitempty"`
	// Promiscuous: the NIC receives all frames, for decoys with MAC addresses of their own.
	Promiscuous bool `json:"promiscuous,omitempty"`
	// Sensed counts the frames that could concern decoys: ARP, NDP, pings, SYNs,
	// datagrams. SensingDropped are those that there was no room for; of VLANs
	// only Sensing tells, as they share one ring.
	Sensed         uint64 `json:"sensed"`
	SensingDropped uint64 `json:"sensing_dropped,omitempty"`

	Problems []string `json:"problems,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

// New returns an agent without segments. It works in the caller's namespace.
func New(cfg Config) (*Agent, error) {
	host, err := netns.Current()
	if err != nil {
		return nil, fmt.Errorf("open the host's network namespace: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	a := &Agent{
		cfg: cfg, host: host, segments: map[string]*segment{},
		groupIDs: map[string]uint32{}, indexes: map[string]int{},
		state: &deception.State{}, table: deception.NewTable(&deception.State{}),
		pace: claim.NewLimiter(claim.DefaultNodeRate), hurry: make(chan struct{}, 1), stop: stop, done: make(chan struct{}),
	}
	a.senses = sense.New(sense.Config{Node: cfg.Node, Emit: a.probe})
	a.publish()
	go func() {
		defer close(a.done)
		a.tend(ctx)
	}()
	return a, nil
}

// Apply makes the machine's segments what state says, with bound ports open as
// far as open tells. Segments that are not in state go. A fault in one segment
// does not stop the others: the errors are joined.
//
// Flows that table leads nowhere or elsewhere must have been ended before: an
// IPv4 address that is no longer ours is no source for the kernel to send a
// reset from (ip_route_output_key refuses it), and the intruder would hang in a
// connection that nobody holds. Segments that go see to their own flows.
func (a *Agent) Apply(ctx context.Context, state *deception.State, table *deception.Table, open func(health.Port) bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.state, a.table = state, table
	var errs []error
	for name, s := range a.segments {
		if state.Segment(name) == nil {
			errs = append(errs, s.remove(ctx))
			delete(a.segments, name)
		}
	}
	a.publish() // without those that are gone
	errs = append(errs, a.applyGuard(ctx), a.openTrunk(), a.applySegments(ctx, open, true), a.pruneTrunk(ctx))
	return errors.Join(errs...)
}

// Refresh opens and closes ports after services' health has changed.
func (a *Agent) Refresh(ctx context.Context, open func(health.Port) bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.applySegments(ctx, open, false)
}

// atOnce is how many segments are applied at the same time. Making one is mostly
// waiting: for grace periods of the kernel's RCU, one after the other.
const atOnce = 32

// applySegments must be called with mu held. A new state may lead flows of the
// kernel path elsewhere where the plan is the same.
func (a *Agent) applySegments(ctx context.Context, open func(health.Port) bool, newState bool) error {
	var (
		errs     = make([]error, len(a.state.Segments))
		group    errgroup.Group
		oneByOne []func()
	)
	group.SetLimit(atOnce)
	for i, seg := range a.state.Segments {
		if seg.Name == deception.HostSegment {
			continue
		}
		s := a.segments[seg.Name]
		if s == nil {
			s = &segment{agent: a, name: seg.Name}
			a.segments[seg.Name] = s
		}
		p := planSegment(a.state, a.table, seg, a.index(seg.Name), opening{open, a.cfg.Forwarded}, a.groupID)
		if s.stands(&p) && !(newState && p.link.Uplink) {
			continue
		}
		apply := func() {
			if ctx.Err() != nil {
				return
			}
			if err := s.apply(ctx, p); err != nil {
				errs[i] = fmt.Errorf("segment %s: %w", seg.Name, err)
			}
		}
		if p.link.Uplink || s.kernel != nil {
			oneByOne = append(oneByOne, apply) // the kernel path changes the host's namespace, too
			continue
		}
		group.Go(func() error { apply(); return nil })
	}
	_ = group.Wait() // the errors are in errs
	for _, apply := range oneByOne {
		apply()
	}
	a.publish()
	if err := ctx.Err(); err != nil {
		return err // rather than once for each segment
	}
	return errors.Join(errs...)
}

// Doubt has the next Apply compare segments with the kernel, since somebody else
// may have changed something: one in so many of them, the turn saying which.
// Others whose plan is the same are left alone, so that a change of one costs the
// same however many there are, and waits for no comparison of all.
func (a *Agent) Doubt(turn, oneIn int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, s := range a.segments {
		if a.index(name)%oneIn == turn%oneIn {
			s.doubt()
		}
	}
}

// groupID numbers names in the order in which they first come up.
func (a *Agent) groupID(name string) uint32 {
	id, ok := a.groupIDs[name]
	if !ok {
		id = uint32(len(a.groupIDs) + 1)
		a.groupIDs[name] = id
	}
	return id
}

// index numbers segments; the number names a routing table and a mark.
func (a *Agent) index(name string) int {
	i, ok := a.indexes[name]
	if !ok {
		i = len(a.indexes) + 1
		a.indexes[name] = i
	}
	return i
}

// HostRoutes returns what the host's namespace is to hold for the kernel path:
// marked replies of a service go back into their segment.
func (a *Agent) HostRoutes() route.Desired {
	a.mu.Lock()
	defer a.mu.Unlock()
	var d route.Desired
	for _, name := range sortedNames(a.segments) {
		if s := a.segments[name]; s.plan.link.Uplink {
			d.Routes = append(d.Routes, hostUplinkRoutes(name, s.plan.index)...)
			d.Rules = append(d.Rules, hostUplinkRules(s.plan.index, a.state.Zones)...)
		}
	}
	return d
}

// Status tells what is true about every segment, by name.
func (a *Agent) Status() []SegmentStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []SegmentStatus
	for _, name := range sortedNames(a.segments) {
		out = append(out, a.segments[name].status(a.state))
	}
	return out
}

// SensingStatus is what is true about the watching of all segments' networks.
type SensingStatus struct {
	Sensed  uint64 `json:"sensed"`  // frames that could concern decoys
	Dropped uint64 `json:"dropped"` // others like these, for want of room
}

// Sensing tells what was sensed in all segments that there are.
func (a *Agent) Sensing() SensingStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	var st SensingStatus
	for _, s := range a.segments {
		s.mu.Lock()
		heard, dropped := s.sensed()
		s.mu.Unlock()
		st.Sensed += heard
		st.Dropped += dropped
	}
	if a.trunkTap != nil {
		_, dropped := a.trunkTap.Stats()
		st.Dropped += dropped
	}
	return st
}

// Close removes every segment.
func (a *Agent) Close(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	for name, s := range a.segments {
		errs = append(errs, s.remove(ctx))
		delete(a.segments, name)
	}
	a.publish()
	a.stop()
	<-a.done
	a.senses.Flush(time.Now())
	_, err := firewall.ApplyGuard(ctx, a.host, nil)
	errs = append(errs, err, a.closeTrunk(ctx), a.host.Close())
	return errors.Join(errs...)
}

// Cleanup removes every segment that any run of decoynet left in the kernel of
// this machine. It needs no memory and no running process. It returns what it
// removed.
func Cleanup(ctx context.Context) ([]string, error) {
	host, err := netns.Current()
	if err != nil {
		return nil, fmt.Errorf("open the host's network namespace: %w", err)
	}
	defer host.Close()
	var removed []string
	errs := []error{cleanTrunk(ctx)}
	names, err := netns.List(netns.Prefix)
	errs = append(errs, err)
	for _, name := range names {
		if err := netns.Delete(name); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, "network namespace "+name)
	}
	filtered, err := disguise.RemoveOwned(host)
	errs = append(errs, err)
	for _, name := range filtered {
		removed = append(removed, "filter of "+name)
	}
	links, err := link.Owned(host)
	errs = append(errs, err)
	for _, name := range links {
		removed = append(removed, "link "+name)
	}
	errs = append(errs, link.RemoveOwned(ctx, host))
	return removed, errors.Join(errs...)
}

func sortedNames(m map[string]*segment) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
