package claim

import (
	"net/netip"
	"time"

	"decoynet/deception"
)

// The waits of RFC 5227, section 1.1, which are for links of every kind.
const (
	rfcProbeWait        = 1 * time.Second // PROBE_WAIT: at most, before the first probe
	rfcProbeMin         = 1 * time.Second // PROBE_MIN
	rfcProbeMax         = 2 * time.Second // PROBE_MAX
	rfcAnnounceWait     = 2 * time.Second // ANNOUNCE_WAIT
	rfcAnnounceInterval = 2 * time.Second // ANNOUNCE_INTERVAL
)

// The waits of a wired LAN, where an answer takes a millisecond (section 2.2
// allows for that). With three probes a frame or two may be lost; the wait after
// the last is for machines that are slow to wake up.
const (
	lanProbeInterval = 150 * time.Millisecond
	lanAnnounceWait  = 400 * time.Millisecond
)

const (
	batchSize = 256
	tick      = 25 * time.Millisecond // between two goes at a full limiter
)

// action is what a step does with the addresses of a batch.
type action uint8

const (
	probe    action = iota // ask whether somebody has it
	hold                   // nobody has: it is the decoy's
	announce               // say so to those who remember another machine
)

// step is an action and how long after the one before it comes: a random time
// between the two.
type step struct {
	action      action
	after, most time.Duration
}

// Announcements are made where RFC 5227 asks for them, and where a real machine
// had the address before, which others still have in their caches. A node that
// announced thousands of addresses for no need would give the decoys away.
var (
	announcing   = []step{{announce, 0, 0}, {announce, rfcAnnounceInterval, rfcAnnounceInterval}}
	lanSteps     = []step{{probe, 0, 0}, {probe, lanProbeInterval, lanProbeInterval}, {probe, lanProbeInterval, lanProbeInterval}, {hold, lanAnnounceWait, lanAnnounceWait}}
	lanReclaim   = append(lanSteps[:len(lanSteps):len(lanSteps)], announcing...)
	rfc5227Steps = append([]step{
		{probe, 0, rfcProbeWait},
		{probe, rfcProbeMin, rfcProbeMax},
		{probe, rfcProbeMin, rfcProbeMax},
		{hold, rfcAnnounceWait, rfcAnnounceWait},
	}, announcing...)
)

func (c *Claimer) steps(again bool) []step {
	switch {
	case c.segment.Claim == deception.ClaimRFC5227:
		return rfc5227Steps
	case again:
		return lanReclaim
	}
	return lanSteps
}

// batch is a set of addresses that are taken through the steps together.
type batch struct {
	ranges []deception.AddrRange
	again  bool // they were disputed, each of them
	steps  []step
	due    time.Time
	// The present step is about to come to the address next of ranges[index]; to
	// its first where next is the zero Addr.
	index int
	next  netip.Addr
}

func (c *Claimer) newBatch(now time.Time, ranges []deception.AddrRange, again bool) *batch {
	b := &batch{ranges: ranges, again: again, steps: c.steps(again)}
	b.due = now.Add(c.between(b.steps[0].after, b.steps[0].most))
	return b
}

// between returns a random time between the two.
func (c *Claimer) between(least, most time.Duration) time.Duration {
	return least + time.Duration(c.cfg.Random()*float64(most-least))
}

// keep drops what is not wanted any more. The present step begins anew.
func (b *batch) keep(wanted []deception.AddrRange) {
	b.ranges = intersect(b.ranges, wanted)
	b.rewind()
}

func (b *batch) rewind() { b.index, b.next = 0, netip.Addr{} }

// current returns the address that the present step has come to, and false
// behind the last one.
func (b *batch) current() (netip.Addr, bool) {
	if b.index == len(b.ranges) {
		return netip.Addr{}, false
	}
	if !b.next.IsValid() {
		b.next = b.ranges[b.index].From
	}
	return b.next, true
}

// pass goes on to the next address.
func (b *batch) pass() {
	if b.next == b.ranges[b.index].To {
		b.index, b.next = b.index+1, netip.Addr{}
	} else {
		b.next = b.next.Next()
	}
}

// probing tells whether the address is being asked for: from before the first
// probe until it is held.
func (b *batch) probing(a netip.Addr) bool {
	return len(b.steps) > 0 && b.steps[0].action != announce && contains(b.ranges, a)
}

