package deception

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// machines is a document of several machines: two gateways, an egress, an agent
// on a trunk and one on a business server.
func machines() *State {
	prefix, addr, listen := netip.MustParsePrefix, netip.MustParseAddr, netip.MustParseAddrPort
	bind := func(service string, target uint16, port uint16) []Binding {
		return []Binding{{Ports: []PortRange{Port(TCP, port)}, Service: service, Target: target}}
	}
	one := func(s string) []AddrRange { return []AddrRange{{From: addr(s), To: addr(s)}} }
	return &State{
		Node:  "hq",
		Nodes: []Node{{"hq"}, {"branch"}, {"vm1"}, {"trunk-1"}, {"crm-1"}},
		Gateways: []Gateway{
			{Name: "gw1", Node: "hq", Listen: listen("0.0.0.0:7444"), Addresses: []string{"hq.example:7444"}},
			{Name: "gw2", Node: "branch", Listen: listen("192.0.2.1:7444")},
		},
		Segments: []Segment{
			{Name: "office", Node: "branch", Parent: "eth0", Subnets: []Subnet{{prefix("192.0.2.0/24"), addr("192.0.2.254")}}, Steering: SteeringAuto},
			{Name: "dmz", Node: "trunk-1", Parent: "eth1", VLAN: 110, Claim: ClaimUnchecked, Subnets: []Subnet{{Prefix: prefix("198.51.100.0/24")}}, Exclude: one("198.51.100.2")},
			{Name: "vms", Node: "vm1", Parent: "eth2", Subnets: []Subnet{{Prefix: prefix("203.0.113.0/24")}}},
		},
		Zones: []Zone{
			{
				Name: "linux", Node: "vm1", Subnets: []netip.Prefix{prefix("10.1.0.0/24")}, Link: LinkAuto,
				Egress: &Egress{Node: "vm1", Listen: listen("172.16.23.2:7445"), From: []netip.Prefix{prefix("172.16.23.1/32")}},
				Allow:  []Allow{{To: prefix("10.1.0.1/32"), Ports: []PortRange{Port(UDP, 53)}}},
			},
			{Name: "win", Node: "hq", Subnets: []netip.Prefix{prefix("10.2.0.0/24")}, Link: "br-win"},
		},
		Services: []Service{
			{Name: "web", Zone: "linux", Addr4: addr("10.1.0.2"), Addr6: addr("fd00::2"), Ports: []PortRange{Port(TCP, 80)}, Aliases: []netip.Prefix{prefix("10.3.0.0/24"), prefix("fd00:3::/64")}, Netns: "web"},
			{Name: "files", Zone: "win", Addr4: addr("10.2.0.2"), Ports: []PortRange{Port(TCP, 445)}},
		},
		Decoys: []Decoy{
			{Name: "office-web", Segment: "office", Node: "branch", Addresses: one("192.0.2.10"), Bind: bind("web", 0, 80), Path: PathRelay, Idle: time.Minute},
			{Name: "hq-files", Segment: HostSegment, Node: "hq", Any: true, Bind: bind("files", 0, 445), Path: PathRelay, Idle: time.Minute},
			{Name: "vms-web", Segment: "vms", Node: "vm1", Addresses: one("203.0.113.9"), Bind: bind("web", 0, 80), Path: PathKernel, Idle: time.Minute},
			{Name: "dmz-web", Segment: "dmz", Node: "trunk-1", Addresses: one("198.51.100.10"), Bind: bind("web", 80, 8080), Path: PathRelay, Idle: time.Minute, MAC: MACPrefix{0x00, 0x14, 0x22}, Personality: PersonalityWindows},
			{Name: "crm", Segment: HostSegment, Node: "crm-1", Any: true, Bind: bind("web", 80, 8080), Path: PathRelay, Idle: 90 * time.Second},
			{Name: "crm-own", Segment: HostSegment, Node: "crm-1", Addresses: one("192.0.2.77"), Bind: bind("web", 80, 8081), Path: PathRelay, Idle: time.Minute},
		},
		Scanners: []Scanner{{
			Name: "audit", From: []netip.Prefix{prefix("192.168.7.0/24")}, Ports: []PortRange{Port(TCP, 443)},
			Until: time.Date(2027, 2, 1, 0, 0, 0, 0, time.UTC),
		}},
		Inspect: &Inspect{Suricata: SuricataManaged, FIFO: true, Rules: []string{"/etc/decoynet/rules"}},
	}
}

