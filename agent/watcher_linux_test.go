package agent

import (
	"net/netip"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/claim"
	"decoynet/internal/kernel/disguise"
	"decoynet/internal/kernel/steer"
	"decoynet/internal/kernel/wire"
)

var (
	lanMAC      = claim.MAC{2, 0, 0, 0, 0, 1}
	intruderMAC = claim.MAC{2, 0, 0, 0, 0, 66}
	everybody   = claim.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
)

func testSight(t *testing.T) *sight {
	t.Helper()
	p := &segmentPlan{groups: []steer.Group{{
		ID: 1, Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.100/30"), netip.MustParsePrefix("192.0.2.120/32")},
		Ports: []deception.PortRange{deception.Port(deception.TCP, 80), deception.Port(deception.UDP, 161)},
	}}}
	s := &sight{
		mac: lanMAC, bound: newBoundPorts(p), subnets: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
		gateways: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
	}
	oui, err := deception.ParseMACPrefix("00:14:22")
	if err != nil {
		t.Fatal(err)
	}
	s.look([]disguise.Policy{{Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.120/32")}, OUI: oui, Seed: 7}})
	return s
}

// A contact is what touches a decoy and reaches no service; what machines of the
// network say to each other is none.
func TestConcerns(t *testing.T) {
	s := testSight(t)
	intruder, decoy, disguised := netip.MustParseAddr("192.0.2.66"), netip.MustParseAddr("192.0.2.101"), netip.MustParseAddr("192.0.2.120")
	at := func(kind wire.Kind, to claim.MAC, source, target netip.Addr, port uint16) wire.Frame {
		return wire.Frame{At: time.Now().UnixNano(), Kind: kind, SourceMAC: intruderMAC, TargetMAC: to, Source: source, Target: target, Port: port}
	}
	asks := func(source, target string) wire.Frame {
		return at(wire.ARPRequest, everybody, netip.MustParseAddr(source), netip.MustParseAddr(target), 0)
	}
	for _, c := range []struct {
		name   string
		before []wire.Frame
		frame  wire.Frame
		want   bool
	}{
		{"SYN to an unbound port", nil, at(wire.SYN, lanMAC, intruder, decoy, 22), true},
		{"SYN to a bound port", nil, at(wire.SYN, lanMAC, intruder, decoy, 80), false},
		{"SYN to somebody else's MAC", nil, at(wire.SYN, intruderMAC, intruder, decoy, 22), false},
		{"SYN to a decoy's own MAC", nil, at(wire.SYN, s.macOf(disguised), intruder, disguised, 22), true},
		{"datagram to an unbound port", nil, at(wire.Datagram, lanMAC, intruder, decoy, 53), true},
		{"datagram to a bound port", nil, at(wire.Datagram, lanMAC, intruder, decoy, 161), false},
		{"TCP's port is not UDP's", nil, at(wire.SYN, lanMAC, intruder, decoy, 161), true},
		{"datagram to all", nil, at(wire.Datagram, everybody, intruder, netip.MustParseAddr("192.0.2.255"), 137), false},
		{"datagram to a group", nil, at(wire.Datagram, claim.MAC{1, 0, 0x5e, 0, 0, 0xfb}, intruder, netip.MustParseAddr("224.0.0.251"), 5353), false},
		{"ping", nil, at(wire.Echo, lanMAC, intruder, decoy, 0), true},
		{"ARP for a decoy", nil, asks("192.0.2.66", "192.0.2.101"), true},
		{"the gateway's ARP for a decoy", nil, asks("192.0.2.1", "192.0.2.101"), false},
		{"ARP probe", nil, asks("0.0.0.0", "192.0.2.101"), false},
		{"machines look for each other", nil, asks("192.0.2.66", "192.0.2.10"), false},
		{"the rest of a sweep", []wire.Frame{asks("192.0.2.66", "192.0.2.101")}, asks("192.0.2.66", "192.0.2.10"), true},
		{"a sweep asks for the gateway", []wire.Frame{asks("192.0.2.66", "192.0.2.101")}, asks("192.0.2.66", "192.0.2.1"), false},
		{"a sweep asks for a machine that is there", []wire.Frame{asks("192.0.2.10", "192.0.2.1"), asks("192.0.2.66", "192.0.2.101")}, asks("192.0.2.66", "192.0.2.10"), false},
		{"a sweep beyond the subnet", []wire.Frame{asks("192.0.2.66", "192.0.2.101")}, asks("192.0.2.66", "198.51.100.7"), false},
	} {
		w := &watcher{alive: map[netip.Addr]struct{}{}, suspects: map[netip.Addr]int64{}}
		ask := func(f wire.Frame) bool {
			kind, ok := f.Kind.Contact()
			return ok && w.concerns(s, &f, kind)
		}
		for _, f := range c.before {
			ask(f)
		}
		if got := ask(c.frame); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// What a flood of forged askers leaves in memory is bounded.
func TestAsksIsBounded(t *testing.T) {
	s := testSight(t)
	w := &watcher{alive: map[netip.Addr]struct{}{}, suspects: map[netip.Addr]int64{}}
	from := netip.MustParseAddr("10.0.0.0")
	for range 10 * maxKnown {
		from = from.Next()
		w.asks(s, &wire.Frame{Kind: wire.ARPRequest, Source: from, Target: netip.MustParseAddr("192.0.2.101"), TargetMAC: everybody})
	}
	if len(w.alive) > maxKnown || len(w.suspects) > maxKnown {
		t.Errorf("%d alive, %d suspects; at most %d", len(w.alive), len(w.suspects), maxKnown)
	}
}
