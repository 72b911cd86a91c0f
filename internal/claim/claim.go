// Package claim decides which decoy addresses of a segment are held, so that a
// decoy never takes an address from a machine that has it.
//
// A Claimer is a state machine for one segment: it is given the wanted
// addresses, the ARP and NDP frames that were seen and the time, and says which
// frames to send, which addresses are held and what people should know. It
// touches no kernel, has no clock and no goroutine; whoever owns it calls Step.
//
// Addresses are kept as ranges. Only those that somebody else claims are known
// one by one, so a segment of 65,536 quiet addresses costs a few hundred bytes.
// The constants and their reasons are in schedule.go and, at length, in
// docs/decisions/0008-claiming.md.
package claim

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"decoynet/deception"
)

// MAC is an Ethernet address.
type MAC = [6]byte

// Config is what stays the same for as long as a Claimer lives.
type Config struct {
	Node string // named in events
	// MAC returns the Ethernet address that a decoy address answers with, which
	// its probes and announcements are sent from.
	MAC func(netip.Addr) MAC
	// Ours tells whether an Ethernet address is one of this node's, in whatever
	// segment: frames that come back through a switch or a second NIC are no
	// conflict.
	Ours func(MAC) bool
	// Rate is the most frames sent in any second, DefaultRate where it is 0. The
	// least is 2.
	Rate int
	// Shared bounds the frames of all segments of the node together; nil where
	// nothing does.
	Shared *Limiter
	// Random returns numbers from [0,1); rand.Float64 where it is nil.
	Random func() float64
	// Adopted are addresses that the kernel answers for already, left by a
	// process that was killed. Those of them that are wanted stay held while they
	// are probed, so that a restart opens no gap.
	Adopted []deception.AddrRange
}

// Claimer holds the claims of one segment. Its methods must not be called at the
// same time.
type Claimer struct {
	cfg     Config
	segment deception.Segment
	owners  []owner // of the wanted addresses, by first address

	wanted  []deception.AddrRange // less what no decoy may have
	claimed []deception.AddrRange // probed to the end, or taken unprobed
	todo    []deception.AddrRange // to be probed
	batches []*batch              // being probed or announced, the oldest first

	// disputes are the addresses that somebody else claims, or claimed lately.
	disputes map[netip.Addr]dispute
	look     time.Time // when to look through disputes again; zero: never

	resume   time.Time // nothing new is probed before
	retreats int
	bucket   *Limiter
	blocked  bool // frames wait for the limiters
	changed  bool // Held is another one since the last Step
	news     news
}

// owner is a run of addresses of one decoy.
type owner struct {
	deception.AddrRange
	decoy string
}

// Output is what one Step asks of the Claimer's owner.
type Output struct {
	// Changed says that Held is another one than after the last Step: routes and
	// addresses are to be applied anew, at once.
	Changed bool
	// Frames are whole Ethernet frames to send in the segment, without 802.1Q tags.
	Frames [][]byte
	Events []deception.Event
	// Next is when Step should be called again at the latest; the zero Time where
	// nothing is to be done until a frame comes.
	Next time.Time
}

// New returns a Claimer that wants nothing yet.
func New(cfg Config) *Claimer {
	if cfg.Rate == 0 {
		cfg.Rate = DefaultRate
	}
	if cfg.Random == nil {
		cfg.Random = rand.Float64
	}
	c := &Claimer{cfg: cfg, bucket: NewLimiter(cfg.Rate), disputes: map[netip.Addr]dispute{}}
	c.news.wait = newsWindow
	return c
}

// Want says what the segment is to hold: all of it, each time. Addresses that
// are no longer wanted are given up, those that stay are not probed again. A
// repeat changes nothing.
func (c *Claimer) Want(segment deception.Segment, decoys []*deception.Decoy) {
	first := c.segment.Name == ""
	was, unchecked := c.segment.Claim == deception.ClaimUnchecked, segment.Claim == deception.ClaimUnchecked
	c.segment = segment
	c.owners = ownersOf(decoys)
	wanted := subtract(rangesOf(c.owners), barred(&segment))
	if first {
		c.claimed = intersect(deception.SortRanges(c.cfg.Adopted), wanted)
		c.cfg.Adopted = nil
	}
	if !first && was == unchecked && slices.Equal(wanted, c.wanted) {
		return
	}
	c.wanted, c.changed = wanted, true
	c.claimed = intersect(c.claimed, wanted)
	for a := range c.disputes {
		if !contains(wanted, a) {
			delete(c.disputes, a)
		}
	}
	switch {
	case unchecked:
		c.claimed, c.todo, c.batches = wanted, nil, nil
		if !was {
			clear(c.disputes)
		}
	case first || was:
		c.todo, c.batches = wanted, nil // held meanwhile, where they are
	default:
		// What is held already is not probed again, what is being probed goes on.
		done := c.claimed
		for _, b := range c.batches {
			b.keep(wanted)
			done = union(done, b.ranges)
		}
		c.todo = subtract(wanted, done)
	}
}