// holds writes what a part holds, kind by kind.
func holds(s *State) string {
	var out []string
	list := func(kind string, n int, name func(int) string) {
		for i := range n {
			out = append(out, kind+" "+name(i))
		}
	}
	list("node", len(s.Nodes), func(i int) string { return s.Nodes[i].Name })
	list("gateway", len(s.Gateways), func(i int) string { return s.Gateways[i].Name })
	list("segment", len(s.Segments), func(i int) string { return s.Segments[i].Name })
	list("zone", len(s.Zones), func(i int) string { return s.Zones[i].Name + "/" + s.Zones[i].Link })
	list("service", len(s.Services), func(i int) string { return s.Services[i].Name })
	list("decoy", len(s.Decoys), func(i int) string { return s.Decoys[i].Name })
	list("scanner", len(s.Scanners), func(i int) string { return s.Scanners[i].Name })
	if s.Inspect != nil {
		out = append(out, strings.TrimSpace("inspect "+strings.Join(s.Inspect.Nodes, " ")))
	}
	return strings.Join(out, ", ")
}

// Every node gets what it needs and nothing else.
func TestPart(t *testing.T) {
	whole := machines()
	for _, c := range []struct {
		node, want string
		tunnels    bool
	}{
		{"hq", "node hq, gateway gw1, zone linux/, zone win/br-win, service web, service files, decoy hq-files, decoy dmz-web, decoy crm, decoy crm-own, scanner audit, inspect", false},
		{"branch", "node branch, gateway gw2, segment office, zone linux/, service web, decoy office-web, decoy dmz-web, decoy crm, decoy crm-own, scanner audit, inspect", false},
		{"vm1", "node vm1, segment vms, zone linux/auto, service web, decoy vms-web, scanner audit, inspect", false},
		{"trunk-1", "node trunk-1, gateway gw1, gateway gw2, segment dmz, decoy dmz-web, scanner audit", true},
		{"crm-1", "node crm-1, gateway gw1, gateway gw2, decoy crm, decoy crm-own", true},
		{"stranger", "node stranger", false},
	} {
		part := whole.Part(c.node)
		if got := holds(&part); got != c.want || part.Node != c.node {
			t.Errorf("part of %s (%s):\n%s\nwant\n%s", c.node, part.Node, got, c.want)
		}
		if part.Tunnels() != c.tunnels {
			t.Errorf("part of %s: Tunnels is %v", c.node, part.Tunnels())
		}
		if again := part.Part(c.node); !reflect.DeepEqual(again, part) {
			t.Errorf("the part of the part of %s is\n%+v\nnot\n%+v", c.node, again, part)
		}
	}
	whole.Inspect.Nodes = []string{"branch", "trunk-1"}
	for node, want := range map[string]string{"hq": "", "branch": "inspect branch", "trunk-1": "inspect trunk-1", "crm-1": ""} {
		part := whole.Part(node)
		if got := holds(&part); !strings.HasSuffix(got, want) || strings.Contains(got, "inspect") != (want != "") {
			t.Errorf("part of %s where branch and trunk-1 inspect: %s", node, got)
		}
		if again := part.Part(node); !reflect.DeepEqual(again, part) {
			t.Errorf("the part of the part of %s is\n%+v\nnot\n%+v", node, again, part)
		}
	}
	whole.Inspect.Nodes = nil
	if !reflect.DeepEqual(whole, machines()) {
		t.Errorf("Part changed the whole:\n%+v", whole)
	}
}

// An agent's part leaks nothing of services but their names, a gateway's
// nothing of what only the egress has to know.
func TestPartNeedToKnow(t *testing.T) {
	whole := machines()
	for node, secrets := range map[string][]string{
		"crm-1":   {"10.1.", "10.2.", "10.3.", "fd00:", "172.16.", "198.51.100.", "192.0.2.10", "br-win", "office", "dmz", "linux", "files", "vm1", "trunk-1", `"Target":80`, "audit", "192.168.", "Inspect"},
		"trunk-1": {"10.1.", "10.3.", "172.16.", "203.0.113.", "crm", "office", "linux", "vm1", `"Target":80`},
		"hq":      {"172.16.23.1/32", "10.1.0.1", `"Netns":"web"`, "eth0", "eth1", "auto", "192.0.2.10\"", "203.0.113."},
		"vm1":     {"10.2.", "192.0.2.", "198.51.100.", "crm", "hq", "br-win"},
	} {
		part := whole.Part(node)
		text, err := json.Marshal(part)
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range secrets {
			if strings.Contains(string(text), secret) {
				t.Errorf("the part of %s holds %q:\n%s", node, secret, text)
			}
		}
	}
}

