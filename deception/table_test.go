package deception

import (
	"fmt"
	"net/netip"
	"testing"
)

func tableState() *State {
	tcp := func(first, last uint16) []PortRange { return []PortRange{{Transport: TCP, First: first, Last: last}} }
	addrs := func(list ...string) (out []AddrRange) {
		for _, s := range list {
			r, err := ParseAddrRange(s)
			if err != nil {
				panic(err)
			}
			out = append(out, r)
		}
		return SortRanges(out)
	}
	return &State{
		Services: []Service{
			{
				Name: "web", Addr4: netip.MustParseAddr("10.1.0.2"), Addr6: netip.MustParseAddr("fd00::2"),
				Ports: tcp(80, 80), Aliases: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/24")},
			},
			{Name: "ssh", Addr4: netip.MustParseAddr("10.1.0.3"), Ports: tcp(22, 22)},
			{Name: "range", Addr4: netip.MustParseAddr("10.1.0.4"), Ports: tcp(8000, 8010)},
		},
		Decoys: []Decoy{
			{
				Name: "a", Segment: "office", Addresses: addrs("192.0.2.10-192.0.2.19", "192.0.2.100", "2001:db8::1"),
				Bind: []Binding{{Ports: tcp(80, 80), Service: "web"}, {Ports: tcp(2222, 2222), Service: "ssh", Target: 22}, {Ports: tcp(8080, 8080), Service: "web", Target: 80}},
			},
			{Name: "b", Segment: "office", Path: PathKernel, Addresses: addrs("192.0.2.20-192.0.2.21"), Bind: []Binding{{Ports: tcp(80, 80), Service: "web"}, {Ports: tcp(8000, 8001), Service: "range"}}},
			{Name: "c", Segment: "dmz", Addresses: addrs("192.0.2.10"), Bind: []Binding{{Ports: tcp(22, 22), Service: "ssh"}}},
		},
	}
}

func TestLookup(t *testing.T) {
	table := NewTable(tableState())
	for _, c := range []struct{ segment, decoy, want string }{
		{"office", "192.0.2.10:80", "a web 10.2.0.0:80 alias"},
		{"office", "192.0.2.19:80", "a web 10.2.0.9:80 alias"},
		{"office", "192.0.2.19:8080", "a web 10.2.0.9:80 alias"}, // one alias for a decoy and service
		{"office", "192.0.2.100:80", "a web 10.2.0.10:80 alias"},
		{"office", "[2001:db8::1]:80", "a web [fd00::2]:80"}, // no IPv6 pool
		{"office", "192.0.2.10:2222", "a ssh 10.1.0.3:22"},
		{"office", "192.0.2.21:80", "b web 10.2.0.12:80 alias"},
		{"office", "192.0.2.21:8001", "b range 10.1.0.4:8001"},
		{"office", "192.0.2.21:8002", "nothing"},
		{"office", "192.0.2.22:80", "nothing"},
		{"office", "192.0.2.9:80", "nothing"},
		{"office", "[2001:db8::1]:2222", "nothing"}, // ssh has no IPv6 address
		{"dmz", "192.0.2.10:22", "c ssh 10.1.0.3:22"},
		{"dmz", "192.0.2.10:80", "nothing"},
		{"none", "192.0.2.10:80", "nothing"},
	} {
		got := "nothing"
		if target, ok := table.Lookup(c.segment, TCP, netip.MustParseAddrPort(c.decoy)); ok {
			got = fmt.Sprintf("%s %s %s", target.Decoy.Name, target.Service.Name, target.Address)
			if target.Alias {
				got += " alias"
			}
		}
		if got != c.want {
			t.Errorf("%s %s leads to %s, want %s", c.segment, c.decoy, got, c.want)
		}
	}
	if _, ok := table.Lookup("office", UDP, netip.MustParseAddrPort("192.0.2.10:80")); ok {
		t.Error("a TCP binding took a datagram")
	}
}

// Decoys added at the end leave the aliases of the others as they were.
func TestAliasesAreStable(t *testing.T) {
	state := tableState()
	before, _ := NewTable(state).Lookup("office", TCP, netip.MustParseAddrPort("192.0.2.21:80"))
	first, err := ParseAddrRange("192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	state.Decoys = append(state.Decoys, Decoy{
		Name: "d", Segment: "office", Addresses: []AddrRange{first},
		Bind: []Binding{{Ports: []PortRange{Port(TCP, 80)}, Service: "web"}},
	})
	after, _ := NewTable(state).Lookup("office", TCP, netip.MustParseAddrPort("192.0.2.21:80"))
	if before.Address != after.Address {
		t.Errorf("alias went from %s to %s", before.Address, after.Address)
	}
}

func TestKernelRoutes(t *testing.T) {
	table := NewTable(tableState())
	open := func(s *Service, _ Transport, port uint16, _ netip.Addr) bool {
		return s.Name != "range" || port == 8000
	}
	var got []string
	for _, r := range table.KernelRoutes("office", open) {
		got = append(got, fmt.Sprintf("%s %s->%s %v", r.Transport, r.Decoy, r.Target, r.Alias))
	}
	want := []string{
		"tcp 192.0.2.20:80->10.2.0.11:80 true", "tcp 192.0.2.20:8000->10.1.0.4:8000 false",
		"tcp 192.0.2.21:80->10.2.0.12:80 true", "tcp 192.0.2.21:8000->10.1.0.4:8000 false",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("kernel routes:\n%v\nwant\n%v", got, want)
	}
}