// Reprobe has every address probed again, from the first probe on; what is held
// stays held meanwhile. It is for a link that was down (RFC 5227, section 2.1)
// and for frames that could not be sent.
func (c *Claimer) Reprobe() {
	if c.segment.Claim == deception.ClaimUnchecked {
		return
	}
	c.todo, c.batches = c.wanted, nil
	for a, d := range c.disputes {
		if d.state == probing {
			d.state = withdrawn
			c.disputes[a] = d
		}
	}
	c.look = time.Time{}.Add(1) // long ago
}

// Step takes the frames that were seen since the last Step and does what is due
// at that time. Time must not run backwards; it may stand still.
func (c *Claimer) Step(now time.Time, seen []Frame) Output {
	for i := range seen {
		c.observe(now, &seen[i])
	}
	c.review(now)
	var out Output
	c.blocked = false
	c.advance(now, &out)
	c.news.flush(now, c)
	out.Events, c.news.events = c.news.events, nil
	out.Changed, c.changed = c.changed, false
	out.Next = c.next(now)
	return out
}

// next returns when something is due.
func (c *Claimer) next(now time.Time) time.Time {
	var at time.Time
	sooner := func(t time.Time) {
		if !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	if c.blocked {
		sooner(now.Add(tick))
	}
	for _, b := range c.batches {
		if b.due.After(now) { // what is due already waits for the limiters
			sooner(b.due)
		}
	}
	if len(c.todo) > 0 && c.resume.After(now) {
		sooner(c.resume)
	}
	sooner(c.look)
	sooner(c.news.due())
	return at
}

// Held returns the addresses that the decoys have now, sorted and disjoint. It
// is always within what is wanted.
func (c *Claimer) Held() []deception.AddrRange {
	var without []deception.AddrRange
	for a, d := range c.disputes {
		if d.state != recovered {
			without = append(without, deception.AddrRange{From: a, To: a})
		}
	}
	return subtract(c.claimed, deception.SortRanges(without))
}

// holds tells whether the address is held.
func (c *Claimer) holds(a netip.Addr) bool {
	d, disputed := c.disputes[a]
	return contains(c.claimed, a) && (!disputed || d.state == recovered)
}

// Status is how far the claims of a segment are.
type Status struct {
	Wanted    uint64 // addresses that decoys may have
	Held      uint64
	Withdrawn uint64     // somebody else has them
	Conflicts []Conflict // the lowest of those, at most maxConflicts
}

// Conflict is an address that somebody else has.
type Conflict struct {
	Address netip.Addr
	Decoy   string
	MAC     MAC       // of the machine that has it
	Retry   time.Time // when it is asked for again
}

// Ready tells whether every address is decided: held, or somebody else's.
func (s *Status) Ready() bool { return s.Held+s.Withdrawn >= s.Wanted }

// maxConflicts is how many conflicts a Status names.
const maxConflicts = 20

// Status returns how far the claims are.
func (c *Claimer) Status() Status {
	s := Status{Wanted: count(c.wanted), Held: count(c.Held())}
	for a, d := range c.disputes {
		if d.state != recovered {
			s.Withdrawn++
			s.Conflicts = append(s.Conflicts, Conflict{Address: a, Decoy: c.decoyOf(a), MAC: d.mac, Retry: d.due})
		}
	}
	slices.SortFunc(s.Conflicts, func(a, b Conflict) int { return a.Address.Compare(b.Address) })
	s.Conflicts = s.Conflicts[:min(len(s.Conflicts), maxConflicts)]
	return s
}

// decoyOf returns the name of the decoy that wants the address.
func (c *Claimer) decoyOf(a netip.Addr) string {
	i, _ := slices.BinarySearchFunc(c.owners, a, func(o owner, a netip.Addr) int { return o.To.Compare(a) })
	if i < len(c.owners) && c.owners[i].Contains(a) {
		return c.owners[i].decoy
	}
	return ""
}

func ownersOf(decoys []*deception.Decoy) []owner {
	var out []owner
	for _, d := range decoys {
		for _, r := range d.Addresses {
			out = append(out, owner{r, d.Name})
		}
	}
	slices.SortFunc(out, func(a, b owner) int { return a.From.Compare(b.From) })
	return out
}

func rangesOf(owners []owner) []deception.AddrRange {
	out := make([]deception.AddrRange, len(owners))
	for i, o := range owners {
		out[i] = o.AddrRange
	}
	return deception.SortRanges(out)
}