func TestPartOfOneMachine(t *testing.T) {
	whole := tableState()
	whole.Node = "box"
	if part := whole.Part("box"); !reflect.DeepEqual(&part, whole) || part.Tunnels() || part.HasGateway("box") {
		t.Errorf("a document of one machine is not its own part: %+v", part)
	}
}

// A state travels as JSON: all of it arrives, and nothing has to be dropped on
// the way in.
func TestStateAsJSON(t *testing.T) {
	states := []State{*machines(), *tableState(), {}}
	for _, n := range machines().Nodes {
		states = append(states, machines().Part(n.Name))
	}
	for i := range states {
		text, err := json.Marshal(&states[i])
		if err != nil {
			t.Fatal(err)
		}
		decoder := json.NewDecoder(strings.NewReader(string(text)))
		decoder.DisallowUnknownFields()
		var got State
		if err := decoder.Decode(&got); err != nil {
			t.Fatalf("state %d: %v in\n%s", i, err, text)
		}
		if !reflect.DeepEqual(got, states[i]) {
			t.Errorf("state %d arrives as\n%+v\nnot as\n%+v", i, got, states[i])
		}
	}
	filled(t, reflect.ValueOf(*machines()))
}

// filled fails where no object of the state has a value in a field: its way
// through JSON would not be tested. Decoys have alias starts in parts only.
func filled(t *testing.T, state reflect.Value) {
	t.Helper()
	for i := range state.NumField() {
		list := state.Field(i)
		if list.Kind() != reflect.Slice {
			continue
		}
		elem := list.Type().Elem()
		for j := range elem.NumField() {
			some := elem == reflect.TypeFor[Decoy]() && elem.Field(j).Name == "Aliases"
			for k := range list.Len() {
				some = some || !list.Index(k).Field(j).IsZero()
			}
			if !some {
				t.Errorf("no %s has a value in %s", elem.Name(), elem.Field(j).Name)
			}
		}
	}
}

// drawMachines draws a document of several machines, in which every gateway
// reaches every zone. Alias pools are small, so that some run out.
func drawMachines(t *rapid.T) *State {
	s := &State{}
	count := rapid.IntRange(1, 5).Draw(t, "nodes")
	node := func(name string) string { return fmt.Sprint("n", rapid.IntRange(0, count-1).Draw(t, name)) }
	for i := range count {
		s.Nodes = append(s.Nodes, Node{Name: fmt.Sprint("n", i)})
		if i == 0 || rapid.Bool().Draw(t, "gateway") {
			s.Gateways = append(s.Gateways, Gateway{Name: fmt.Sprint("gw", i), Node: fmt.Sprint("n", i)})
		}
	}
	for i := range rapid.IntRange(1, 3).Draw(t, "zones") {
		at := node("zone's node")
		s.Zones = append(s.Zones, Zone{Name: fmt.Sprint("z", i), Node: at, Link: "br0", Egress: &Egress{Node: at}})
	}
	for i := range rapid.IntRange(1, 4).Draw(t, "services") {
		v := Service{Name: fmt.Sprint("s", i), Zone: s.Zones[rapid.IntRange(0, len(s.Zones)-1).Draw(t, "zone")].Name}
		v.Addr4 = netip.AddrFrom4([4]byte{10, 1, byte(i), 2})
		if rapid.Bool().Draw(t, "IPv6") {
			v.Addr6 = Nth(netip.MustParseAddr("fd00::2"), uint64(i)<<16)
		}
		if bits := rapid.IntRange(24, 33).Draw(t, "pool"); bits <= 32 {
			v.Aliases = append(v.Aliases, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 3, byte(i), 0}), bits))
		}
		if v.Addr6.IsValid() && rapid.Bool().Draw(t, "IPv6 pool") {
			v.Aliases = append(v.Aliases, netip.PrefixFrom(Nth(netip.MustParseAddr("fd00:3::"), uint64(i)<<16), 120))
		}
		s.Services = append(s.Services, v)
	}
	for i := range rapid.IntRange(0, 12).Draw(t, "decoys") {
		s.Decoys = append(s.Decoys, drawDecoy(t, s, i, node("decoy's node")))
	}
	return s
}

