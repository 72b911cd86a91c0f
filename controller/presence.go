package controller

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"decoynet/deception"
	"decoynet/internal/registry"
	"decoynet/internal/rpc/decoynetv1"
)

// Conditions of a node.
const (
	conditionConverged = "converged"
	conditionApplying  = "applying"
	conditionDrifted   = "drifted"
	conditionFailed    = "failed"
	conditionLost      = "lost"
	conditionNeverSeen = "never-seen"
	conditionRevoked   = "revoked"
)

const (
	// clockOff is by how much a node's clock may differ before it is said,
	// clockGood where it counts as right again.
	clockOff  = 5 * time.Second
	clockGood = 3 * time.Second
	// Bounds of what is kept of a report.
	maxProblems    = 32
	maxProblemText = 500
	maxLinks       = 64
	maxAddresses   = 64
)

// presence is what this controller hears of nodes. Only enrolled nodes get in, so
// it is as large as their number.
type presence struct {
	mu    sync.Mutex // guards the rest
	nodes map[string]*heard
	// errands are sessions to be ended, tried again until the store does.
	errands []errand
	// trouble is when the registry was not reached last: what nodes said then is not
	// in it yet, ours or another controller's.
	trouble time.Time
}

// errand is a call of Store.Lost.
type errand struct {
	node   string
	before time.Time
}

// heard is one node as heard by this controller.
type heard struct {
	at time.Time
	// generation is that of its certificate, 0 for the node in this process.
	generation uint32
	boot       string
	greeted    bool // the registry knows that it is here, with this boot

	report    *registry.Report
	reportNew bool      // and another one than the registry has
	kept      time.Time // when the registry was told last

	reach, addresses       []string
	reachNew, addressesNew bool

	clockOff bool
}

func newPresence() *presence { return &presence{nodes: make(map[string]*heard)} }

// of returns the node's entry; p.mu is held.
func (p *presence) of(node string) *heard {
	h := p.nodes[node]
	if h == nil {
		h = &heard{}
		p.nodes[node] = h
	}
	return h
}

// hear notes a sign of life. Boot is empty where the call does not say it.
func (p *presence) hear(who *caller, boot string, reach []string, now time.Time, lostAfter time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h := p.nodes[who.node]; h != nil && h.generation != who.generation {
		delete(p.nodes, who.node) // it was another machine
	}
	h := p.of(who.node)
	h.generation = who.generation
	if now.Sub(h.at) > lostAfter {
		h.greeted = false
	}
	h.at = now
	if boot != "" && boot != h.boot {
		h.boot, h.greeted = boot, false
	}
	if len(reach) > 0 && !slices.Equal(reach, h.reach) {
		h.reach, h.reachNew = reach, true
	}
}

// take keeps a report. It returns whether the clock went wrong with it.
func (p *presence) take(node string, r *registry.Report, addresses []string) (clockWrong bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.of(node)
	h.reportNew = h.reportNew || h.report == nil || matters(h.report, r)
	h.report = r
	if addresses != nil && !slices.Equal(addresses, h.addresses) {
		h.addresses, h.addressesNew = addresses, true
	}
	offset := time.Duration(r.ClockOffset).Abs()
	clockWrong = offset > clockOff && !h.clockOff
	h.clockOff = offset > clockOff || h.clockOff && offset > clockGood
	return clockWrong
}

// matters tells whether the others should know a report soon.
func matters(old, new *registry.Report) bool {
	return old.Held != new.Held || old.State != new.State || old.Version != new.Version || !slices.Equal(old.Problems, new.Problems)
}

// bootTime returns when the process began: boot is an identifier of version 7 by the
// node's clock, as sessions' starts are. Otherwise it is when we heard of it.
func bootTime(boot string, heard time.Time) time.Time {
	id, err := deception.ParseSessionID(boot)
	if err != nil || id[6]>>4 != 7 {
		return heard
	}
	var ms int64
	for _, b := range id[:6] {
		ms = ms<<8 | int64(b)
	}
	return time.UnixMilli(ms)
}

// heardOf returns what this controller knows of the node.
func (p *presence) heardOf(node string) (h heard, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if found := p.nodes[node]; found != nil {
		return *found, true
	}
	return heard{}, false
}

