package claim

import (
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"decoynet/deception"
)

// A /16 is asked for within the rate, network by network, and from both ends of
// the limiter that several segments share.
func TestRate(t *testing.T) {
	const rate = 2000
	l := newLAN(t)
	shared := NewLimiter(3000)
	one := l.add(Config{Rate: rate, Shared: shared}, office(deception.ClaimProbe), "10.1.0.0/16")
	two := l.add(Config{Rate: rate, Shared: shared, Ours: func(m MAC) bool { return m[0] == 2 }}, office(deception.ClaimProbe), "10.2.0.0/16")
	l.run(3 * time.Second)
	held := one.Held()
	if n := count(held); n < 256 || n > 65536/2 {
		t.Errorf("%d held after three seconds", n)
	}
	for _, r := range held {
		if p := r.Prefixes(); len(p) > 8 {
			t.Errorf("%s is held in %d routes", r, len(p))
		}
	}
	l.run(170 * time.Second)
	one.mustHold(t, "10.1.0.0/16")
	two.mustHold(t, "10.2.0.0/16")
	within(t, "one segment", one.sent, rate)
	within(t, "both", sorted(one.sent, two.sent), 3000)
	took := one.sent[len(one.sent)-1].at.Sub(start)
	if len(one.sent) != 3*65536 || took > 140*time.Second {
		t.Errorf("%d frames in %v", len(one.sent), took)
	}
}

// What people are told beforehand is about what it takes.
func TestTakes(t *testing.T) {
	for _, mode := range []deception.Claim{deception.ClaimProbe, deception.ClaimRFC5227, deception.ClaimUnchecked} {
		for _, prefix := range []string{"10.9.9.9/32", "10.1.0.0/24", "10.4.0.0/18"} {
			l := newLAN(t)
			n := l.add(Config{}, office(mode), prefix)
			want := count(n.wanted)
			said := Takes(mode, want)
			l.run(said * 8 / 10)
			if said > 0 && count(n.Held()) == want {
				t.Errorf("%s %s: held long before %v", mode, prefix, said)
			}
			l.run(said*3/10 + 50*time.Millisecond) // eleven tenths
			if count(n.Held()) != want {
				t.Errorf("%s %s: %d held after more than %v", mode, prefix, count(n.Held()), said)
			}
		}
	}
}

func sorted(lists ...[]sent) []sent {
	out := slices.Concat(lists...)
	slices.SortFunc(out, func(a, b sent) int { return a.at.Compare(b.at) })
	return out
}

// within fails the test where some second has more frames than the rate.
func within(t fataler, what string, frames []sent, rate int) {
	t.Helper()
	first := 0
	for i, f := range frames {
		for f.at.Sub(frames[first].at) >= time.Second {
			first++
		}
		if i-first+1 > rate {
			t.Fatalf("%s: more than %d frames in the second from %v", what, rate, frames[first].at)
		}
	}
}

