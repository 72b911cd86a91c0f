package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"decoynet/deception"
	"decoynet/internal/kernel/conntrack"
	"decoynet/internal/kernel/firewall"
	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/route"
)

// kernelPathPriority of the rules that lead marked replies back; they come
// before those of the zones' links.
const kernelPathPriority = 14210

// Dumps of the kernel's table. One compares our books with it: after events
// were lost and now and then. But a dump also evicts what has expired, and so
// brings the last event of a closed flow, for which the kernel's own collector
// takes up to two minutes where no packets come by (gc_worker in
// nf_conntrack_core.c). Under load packets do that, and the dump would cost.
const (
	dumpEvery    = time.Second
	busyEvents   = 2000 // events between two turns from which no dump is needed
	compareEvery = 60   // turns
)

// kernelPath turns the connection tracking events of one segment's namespace
// into sessions. The bytes themselves never come by here.
type kernelPath struct {
	segment  string
	cfg      Config
	node     string
	listener *conntrack.Listener
	stop     context.CancelFunc
	done     chan struct{}

	mu       sync.Mutex // guards the rest
	table    *deception.Table
	tracker  *conntrack.Tracker
	sessions map[flowKey]boundFlow
	facts    []conntrack.Fact
	events   uint64
}

// flowKey tells the flows of one tracker apart.
type flowKey struct {
	id                  uint32
	source, destination netip.AddrPort
}

// boundFlow is what a running flow was bound to when it began.
type boundFlow struct {
	id             deception.SessionID
	decoy, service string
}

// applyKernelPath brings the segment's translations to its plan and starts or
// ends the recording of its flows. Recording starts before the first
// translation, so that no flow goes unseen.
func (s *segment) applyKernelPath(ctx context.Context) error {
	if !s.plan.link.Uplink {
		return s.closeKernelPath(ctx)
	}
	if s.kernel == nil {
		k, err := s.openKernelPath()
		if err != nil {
			return fmt.Errorf("record kernel path: %w", err)
		}
		s.kernel = k
	}
	s.kernel.setTable(s.agent.table)
	if _, err := firewall.ApplyKernelPath(ctx, s.agent.host, s.ns, s.kernelRules()); err != nil {
		return fmt.Errorf("kernel path: %w", err)
	}
	return nil
}

// kernelRules are the segment's translations. Where every one of them leads to
// an alias, the alias tells whose reply it is, and the host needs no connection
// tracking of its own.
func (s *segment) kernelRules() firewall.KernelPath {
	rules := firewall.KernelPath{
		Index: uint16(s.plan.index), HostLink: link.HostName(s.name), Reply: firewall.ReplyByAlias,
	}
	for _, r := range s.plan.kernel {
		rules.Redirects = append(rules.Redirects, firewall.Redirect{Transport: r.Transport, Decoy: r.Decoy, Service: r.Target})
	}
	var aliases []deception.AddrRange
	always := func(*deception.Service, deception.Transport, uint16, netip.Addr) bool { return true }
	for _, r := range s.agent.table.KernelRoutes(s.name, always) {
		if !r.Alias {
			rules.Reply, aliases = firewall.ReplyByMark, nil
			break
		}
		aliases = append(aliases, deception.AddrRange{From: r.Target.Addr(), To: r.Target.Addr()})
	}
	for _, r := range deception.SortRanges(aliases) {
		rules.Aliases = append(rules.Aliases, r.Prefixes()...)
	}
	for _, d := range s.agent.state.DecoysOf(s.name) {
		if d.Path == deception.PathKernel {
			rules.Idle = max(rules.Idle, d.Idle) // the namespace has one timeout for all
		}
	}
	return rules
}

func (s *segment) openKernelPath() (*kernelPath, error) {
	ctx, stop := context.WithCancel(context.Background())
	k := &kernelPath{
		segment: s.name, cfg: s.agent.cfg, node: s.agent.state.Node, stop: stop, done: make(chan struct{}),
		table: s.agent.table, tracker: conntrack.NewTracker(), sessions: map[flowKey]boundFlow{},
	}
	listener, err := conntrack.Listen(ctx, s.ns, k.observe)
	if err != nil {
		stop()
		return nil, err
	}
	k.listener = listener
	go k.follow(ctx, s.ns)
	return k, nil
}

// closeKernelPath ends recording and takes the translations back.
func (s *segment) closeKernelPath(ctx context.Context) error {
	if s.kernel == nil {
		return nil
	}
	var err error
	if s.ns != nil {
		_, err = firewall.RemoveKernelPath(ctx, s.agent.host, s.ns, firewall.KernelPath{
			Index: uint16(s.plan.index), HostLink: link.HostName(s.name),
		})
	}
	s.kernel.close()
	s.kernel = nil
	if err != nil {
		return fmt.Errorf("remove kernel path: %w", err)
	}
	return nil
}

