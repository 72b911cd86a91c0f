package health

import (
	"net/netip"
	"testing"

	"decoynet/deception"

	"github.com/google/go-cmp/cmp"
)

// What is looked at: what decoys lead to here; of zones that other machines come
// to, everything; of zones elsewhere, nothing.
func TestPortsOf(t *testing.T) {
	service := func(name, zone string) deception.Service {
		return deception.Service{
			Name: name, Zone: zone, Addr4: netip.MustParseAddr("10.1.0.2"), Addr6: netip.MustParseAddr("fd00::2"),
			Ports: []deception.PortRange{deception.Port(deception.TCP, 80), {Transport: deception.UDP, First: 100, Last: 200}},
		}
	}
	decoy := func(service string, addresses ...string) deception.Decoy {
		d := deception.Decoy{Name: "to-" + service, Bind: []deception.Binding{{Service: service}}}
		for _, a := range addresses {
			r, err := deception.ParseAddrRange(a)
			if err != nil {
				t.Fatal(err)
			}
			d.Addresses = append(d.Addresses, r)
		}
		d.Any = len(addresses) == 0
		return d
	}
	egress := &deception.Egress{Node: "vm1"}
	state := &deception.State{
		Zones: []deception.Zone{
			{Name: "here", Link: "br0"}, {Name: "visited", Link: "br1", Egress: egress}, {Name: "elsewhere", Egress: egress},
		},
		Services: []deception.Service{
			service("four", "here"), service("both", "here"), service("any", "here"), service("none", "here"),
			service("visited", "visited"), service("elsewhere", "elsewhere"),
		},
		Decoys: []deception.Decoy{
			decoy("four", "192.0.2.1"), decoy("both", "192.0.2.2", "2001:db8::2"), decoy("any"), decoy("elsewhere", "192.0.2.3"),
		},
	}
	got := map[string]int{}
	for _, p := range PortsOf(state) {
		family := " IPv4"
		if p.Address.Addr().Is6() {
			family = " IPv6"
		}
		if p.Range != (p.Transport == deception.UDP) || p.Range && p.Address.Port() != 100 {
			t.Errorf("%+v", p)
		}
		got[p.Service+family]++
	}
	want := map[string]int{
		"four IPv4": 2, "both IPv4": 2, "both IPv6": 2, "any IPv4": 2, "any IPv6": 2, "visited IPv4": 2, "visited IPv6": 2,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
}
