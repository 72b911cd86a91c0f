package deception

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestOnMachine(t *testing.T) {
	interfaces := func(text string) (out []Interface) {
		for line := range strings.SplitSeq(text, ";") {
			fields := strings.Fields(line)
			i := Interface{Name: fields[0]}
			for _, a := range fields[1:] {
				i.Addresses = append(i.Addresses, netip.MustParsePrefix(a))
			}
			out = append(out, i)
		}
		return out
	}
	const usual = "lo 127.0.0.1/8 ::1/128; eth0 192.0.2.5/24 fe80::1/64; br0 172.16.23.2/24 fd00:23::2/64; docker0 10.1.0.1/24"
	for _, c := range []struct {
		name, interfaces string
		subnets          []string
		listen           string
		link, from       string
		fault            string
	}{
		{name: "as usual", interfaces: usual, subnets: []string{"10.1.0.0/24"}, listen: "172.16.23.2:7445", link: "docker0", from: "172.16.23.0/24"},
		{name: "by IPv6", interfaces: "a 10.9.0.1/24; b fd00:1::1/64", subnets: []string{"10.1.0.0/24", "fd00:1::/64"}, listen: "[fd00:1::1]:7445", link: "b", from: "fd00:1::/64"},
		{name: "a smaller subnet", interfaces: usual, subnets: []string{"10.1.0.128/25"}, listen: "127.0.0.1:7445", link: "docker0", from: "127.0.0.0/8"},
		{name: "the nearer of two", interfaces: "wide 10.0.0.1/8; near 10.1.0.1/24", subnets: []string{"10.1.0.0/24"}, listen: "10.0.0.1:7445", link: "near", from: "10.0.0.0/8"},
		{name: "two alike", interfaces: "a 10.1.0.1/24; b 10.1.0.2/24", subnets: []string{"10.1.0.0/24"}, listen: "10.1.0.2:7445", link: LinkAuto, from: "10.1.0.0/24", fault: "the interfaces a, b all hold a subnet of it"},
		{name: "none", interfaces: usual, subnets: []string{"10.9.0.0/24", "fd00:9::/64"}, listen: "172.16.23.2:7445", link: LinkAuto, from: "172.16.23.0/24", fault: "zone linux: no interface has an address in 10.9.0.0/24 or fd00:9::/64"},
		{name: "loopback is none", interfaces: "lo 127.0.0.1/8", subnets: []string{"127.0.0.0/16"}, listen: "127.0.0.1:7445", link: LinkAuto, from: "127.0.0.0/8", fault: "no interface has an address in"},
		{name: "listening elsewhere", interfaces: usual, subnets: []string{"10.1.0.0/24"}, listen: "172.16.23.3:7445", link: "docker0", from: "", fault: "egress of zone linux: no interface has the address 172.16.23.3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &State{Zones: []Zone{{Name: "linux", Link: LinkAuto, Egress: &Egress{Node: "vm1", Listen: netip.MustParseAddrPort(c.listen)}}}}
			for _, p := range c.subnets {
				s.Zones[0].Subnets = append(s.Zones[0].Subnets, netip.MustParsePrefix(p))
			}
			got, err := s.OnMachine(interfaces(c.interfaces))
			if c.fault == "" && err != nil || c.fault != "" && (err == nil || !strings.Contains(err.Error(), c.fault)) {
				t.Errorf("error %v, want %q", err, c.fault)
			}
			z := got.Zones[0]
			var from []netip.Prefix
			if c.from != "" {
				from = append(from, netip.MustParsePrefix(c.from))
			}
			if z.Link != c.link || !reflect.DeepEqual(z.Egress.From, from) || z.Egress.Node != "vm1" || z.Egress.Listen.String() != c.listen {
				t.Errorf("link %s, egress %+v; want %s, from %v", z.Link, z.Egress, c.link, from)
			}
			if s.Zones[0].Link != LinkAuto || s.Zones[0].Egress.From != nil {
				t.Errorf("the state itself was changed: %+v", s.Zones[0])
			}
		})
	}
}

// What the document says stays, and so does what is another machine's.
func TestOnMachineLeavesAlone(t *testing.T) {
	whole := machines()
	whole.Zones[0].Link = "br-linux"
	hq := whole.Part("hq")
	for _, s := range []*State{whole, &hq} {
		got, err := s.OnMachine(nil)
		if err != nil || !reflect.DeepEqual(&got, s) {
			t.Errorf("%+v became %+v, %v", s.Zones, got.Zones, err)
		}
	}
	// One zone's trouble is not another's.
	both := &State{Zones: []Zone{
		{Name: "a", Link: LinkAuto, Subnets: []netip.Prefix{netip.MustParsePrefix("10.8.0.0/24")}},
		{Name: "b", Link: LinkAuto, Subnets: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}},
	}}
	got, err := both.OnMachine([]Interface{{Name: "br9", Addresses: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/24")}}})
	if err == nil || strings.Contains(err.Error(), "zone b") || got.Zones[0].Link != LinkAuto || got.Zones[1].Link != "br9" {
		t.Errorf("zones %+v, error %v", got.Zones, err)
	}
}