// An attacker who claims all of a /16 again and again, from as many machines,
// gets it; memory and events stay small.
func TestStorm(t *testing.T) {
	l := newLAN(t)
	n := l.add(Config{}, office(deception.ClaimProbe), "10.1.0.0/16")
	l.run(3 * time.Minute)
	n.mustHold(t, "10.1.0.0/16")
	all := n.Held()[0]
	n.sent = nil
	before := heap()
	for round := range 8 {
		for part := range 64 {
			frames := make([]Frame, 1024)
			for i := range frames {
				a := deception.Nth(all.From, uint64(part*1024+i))
				frames[i] = answer(a, MAC{2, byte(round), 0, 1, byte(i >> 8), byte(i)})
			}
			n.inbox = frames
			l.run(50 * time.Millisecond)
			if part == 0 && round == 0 && count(n.Held()) != 65536-1024 {
				t.Fatalf("%d held after the first claims", count(n.Held()))
			}
		}
		if got := count(n.Held()); got > 0 {
			t.Fatalf("round %d: %d still held", round, got)
		}
		l.run(30 * time.Second)
	}
	n.sent = nil
	if grown := heap() - before; grown > 12<<20 {
		t.Errorf("%d KB of heap for the conflicts", grown>>10)
	} else {
		t.Logf("%d KB of heap for 65,536 conflicts", grown>>10)
	}
	// Nearly five minutes: ten singly, and a summary for each window.
	if len(n.events) > newsSingle+5 {
		t.Errorf("%d events", len(n.events))
	}
	if last := n.events[newsSingle].Message; !strings.Contains(last, "further addresses") || !strings.Contains(last, "more than 16 machines") {
		t.Errorf("summary: %s", last)
	}
	events := len(n.events)
	l.run(2 * time.Hour)
	n.mustHold(t, "10.1.0.0/16")
	if got := len(n.events) - events; got > 20 {
		t.Errorf("%d events while all of it came back", got)
	}
	if len(n.disputes) > 0 {
		t.Errorf("%d addresses are not forgotten", len(n.disputes))
	}
	within(t, "all of it", n.sent, DefaultRate)
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A segment with more conflicts than are told apart is given up as a whole, and
// comes back.
func TestRetreat(t *testing.T) {
	l := newLAN(t)
	n := l.add(Config{Adopted: ranges(t, "10.2.0.0/15"), Rate: 1 << 20}, office(deception.ClaimProbe), "10.2.0.0/15")
	l.run(10 * time.Second)
	for i := range uint64(maxDisputes + 1) {
		n.inbox = append(n.inbox, answer(deception.Nth(netip.MustParseAddr("10.2.0.0"), i), hostMAC))
	}
	l.run(time.Second)
	n.mustHold(t)
	if last := n.events[len(n.events)-1]; !strings.Contains(last.Message, "131072 were withdrawn") {
		t.Errorf("the last event: %s", last.Message)
	}
	if len(n.disputes) > 0 {
		t.Errorf("%d conflicts are kept", len(n.disputes))
	}
	l.run(50 * time.Second)
	n.mustHold(t)
	l.run(time.Minute)
	n.mustHold(t, "10.2.0.0/15")
}

// A host that flaps is met with growing waits, and told of as often as it
// changes, not as often as it is heard.
func TestFlapping(t *testing.T) {
	l := newLAN(t)
	n := l.add(Config{}, office(deception.ClaimProbe), "10.0.0.100")
	l.run(time.Second)
	changes, held := 0, true
	for range 6 * 3600 { // it shows itself whenever it sees the decoy
		l.run(time.Second)
		if n.holds(a100) {
			l.hear(answer(a100, hostMAC))
		}
		if now := n.holds(a100); now != held {
			changes, held = changes+1, now
		}
	}
	// 1, 2, 4, 8 and from then on 10 minutes: some 38 conflicts in six hours.
	if len(n.events) > 80 || len(n.events) < 60 {
		t.Errorf("%d events in six hours", len(n.events))
	}
}

// Whatever happens: what is held is wanted and was not claimed by a living host,
// what is barred is never asked for, and no second has more frames than the rate.
func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLAN(t)
		const rate = 40
		mode := rapid.SampledFrom([]deception.Claim{deception.ClaimProbe, deception.ClaimRFC5227}).Draw(t, "mode")
		seg := office(mode)
		seg.Subnets[0].Prefix = netip.MustParsePrefix("10.0.0.0/26")
		seg.Exclude = ranges(t, "10.0.0.20-10.0.0.25")
		no := barred(&seg)
		address := rapid.Custom(func(t *rapid.T) netip.Addr {
			return deception.Nth(netip.MustParseAddr("10.0.0.0"), uint64(rapid.IntRange(0, 63).Draw(t, "host")))
		})
		want := func() []*deception.Decoy {
			var out []deception.AddrRange
			for range rapid.IntRange(0, 4).Draw(t, "ranges") {
				a, b := address.Draw(t, "from"), address.Draw(t, "to")
				if b.Less(a) {
					a, b = b, a
				}
				out = append(out, deception.AddrRange{From: a, To: b})
			}
			return []*deception.Decoy{{Name: "web", Addresses: deception.SortRanges(out)}}
		}
		n := l.add(Config{Rate: rate, Random: func() float64 { return rapid.Float64Range(0, 0.999).Draw(t, "random") }, Adopted: ranges(t, "10.0.0.8-10.0.0.30")}, seg)
		wanted := want()
		n.Want(seg, wanted)
		n.next = l.now
		lost := map[netip.Addr]time.Time{} // when a claim was heard
		check := func() {
			held := n.Held()
			if outside := subtract(held, wanted[0].Addresses); len(outside) > 0 {
				t.Fatalf("held but not wanted: %v", outside)
			}
			if len(intersect(held, no)) > 0 {
				t.Fatalf("held although barred: %v", intersect(held, no))
			}
			for a, at := range lost {
				if contains(held, a) && l.now.Sub(at) < retryFirst {
					t.Fatalf("%s is held %v after its host was heard", a, l.now.Sub(at))
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"time": func(t *rapid.T) {
				l.run(rapid.SampledFrom([]time.Duration{time.Millisecond, 100 * time.Millisecond, time.Second, 90 * time.Second, time.Hour}).Draw(t, "time"))
			},
			"want":    func(*rapid.T) { wanted = want(); n.Want(seg, wanted); n.next = l.now; clear(lost) },
			"reprobe": func(*rapid.T) { n.Reprobe(); n.next = l.now },
			"claim": func(t *rapid.T) {
				a := address.Draw(t, "claimed")
				l.hear(answer(a, hostMAC))
				if contains(n.wanted, a) {
					lost[a] = l.now
				}
			},
			"host comes": func(t *rapid.T) { l.hosts[address.Draw(t, "new")] = hostMAC },
			"host goes":  func(t *rapid.T) { delete(l.hosts, address.Draw(t, "old")) },
			"":           func(*rapid.T) { check() },
		})
		for _, s := range n.sent {
			if contains(no, s.Target) {
				t.Fatalf("asked for %s, which is barred", s.Target)
			}
		}
		within(t, "one segment", n.sent, rate)
	})
}

