package gateway

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/health"

	"github.com/google/go-cmp/cmp"
)

// edgeState is an egress machine with two zones at one address, one at another,
// one that is somebody else's and one without an egress.
func edgeState() *deception.State {
	zone := func(name, node, link, listen, from string) deception.Zone {
		return deception.Zone{Name: name, Node: node, Link: link, Egress: &deception.Egress{
			Node: node, Listen: netip.MustParseAddrPort(listen), From: []netip.Prefix{netip.MustParsePrefix(from)},
		}}
	}
	service := func(name, zone, address string, ports ...deception.PortRange) deception.Service {
		return deception.Service{Name: name, Zone: zone, Addr4: netip.MustParseAddr(address), Ports: ports}
	}
	web := service("web", "linux", "10.1.0.2", tcpPort(80), deception.PortRange{Transport: deception.TCP, First: 8000, Last: 8010}, udpPort(443))
	web.Addr6 = netip.MustParseAddr("fd00::2")
	web.Aliases = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}
	return &deception.State{
		Node: "vm1",
		Zones: []deception.Zone{
			zone("linux", "vm1", "br0", "172.16.23.2:7445", "172.16.23.1/32"),
			zone("win", "vm1", "br1", "172.16.23.2:7445", "172.16.23.0/28"),
			zone("lab", "vm1", "br2", "172.16.23.2:7446", "172.16.23.1/32"),
			zone("far", "vm2", "", "172.16.23.3:7445", "172.16.23.1/32"),
			{Name: "own", Node: "vm1", Link: "br3"},
		},
		Services: []deception.Service{
			web, service("rdp", "win", "10.2.0.2", tcpPort(3389)), service("ftp", "lab", "10.3.0.2", tcpPort(21)),
			service("far", "far", "10.4.0.2", tcpPort(22)), service("own", "own", "10.5.0.2", tcpPort(22)),
		},
	}
}

func TestEdges(t *testing.T) {
	edges := edgesOf(edgeState())
	if len(edges) != 2 || edges[netip.MustParseAddrPort("172.16.23.2:7446")].zoneNames() != "zone lab" {
		t.Fatalf("edges: %v", edges)
	}
	e := edges[netip.MustParseAddrPort("172.16.23.2:7445")]
	if e.zoneNames() != "zones linux, win" {
		t.Errorf("zones: %s", e.zoneNames())
	}
	for peer, want := range map[string]bool{"172.16.23.1": true, "172.16.23.9": true, "172.16.23.16": false, "fd00::1": false} {
		if e.allows(netip.MustParseAddr(peer)) != want {
			t.Errorf("%s allowed = %v", peer, !want)
		}
	}
	const ingress, winOnly = "172.16.23.1", "172.16.23.9"
	for _, c := range []struct {
		peer   string
		t      deception.Transport
		target string
		want   string
	}{
		{ingress, deception.TCP, "10.1.0.2:80", "web"},
		{ingress, deception.TCP, "10.1.0.2:8010", "web"},
		{ingress, deception.TCP, "[fd00::2]:80", "web"},
		{ingress, deception.UDP, "10.1.0.2:443", "web"},
		{ingress, deception.TCP, "10.9.0.77:80", "web"}, // an alias
		{ingress, deception.TCP, "10.2.0.2:3389", "rdp"},
		{winOnly, deception.TCP, "10.2.0.2:3389", "rdp"},
		{winOnly, deception.TCP, "10.1.0.2:80", "error: does not name 172.16.23.9"},
		{ingress, deception.TCP, "10.1.0.2:81", "error: service web has no port 81"},
		{ingress, deception.UDP, "10.1.0.2:80", "error: service web has no port 80/udp"},
		{ingress, deception.TCP, "10.9.0.77:81", "error: service web has no port 81"},
		{ingress, deception.TCP, "10.9.1.1:80", "error: no service of zones linux, win is at 10.9.1.1"},
		{ingress, deception.TCP, "10.3.0.2:21", "error: no service of zones linux, win is at 10.3.0.2"},
		{ingress, deception.TCP, "10.5.0.2:22", "error: no service"},
		{ingress, deception.TCP, "172.16.23.2:22", "error: no service"},
	} {
		s, err := e.service(netip.MustParseAddr(c.peer), c.t, netip.MustParseAddrPort(c.target))
		if fault, bad := strings.CutPrefix(c.want, "error: "); bad {
			if err == nil || !strings.Contains(err.Error(), fault) || causeOf(err) != causeTarget {
				t.Errorf("%s %s for %s: %v (cause %s), want %q", c.t, c.target, c.peer, err, causeOf(err), fault)
			}
		} else if err != nil || s.Name != c.want {
			t.Errorf("%s %s for %s: %v, want %s", c.t, c.target, c.peer, err, c.want)
		}
	}
	if _, err := e.service(netip.MustParseAddr(ingress), deception.TCP, netip.AddrPort{}); causeOf(err) != causeTarget {
		t.Errorf("no target: %v", err)
	}
	var ports []string
	for _, p := range e.ports(netip.MustParseAddr(winOnly)) {
		ports = append(ports, p.Service+" "+p.Address.String())
	}
	if !slices.Equal(ports, []string{"rdp 10.2.0.2:3389"}) {
		t.Errorf("told who may speak to zone win only of %v", ports)
	}
}

