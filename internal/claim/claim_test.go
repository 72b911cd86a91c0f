package claim

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
)

var (
	a100 = netip.MustParseAddr("10.0.0.100")
	v6   = netip.MustParseAddr("2001:db8::100")
)

// At which time is asked for an address, announced, and held.
func TestSchedule(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		mode      deception.Claim
		random    float64
		probes    []time.Duration
		held      time.Duration
		announced []time.Duration
	}{
		{deception.ClaimProbe, 0, []time.Duration{0, 150 * ms, 300 * ms}, 700 * ms, nil},
		{deception.ClaimRFC5227, 0, []time.Duration{0, 1000 * ms, 2000 * ms}, 4000 * ms, []time.Duration{4000 * ms, 6000 * ms}},
		{deception.ClaimRFC5227, 0.5, []time.Duration{500 * ms, 2000 * ms, 3500 * ms}, 5500 * ms, []time.Duration{5500 * ms, 7500 * ms}},
		{deception.ClaimUnchecked, 0, nil, 0, nil},
	} {
		for _, a := range []netip.Addr{a100, v6} {
			l := newLAN(t)
			n := l.add(Config{Random: func() float64 { return c.random }}, office(c.mode), a.String())
			l.run(max(c.held-ms, 0))
			if c.held > 0 {
				n.mustHold(t)
			}
			l.run(ms)
			n.mustHold(t, a.String())
			l.run(time.Hour)
			if got := n.probes(a); !slices.Equal(got, c.probes) {
				t.Errorf("%s %s: probes at %v, want %v", c.mode, a, got, c.probes)
			}
			var announced []time.Duration
			for _, s := range n.sent {
				if s.Source == a {
					announced = append(announced, s.at.Sub(start))
				}
			}
			if !slices.Equal(announced, c.announced) {
				t.Errorf("%s %s: announced at %v, want %v", c.mode, a, announced, c.announced)
			}
			if len(n.events) > 0 || !n.next.IsZero() {
				t.Errorf("%s %s: events %v, next %v, want a quiet end", c.mode, a, n.events, n.next)
			}
		}
	}
}

// A host that is there before is left alone, asked for again with growing waits,
// and followed when it has gone.
func TestHostThatWasThereFirst(t *testing.T) {
	for _, a := range []netip.Addr{a100, v6} {
		l := newLAN(t)
		l.hosts[a] = hostMAC
		n := l.add(Config{}, office(deception.ClaimProbe), "10.0.0.99-10.0.0.101", "2001:db8::99-2001:db8::101")
		l.run(20 * time.Minute)
		if n.holds(a) || count(n.Held()) != 3+0x101-0x99+1-1 {
			t.Errorf("%s: held %v", a, n.Held())
		}
		// The first answer ends each attempt.
		want := []time.Duration{0, 60 * time.Second, 180 * time.Second, 420 * time.Second, 900 * time.Second}
		got := n.probes(a)
		for i := range got {
			got[i] = got[i].Truncate(10 * time.Second)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: probed at %v, want %v", a, got, want)
		}
		if len(n.events) != 1 || n.events[0].Kind != deception.EventConflict || n.events[0].Decoy != "web" || n.events[0].Segment != "office" ||
			n.events[0].Destination.Addr() != a || !strings.Contains(n.events[0].Message, "02:00:00:00:00:10") {
			t.Errorf("%s: events %+v, want one conflict", a, n.events)
		}
		if s := n.Status(); s.Withdrawn != 1 || s.Conflicts[0].Address != a || s.Conflicts[0].MAC != hostMAC || !s.Ready() {
			t.Errorf("%s: status %+v", a, s)
		}
		delete(l.hosts, a)
		l.run(12 * time.Minute)
		if !n.holds(a) {
			t.Errorf("%s: not held although the host has gone", a)
		}
		if want := []deception.EventKind{deception.EventConflict, deception.EventReclaimed}; !slices.Equal(n.kinds(), want) {
			t.Errorf("%s: events %v, want %v", a, n.kinds(), want)
		}
		// Others have the host in their caches.
		if last := n.sent[len(n.sent)-1]; last.Source != a || last.Target != a || last.SenderMAC != n.mac {
			t.Errorf("%s: the last frame is %+v, want an announcement", a, last)
		}
	}
}