// advance does what is due, the oldest batches first, and begins new ones as
// long as frames may be sent.
func (c *Claimer) advance(now time.Time, out *Output) {
	unfinished := c.batches[:0]
	for _, b := range c.batches {
		if !c.run(now, b, out) {
			unfinished = append(unfinished, b)
		}
	}
	clear(c.batches[len(unfinished):])
	c.batches = unfinished
	for len(c.todo) > 0 && !c.blocked && !c.resume.After(now) && len(c.batches) < maxBatches {
		var ranges []deception.AddrRange
		ranges, c.todo = take(c.todo)
		b := c.newBatch(now, ranges, false)
		if !c.run(now, b, out) {
			c.batches = append(c.batches, b)
		}
	}
}

// maxBatches bounds how much is under way: with a random wait before the first
// probe, batches could be begun without end.
const maxBatches = 64

// run takes a batch as far as it gets and tells whether it is through.
func (c *Claimer) run(now time.Time, b *batch, out *Output) bool {
	for len(b.steps) > 0 && !b.due.After(now) {
		switch act := b.steps[0].action; act {
		case hold:
			c.hold(now, b)
		default:
			if !c.send(now, b, act, out) {
				return false
			}
		}
		if b.steps = b.steps[1:]; len(b.steps) > 0 {
			// Counted from the last frame of a step: none waits less than it should.
			b.due = now.Add(c.between(b.steps[0].after, b.steps[0].most))
			b.rewind()
		}
	}
	return len(b.steps) == 0
}

// send sends the frames of the present step and tells whether that was all.
func (c *Claimer) send(now time.Time, b *batch, act action, out *Output) bool {
	for a, more := b.current(); more; a, more = b.current() {
		if c.concerns(b, a, act) {
			if !c.pay(now) {
				c.blocked = true
				return false
			}
			if act == probe {
				out.Frames = append(out.Frames, probeFrame(c.cfg.MAC(a), a))
			} else {
				out.Frames = append(out.Frames, announcement(c.cfg.MAC(a), a))
			}
		}
		b.pass()
	}
	return true
}

// concerns tells whether the step is still for that address: not where somebody
// else turned out to have it.
func (c *Claimer) concerns(b *batch, a netip.Addr, act action) bool {
	if act == announce {
		return c.holds(a)
	}
	d, disputed := c.disputes[a]
	if b.again {
		return disputed && d.state == probing
	}
	return !disputed || d.state == recovered
}

// pay takes what a frame costs from both limiters, or from none.
func (c *Claimer) pay(now time.Time) bool {
	if !c.bucket.Take(now) {
		return false
	}
	if c.cfg.Shared != nil && !c.cfg.Shared.Take(now) {
		c.bucket.giveBack()
		return false
	}
	return true
}

// hold makes the addresses of a batch the decoys', but for those that are
// disputed.
func (c *Claimer) hold(now time.Time, b *batch) {
	c.changed = true
	if !b.again {
		c.claimed = union(c.claimed, b.ranges)
		return
	}
	for _, r := range b.ranges {
		for a := r.From; a.IsValid() && !r.To.Less(a); a = a.Next() {
			if d, ok := c.disputes[a]; ok && d.state == probing {
				d.state, d.due = recovered, now.Add(forgetAfter)
				c.disputes[a] = d
				c.lookAt(d.due)
				c.news.add(now, c, deception.EventReclaimed, a, d)
			}
		}
	}
}

// Takes returns about how long so many addresses take from the first probe until
// all are held, where nothing else is asked for.
func Takes(mode deception.Claim, addresses uint64) time.Duration {
	if mode == deception.ClaimUnchecked || addresses == 0 {
		return 0
	}
	steps := lanSteps
	if mode == deception.ClaimRFC5227 {
		steps = rfc5227Steps
	}
	var waits time.Duration
	frames := 0.0
	for _, s := range steps {
		if s.action != hold {
			frames += float64(addresses)
		}
		if s.action != announce {
			waits += s.after
		}
	}
	limit := NewLimiter(DefaultRate)
	return waits + time.Duration(max(frames-limit.burst, 0)/limit.fill*float64(time.Second))
}