// drawDecoy draws a decoy whose ports no other one has; in the segment host it
// may share addresses with others.
func drawDecoy(t *rapid.T, s *State, i int, node string) Decoy {
	d := Decoy{Name: fmt.Sprint("d", i), Node: node, Segment: "lan-" + node, Path: PathRelay}
	if rapid.Bool().Draw(t, "host") {
		d.Segment = HostSegment
		d.Any = rapid.Bool().Draw(t, "any")
	} else if rapid.IntRange(0, 3).Draw(t, "kernel") == 0 {
		d.Path = PathKernel
	}
	if !d.Any {
		var ranges []AddrRange
		for r := range rapid.IntRange(1, 3).Draw(t, "ranges") {
			third := i
			if d.Segment == HostSegment {
				third = 99
			}
			from := netip.AddrFrom4([4]byte{192, 0, byte(third), byte(r * 64)})
			if rapid.IntRange(0, 3).Draw(t, "family") == 0 {
				from = Nth(netip.MustParseAddr("2001:db8::"), uint64(third<<16+r*64))
			}
			ranges = append(ranges, AddrRange{From: from, To: Nth(from, rapid.Uint64Range(0, 40).Draw(t, "length"))})
		}
		d.Addresses = SortRanges(ranges)
	}
	for b := range rapid.IntRange(1, 3).Draw(t, "bindings") {
		v := &s.Services[rapid.IntRange(0, len(s.Services)-1).Draw(t, "service")]
		if d.Path == PathKernel && s.Zone(v.Zone).Node != node {
			d.Path = PathRelay // as the document's rules have it
		}
		d.Bind = append(d.Bind, Binding{Ports: []PortRange{Port(TCP, uint16(1000+10*i+b))}, Service: v.Name, Target: uint16(80 + b)})
	}
	return d
}

// Whoever leads a decoy's flows, by its own part alone, leads them where the
// whole document says: to the same service, by the same alias.
func TestPartsLeadAsTheWhole(t *testing.T) {
	flows, aliased, kernel := 0, 0, 0
	rapid.Check(t, func(t *rapid.T) {
		s := drawMachines(t)
		whole := NewTable(s)
		parts := map[string]*Table{}
		for _, n := range s.Nodes {
			part := s.Part(n.Name)
			parts[n.Name] = NewTable(&part)
		}
		for i := range s.Decoys {
			d := &s.Decoys[i]
			for _, node := range leaders(s, d) {
				for _, at := range flowsOf(d) {
					key := SegmentKey(d.Node, d.Segment)
					want, led := whole.Lookup(key, TCP, at)
					got, ok := parts[node].Lookup(key, TCP, at)
					if ok != led || led && (got.Decoy.Name != want.Decoy.Name || got.Service.Name != want.Service.Name || got.Address != want.Address || got.Alias != want.Alias) {
						t.Fatalf("%s of decoy %s on %s: node %s leads it to %+v (%v), the whole document to %+v (%v)", at, d.Name, d.Node, node, got, ok, want, led)
					}
					flows++
					if led && want.Alias {
						aliased++
					}
					if d.Path == PathKernel {
						kernel++
					}
				}
			}
		}
	})
	if aliased == 0 || kernel == 0 {
		t.Errorf("of %d flows %d went to aliases, %d through the kernel: nothing is proved", flows, aliased, kernel)
	}
}

// leaders are the nodes that lead a decoy's flows.
func leaders(s *State, d *Decoy) []string {
	if d.Path == PathKernel || s.HasGateway(d.Node) {
		return []string{d.Node}
	}
	var out []string
	for _, g := range s.Gateways {
		out = append(out, g.Node)
	}
	return out
}

// flowsOf lists flows to the edges of the decoy's ranges, and next to them.
func flowsOf(d *Decoy) []netip.AddrPort {
	var addrs []netip.Addr
	for _, r := range d.Addresses {
		addrs = append(addrs, r.From, r.To, r.To.Next())
	}
	if d.Any {
		addrs = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8::1")}
	}
	var out []netip.AddrPort
	for _, a := range addrs {
		for _, b := range d.Bind {
			out = append(out, netip.AddrPortFrom(a, b.Ports[0].First))
		}
	}
	return append(out, netip.AddrPortFrom(addrs[0], 1))
}
