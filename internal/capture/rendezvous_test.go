package capture

import (
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"decoynet/deception"
)

// Two who ask for the same flow get the same identifier, whoever comes first, and
// whatever other flows begin between the same ports; who asks alone is forgotten.
func TestRendezvous(t *testing.T) {
	key := flowKey{"office", deception.TCP, netip.MustParseAddrPort("192.0.2.66:4711"), netip.MustParseAddrPort("192.0.2.10:80")}
	rapid.Check(t, func(t *rapid.T) {
		r := newRendezvous()
		now := time.Unix(1_700_000_000, 0)
		seen := map[deception.SessionID]bool{}
		var ids [2][]deception.SessionID // as the mirror got them, and the recorder
		var times []time.Time
		asked := [2]int{}
		for range rapid.IntRange(1, 20).Draw(t, "flows") {
			now = now.Add(time.Duration(rapid.IntRange(1, 100_000).Draw(t, "later")) * time.Millisecond)
			times = append(times, now)
		}
		for asked[0] < len(times) || asked[1] < len(times) {
			who := rapid.IntRange(0, 1).Draw(t, "who")
			// Each asks in order, and neither lags behind by more than two flows.
			if asked[who] == len(times) || asked[who]-asked[1-who] >= 2 {
				who = 1 - who
			}
			at := times[asked[who]].Add(time.Duration(who) * time.Millisecond)
			ids[who] = append(ids[who], r.id(key, at, who == 0))
			asked[who]++
		}
		for i := range times {
			if ids[0][i] != ids[1][i] || seen[ids[0][i]] {
				t.Fatalf("flow %d is %s for the mirror, %s for the record, seen before: %v", i, ids[0][i], ids[1][i], seen[ids[0][i]])
			}
			seen[ids[0][i]] = true
		}
		if len(r.waiting) != 0 {
			t.Fatalf("%d flows wait, though both have asked", len(r.waiting))
		}
	})
}

func TestRendezvousForgets(t *testing.T) {
	r := newRendezvous()
	now := time.Unix(1_700_000_000, 0)
	at := func(i int) flowKey {
		return flowKey{transport: deception.TCP, source: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1)}
	}
	for i := range 3 * mostWaiting {
		r.id(at(i), now, true)
		if len(r.waiting) > mostWaiting || len(r.queue) > 2*mostWaiting+2 {
			t.Fatalf("%d wait in a queue of %d", len(r.waiting), len(r.queue))
		}
	}
	r.id(at(0), now.Add(waitFor+time.Second), false)
	if len(r.waiting) != 1 {
		t.Errorf("%d wait, much later", len(r.waiting))
	}
}

// TestRendezvousOfOne: a flood of first packets between the same ports, which
// connection tracking takes for one flow, neither grows nor puts others out.
func TestRendezvousOfOne(t *testing.T) {
	r := newRendezvous()
	now := time.Unix(1_700_000_000, 0)
	one := flowKey{segment: "office", transport: deception.TCP, source: netip.MustParseAddrPort("192.0.2.66:4711")}
	other := flowKey{segment: "office", transport: deception.TCP, source: netip.MustParseAddrPort("192.0.2.67:4711")}
	id := r.id(other, now, true)
	var last deception.SessionID
	for range 2 * mostWaiting {
		last = r.id(one, now, true)
		if len(r.waiting[one]) > mostOfOne || len(r.queue) > 4*mostOfOne+2 {
			t.Fatalf("%d wait in a queue of %d", len(r.waiting[one]), len(r.queue))
		}
	}
	if got := r.id(other, now, false); got != id {
		t.Error("a flow from before the flood is not known")
	}
	for range mostOfOne - 1 {
		r.id(one, now, false)
	}
	if got := r.id(one, now, false); got != last {
		t.Error("the last of the flood is not known")
	}
	if len(r.waiting) != 0 {
		t.Errorf("%d wait", len(r.waiting))
	}
}