func TestHopsOf(t *testing.T) {
	state := edgeState()
	got := hopsOf(state)
	want := map[string]netip.AddrPort{"far": netip.MustParseAddrPort("172.16.23.3:7445")}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("hops (-want +got):\n%s", diff)
	}
	g := New(Config{Node: "vm1"})
	if _, away := g.hop("far"); away {
		t.Error("a gateway without a document knows an egress")
	}
	g.SetState(state, deception.NewTable(state))
	if at, away := g.hop("far"); !away || at.String() != "172.16.23.3:7445" {
		t.Errorf("far is reached by %s, %v", at, away)
	}
}

func TestLocalPorts(t *testing.T) {
	for _, c := range []struct{ span, reserved, want string }{
		{"10\t13\n", "\n", "[10 11 12 13]"},
		{"10 13", "11,13-20\n", "[10 12]"},
		{"10 11", "1-100", "[]"},
		{"10 12", "x,11,9-", "[10 12]"},
	} {
		if got := fmt.Sprint(localPorts(c.span, c.reserved)); got != c.want {
			t.Errorf("%q without %q: %s, want %s", c.span, c.reserved, got, c.want)
		}
	}
	for _, bad := range []string{"", "x y", "5 4", "0 70000"} {
		if got := localPorts(bad, ""); len(got) != 60999-32768+1 || got[0] != 32768 {
			t.Errorf("%q: %d ports", bad, len(got))
		}
	}
	p := sourcePorts{ports: localPorts("10 12", "")}
	seen := map[uint16]int{}
	for range 6 {
		seen[p.next()]++
	}
	if diff := cmp.Diff(map[uint16]int{10: 2, 11: 2, 12: 2}, seen); diff != "" {
		t.Errorf("walk (-want +got):\n%s", diff)
	}
	if port := (&sourcePorts{}).next(); port != 0 {
		t.Errorf("without a port to take: %d, want 0", port)
	}
}

