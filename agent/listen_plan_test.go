package agent

import (
	"net/netip"
	"strings"
	"testing"

	"decoynet/deception"

	"github.com/google/go-cmp/cmp"
)

func decoy(name string, ports string, addrs ...string) deception.Decoy {
	d := deception.Decoy{Name: name, Node: "crm-1", Segment: deception.HostSegment}
	for _, a := range addrs {
		if d.Any = a == "any"; d.Any {
			continue
		}
		r, err := deception.ParseAddrRange(a)
		if err != nil {
			panic(err)
		}
		d.Addresses = append(d.Addresses, r)
	}
	b := deception.Binding{Service: "of-" + name}
	for p := range strings.SplitSeq(ports, ",") {
		r, err := deception.ParsePortRange(p)
		if err != nil {
			panic(err)
		}
		b.Ports = append(b.Ports, r)
	}
	d.Bind = []deception.Binding{b}
	return d
}

func TestPlanEndpoints(t *testing.T) {
	everyWhere := func(port string) []string {
		return []string{port + " on every IPv4 address", port + " on every IPv6 address"}
	}
	other := decoy("x", "1", "any")
	other.Node = "crm-2"
	segment := decoy("x", "1", "192.0.2.7")
	segment.Segment = "office"
	for name, c := range map[string]struct {
		decoys []deception.Decoy
		up     Up
		want   []string
	}{
		"nothing":           {},
		"any":               {decoys: []deception.Decoy{decoy("a", "445", "any")}, want: everyWhere("445/tcp")},
		"addresses":         {decoys: []deception.Decoy{decoy("a", "80-81/udp", "192.0.2.7-192.0.2.8")}, want: []string{"80/udp on 192.0.2.7", "80/udp on 192.0.2.8", "81/udp on 192.0.2.7", "81/udp on 192.0.2.8"}},
		"any holds all":     {decoys: []deception.Decoy{decoy("b", "445", "192.0.2.7", "2001:db8::7"), decoy("a", "445", "any")}, want: everyWhere("445/tcp")},
		"of another kind":   {decoys: []deception.Decoy{decoy("b", "445/udp", "192.0.2.7"), decoy("a", "445", "any")}, want: append(everyWhere("445/tcp"), "445/udp on 192.0.2.7")},
		"of another node":   {decoys: []deception.Decoy{other}},
		"of another place":  {decoys: []deception.Decoy{segment}},
		"one family's down": {decoys: []deception.Decoy{decoy("a", "445", "any")}, up: func(_ *deception.Decoy, _ deception.Transport, _ uint16, ipv6 bool) bool { return ipv6 }, want: []string{"445/tcp on every IPv6 address"}},
		"any is down": {
			decoys: []deception.Decoy{decoy("a", "445", "any"), decoy("b", "445", "192.0.2.7")},
			up:     func(d *deception.Decoy, _ deception.Transport, _ uint16, _ bool) bool { return d.Name == "b" },
			want:   []string{"445/tcp on 192.0.2.7"},
		},
		"the last port": {decoys: []deception.Decoy{decoy("a", "65535", "255.255.255.254")}, want: []string{"65535/tcp on 255.255.255.254"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, k := range sortedKeys(planEndpoints(&deception.State{Node: "crm-1", Decoys: c.decoys}, c.up)) {
				got = append(got, k.String())
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDecoyIndex(t *testing.T) {
	dmz := decoy("dmz", "80", "198.51.100.1-198.51.100.50")
	dmz.Segment = "dmz"
	x := newDecoyIndex(&deception.State{Node: "crm-1", Decoys: []deception.Decoy{
		decoy("any", "445,9", "any"), decoy("range", "80,9", "192.0.2.1-192.0.2.9"), decoy("one", "22", "192.0.2.5"),
		decoy("two", "23", "192.0.2.7"), decoy("six", "80", "2001:db8::1"), dmz,
	}})
	for _, c := range []struct{ segment, at, want string }{
		{"host", "192.0.2.1:80", "range"},
		{"host", "192.0.2.9:80", "range"},
		{"host", "192.0.2.8:80", "range"}, // behind ranges that begin later
		{"host", "192.0.2.5:80", "range"}, // shares the address
		{"host", "192.0.2.5:22", "one"},
		{"host", "192.0.2.7:23", "two"},
		{"host", "192.0.2.7:9", "range"}, // before any
		{"host", "192.0.2.10:9", "any"},
		{"host", "192.0.2.10:80", ""},
		{"host", "[2001:db8::1]:80", "six"},
		{"host", "[2001:db8::2]:445", "any"},
		{"dmz", "198.51.100.50:80", "dmz"},
		{"dmz", "198.51.100.51:80", ""},
		{"dmz", "198.51.100.50:445", ""},
		{"none", "198.51.100.50:80", ""},
	} {
		got := ""
		d, b := x.lookup(c.segment, deception.TCP, netip.MustParseAddrPort(c.at))
		if d != nil {
			got = d.Name
			if b.Service != "of-"+got {
				t.Errorf("%s: binding of %s", c.at, b.Service)
			}
		}
		if got != c.want {
			t.Errorf("%s %s is %q, want %q", c.segment, c.at, got, c.want)
		}
	}
}
