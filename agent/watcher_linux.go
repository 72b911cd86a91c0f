package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"decoynet/deception"
	"decoynet/internal/claim"
	"decoynet/internal/kernel/disguise"
	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/wire"
	"decoynet/internal/sense"
)

// watcher sees the frames of one segment: it claims the decoys' addresses, and
// gives them up to real hosts; and it tells contacts that reach no service.
//
// Frames come on the goroutine of a Tap, which must not wait for anything: what
// follows from them (routes, flows to end) is done by the agent's own goroutine.
type watcher struct {
	segment string
	agent   *Agent
	sight   atomic.Pointer[sight] // nil until the segment has a link

	mu      sync.Mutex // guards the rest; may be taken with the segment's lock held
	claimer *claim.Claimer
	held    []deception.AddrRange // what the claimer last said
	changed bool                  // and the kernel was not told yet
	next    time.Time             // of a Step; zero: when a frame comes
	waiting [][]byte              // frames that the link had no room for
	silent  bool                  // the link has no carrier: nothing can be asked
	changes uint64                // of the carrier, so far

	// hearing guards what follows. It is waited for only where a segment moves
	// between a trunk and a link of its own, and so between two Taps.
	hearing  sync.Mutex
	heard    uint64          // frames
	contacts []sense.Contact // of the frames at hand
	said     []claim.Frame
	alive    map[netip.Addr]struct{} // addresses that somebody has used, but decoys
	suspects map[netip.Addr]int64    // who asked for a decoy's address, and when
}

// sight is what has to be known to understand a frame. It is immutable.
type sight struct {
	tap      *wire.Tap
	link     int                   // where frames are sent
	mac      claim.MAC             // of lan0
	looks    []disguise.Policy     // decoys with MAC addresses of their own; sorted as own is
	own      []deception.AddrRange // their addresses, one range of one policy each
	policies []int                 // by the index in own
	bound    *boundPorts
	subnets  []netip.Prefix
	gateways []netip.Addr
}

// newWatcher returns a watcher that wants nothing yet. Adopted are the addresses
// that the kernel answers for already.
func newWatcher(a *Agent, segment string, adopted []deception.AddrRange) *watcher {
	w := &watcher{segment: segment, agent: a, alive: map[netip.Addr]struct{}{}, suspects: map[netip.Addr]int64{}}
	w.claimer = claim.New(claim.Config{
		Node: a.cfg.Node, Ours: a.ours, Shared: a.pace, Adopted: adopted,
		MAC: func(addr netip.Addr) claim.MAC { return w.sight.Load().macOf(addr) },
	})
	return w
}

// want says what the segment is to hold, and where its frames go.
func (w *watcher) want(s *sight, seg deception.Segment, decoys []*deception.Decoy, st *link.Status) {
	first := w.sight.Swap(s) == nil
	w.mu.Lock()
	defer w.mu.Unlock()
	w.claimer.Want(seg, decoys)
	if st.Carrier && (w.silent || !first && st.CarrierChanges != w.changes) {
		w.claimer.Reprobe() // RFC 5227, section 2.1: a link that becomes active
	}
	w.silent, w.changes = !st.Carrier, st.CarrierChanges
	w.step(time.Now(), nil)
	w.changed = false // whoever wants takes what is held
}

// lost says that the link is not there, or is down. Whoever has come when it is
// back is asked for (RFC 5227, section 2.1).
func (w *watcher) lost() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.silent, w.waiting = true, nil
}

// addresses returns what is held now.
func (w *watcher) addresses() []deception.AddrRange {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.held
}

// take returns what is held now if the kernel is to be told.
func (w *watcher) take() ([]deception.AddrRange, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	changed := w.changed
	w.changed = false
	return w.held, changed
}

func (w *watcher) status() claim.Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.claimer.Status()
}