// forget drops a node that was cut off: it is heard of no more.
func (p *presence) forget(node string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.nodes, node)
}

// outbox is what is to be told to the registry.
type outbox struct {
	hellos    []registry.Hello
	sightings []registry.Sighting
	errands   []errand
}

// collect empties presence into an outbox. Signs of life alone wait for others until
// seenFlush has passed.
func (p *presence) collect(now time.Time, seenFlush time.Duration, all bool) (out outbox) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, h := range p.nodes {
		if h.at.IsZero() {
			continue
		}
		if !h.greeted {
			out.hellos = append(out.hellos, registry.Hello{Node: name, Boot: h.boot, At: h.at})
		}
		due := h.at.After(h.kept) && (all || now.Sub(h.kept) >= seenFlush)
		if !due && !h.reportNew && !h.reachNew && !h.addressesNew {
			continue
		}
		s := registry.Sighting{Node: name, Seen: h.at, Report: h.report}
		if h.reachNew {
			s.Reach = h.reach
		}
		if h.addressesNew {
			s.Addresses = h.addresses
		}
		out.sightings = append(out.sightings, s)
		h.kept = h.at
		h.reportNew, h.reachNew, h.addressesNew = false, false, false
	}
	out.errands, p.errands = p.errands, nil
	return out
}

// restore puts sightings back that could not be kept.
func (p *presence) restore(sightings []registry.Sighting) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range sightings {
		h := p.nodes[s.Node]
		if h == nil {
			continue
		}
		h.kept = time.Time{}
		h.reachNew, h.addressesNew = h.reachNew || s.Reach != nil, h.addressesNew || s.Addresses != nil
	}
}

// greeted notes that the registry knows of the node.
func (p *presence) greeted(h registry.Hello) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := p.nodes[h.Node]; n != nil && n.boot == h.Boot {
		n.greeted = true
	}
}

// troubled notes that the registry was not reached, unless at is zero, and returns when
// that was last.
func (p *presence) troubled(at time.Time) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !at.IsZero() {
		p.trouble = at
	}
	return p.trouble
}

func (p *presence) postpone(e []errand) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.errands = append(p.errands, e...)
}

// flushLoop tells the registry what is heard of nodes, many at a time.
func (c *Controller) flushLoop() {
	tick := time.NewTicker(c.timing.flush)
	defer tick.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-tick.C:
		}
		c.attempt("keep what nodes report", func(ctx context.Context) error {
			err := c.flush(ctx, time.Now(), false)
			if err != nil {
				c.presence.troubled(time.Now())
			}
			return err
		})
	}
}

// flush is called by one goroutine at a time.
func (c *Controller) flush(ctx context.Context, now time.Time, all bool) error {
	out := c.presence.collect(now, c.timing.seenFlush, all)
	arrivals, err := c.cfg.Registry.Arrived(ctx, out.hellos)
	for i, a := range arrivals {
		h := out.hellos[i]
		c.presence.greeted(h)
		if a.NewBoot {
			out.errands = append(out.errands, errand{h.Node, bootTime(h.Boot, h.At)})
		}
		c.arrived(h, a)
	}
	for i, e := range out.errands {
		if lost := c.cfg.Store.Lost(ctx, e.node, e.before); lost != nil {
			c.presence.postpone(out.errands[i:])
			c.log.Warn("end the sessions of a node's last run", "node", e.node, "err", lost)
			break
		}
	}
	if err != nil {
		c.presence.restore(out.sightings)
		return err
	}
	if err := c.cfg.Registry.Sighted(ctx, out.sightings); err != nil {
		c.presence.restore(out.sightings)
		return err
	}
	return nil
}

// arrived says that a node is here, or here again.
func (c *Controller) arrived(h registry.Hello, a registry.Arrival) {
	var what string
	switch {
	case a.Back:
		what = "node %s reached the controller"
	case a.NewBoot && a.Previous != "":
		what = "decoynet was started anew on node %s"
	default:
		return // it came over from another controller
	}
	if seen, ok := c.presence.heardOf(h.Node); ok && len(seen.reach) > 0 {
		what += " from " + seen.reach[0]
	}
	c.event(deception.Event{Kind: deception.EventNodeConnected, Node: h.Node, Message: fmt.Sprintf(what, h.Node)})
}

