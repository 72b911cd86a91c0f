//go:build linux

package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"decoynet/config"
	"decoynet/deception"
	"decoynet/internal/health"
)

const planDocument = `
node: hq
segments:
  - name: office
    parent: eth0
    subnets: [{prefix: 192.0.2.0/24, gateway: 192.0.2.1}, {prefix: "2001:db8:2::/64", gateway: "fe80::1"}]
zones:
  - {name: linux, subnet: [10.1.0.0/24, "fd00:1::/64"], link: br-linux}
services:
  - {name: web, zone: linux, address: [10.1.0.2, "fd00:1::2"], ports: [80, 443, 8000-8100]}
  - {name: ssh, zone: linux, address: 10.1.0.4, ports: [22]}
decoys:
  - name: relayed
    segment: office
    addresses: [192.0.2.100-192.0.2.103, "2001:db8:2::1-2001:db8:2::2"]
    bind: [{ports: [80, 443, 8050-8060], service: web}]
    mac: vendor:dell
    personality: windows
  - name: direct
    segment: office
    path: kernel
    addresses: [192.0.2.200]
    bind: [{ports: [2222], service: ssh, target: 22}]
`

func testPlan(t *testing.T, open openPort) segmentPlan {
	t.Helper()
	doc, err := config.Parse("test.yaml", []byte(planDocument))
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]uint32{}
	groupID := func(name string) uint32 {
		if ids[name] == 0 {
			ids[name] = uint32(len(ids) + 1)
		}
		return ids[name]
	}
	return planSegment(&doc.State, deception.NewTable(&doc.State), doc.State.Segments[0], 7, opening{service: open}, groupID)
}

func TestPlanLooks(t *testing.T) {
	looks := testPlan(t, func(health.Port) bool { return true }).looks
	want := "[{[192.0.2.100/30 2001:db8:2::1/128 2001:db8:2::2/128] 00:14:22 0 windows}]"
	if got := fmt.Sprint(looks); got != want {
		t.Errorf("looks are %s, want %s", got, want)
	}
}

func TestPlanRoutes(t *testing.T) {
	p := testPlan(t, func(health.Port) bool { return true })
	var held []deception.AddrRange
	for _, d := range p.decoys {
		held = append(held, d.Addresses...)
	}
	p.routes = holding(p.routes, held)
	want := map[string]string{
		"local":     "[192.0.2.100/30 192.0.2.200/32]",
		"addresses": "[2001:db8:2::1 2001:db8:2::2]",
		"connected": "[192.0.2.0/24 2001:db8:2::/64]",
		"gateways":  "[192.0.2.1 fe80::1]",
		"services":  "[10.1.0.4/32 via 169.254.77.1]",
		"uplink":    "true",
	}
	var services []string
	for _, r := range p.routes.Routes {
		services = append(services, fmt.Sprintf("%s via %s", r.Dst, r.Via))
	}
	got := map[string]string{
		"local": fmt.Sprint(p.routes.Local4), "addresses": fmt.Sprint(p.routes.Addrs6),
		"connected": fmt.Sprint(p.routes.Connected), "gateways": fmt.Sprint(p.routes.Gateways),
		"services": fmt.Sprint(services), "uplink": fmt.Sprint(p.link.Uplink),
	}
	for k, w := range want {
		if got[k] != w {
			t.Errorf("%s = %s, want %s", k, got[k], w)
		}
	}
}

// A bound port is open only while its service is, at the address of the
// intruder's family; a range of ports is one unit of health.
func TestPlanOpensWhatIsUp(t *testing.T) {
	everything := func(health.Port) bool { return true }
	for name, c := range map[string]struct {
		open            openPort
		four, six, dnat string
	}{
		"all up":   {everything, "80,443,8050-8060", "80,443,8050-8060", "[192.0.2.200:2222->10.1.0.4:22]"},
		"all down": {func(health.Port) bool { return false }, "", "", "[]"},
		"443 down": {func(p health.Port) bool { return p.Address.Port() != 443 }, "80,8050-8060", "80,8050-8060", "[192.0.2.200:2222->10.1.0.4:22]"},
		"IPv6 down": {
			func(p health.Port) bool { return p.Address.Addr().Is4() }, "80,443,8050-8060", "", "[192.0.2.200:2222->10.1.0.4:22]",
		},
		"range down": {func(p health.Port) bool { return !p.Range }, "80,443", "80,443", "[192.0.2.200:2222->10.1.0.4:22]"},
		"ssh down":   {func(p health.Port) bool { return p.Service != "ssh" }, "80,443,8050-8060", "80,443,8050-8060", "[]"},
	} {
		p := testPlan(t, c.open)
		if len(p.groups) != 2 {
			t.Fatalf("%s: %d groups, want one a family of the relayed decoy", name, len(p.groups))
		}
		if got := deception.JoinPorts(p.groups[0].Ports); got != c.four {
			t.Errorf("%s: IPv4 ports %q, want %q", name, got, c.four)
		}
		if got := deception.JoinPorts(p.groups[1].Ports); got != c.six {
			t.Errorf("%s: IPv6 ports %q, want %q", name, got, c.six)
		}
		dnat := []string{}
		for _, r := range p.kernel {
			dnat = append(dnat, fmt.Sprintf("%s->%s", r.Decoy, r.Target))
		}
		if got := fmt.Sprint(dnat); got != c.dnat {
			t.Errorf("%s: translations %s, want %s", name, got, c.dnat)
		}
	}
}

// What is looked at is each declared port or range once, at the addresses that
// some decoy's family needs.
func TestHealthPorts(t *testing.T) {
	doc, err := config.Parse("test.yaml", []byte(planDocument))
	if err != nil {
		t.Fatal(err)
	}
	var got []netip.AddrPort
	for _, p := range health.PortsOf(&doc.State) {
		got = append(got, p.Address)
	}
	var want []netip.AddrPort
	for _, s := range []string{"10.1.0.2:80", "10.1.0.2:443", "10.1.0.2:8000", "[fd00:1::2]:80", "[fd00:1::2]:443", "[fd00:1::2]:8000", "10.1.0.4:22"} {
		want = append(want, netip.MustParseAddrPort(s))
	}
	if !slices.Equal(got, want) {
		t.Errorf("ports = %v, want %v", got, want)
	}
}

// A node that does not know the services opens what the gateway wants open.
func TestForwardedPorts(t *testing.T) {
	decoy := &deception.Decoy{Name: "crm"}
	binding := &deception.Binding{Ports: []deception.PortRange{
		{Transport: deception.TCP, First: 80, Last: 84}, {Transport: deception.UDP, First: 161, Last: 161},
	}}
	if got := deception.JoinPorts(forwardedPorts(decoy, binding, false, nil)); got != "80-84,161/udp" {
		t.Errorf("without news: %s", got)
	}
	up := func(d *deception.Decoy, transport deception.Transport, port uint16, ipv6 bool) bool {
		return d == decoy && ipv6 && transport == deception.TCP && port != 82
	}
	if got := deception.JoinPorts(forwardedPorts(decoy, binding, true, up)); got != "80-81,83-84" {
		t.Errorf("with news: %s", got)
	}
	if got := forwardedPorts(decoy, binding, false, up); got != nil {
		t.Errorf("of the other family: %v", got)
	}
}
