package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"decoynet/deception"
	"decoynet/internal/kernel/conntrack"
	"decoynet/internal/kernel/firewall"
	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/route"
)

// kernelPathPriority of the rules that lead marked replies back; they come
// before those of the zones' links.
const kernelPathPriority = 14210

const (
	// tickEvery is how often running flows are looked over.
	tickEvery = time.Second
	// announceAfter is the age at which a running flow is recorded as started.
	// A session that is over by then is written once, in full; the kernel tells
	// of its end a good second after the last packet.
	announceAfter = 3 * time.Second
	// compareTurns is how many ticks there are between two comparisons of our
	// books with the kernel's table when no event was lost. One comparison reads
	// the whole machine's table.
	compareTurns = 60
)

// kernelPath turns the connection tracking events of one segment's namespace
// into sessions. The bytes themselves never come by here.
type kernelPath struct {
	segment  string
	cfg      Config
	node     string
	ns       *netns.NS
	listener *conntrack.Listener
	stop     context.CancelFunc
	done     chan struct{}

	mu       sync.Mutex // guards the rest
	table    *deception.Table
	tracker  *conntrack.Tracker
	sessions map[flowKey]boundFlow
	facts    []conntrack.Fact
	// ended are the flows that ended while a dump is read, nil at other times:
	// the dump may still hold them as alive.
	ended map[flowKey]struct{}
}

// flowKey tells the flows of one tracker apart.
type flowKey struct {
	id                  uint32
	source, destination netip.AddrPort
}

// boundFlow is a running flow and what it was bound to when it began.
type boundFlow struct {
	flow           conntrack.Flow
	id             deception.SessionID
	decoy, service string
	announced      bool
}

// applyKernelPath brings the segment's translations to its plan and starts the
// recording of its flows. Recording starts before the first
// translation, so that no flow goes unseen.
func (s *segment) applyKernelPath(ctx context.Context) error {
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

// mirrorKernelPath has the flows shown to analysis. The segment has its link by
// now, and no address yet that a flow could come to.
func (s *segment) mirrorKernelPath() {
	if m := s.agent.cfg.Mirror; m != nil && s.kernel != nil {
		m.Watch(s.name, s.kernel.ns, link.LANName, s.agent.state.DecoysOf(s.name), s.agent.table)
	}
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
	var err error
	if k.ns, err = netns.Open(netns.SegmentName(s.name)); err != nil {
		stop()
		return nil, err
	}
	if k.listener, err = conntrack.Listen(ctx, k.ns, k.observe); err != nil {
		stop()
		return nil, errors.Join(err, k.ns.Close())
	}
	go k.follow(ctx, k.ns)
	return k, nil
}

// closeKernelPath ends recording and takes the translations back.
func (s *segment) closeKernelPath(ctx context.Context) error {
	if s.kernel == nil {
		return nil
	}
	var err error
	if s.ns != nil { // else there is no namespace any more
		_, err = firewall.RemoveKernelPath(ctx, s.agent.host, s.ns, firewall.KernelPath{
			Index: uint16(s.plan.index), HostLink: link.HostName(s.name),
		})
	}
	if m := s.agent.cfg.Mirror; m != nil {
		m.Unwatch(s.name)
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
	k.facts = k.tracker.Observe(k.facts[:0], e)
	k.record()
}

// follow records the flows that go on running, and compares our books with the
// kernel's table: at the start, for flows that a dead process left running,
// after a loss of events, and now and then.
func (k *kernelPath) follow(ctx context.Context, ns conntrack.Namespace) {
	defer close(k.done)
	ticker := time.NewTicker(tickEvery)
	defer ticker.Stop()
	var lost uint64
	// Two dumps in a row must lack a flow before it counts as gone.
	for due, turn := 2, 0; ; turn++ {
		if now := k.lost(); now != lost || turn%compareTurns == 0 {
			lost, due = now, 2
		}
		if due > 0 {
			due--
			k.compare(ns)
		}
		k.announce(time.Now().Add(-announceAfter))
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// announce records flows that began before a time as started.
func (k *kernelPath) announce(before time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, b := range k.sessions {
		if !b.announced && b.flow.Start.Before(before) {
			b.announced = true
			k.sessions[key] = b
			s := k.session(&b.flow, &b)
			k.cfg.Recorder.Started(&s)
			k.know(&s)
		}
	}
}

func (k *kernelPath) compare(ns conntrack.Namespace) {
	k.mu.Lock()
	k.ended = map[flowKey]struct{}{}
	k.mu.Unlock()
	dump, err := conntrack.Dump(ns)
	if err != nil {
		k.cfg.Log.Warn("compare sessions of the kernel path with the kernel", "segment", k.segment, slog.Any("error", err))
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	dump = slices.DeleteFunc(dump, func(e conntrack.Event) bool {
		_, over := k.ended[flowKey{e.ID, e.Orig.Src, e.Orig.Dst}]
		return over
	})
	k.ended = nil
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
		if k.facts[i].Started() {
			continue // announce comes by
		}
		s := k.session(f, &bound)
		delete(k.sessions, key)
		if k.ended != nil {
			k.ended[key] = struct{}{}
		}
		k.cfg.Recorder.Ended(&s)
		k.know(&s)
	}
}

func (k *kernelPath) know(s *deception.Session) {
	if k.cfg.Mirror != nil {
		k.cfg.Mirror.Know(s)
	}
}

// bind names a flow that has begun, by the table of that moment.
func (k *kernelPath) bind(f *conntrack.Flow) boundFlow {
	b := boundFlow{flow: *f}
	if k.cfg.Mirror != nil {
		b.id = k.cfg.Mirror.Session(k.segment, f.Transport, f.Source, f.Destination, f.Start)
	} else {
		b.id = deception.NewSessionID(f.Start)
	}
	if t, ok := k.table.Lookup(k.segment, f.Transport, f.Destination); ok {
		b.decoy, b.service = t.Decoy.Name, t.Service.Name
	}
	return b
}

func (k *kernelPath) session(f *conntrack.Flow, bound *boundFlow) deception.Session {
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
	_ = k.ns.Close() // a descriptor; nothing is lost
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

// hostUplinkRules apply to what comes in at a zone's link: replies, and the
// kernel's own question where an intruder's source address would be answered
// to. Packets on their way to a service carry the mark too and are routed as
// the host routes.
func hostUplinkRules(index int, zones []deception.Zone) []route.Rule {
	var out []route.Rule
	for _, z := range zones {
		for _, family := range []route.Family{route.IPv4, route.IPv6} {
			out = append(out, route.Rule{
				Family: family, Priority: kernelPathPriority, IIF: z.Link,
				Mark: firewall.MarkTag | uint32(index), Mask: 0xffffffff, Table: route.TableKernelPath(index),
			})
		}
	}
	return out
}