// sweepLoop looks for nodes that went silent.
func (c *Controller) sweepLoop() {
	select {
	case <-c.ctx.Done():
		return
	case <-time.After(c.timing.grace): // they need time to find this controller
	}
	tick := time.NewTicker(c.timing.sweep)
	defer tick.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-tick.C:
		}
		c.attempt("look for silent nodes", c.sweep)
	}
}

func (c *Controller) sweep(ctx context.Context) error {
	now := time.Now()
	if now.Sub(c.presence.troubled(time.Time{})) < c.timing.lostAfter {
		return nil
	}
	// The registry knows a sign of life seenFlush after it, at the latest.
	silent, err := c.cfg.Registry.Silent(ctx, now.Add(-c.timing.lostAfter-c.timing.seenFlush-c.timing.flush), now)
	for _, node := range silent {
		c.log.Warn("node lost", "node", node)
		c.event(deception.Event{
			Kind: deception.EventNodeLost, Node: node,
			Message: fmt.Sprintf("node %s was not heard of for %v; its decoys may go on, by the last it was told: look at the machine and its way to the controller", node, c.timing.lostAfter),
		})
	}
	return err
}

// reportOf takes from a report what is kept of it, within bounds.
func reportOf(m *decoynetv1.ReportRequest, who *caller, now time.Time) *registry.Report {
	r := &registry.Report{
		Version: clip(m.GetVersion(), 100), Platform: clip(m.GetPlatform(), 100), Held: clip(m.GetRevision(), 100),
		Flows: m.GetFlows(), CertificateExpires: who.expires,
		Spool: registry.Spool{
			Waiting: m.GetSpool().GetWaiting(), WaitingBytes: m.GetSpool().GetWaitingBytes(), Dropped: m.GetSpool().GetDropped(),
		},
	}
	if who.peer.IsValid() {
		r.Peer = who.peer.Addr().String()
	}
	if m.GetTime() != 0 {
		r.ClockOffset = m.GetTime() - now.UnixNano()
	}
	switch m.GetState() {
	case decoynetv1.ReportRequest_STATE_CONVERGED:
		r.State = conditionConverged
	case decoynetv1.ReportRequest_STATE_DRIFTED:
		r.State = conditionDrifted
	case decoynetv1.ReportRequest_STATE_FAILED:
		r.State = conditionFailed
	}
	for i, p := range m.GetProblems() {
		if i == maxProblems {
			r.Problems = append(r.Problems, fmt.Sprintf("... and %d more", len(m.GetProblems())-maxProblems))
			break
		}
		r.Problems = append(r.Problems, clip(p, maxProblemText))
	}
	for i, g := range m.GetGateways() {
		if i == maxLinks {
			break
		}
		r.Gateways = append(r.Gateways, registry.Link{
			Name: clip(g.GetName(), 100), Connected: g.GetConnected(),
			RoundTrip: time.Duration(g.GetRoundTrip()), Error: clip(g.GetError(), maxProblemText),
		})
	}
	return r
}

func clip(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "")
	}
	return s
}

// addressesOf takes from a report the addresses at which the machine may be reached.
func addressesOf(m *decoynetv1.ReportRequest) []string {
	out := []string{}
	for _, s := range m.GetAddresses() {
		a, err := netip.ParseAddr(s)
		if a = a.Unmap().WithZone(""); err != nil || !a.IsGlobalUnicast() || len(out) == maxAddresses {
			continue
		}
		out = append(out, a.String())
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// conditionOf says how a node is: by what is desired, what is known and when that was.
func conditionOf(p *planned, n *registry.Node, now time.Time, lostAfter time.Duration) string {
	switch {
	case n == nil:
		return conditionNeverSeen
	case !n.Revoked.IsZero():
		return conditionRevoked
	case n.Seen.IsZero():
		return conditionNeverSeen
	case now.Sub(n.Seen) > lostAfter:
		return conditionLost
	case p != nil && n.Report.Held != p.wanted() || n.Report.State == "":
		return conditionApplying
	}
	return n.Report.State
}