// due does what is due, and returns when there is more to do.
func (w *watcher) due(now time.Time) (next time.Time, changed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.next.IsZero() && !w.next.After(now) {
		w.step(now, nil)
	}
	return w.next, w.changed
}

// sendAgain is the pause before frames are offered again to a link that had no
// room.
const sendAgain = 10 * time.Millisecond

// step must be called with mu held.
func (w *watcher) step(now time.Time, seen []claim.Frame) {
	s := w.sight.Load()
	if s != nil && w.silent && len(seen) > 0 { // it is back, before anybody has looked
		w.silent = false
		w.claimer.Reprobe()
	}
	if s == nil || w.silent {
		w.next = time.Time{}
		return
	}
	if len(w.waiting) > 0 && len(seen) == 0 && !w.send(s, now) {
		return
	}
	out := w.claimer.Step(now, seen)
	if out.Changed {
		w.held, w.changed = w.claimer.Held(), true
	}
	for i := range out.Events {
		w.agent.cfg.Recorder.Event(&out.Events[i])
	}
	w.next = out.Next
	w.waiting = append(w.waiting, out.Frames...)
	w.send(s, now)
}

// send offers the frames to the link. It returns false where some are left; a
// probe that was not sent has not asked anybody, so the claims do not go on
// without it.
func (w *watcher) send(s *sight, now time.Time) bool {
	sent, err := s.tap.SendMany(s.link, w.waiting)
	w.waiting = w.waiting[sent:]
	if err == nil {
		w.waiting = nil
		return true
	}
	w.next = now.Add(sendAgain)
	if len(w.waiting) > maxWaiting {
		w.waiting = nil
		w.claimer.Reprobe()
		w.next = now.Add(time.Second)
	}
	return false
}

// maxWaiting is how many frames may wait for a link. With more it does not work,
// and all that was asked on it is asked again.
const maxWaiting = 4 * claim.DefaultRate

// seen takes frames off the segment's network. It runs on a Tap's goroutine.
func (w *watcher) seen(frames []wire.Frame) {
	s := w.sight.Load()
	if s == nil {
		return
	}
	w.hearing.Lock()
	defer w.hearing.Unlock()
	w.heard += uint64(len(frames))
	w.contacts, w.said = w.contacts[:0], w.said[:0]
	for i := range frames {
		f := &frames[i]
		if w.ours(s, f) {
			continue
		}
		if f.Kind <= wire.Advertisement {
			w.said = append(w.said, claim.Frame{
				Kind: claimKinds[f.Kind], SourceMAC: f.SourceMAC, TargetMAC: f.TargetMAC, SenderMAC: f.SenderMAC, Source: f.Source, Target: f.Target,
			})
		}
		if kind, ok := f.Kind.Contact(); ok && w.concerns(s, f, kind) {
			w.contacts = append(w.contacts, sense.Contact{
				Segment: w.segment, At: f.At, Source: f.Source, SourceMAC: f.SourceMAC, Kind: kind, Target: f.Target, Port: f.Port,
			})
		}
	}
	if len(w.said) > 0 {
		w.mu.Lock()
		before := w.next
		w.step(time.Now(), w.said)
		hurry := w.changed || !w.next.Equal(before)
		w.mu.Unlock()
		if hurry {
			w.agent.wake()
		}
	}
	if len(w.contacts) > 0 {
		w.agent.senses.Observe(w.contacts)
	}
}

var claimKinds = [...]claim.Kind{
	wire.ARPRequest: claim.ARPRequest, wire.ARPReply: claim.ARPReply,
	wire.Solicitation: claim.Solicitation, wire.Advertisement: claim.Advertisement,
}