// Each way in which a real host shows itself takes the address from the decoy at
// once; what others do does not.
func TestHostThatComesLater(t *testing.T) {
	other, other6 := netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("2001:db8::7")
	all := MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	for name, c := range map[string]struct {
		a    netip.Addr
		f    Frame
		lost bool
	}{
		"reply":                           {a100, Frame{Kind: ARPReply, SourceMAC: hostMAC, SenderMAC: hostMAC, Source: a100, Target: other}, true},
		"request":                         {a100, Frame{Kind: ARPRequest, SourceMAC: hostMAC, SenderMAC: hostMAC, Source: a100, Target: other}, true},
		"announcement":                    {a100, Frame{Kind: ARPRequest, SourceMAC: hostMAC, TargetMAC: all, SenderMAC: hostMAC, Source: a100, Target: a100}, true},
		"gratuitous reply":                {a100, answer(a100, hostMAC), true},
		"advertisement":                   {v6, answer(v6, hostMAC), true},
		"advertisement without option":    {v6, Frame{Kind: Advertisement, SourceMAC: hostMAC, Source: v6, Target: v6}, true},
		"advertisement from it":           {v6, Frame{Kind: Advertisement, SourceMAC: hostMAC, Source: v6, Target: other6}, true},
		"solicitation from it":            {v6, Frame{Kind: Solicitation, SourceMAC: hostMAC, SenderMAC: hostMAC, Source: v6, Target: other6}, true},
		"own reply":                       {a100, answer(a100, nodeMAC), false},
		"own advertisement":               {v6, answer(v6, nodeMAC), false},
		"request for it":                  {a100, Frame{Kind: ARPRequest, SourceMAC: hostMAC, SenderMAC: hostMAC, Source: other, Target: a100}, false},
		"reply to it":                     {a100, Frame{Kind: ARPReply, SourceMAC: hostMAC, SenderMAC: hostMAC, Source: other, Target: a100}, false},
		"one probe":                       {a100, Frame{Kind: ARPRequest, SourceMAC: hostMAC, TargetMAC: all, SenderMAC: hostMAC, Source: netip.IPv4Unspecified(), Target: a100}, true},
		"one probe, no source":            {a100, Frame{Kind: ARPRequest, SourceMAC: hostMAC, TargetMAC: all, SenderMAC: hostMAC, Target: a100}, true},
		"duplicate address detection":     {v6, Frame{Kind: Solicitation, SourceMAC: hostMAC, TargetMAC: MAC{0x33, 0x33, 0xff, 0, 1, 0}, Source: netip.IPv6Unspecified(), Target: v6}, true},
		"a switch asks its host":          {a100, Frame{Kind: ARPRequest, SourceMAC: hostMAC, TargetMAC: nodeMAC, SenderMAC: hostMAC, Source: netip.IPv4Unspecified(), Target: a100}, false},
		"solicitation for it":             {v6, Frame{Kind: Solicitation, SourceMAC: hostMAC, SenderMAC: hostMAC, Source: other6, Target: v6}, false},
		"somebody else's reply elsewhere": {a100, answer(other, hostMAC), false},
	} {
		l := newLAN(t)
		n := l.add(Config{}, office(deception.ClaimProbe), "10.0.0.100", "2001:db8::100")
		l.run(time.Second)
		out := n.Step(l.now, []Frame{c.f})
		if n.holds(c.a) == c.lost || out.Changed != c.lost || (len(out.Events) == 1) != c.lost {
			t.Errorf("%s: held %v, changed %v, events %v", name, n.holds(c.a), out.Changed, out.Events)
		}
		// Told over and over it is still one event, and the address stays away.
		for range 100 {
			l.now = l.now.Add(50 * time.Millisecond)
			out := n.Step(l.now, []Frame{c.f})
			if c.lost && (n.holds(c.a) || len(out.Events) > 0 || out.Changed) {
				t.Fatalf("%s, repeated: held %v, changed %v, events %v", name, n.holds(c.a), out.Changed, out.Events)
			}
		}
	}
}

// Two that ask at the same time both stay away (RFC 5227, section 2.1.1).
func TestSimultaneousProbe(t *testing.T) {
	for _, a := range []netip.Addr{a100, v6} {
		for _, c := range []struct {
			from MAC
			at   time.Duration
			held bool
		}{{hostMAC, 200 * time.Millisecond, false}, {hostMAC, 650 * time.Millisecond, false}, {nodeMAC, 200 * time.Millisecond, true}} {
			l := newLAN(t)
			n := l.add(Config{}, office(deception.ClaimProbe), a.String())
			l.run(c.at)
			f := Frame{Kind: ARPRequest, SourceMAC: c.from, SenderMAC: c.from, Source: netip.IPv4Unspecified(), Target: a}
			if a.Is6() {
				f.Kind, f.SenderMAC, f.Source = Solicitation, MAC{}, netip.IPv6Unspecified()
			}
			l.hear(f)
			l.run(time.Second)
			if n.holds(a) != c.held {
				t.Errorf("%s: a probe from %x after %v: held %v, want %v", a, c.from, c.at, n.holds(a), c.held)
			}
		}
	}
}