func TestHealthLines(t *testing.T) {
	s := edgeState().Services[0]
	ports := portsOfService(&s)
	known := map[health.Port]health.State{ports[0]: {Up: true, Since: time.Unix(1700000000, 0).UTC()}, ports[1]: {Err: "connection refused"}}
	line := healthOf(ports, known)
	text, err := json.Marshal(line)
	if err != nil {
		t.Fatal(err)
	}
	back, err := readHealth(append(text, '\r'), false)
	if err != nil {
		t.Fatal(err)
	}
	got := back.read()
	want := map[health.Port]health.State{}
	for _, p := range ports {
		want[p] = health.State{Err: "not looked at yet"}
	}
	want[ports[0]], want[ports[1]] = known[ports[0]], known[ports[1]]
	if len(got) != 6 {
		t.Errorf("%d ports, want 6: two addresses of two ports and a range", len(got))
	}
	for p, st := range want {
		if g := got[p]; g.Up != st.Up || g.Err != st.Err || !g.Since.Equal(st.Since) {
			t.Errorf("%+v: %+v, want %+v", p, g, st)
		}
	}
	for text, heard := range map[string]bool{"SSH-2.0-OpenSSH_9.2": false, "{}": false, `{"ports":3}`: false, "": false} {
		if _, err := readHealth([]byte(text), heard); err != errForeign {
			t.Errorf("first line %q: %v, want errForeign", text, err)
		}
	}
	if line, err := readHealth([]byte("{}"), true); err != nil || line.Ports != nil {
		t.Errorf("a heartbeat: %+v, %v", line, err)
	}
	if line, err := readHealth([]byte(`{"ports":[]}`), false); err != nil || line.Ports == nil {
		t.Errorf("a report of no ports: %+v, %v", line, err)
	}
	if _, err := readHealth([]byte("garbage"), true); err == nil || err == errForeign {
		t.Errorf("garbage after a report: %v", err)
	}
}

// At most one event a minute for a peer and cause; none that is held back is
// lost.
func TestRefusals(t *testing.T) {
	var told []*deception.Event
	r := refusals{kind: deception.EventPeerRefused, node: "vm1", tell: func(e *deception.Event) { told = append(told, e) }}
	now := time.Unix(1700000000, 0)
	peer := func(last byte, port uint16) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, last}), port)
	}
	at := netip.MustParseAddrPort(egressAt)
	for i := range 10 {
		r.note(now.Add(time.Duration(i)*time.Second), peer(1, uint16(1000+i)), at, causeHeader, fmt.Sprintf("try %d", i))
	}
	r.note(now, peer(1, 1), at, causeTarget, "another cause")
	r.note(now, peer(2, 1), at, causeHeader, "another peer")
	if len(told) != 3 || told[0].Message != "try 0" || told[0].Source != peer(1, 1000) || told[0].Destination != at || told[0].Node != "vm1" ||
		told[0].Kind != deception.EventPeerRefused || told[0].ID.IsZero() || !told[0].Time.Equal(now) {
		t.Fatalf("told of %d, first %+v", len(told), told[0])
	}
	r.flush(now.Add(59 * time.Second))
	if len(told) != 3 {
		t.Errorf("told again before the minute was over: %+v", told[3])
	}
	r.flush(now.Add(61 * time.Second))
	if len(told) != 4 || !strings.HasPrefix(told[3].Message, "try 9 (9 times since ") || told[3].Source.Addr() != peer(1, 1).Addr() {
		t.Fatalf("after the minute: %d events, last %+v", len(told), told[len(told)-1])
	}
	r.flush(now.Add(130 * time.Second))
	if len(told) != 4 || len(r.quiet) != 0 {
		t.Errorf("with nothing new: %d events, %d remembered", len(told), len(r.quiet))
	}
	r.note(now.Add(131*time.Second), peer(1, 1), at, causeHeader, "later")
	if len(told) != 5 || told[4].Message != "later" {
		t.Errorf("the first one of a new minute: %d events", len(told))
	}
	if diff := cmp.Diff(map[string]uint64{causeHeader: 12, causeTarget: 1}, r.counts()); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
	// However many peers there are, memory is bounded and all are counted.
	for i := range 3 * refusalPeers {
		r.note(now.Add(132*time.Second), netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 1), at, causePeer, "who")
	}
	if len(r.quiet) != refusalPeers || r.counts()[causePeer] != 3*refusalPeers {
		t.Errorf("%d remembered, %d counted", len(r.quiet), r.counts()[causePeer])
	}
}
