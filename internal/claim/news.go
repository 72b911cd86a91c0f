package claim

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"decoynet/deception"
)

// How events are kept from becoming a storm: in a window of newsWindow so many
// are told one by one, the others together at its end. A window with more than
// it could tell is followed by longer ones, up to newsMost, in which nothing is
// told singly; each quiet one halves them again.
const (
	newsWindow = 10 * time.Second
	newsMost   = 5 * time.Minute
	newsSingle = 10
	newsMACs   = 16 // different ones that are told apart
)

// news are the events of a segment.
type news struct {
	events []deception.Event // for the next Step's owner
	end    time.Time         // of the window; zero: none is open
	wait   time.Duration     // the window's length
	single int               // told in this window
	stormy bool              // a window not long ago had more than it could tell
	tally  [2]tally          // conflicts and reclaims that are yet to be told
}

// tally is many events of one kind.
type tally struct {
	n           uint64
	first, last netip.Addr // the lowest and the highest
	macs        map[MAC]bool
}

func tallyOf(kind deception.EventKind) int {
	if kind == deception.EventConflict {
		return 0
	}
	return 1
}

// add takes note that an address was lost or won.
func (w *news) add(now time.Time, c *Claimer, kind deception.EventKind, a netip.Addr, d dispute) {
	if w.end.IsZero() {
		w.end = now.Add(w.wait)
	}
	if !w.stormy && w.single < newsSingle {
		w.single++
		w.events = append(w.events, c.event(now, kind, a, c.message(now, kind, a, d)))
		return
	}
	t := &w.tally[tallyOf(kind)]
	if t.n == 0 {
		*t = tally{first: a, last: a, macs: map[MAC]bool{}}
	}
	t.n++
	if a.Less(t.first) {
		t.first = a
	}
	if t.last.Less(a) {
		t.last = a
	}
	if len(t.macs) <= newsMACs {
		t.macs[d.mac] = true
	}
}

// addRetreat takes note that the whole segment was given up.
func (w *news) addRetreat(now time.Time, c *Claimer, wait time.Duration) {
	w.events = append(w.events, c.event(now, deception.EventConflict, netip.Addr{}, fmt.Sprintf(
		"more than %d addresses of segment %s are claimed by other machines: an attack on the decoys, or a router that answers for others (proxy ARP); all %d were withdrawn and are asked for again in %v",
		maxDisputes, c.segment.Name, count(c.wanted), wait.Round(time.Second))))
}

// due returns when a window ends.
func (w *news) due() time.Time { return w.end }

// flush tells what was kept back, once the window is over.
func (w *news) flush(now time.Time, c *Claimer) {
	if w.end.IsZero() || w.end.After(now) {
		return
	}
	told := false
	for i, kind := range []deception.EventKind{deception.EventConflict, deception.EventReclaimed} {
		if t := &w.tally[i]; t.n > 0 {
			w.events = append(w.events, c.event(now, kind, t.first, c.summary(kind, t)))
			*t = tally{}
			told = true
		}
	}
	switch {
	case told:
		w.stormy, w.wait = true, min(4*w.wait, newsMost)
	case w.stormy:
		w.wait /= 2
		w.stormy = w.wait > newsWindow
	}
	w.single, w.end = 0, now.Add(w.wait)
	if !w.stormy {
		w.wait, w.end = newsWindow, time.Time{}
	}
}

func (c *Claimer) event(now time.Time, kind deception.EventKind, a netip.Addr, message string) deception.Event {
	e := deception.Event{
		ID: deception.NewSessionID(now), Time: now, Kind: kind,
		Node: c.cfg.Node, Segment: c.segment.Name, Message: message,
	}
	if a.IsValid() {
		e.Decoy, e.Destination = c.decoyOf(a), netip.AddrPortFrom(a, 0)
	}
	return e
}

func (c *Claimer) message(now time.Time, kind deception.EventKind, a netip.Addr, d dispute) string {
	what := fmt.Sprintf("address %s of decoy %s in segment %s", a, c.decoyOf(a), c.segment.Name)
	mac := net.HardwareAddr(d.mac[:])
	switch {
	case kind == deception.EventReclaimed:
		return fmt.Sprintf("%s is the decoy's again: the machine with MAC %s does not answer for it any more", what, mac)
	case c.segment.Claim == deception.ClaimUnchecked:
		return fmt.Sprintf("%s is also that of the machine with MAC %s; the decoy keeps it, since the segment has claim: unchecked; if the machine belongs there, exclude the address or write claim: probe", what, mac)
	}
	return fmt.Sprintf("%s is that of the machine with MAC %s; the decoy was withdrawn there and asks again in %v; if the machine belongs there, exclude the address",
		what, mac, d.due.Sub(now).Round(time.Second))
}

func (c *Claimer) summary(kind deception.EventKind, t *tally) string {
	machines := fmt.Sprintf("%d machines", len(t.macs))
	if len(t.macs) > newsMACs {
		machines = fmt.Sprintf("more than %d machines", newsMACs)
	}
	if len(t.macs) == 1 {
		for m := range t.macs {
			machines = fmt.Sprintf("one machine, MAC %s", net.HardwareAddr(m[:]))
		}
	}
	where := fmt.Sprintf("%d further addresses of segment %s, between %s and %s", t.n, c.segment.Name, t.first, t.last)
	switch {
	case kind == deception.EventReclaimed:
		return fmt.Sprintf("%s, are decoys' again; %s had claimed them", where, machines)
	case c.segment.Claim == deception.ClaimUnchecked:
		return fmt.Sprintf("%s, are claimed by %s too: an attack on the decoys, or a router that answers for others (proxy ARP); the decoys keep them, since the segment has claim: unchecked", where, machines)
	}
	return fmt.Sprintf("%s, were claimed by %s: an attack on the decoys, or a router that answers for others (proxy ARP); they were withdrawn and are asked for again later", where, machines)
}