// Every machine has a segment host of its own; a decoy that names the address
// comes before one that stands at any.
func TestLookupOnMachines(t *testing.T) {
	tcp := func(port uint16) []PortRange { return []PortRange{Port(TCP, port)} }
	self := []AddrRange{addrRange(t, "192.0.2.7")}
	state := tableState()
	state.Decoys = append(state.Decoys,
		Decoy{Name: "all-1", Segment: HostSegment, Node: "n1", Any: true, Bind: []Binding{{Ports: tcp(80), Service: "web"}, {Ports: tcp(22), Service: "ssh"}}},
		Decoy{Name: "own-1", Segment: HostSegment, Node: "n1", Addresses: self, Bind: []Binding{{Ports: tcp(22), Service: "web", Target: 80}}},
		Decoy{Name: "more-1", Segment: HostSegment, Node: "n1", Any: true, Bind: []Binding{{Ports: tcp(8000), Service: "range"}}},
		Decoy{Name: "own-2", Segment: HostSegment, Node: "n2", Addresses: self, Bind: []Binding{{Ports: tcp(80), Service: "web"}}},
		// Decoys of one machine may share addresses.
		Decoy{Name: "net-2", Segment: HostSegment, Node: "n2", Addresses: []AddrRange{addrRange(t, "192.0.2.4/30")}, Bind: []Binding{{Ports: tcp(81), Service: "web", Target: 80}}},
		Decoy{Name: "low-2", Segment: HostSegment, Node: "n2", Addresses: []AddrRange{addrRange(t, "192.0.2.6-192.0.2.8")}, Bind: []Binding{{Ports: tcp(22), Service: "ssh"}}},
		Decoy{Name: "last", Segment: "dmz", Addresses: []AddrRange{addrRange(t, "192.0.2.200")}, Bind: []Binding{{Ports: tcp(80), Service: "web"}}},
	)
	table := NewTable(state)
	for _, c := range []struct{ segment, decoy, want string }{
		{SegmentKey("n1", HostSegment), "192.0.2.7:22", "own-1 10.2.0.14:80 true"},
		{SegmentKey("n1", HostSegment), "192.0.2.8:22", "all-1 10.1.0.3:22 false"},
		{SegmentKey("n1", HostSegment), "192.0.2.7:80", "all-1 10.2.0.13:80 true"},   // what the one does not bind
		{SegmentKey("n1", HostSegment), "203.0.113.9:80", "all-1 10.2.0.13:80 true"}, // one alias for the machine
		{SegmentKey("n1", HostSegment), "[2001:db8::7]:80", "all-1 [fd00::2]:80 false"},
		{SegmentKey("n1", HostSegment), "[2001:db8::7]:22", "nothing"}, // ssh has no IPv6 address
		{SegmentKey("n1", HostSegment), "192.0.2.7:8000", "more-1 10.1.0.4:8000 false"},
		{SegmentKey("n1", HostSegment), "192.0.2.7:443", "nothing"},
		{SegmentKey("n2", HostSegment), "192.0.2.7:80", "own-2 10.2.0.15:80 true"},
		{SegmentKey("n2", HostSegment), "192.0.2.8:80", "nothing"},
		{SegmentKey("n2", HostSegment), "192.0.2.7:81", "net-2 10.2.0.19:80 true"},
		{SegmentKey("n2", HostSegment), "192.0.2.4:81", "net-2 10.2.0.16:80 true"},
		{SegmentKey("n2", HostSegment), "192.0.2.7:22", "low-2 10.1.0.3:22 false"},
		{SegmentKey("n2", HostSegment), "192.0.2.8:22", "low-2 10.1.0.3:22 false"},
		{SegmentKey("n3", HostSegment), "192.0.2.7:80", "nothing"},
		{HostSegment, "192.0.2.7:80", "nothing"},
		{SegmentKey("n9", "dmz"), "192.0.2.200:80", "last 10.2.0.20:80 true"},
	} {
		got := "nothing"
		if target, ok := table.Lookup(c.segment, TCP, netip.MustParseAddrPort(c.decoy)); ok {
			got = fmt.Sprintf("%s %s %v", target.Decoy.Name, target.Address, target.Alias)
		}
		if got != c.want {
			t.Errorf("%s %s leads to %s, want %s", c.segment, c.decoy, got, c.want)
		}
	}
	for at, want := range map[string]bool{"192.0.2.7:22": true, "[2001:db8::7]:22": true, "[2001:db8::7]:23": false, "203.0.113.9:80": true} {
		if got := table.Binds("host@n1", TCP, netip.MustParseAddrPort(at)); got != want {
			t.Errorf("Binds(%s) = %v", at, got)
		}
	}
	if table.Binds("host@n1", UDP, netip.MustParseAddrPort("192.0.2.7:22")) || table.Binds("host@n3", TCP, netip.MustParseAddrPort("192.0.2.7:22")) || !table.Binds("dmz", TCP, netip.MustParseAddrPort("192.0.2.200:80")) {
		t.Error("Binds tells of another transport or machine, or not of the segment")
	}
	state.Node = "n1"
	if own := state.DecoysOf(HostSegment); len(own) != 3 || own[0].Name != "all-1" || own[2].Name != "more-1" {
		t.Errorf("decoys of this machine: %+v", own)
	}
	if allocs := testing.AllocsPerRun(100, func() {
		table.Lookup("host@n1", TCP, netip.AddrPortFrom(self[0].From, 8000))
	}); allocs > 0 {
		t.Errorf("a lookup allocates %v times", allocs)
	}
}

func BenchmarkLookup(b *testing.B) {
	table := NewTable(tableState())
	decoy := netip.MustParseAddrPort("192.0.2.15:80")
	b.ReportAllocs()
	for b.Loop() {
		table.Lookup("office", TCP, decoy)
	}
}
