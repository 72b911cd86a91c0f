package deception

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestScannerMatch(t *testing.T) {
	prefix := netip.MustParsePrefix
	noon := time.Date(2027, 1, 31, 12, 0, 0, 0, time.UTC)
	table := NewScannerTable([]Scanner{
		{Name: "audit", From: []netip.Prefix{prefix("192.0.2.0/24"), prefix("2001:db8::/32")}},
		{Name: "nessus", From: []netip.Prefix{prefix("192.0.2.10/32")}, Until: noon},
		{Name: "monitoring", From: []netip.Prefix{prefix("198.51.100.7/32")}, Ports: []PortRange{Port(TCP, 443), Port(UDP, 161)}},
		{Name: "second", From: []netip.Prefix{prefix("198.51.100.7/32")}},
		{Name: "third", From: []netip.Prefix{prefix("198.51.100.7/32")}},
	})
	for _, c := range []struct {
		source    string
		transport Transport
		port      uint16
		at        time.Time
		want      string
	}{
		{"192.0.2.10", TCP, 80, noon.Add(-time.Nanosecond), "nessus"}, // the narrower network, though further down
		{"192.0.2.10", TCP, 80, noon, "audit"},                        // its time is over
		{"192.0.2.11", TCP, 80, noon, "audit"},
		{"::ffff:192.0.2.11", TCP, 80, noon, "audit"},
		{"192.0.3.11", TCP, 80, noon, ""},
		{"2001:db8::1", UDP, 53, noon, "audit"},
		{"2001:db8::1%eth0", UDP, 53, noon, "audit"},
		{"2001:db9::1", UDP, 53, noon, ""},
		{"198.51.100.7", TCP, 443, noon, "monitoring"},
		{"198.51.100.7", UDP, 161, noon, "monitoring"},
		{"198.51.100.7", UDP, 443, noon, "second"}, // of one network, by the document's order
		{"198.51.100.7", 0, 0, noon, "monitoring"}, // a ping
	} {
		if got := table.Match(netip.MustParseAddr(c.source), c.transport, c.port, c.at); got != c.want {
			t.Errorf("%s to %s port %d at %s: %q, want %q", c.source, c.transport, c.port, c.at, got, c.want)
		}
	}
	for _, none := range []*ScannerTable{nil, NewScannerTable(nil)} {
		if got := none.Match(netip.MustParseAddr("192.0.2.1"), TCP, 80, noon); got != "" {
			t.Errorf("a table without scanners knows %q", got)
		}
	}
	if got := table.Match(netip.Addr{}, TCP, 80, noon); got != "" {
		t.Errorf("no address at all is %q", got)
	}
}

// The table finds what a plain search through the list finds.
func TestScannerMatchIsASearch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		address := rapid.Custom(func(t *rapid.T) netip.Addr {
			if rapid.Bool().Draw(t, "IPv6") {
				return Nth(netip.MustParseAddr("2001:db8::"), rapid.Uint64Range(0, 7).Draw(t, "host"))
			}
			return Nth(netip.MustParseAddr("192.0.2.0"), rapid.Uint64Range(0, 7).Draw(t, "host"))
		})
		start := time.Unix(1_800_000_000, 0)
		var list []Scanner
		for i := range rapid.IntRange(0, 6).Draw(t, "scanners") {
			s := Scanner{Name: fmt.Sprint("s", i)}
			for range rapid.IntRange(1, 2).Draw(t, "networks") {
				a := address.Draw(t, "network")
				p, _ := a.Prefix(a.BitLen() - rapid.IntRange(0, 3).Draw(t, "bits"))
				s.From = append(s.From, p)
			}
			if rapid.Bool().Draw(t, "has ports") {
				s.Ports = []PortRange{Port(TCP, uint16(rapid.IntRange(1, 2).Draw(t, "port")))}
			}
			if rapid.Bool().Draw(t, "ends") {
				s.Until = start.Add(time.Duration(rapid.IntRange(0, 2).Draw(t, "until")))
			}
			list = append(list, s)
		}
		source, port := address.Draw(t, "source"), uint16(rapid.IntRange(0, 2).Draw(t, "to"))
		at := start.Add(time.Duration(rapid.IntRange(0, 2).Draw(t, "at")))
		want, bits := "", -1
		for _, s := range list {
			for _, p := range s.From {
				fits := p.Contains(source) && (s.Until.IsZero() || at.Before(s.Until)) && (s.Ports == nil || port == 0 || s.Ports[0].First == port)
				if fits && p.Bits() > bits {
					want, bits = s.Name, p.Bits()
				}
			}
		}
		if got := NewScannerTable(list).Match(source, TCP, port, at); got != want {
			t.Fatalf("%s to port %d: %q, want %q", source, port, got, want)
		}
	})
}