// concerns tells whether a contact is one with a decoy, or with an address that
// nobody has, and reaches no service.
func (w *watcher) concerns(s *sight, f *wire.Frame, kind deception.ContactKind) bool {
	if kind == deception.ContactARP {
		return w.asks(s, f)
	}
	if f.Target.IsMulticast() {
		return false // talk to all
	}
	// At lan0 the filters below it have put in its own address already.
	if f.TargetMAC != s.mac && f.TargetMAC != s.macOf(f.Target) {
		return false // flooded, and for somebody else
	}
	switch kind {
	case deception.ContactSYN:
		return !s.bound.open(deception.TCP, f.Target, f.Port)
	case deception.ContactDatagram:
		return !s.bound.open(deception.UDP, f.Target, f.Port) && !s.broadcast(f.Target)
	}
	return true
}

const (
	// suspectFor is how long somebody who asked for a decoy is looked at closely.
	suspectFor = time.Minute
	// maxKnown bounds what is remembered of a network; forged frames can fill it.
	// It then begins anew: the one side is learned again, and what is lost of the
	// other are contacts with addresses that are no decoys.
	maxKnown = 8192
)

// asks tells whether an ARP request or neighbour solicitation is a contact. That
// machines of the network look for each other is none; nobody has a reason to
// look for a decoy. Of somebody who did, requests for addresses that nobody has
// count too: they are the rest of a sweep.
func (w *watcher) asks(s *sight, f *wire.Frame) bool {
	if f.Source.IsUnspecified() || f.Source == f.Target {
		return false // it looks for an address of its own, or announces one
	}
	if len(w.alive) >= maxKnown {
		clear(w.alive)
	}
	w.alive[f.Source] = struct{}{}
	if slices.Contains(s.gateways, f.Source) {
		return false // for whom a router asks is seen by what follows
	}
	if s.bound.decoy(f.Target) {
		if len(w.suspects) >= maxKnown {
			clear(w.suspects)
		}
		w.suspects[f.Source] = f.At
		return true
	}
	_, somebodys := w.alive[f.Target]
	since, suspect := w.suspects[f.Source]
	return suspect && f.At-since < int64(suspectFor) && !somebodys && !slices.Contains(s.gateways, f.Target) &&
		slices.ContainsFunc(s.subnets, func(p netip.Prefix) bool { return p.Contains(f.Target) })
}

// broadcast tells whether the address means a whole subnet.
func (s *sight) broadcast(a netip.Addr) bool {
	return a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) || slices.ContainsFunc(s.subnets, func(p netip.Prefix) bool {
		return p.Addr().Is4() && p.Contains(a) && deception.LastAddr(p) == a
	})
}

// tendEvery bounds how long a watcher's word may go unheard, whatever happens.
const tendEvery = time.Second

// tend is the agent's own goroutine: it does what claims ask for, and has probes
// told.
func (a *Agent) tend(ctx context.Context) {
	timer := time.NewTimer(tendEvery)
	defer timer.Stop()
	for ctx.Err() == nil {
		now := time.Now()
		next := now.Add(tendEvery)
		var changed []*segment
		for _, s := range *a.watched.Load() {
			at, yes := s.watch.due(now)
			if !at.IsZero() && at.Before(next) {
				next = at
			}
			if yes {
				changed = append(changed, s)
			}
		}
		a.senses.Tick(now)
		a.applyHeld(ctx, changed)
		timer.Reset(max(time.Until(next), time.Millisecond))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-a.hurry:
		}
	}
}

// wake has tend look at once.
func (a *Agent) wake() {
	select {
	case a.hurry <- struct{}{}:
	default:
	}
}

// applyHeld tells the kernel which addresses the segments hold now.
func (a *Agent) applyHeld(ctx context.Context, changed []*segment) {
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, s := range changed {
		group.Go(func() error {
			if err := s.applyHeld(ctx); err != nil && ctx.Err() == nil {
				a.cfg.Log.Error("claimed addresses could not be applied", "segment", s.name, "error", err)
			}
			return nil
		})
	}
	_ = group.Wait() // the errors were told
	if len(changed) > 0 && a.cfg.Claimed != nil {
		a.cfg.Claimed()
	}
}

