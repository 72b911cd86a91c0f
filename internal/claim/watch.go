package claim

import (
	"net/netip"
	"time"

	"decoynet/deception"
)

// How a disputed address is asked for again.
const (
	retryFirst = 60 * time.Second // RATE_LIMIT_INTERVAL of RFC 5227, section 2.1.1
	retryMost  = 10 * time.Minute
	// forgetAfter is how long an address must be held quietly until its next
	// conflict counts as the first one. It is longer than retryMost, or a machine
	// that comes and goes would be met with the shortest wait for ever.
	forgetAfter = 30 * time.Minute
	// maxDisputes bounds the memory of a segment. One that has more is under
	// attack as a whole, and given up as a whole for a while.
	maxDisputes = 65_536
)

// stance is how a disputed address stands.
type stance uint8

const (
	withdrawn stance = iota // somebody else has it, until due
	probing                 // it is asked for again
	recovered               // it is held again; due is when its past is forgotten
)

// dispute is an address that somebody else claims, or claimed lately.
type dispute struct {
	due   time.Time
	mac   MAC
	tries uint8
	state stance
}

// observe draws the conclusions from a frame.
func (c *Claimer) observe(now time.Time, f *Frame) {
	who := f.claimant()
	if c.cfg.Ours(who) {
		return
	}
	nobody := !f.Source.IsValid() || f.Source.IsUnspecified()
	switch f.Kind {
	case ARPRequest, ARPReply, Solicitation:
		if !nobody {
			c.conflict(now, f.Source, who)
		} else if f.Kind != ARPReply {
			c.wish(now, f.Target, who, f.TargetMAC[0]&1 != 0)
		}
	case Advertisement:
		c.conflict(now, f.Target, who)
		if !nobody && f.Source != f.Target {
			c.conflict(now, f.Source, who)
		}
	}
}

// conflict takes note that a foreign machine has the address.
func (c *Claimer) conflict(now time.Time, a netip.Addr, who MAC) {
	if !contains(c.wanted, a) {
		return
	}
	d, known := c.disputes[a]
	if !known && len(c.disputes) >= maxDisputes {
		c.retreat(now)
		return
	}
	unchecked := c.segment.Claim == deception.ClaimUnchecked
	if known && (d.state == withdrawn || unchecked) {
		// Whoever was heard just now need not be asked for a while.
		if heard := now.Add(retryFirst); !unchecked && d.due.Before(heard) {
			d.due = heard
		}
		d.mac = who
		c.disputes[a] = d
		return
	}
	wasProbing := known && d.state == probing
	if d.tries < 255 {
		d.tries++
	}
	d.mac = who
	if unchecked {
		// The decoy keeps it, as the document says; people should still know.
		d.state, d.due = recovered, now.Add(forgetAfter)
	} else {
		c.changed = c.changed || c.holds(a)
		d.state, d.due = withdrawn, now.Add(c.backoff(int(d.tries)))
	}
	c.disputes[a] = d
	c.lookAt(d.due)
	if !wasProbing { // that it is still there is no news
		c.news.add(now, c, deception.EventConflict, a, d)
	}
}

// backoff returns how long a conflict of that number keeps the decoy away. Nodes
// that were started together should not ask together for ever: up to a tenth
// more is left to chance.
func (c *Claimer) backoff(tries int) time.Duration {
	wait := retryFirst
	for ; tries > 1 && wait < retryMost; tries-- {
		wait *= 2
	}
	wait = min(wait, retryMost)
	return c.between(wait, wait+wait/10)
}

// wish takes note that a foreign machine asks for an address in order to take it
// (an ARP probe, or duplicate address detection). It is given it at once, and
// whoever owns the Claimer sees to it that the kernel does not say that the
// address is taken: the machine would not come up. Two who ask at the same time
// both stay away (RFC 5227, section 2.1.1; RFC 4862, section 5.4.3). Switches
// that look after their hosts in that way (IP device tracking) ask the host
// alone, and want nothing.
func (c *Claimer) wish(now time.Time, a netip.Addr, who MAC, everybody bool) {
	if c.segment.Claim == deception.ClaimUnchecked || !contains(c.wanted, a) {
		return
	}
	if c.isProbing(a) || everybody && c.holds(a) {
		c.conflict(now, a, who)
	}
}

// isProbing tells whether the address is being asked for right now.
func (c *Claimer) isProbing(a netip.Addr) bool {
	if d, disputed := c.disputes[a]; disputed {
		return d.state == probing
	}
	for _, b := range c.batches {
		if !b.again && b.probing(a) {
			return true
		}
	}
	return false
}

// lookAt has review look through the disputes then, at the latest.
func (c *Claimer) lookAt(t time.Time) {
	if c.look.IsZero() || t.Before(c.look) {
		c.look = t
	}
}

// review asks again for disputed addresses whose time has come, and forgets
// those that have been quiet.
func (c *Claimer) review(now time.Time) {
	if c.look.IsZero() || c.look.After(now) {
		return
	}
	c.look = time.Time{}
	var again []deception.AddrRange
	for a, d := range c.disputes {
		switch {
		case d.state == probing:
		case d.due.After(now):
			c.lookAt(d.due)
		case d.state == recovered:
			delete(c.disputes, a)
		default:
			d.state = probing
			c.disputes[a] = d
			again = append(again, deception.AddrRange{From: a, To: a})
		}
	}
	// Not more often than every second, however many there are.
	if soonest := now.Add(time.Second); !c.look.IsZero() && c.look.Before(soonest) {
		c.look = soonest
	}
	for set := deception.SortRanges(again); len(set) > 0; {
		var ranges []deception.AddrRange
		ranges, set = take(set)
		c.batches = append(c.batches, c.newBatch(now, ranges, true))
	}
}

// retreat gives the whole segment up for a while.
func (c *Claimer) retreat(now time.Time) {
	if c.segment.Claim == deception.ClaimUnchecked {
		clear(c.disputes)
		return
	}
	c.retreats++
	wait := c.backoff(c.retreats)
	c.claimed, c.batches, c.changed = nil, nil, true
	clear(c.disputes)
	c.look, c.resume, c.todo = time.Time{}, now.Add(wait), c.wanted
	c.news.addRetreat(now, c, wait)
}