// Sets of ranges behave as sets of addresses.
func TestSets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base := netip.MustParseAddr(rapid.SampledFrom([]string{"10.0.0.250", "255.255.255.192", "2001:db8::ff"}).Draw(t, "base"))
		draw := func(name string) (set []deception.AddrRange, in [64]bool) {
			for range rapid.IntRange(0, 5).Draw(t, name) {
				from, n := rapid.IntRange(0, 63).Draw(t, "from"), rapid.IntRange(1, 20).Draw(t, "length")
				to := min(from+n, 64) - 1
				set = append(set, deception.AddrRange{From: deception.Nth(base, uint64(from)), To: deception.Nth(base, uint64(to))})
				for i := from; i <= to; i++ {
					in[i] = true
				}
			}
			return deception.SortRanges(set), in
		}
		a, inA := draw("a")
		b, inB := draw("b")
		less, both, either := subtract(a, b), intersect(a, b), union(a, b)
		for i := range 64 {
			x := deception.Nth(base, uint64(i))
			if contains(a, x) != inA[i] || contains(less, x) != (inA[i] && !inB[i]) || contains(both, x) != (inA[i] && inB[i]) || contains(either, x) != (inA[i] || inB[i]) {
				t.Fatalf("%s: a %v, b %v: a-b %v, both %v, either %v", x, a, b, less, both, either)
			}
		}
		var taken []deception.AddrRange
		for rest := a; len(rest) > 0; {
			var some []deception.AddrRange
			some, rest = take(rest)
			if len(some) == 0 || count(some) > batchSize {
				t.Fatalf("take(%v) = %v", a, some)
			}
			taken = append(taken, some...)
		}
		if !slices.Equal(deception.SortRanges(taken), a) || count(taken) != count(a) {
			t.Fatalf("%v taken apart is %v", a, taken)
		}
	})
}