// A machine that asks whether it may take an address gets it; a switch that asks
// its hosts whether they are still there does not.
func TestYields(t *testing.T) {
	for name, c := range map[string]struct {
		to   MAC
		held bool
	}{
		"asks everybody":          {MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, false},
		"a switch asks its hosts": {nodeMAC, true},
	} {
		l := newLAN(t)
		n := l.add(Config{}, office(deception.ClaimProbe), "10.0.0.100")
		l.run(time.Second)
		n.mustHold(t, "10.0.0.100")
		l.hear(Frame{Kind: ARPRequest, SourceMAC: hostMAC, TargetMAC: c.to, SenderMAC: hostMAC, Source: netip.IPv4Unspecified(), Target: a100})
		l.run(10 * time.Millisecond)
		if n.holds(a100) != c.held {
			t.Errorf("%s: held %v, want %v", name, n.holds(a100), c.held)
		}
	}
}

// What no decoy may have is neither asked for nor held, whatever a document that
// was not checked says.
func TestBarred(t *testing.T) {
	for _, mode := range []deception.Claim{deception.ClaimProbe, deception.ClaimUnchecked} {
		seg := deception.Segment{Name: "s", Claim: mode, Exclude: ranges(t, "192.0.2.10-192.0.2.20"), Subnets: []deception.Subnet{
			{Prefix: netip.MustParsePrefix("192.0.2.0/25"), Gateway: netip.MustParseAddr("192.0.2.1")},
			{Prefix: netip.MustParsePrefix("2001:db8::/64"), Gateway: netip.MustParseAddr("2001:db8::1")},
			{Prefix: netip.MustParsePrefix("192.0.2.130/31")},
		}}
		l := newLAN(t)
		n := l.add(Config{Adopted: ranges(t, "192.0.2.0-192.0.2.255")}, seg, "192.0.2.0-192.0.2.131", "2001:db8::-2001:db8::2")
		l.run(time.Minute)
		n.mustHold(t, "192.0.2.2-192.0.2.9", "192.0.2.21-192.0.2.126", "192.0.2.128-192.0.2.131", "2001:db8::2")
		for _, s := range n.sent {
			if !contains(n.Held(), s.Target) {
				t.Errorf("%s: asked for %s", mode, s.Target)
			}
		}
	}
}

// What a killed process left is held from the first moment, but probed too.
func TestAdopted(t *testing.T) {
	l := newLAN(t)
	l.hosts[a100] = hostMAC
	n := l.add(Config{Adopted: ranges(t, "10.0.0.90-10.0.0.105")}, office(deception.ClaimProbe), "10.0.0.95-10.0.0.110")
	n.mustHold(t, "10.0.0.95-10.0.0.105")
	l.run(time.Second)
	n.mustHold(t, "10.0.0.95-10.0.0.99", "10.0.0.101-10.0.0.110")
}

// A conflict where the document says that there is none is told, and changes
// nothing.
func TestUnchecked(t *testing.T) {
	l := newLAN(t)
	n := l.add(Config{}, office(deception.ClaimUnchecked), "10.0.0.100")
	for range 1000 {
		l.hear(answer(a100, hostMAC))
		l.run(time.Second)
		n.Want(office(deception.ClaimUnchecked), decoys(t, "10.0.0.100"))
	}
	n.mustHold(t, "10.0.0.100")
	if len(n.sent) > 0 || len(n.events) != 1 || !strings.Contains(n.events[0].Message, "unchecked") {
		t.Errorf("sent %v, events %v", n.sent, n.events)
	}
	// Once it is to be checked, the host has it.
	l.hosts[a100] = hostMAC
	n.Want(office(deception.ClaimProbe), decoys(t, "10.0.0.100"))
	n.mustHold(t, "10.0.0.100")
	n.next = l.now
	l.run(time.Second)
	n.mustHold(t)
}

// Two nodes with the same decoys in one network, which nobody meant, take turns:
// each gives way to whoever asks. No address is ever held by both, and people are
// told, at a bearable pace.
func TestTwoNodes(t *testing.T) {
	l := newLAN(t)
	first := l.add(Config{}, office(deception.ClaimProbe), "10.0.0.100-10.0.0.120", "2001:db8::100")
	l.run(5 * time.Second)
	second := l.add(Config{}, office(deception.ClaimProbe), "10.0.0.110-10.0.0.130", "2001:db8::100")
	l.run(3 * time.Second)
	first.mustHold(t, "10.0.0.100-10.0.0.109")
	second.mustHold(t, "10.0.0.110-10.0.0.130", "2001:db8::100")
	for range 3 * 3600 {
		l.run(time.Second)
		if both := intersect(first.Held(), second.Held()); len(both) > 0 {
			t.Fatalf("both hold %v", both)
		}
	}
	for _, n := range []*node{first, second} {
		if events := len(n.events); events == 0 || events > 200 {
			t.Errorf("%d events in three hours", events)
		}
	}
}