func (k *kernelPath) setTable(t *deception.Table) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.table = t
}

func (k *kernelPath) lost() uint64 { return k.listener.Lost() }

func (k *kernelPath) observe(e conntrack.Event) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.events++
	k.facts = k.tracker.Observe(k.facts[:0], e)
	k.record()
}

// follow dumps the kernel's table as often as is good: at the start, for flows
// that a dead process left running, after a loss of events, and while flows
// are about to end.
func (k *kernelPath) follow(ctx context.Context, ns conntrack.Namespace) {
	defer close(k.done)
	ticker := time.NewTicker(dumpEvery)
	defer ticker.Stop()
	var lost, events uint64
	// Two dumps in a row must lack a flow before it counts as gone.
	for due, turn := 2, 0; ; turn++ {
		if now := k.lost(); now != lost || turn%compareEvery == 0 {
			lost, due = now, 2
		}
		live, seen := k.progress()
		if due > 0 || live > 0 && seen-events < busyEvents {
			due = max(0, due-1)
			k.compare(ns)
		}
		events = seen
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// progress returns how many flows run and how many events were seen in all.
func (k *kernelPath) progress() (live int, events uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.tracker.Live(), k.events
}

func (k *kernelPath) compare(ns conntrack.Namespace) {
	dump, err := conntrack.Dump(ns)
	if err != nil {
		k.cfg.Log.Warn("compare sessions of the kernel path with the kernel", "segment", k.segment, slog.Any("error", err))
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.facts = k.tracker.Sync(k.facts[:0], dump, time.Now())
	k.record()
}

// record hands the facts to the recorder. It must be called with mu held.
func (k *kernelPath) record() {
	for i := range k.facts {
		f := &k.facts[i].Flow
		key := flowKey{f.ID, f.Source, f.Destination}
		bound, known := k.sessions[key]
		if !known {
			bound = k.bind(f)
			k.sessions[key] = bound
		}
		s := k.session(f, bound)
		if k.facts[i].Started() {
			k.cfg.Recorder.Started(&s)
			continue
		}
		delete(k.sessions, key)
		k.cfg.Recorder.Ended(&s)
	}
}

// bind names a flow that has begun, by the table of that moment.
func (k *kernelPath) bind(f *conntrack.Flow) boundFlow {
	b := boundFlow{id: k.cfg.NewID(f.Start)}
	if t, ok := k.table.Lookup(k.segment, f.Transport, f.Destination); ok {
		b.decoy, b.service = t.Decoy.Name, t.Service.Name
	}
	return b
}

func (k *kernelPath) session(f *conntrack.Flow, bound boundFlow) deception.Session {
	s := deception.Session{
		ID: bound.id, Start: f.Start, End: f.End,
		Node: k.node, Segment: k.segment, Decoy: bound.decoy, Service: bound.service,
		Transport: f.Transport, Path: deception.PathKernel, SourceMode: f.SourceMode(),
		Source: f.Source, SourceNAT: f.SourceNAT, Destination: f.Destination, DestinationNAT: f.DestinationNAT,
		Reason: f.Reason,
	}
	s.SourceBytes, s.DestinationBytes = f.Payload()
	return s
}

// close stops listening and ends, on record, the flows that still run: the
// namespace goes, and they with it.
func (k *kernelPath) close() {
	k.stop()
	<-k.done
	if err := k.listener.Wait(); err != nil {
		k.cfg.Log.Warn("events of the kernel path", "segment", k.segment, slog.Any("error", err))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.facts = k.tracker.Sync(k.facts[:0], nil, time.Now())
	k.facts = k.tracker.Sync(k.facts, nil, time.Now())
	for i := range k.facts {
		k.facts[i].Flow.Reason = deception.EndShutdown
	}
	k.record()
}

// hostUplinkRoutes and hostUplinkRules lead what carries a segment's mark back
// into its namespace.
func hostUplinkRoutes(segment string, index int) []route.Route {
	dev, table := link.HostName(segment), route.TableKernelPath(index)
	return []route.Route{
		{Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: link.NextHopSegment4, Dev: dev, Table: table, Onlink: true},
		{Dst: netip.PrefixFrom(netip.IPv6Unspecified(), 0), Via: link.NextHopSegment6, Dev: dev, Table: table, Onlink: true},
	}
}

func hostUplinkRules(index int) []route.Rule {
	var out []route.Rule
	for _, family := range []route.Family{route.IPv4, route.IPv6} {
		out = append(out, route.Rule{
			Family: family, Priority: kernelPathPriority,
			Mark: firewall.MarkTag | uint32(index), Mask: 0xffffffff, Table: route.TableKernelPath(index),
		})
	}
	return out
}