func TestScannerMatchProbe(t *testing.T) {
	source, noon := netip.MustParseAddr("192.0.2.10"), time.Date(2027, 1, 31, 12, 0, 0, 0, time.UTC)
	from := []netip.Prefix{netip.PrefixFrom(source, 32)}
	limited := Scanner{Name: "limited", From: from, Ports: []PortRange{Port(TCP, 443)}, Until: noon}
	free := Scanner{Name: "free", From: from}
	at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("192.0.2.99"), port) }
	for name, c := range map[string]struct {
		probe       Probe
		alone, both string
	}{
		"ARP":          {Probe{Contacts: [ContactKinds]uint64{ContactARP: 9}, First: at(0), Latest: at(0)}, "limited", "limited"},
		"its port":     {Probe{Contacts: [ContactKinds]uint64{ContactARP: 9, ContactSYN: 5}, Ports: 1, First: at(0), Latest: at(443)}, "limited", "limited"},
		"another port": {Probe{Contacts: [ContactKinds]uint64{ContactSYN: 5}, Ports: 1, First: at(22), Latest: at(22)}, "", "free"},
		"over UDP":     {Probe{Contacts: [ContactKinds]uint64{ContactDatagram: 5}, Ports: 1, First: at(443), Latest: at(443)}, "", "free"},
		"over both":    {Probe{Contacts: [ContactKinds]uint64{ContactSYN: 5, ContactDatagram: 5}, Ports: 1, First: at(443), Latest: at(443)}, "", "free"},
		"two ports":    {Probe{Contacts: [ContactKinds]uint64{ContactSYN: 5}, Ports: 2, First: at(443), Latest: at(443)}, "", "free"},
	} {
		p := c.probe
		p.Source, p.Last = source, noon.Add(-time.Second)
		alone, both := NewScannerTable([]Scanner{limited}), NewScannerTable([]Scanner{limited, free})
		if got := alone.MatchProbe(&p); got != c.alone {
			t.Errorf("%s: %q, want %q", name, got, c.alone)
		}
		if got := both.MatchProbe(&p); got != c.both {
			t.Errorf("%s, both known: %q, want %q", name, got, c.both)
		}
		p.Last = noon
		if got := both.MatchProbe(&p); got != "free" {
			t.Errorf("%s, when the time of the one is over: %q", name, got)
		}
		p.Source = netip.Addr{}
		if got := both.MatchProbe(&p); got != "" {
			t.Errorf("%s, of many sources: %q", name, got)
		}
	}
}

func BenchmarkScannerMatch(b *testing.B) {
	var list []Scanner
	for i := range 200 {
		bits := 32 - i%8
		p, _ := Nth(netip.MustParseAddr("10.0.0.0"), uint64(i)<<8).Prefix(bits)
		list = append(list, Scanner{Name: fmt.Sprint("s", i), From: []netip.Prefix{p}})
	}
	table, at, source := NewScannerTable(list), time.Now(), netip.MustParseAddr("203.0.113.1")
	for b.Loop() {
		table.Match(source, TCP, 80, at)
	}
}