// probe is given every probe that the sensing tells. An address that was asked
// for once or twice, and nothing more, is what precedes every connection.
func (a *Agent) probe(p *deception.Probe) {
	if p.Kind == deception.ScanContact && p.Count() == p.Contacts[deception.ContactARP] {
		return
	}
	a.cfg.Recorder.Probe(p)
}

// ours tells whether an Ethernet address is one of this node's segments'.
func (a *Agent) ours(mac claim.MAC) bool {
	_, ok := (*a.macs.Load())[mac]
	return ok
}

// ours tells whether a frame that says to be of the address a is of this node: a
// decoy may have an Ethernet address of its own.
func (w *watcher) ours(s *sight, f *wire.Frame) bool {
	if w.agent.ours(f.SourceMAC) {
		return true
	}
	a := f.Source
	if f.Kind == wire.Advertisement {
		a = f.Target
	}
	if !a.IsValid() || a.IsUnspecified() {
		a = f.Target // a probe of our own that came back
	}
	return f.SourceMAC == s.macOf(a)
}

// macOf returns the Ethernet address that a decoy's address answers with.
func (s *sight) macOf(a netip.Addr) claim.MAC {
	i, _ := slices.BinarySearchFunc(s.own, a, func(r deception.AddrRange, a netip.Addr) int { return r.To.Compare(a) })
	if i < len(s.own) && s.own[i].Contains(a) {
		return claim.MAC(s.looks[s.policies[i]].MAC(a))
	}
	return s.mac
}

// look takes the policies of decoys that have Ethernet addresses of their own.
func (s *sight) look(policies []disguise.Policy) {
	type owned struct {
		deception.AddrRange
		policy int
	}
	var all []owned
	for i, p := range policies {
		if !p.OUI.IsValid() {
			continue
		}
		for _, prefix := range p.Prefixes {
			all = append(all, owned{deception.RangeOf(prefix), i})
		}
	}
	slices.SortFunc(all, func(x, y owned) int { return x.From.Compare(y.From) })
	s.looks = policies
	for _, o := range all {
		s.own, s.policies = append(s.own, o.AddrRange), append(s.policies, o.policy)
	}
}

// openTap listens at a segment's own link. The agent's mu is held meanwhile, by
// whoever applies all segments.
func (s *segment) openTap(index int) error {
	if s.tap != nil && s.tapLink == index {
		return nil
	}
	if err := s.closeTap(); err != nil {
		return err
	}
	tap, err := wire.Open(wire.Config{NS: s.ns, Link: index, Handle: s.watch.seen, RingBytes: ringBytes(len(s.agent.state.Segments))})
	if err != nil {
		return fmt.Errorf("watch the network: %w", err)
	}
	s.tap, s.tapLink = tap, index
	return nil
}

// trunkRing is the ring of all VLANs together.
const trunkRing = 4 << 20

// ringBytes is the ring of one of so many segments: a share of 16 MiB, between what
// lasts a scan at full speed for 9 ms and for 140 ms. On a machine that is busy
// the process waits that long for its turn.
func ringBytes(segments int) int {
	return min(max(16<<20/max(segments, 1), 256<<10), 4<<20)
}

func (s *segment) closeTap() error {
	if s.tap == nil {
		return nil
	}
	err := s.tap.Close()
	_, dropped := s.tap.Stats()
	s.dropped += dropped
	s.tap, s.tapLink = nil, 0
	return err
}

// sensed returns how many frames were looked at in the segment, and how many
// were not, for want of room in its own ring. That of a trunk is all VLANs'.
// It must be called with s.mu held.
func (s *segment) sensed() (heard, dropped uint64) {
	if s.watch == nil {
		return 0, 0
	}
	dropped = s.dropped
	if s.tap != nil {
		_, now := s.tap.Stats()
		dropped += now
	}
	s.watch.hearing.Lock()
	defer s.watch.hearing.Unlock()
	return s.watch.heard, dropped
}