// Two that begin together ask past each other later on.
func TestTwoNodesAtOnce(t *testing.T) {
	l := newLAN(t)
	one := l.add(Config{Random: func() float64 { return 0.1 }}, office(deception.ClaimProbe), "10.0.0.100")
	two := l.add(Config{Random: func() float64 { return 0.9 }}, office(deception.ClaimProbe), "10.0.0.100")
	l.run(2 * time.Second)
	if one.holds(a100) || two.holds(a100) {
		t.Error("held by one of two that asked at the same time")
	}
	l.run(time.Hour)
	if one.holds(a100) == two.holds(a100) {
		t.Errorf("held by the first: %v, by the second: %v", one.holds(a100), two.holds(a100))
	}
}

// A new document gives up what is not wanted any more and asks only for what is
// new.
func TestWantAgain(t *testing.T) {
	l := newLAN(t)
	n := l.add(Config{}, office(deception.ClaimProbe), "10.0.0.100-10.0.0.110")
	l.run(time.Second)
	before := len(n.sent)
	n.Want(office(deception.ClaimProbe), decoys(t, "10.0.0.105-10.0.0.115"))
	n.mustHold(t, "10.0.0.105-10.0.0.110")
	n.next = l.now
	l.run(100 * time.Millisecond)
	n.Want(office(deception.ClaimProbe), decoys(t, "10.0.0.105-10.0.0.113")) // while asking
	n.next = l.now
	l.run(time.Second)
	n.mustHold(t, "10.0.0.105-10.0.0.113")
	for _, s := range n.sent[before:] {
		if s.Target.Less(netip.MustParseAddr("10.0.0.111")) {
			t.Errorf("asked for %s again", s.Target)
		}
	}
	// A repeat does nothing.
	before = len(n.sent)
	n.Want(office(deception.ClaimProbe), decoys(t, "10.0.0.105-10.0.0.113"))
	if out := n.Step(l.now, nil); out.Changed || len(out.Frames) > 0 {
		t.Errorf("a repeat: %+v", out)
	}
	// A link that came back: all of it is asked for, none given up.
	l.hosts[netip.MustParseAddr("10.0.0.107")] = hostMAC
	n.Reprobe()
	n.next = l.now
	n.mustHold(t, "10.0.0.105-10.0.0.113")
	l.run(time.Second)
	n.mustHold(t, "10.0.0.105-10.0.0.106", "10.0.0.108-10.0.0.113")
	if got := len(n.sent) - before; got != 8*3+1 {
		t.Errorf("%d probes, want 25", got)
	}
}

// A host that is heard is not asked for a minute, however long ago it took the
// address.
func TestHeardMeanwhile(t *testing.T) {
	l := newLAN(t)
	n := l.add(Config{}, office(deception.ClaimProbe), "10.0.0.100")
	l.run(time.Second)
	for range 10 { // it answers no probe, as behind a filter
		l.hear(answer(a100, hostMAC))
		l.run(50 * time.Second)
	}
	if got := n.probes(a100); len(got) != 3 {
		t.Errorf("probed at %v although it was heard all the time", got)
	}
	l.run(15 * time.Second)
	n.mustHold(t, "10.0.0.100")
}

// Disputes outlive neither a document without the address nor a link's return.
func TestDisputesEnd(t *testing.T) {
	l := newLAN(t)
	n := l.add(Config{}, office(deception.ClaimProbe), "10.0.0.100-10.0.0.101")
	l.run(time.Second)
	l.hear(answer(a100, hostMAC))
	l.run(60*time.Second + 100*time.Millisecond) // asked for again, first probe
	if n.disputes[a100].state != probing {
		t.Fatalf("the address is %v, want it probed", n.disputes[a100].state)
	}
	n.Reprobe()
	n.next = l.now
	l.run(5 * time.Second)
	n.mustHold(t, "10.0.0.100-10.0.0.101")

	l.hear(answer(a100, hostMAC))
	n.Want(office(deception.ClaimProbe), decoys(t, "10.0.0.101"))
	if s := n.Status(); s.Wanted != 1 || s.Held != 1 || s.Withdrawn != 0 || !s.Ready() {
		t.Errorf("status %+v", s)
	}
}

// A frame that the node's limiter holds back costs the segment's nothing.
func TestLimitersTogether(t *testing.T) {
	shared := NewLimiter(2)
	c := New(Config{Rate: 20, Shared: shared}) // one token at a time
	now := start
	if !shared.Take(now) || c.pay(now) {
		t.Fatal("paid out of an empty limiter")
	}
	c.cfg.Shared = nil
	if !c.pay(now) {
		t.Error("the segment's token was spent on a frame that was not sent")
	}
}
