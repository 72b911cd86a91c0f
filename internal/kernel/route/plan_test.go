package route

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

var testDevs = map[string]int{"lo": 1, "lan0": 2, "up0": 3}

func testIndex(name string) (int, bool) { i, ok := testDevs[name]; return i, ok }

func testName(index int) string {
	for name, i := range testDevs {
		if i == index {
			return name
		}
	}
	return "?"
}

// lines writes a state as ip(8) would, sorted.
func lines(s *state) []string {
	var out []string
	for r := range s.routes {
		out = append(out, r.describe(testName))
	}
	for r := range s.rules {
		out = append(out, r.describe())
	}
	for a := range s.addrs {
		out = append(out, a.describe(testName))
	}
	slices.Sort(out)
	return out
}

func TestResolve(t *testing.T) {
	tests := []struct {
		name    string
		desired Desired
		want    []string
		failed  []string
	}{
		{name: "nothing"},
		{
			name: "a segment",
			desired: Desired{
				Link:      "lan0",
				Local4:    []netip.Prefix{prefix("192.0.2.96/28"), prefix("192.0.2.7/32")},
				Addrs6:    []netip.Addr{addr("2001:db8::7")},
				Connected: []netip.Prefix{prefix("192.0.2.0/24"), prefix("2001:db8::/64")},
				Gateways:  []netip.Addr{addr("192.0.2.1"), addr("fe80::1")},
			},
			want: []string{
				"0.0.0.0/0 via 192.0.2.1 dev lan0 table main onlink",
				"192.0.2.0/24 dev lan0 table main",
				"2001:db8::/64 dev lan0 table main",
				"::/0 via fe80::1 dev lan0 table main onlink",
				"address 2001:db8::7/128 dev lan0",
				"local 192.0.2.7/32 dev lo table local",
				"local 192.0.2.96/28 dev lo table local",
			},
		},
		{
			name: "host bits and repetition do not matter",
			desired: Desired{
				Link:      "lan0",
				Connected: []netip.Prefix{prefix("192.0.2.9/24"), prefix("192.0.2.0/24")},
				Addrs6:    []netip.Addr{addr("2001:db8::7"), addr("2001:db8::7")},
			},
			want: []string{"192.0.2.0/24 dev lan0 table main", "address 2001:db8::7/128 dev lan0"},
		},
		{
			name: "routes of all kinds",
			desired: Desired{Routes: []Route{
				{Dst: prefix("0.0.0.0/0"), Type: Local, Table: TableZone},
				{Dst: prefix("10.1.0.0/24"), Via: addr("169.254.77.1"), Dev: "up0", Onlink: true, Metric: 9},
				{Dst: prefix("::/0"), Via: addr("fe80::77:2"), Dev: "up0", Table: TableKernelPath(3), Onlink: true},
				{Dst: prefix("10.2.0.0/24"), Dev: "up0", Type: Unicast},
			}},
			want: []string{
				"10.1.0.0/24 via 169.254.77.1 dev up0 table main metric 9 onlink",
				"10.2.0.0/24 dev up0 table main",
				"::/0 via fe80::77:2 dev up0 table 14303 onlink",
				"local 0.0.0.0/0 dev lo table 14200",
			},
		},
		{
			name: "bad routes are named, the others stand",
			desired: Desired{
				Link:     "lan0",
				Local4:   []netip.Prefix{prefix("2001:db8::/64"), prefix("192.0.2.7/32")},
				Addrs6:   []netip.Addr{addr("192.0.2.8"), addr("::ffff:192.0.2.8"), addr("ff02::1"), addr("::")},
				Gateways: []netip.Addr{addr("192.0.2.1"), addr("192.0.2.2")},
				Routes: []Route{
					{Dst: prefix("10.0.0.0/8"), Dev: "eth7"},
					{Dst: prefix("10.0.0.0/8"), Via: addr("2001:db8::1")},
					{Dst: prefix("10.0.0.0/8"), Onlink: true},
					{Dst: prefix("10.0.0.0/8"), Type: 6},
					{Dst: prefix("0.0.0.0/0"), Dev: "lo"},
				},
			},
			want: []string{
				"0.0.0.0/0 via 192.0.2.1 dev lan0 table main onlink",
				"local 192.0.2.7/32 dev lo table local",
			},
			failed: []string{
				"0.0.0.0/0 dev lo table main: another route is desired for the same destination, table and metric",
				"10.0.0.0/8 dev eth7 table main: interface eth7 does not exist",
				"10.0.0.0/8 dev lan0 table main onlink: onlink without a next hop",
				"10.0.0.0/8 dev lan0 table main: unknown type 6",
				"10.0.0.0/8 via 2001:db8::1 dev lan0 table main: next hop is of another family than the destination",
				"address 192.0.2.8: not a plain IPv6 address",
				"address ::: not a plain IPv6 address",
				"address ::ffff:192.0.2.8: not a plain IPv6 address",
				"address ff02::1: not a plain IPv6 address",
				"gateway 192.0.2.2: 192.0.2.1 is the family's gateway already",
				"local 2001:db8::/64: not an IPv4 prefix",
			},
		},
		{
			name:    "no link named",
			desired: Desired{Connected: []netip.Prefix{prefix("192.0.2.0/24")}, Addrs6: []netip.Addr{addr("2001:db8::7")}},
			failed: []string{
				"192.0.2.0/24 table main: no interface is named",
				"address 2001:db8::7: no interface is named",
			},
		},
		{
			name: "rules",
			desired: Desired{Rules: []Rule{
				{Priority: 14200, IIF: "br-linux", Table: TableZone},
				{Priority: 14201, Mark: 7, Table: 14301, Family: IPv4},
				{Priority: 14202, Mark: 0x0dec0001, Mask: 0xffffffff, Table: 14301, Family: IPv6},
				{Priority: 14203, From: prefix("10.1.0.9/24"), To: prefix("0.0.0.0/0"), Table: TableMain},
			}},
			want: []string{
				"IPv4 rule 14200: from all iif br-linux lookup 14200",
				"IPv4 rule 14201: from all fwmark 0x7/0xffffffff lookup 14301",
				"IPv4 rule 14203: from 10.1.0.0/24 lookup main",
				"IPv6 rule 14200: from all iif br-linux lookup 14200",
				"IPv6 rule 14202: from all fwmark 0xdec0001/0xffffffff lookup 14301",
			},
		},
		{
			name: "bad rules",
			desired: Desired{Rules: []Rule{
				{Priority: 100, Table: TableZone, Family: IPv4},
				{Priority: 14200, Family: IPv4},
				{Priority: 14200, Table: TableZone, From: prefix("10.0.0.0/8"), To: prefix("fd00::/8")},
				{Priority: 14200, Table: TableZone, Family: 5},
				{Priority: 14200, Table: TableZone, Mark: 0x1ff, Mask: 0xff, Family: IPv4},
			}},
			failed: []string{
				"IPv0 rule 14200: from 10.0.0.0/8 to fd00::/8 lookup 14200: mixes IPv4 and IPv6",
				"IPv4 rule 100: from all lookup 14200: priority is not one of ours, 14200 to 14299",
				"IPv4 rule 14200: from all fwmark 0x1ff/0xff lookup 14200: mark has bits outside of its mask",
				"IPv4 rule 14200: from all lookup 0: no table",
				"IPv5 rule 14200: from all lookup 14200: unknown family 5",
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, failures := resolve(tt.desired, testIndex)
			var failed []string
			for _, f := range failures {
				failed = append(failed, f.Error())
			}
			slices.Sort(failed)
			slices.Sort(tt.failed)
			if diff := cmp.Diff(tt.want, lines(got), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("state (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.failed, failed, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("failures (-want +got):\n%s", diff)
			}
		})
	}
}

func resolved(t *testing.T, d Desired) *state {
	t.Helper()
	s, failed := resolve(d, testIndex)
	if len(failed) > 0 {
		t.Fatal(failed)
	}
	return s
}

func TestDiffOrdersSubnetsBeforeGateways(t *testing.T) {
	p := diff(newState(0), resolved(t, Desired{
		Link:      "lan0",
		Gateways:  []netip.Addr{addr("192.0.2.1")},
		Connected: []netip.Prefix{prefix("192.0.2.0/24")},
		Local4:    []netip.Prefix{prefix("192.0.2.7/32")},
	}))
	var got []string
	for _, r := range p.addRoutes {
		got = append(got, r.describe(testName))
	}
	want := []string{
		"192.0.2.0/24 dev lan0 table main",
		"local 192.0.2.7/32 dev lo table local",
		"0.0.0.0/0 via 192.0.2.1 dev lan0 table main onlink",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("order of additions (-want +got):\n%s", d)
	}
}

func TestDiffPutsAReplacementBesideItsPredecessor(t *testing.T) {
	gateway := func(s string) *state {
		return resolved(t, Desired{Link: "lan0", Gateways: []netip.Addr{addr(s)}, Connected: []netip.Prefix{prefix("192.0.2.0/24")}})
	}
	p := diff(gateway("192.0.2.1"), gateway("192.0.2.2"))
	if len(p.addRoutes) != 0 || len(p.addBeside) != 1 || len(p.delRoutes) != 1 || !p.lookAgain {
		t.Fatalf("plan is %+v", p)
	}
	if p.addBeside[0].Via != addr("192.0.2.2") || p.delRoutes[0].Via != addr("192.0.2.1") {
		t.Errorf("adds %v, removes %v", p.addBeside[0], p.delRoutes[0])
	}
}

func TestDiffLooksAgainWhereADescriptionFitsMoreThanOneRule(t *testing.T) {
	named := Rule{Family: IPv4, Priority: 14200, IIF: "br-a", Table: TableZone}
	open := Rule{Family: IPv4, Priority: 14200, Table: TableZone}
	other := Rule{Family: IPv4, Priority: 14201, IIF: "br-a", Table: TableZone}
	rules := func(r ...Rule) *state { return resolved(t, Desired{Rules: r}) }
	for _, tt := range []struct {
		name       string
		have, want *state
		again      bool
	}{
		{"the open one goes, the named one stays", rules(named, open), rules(named), true},
		{"the named one goes, the open one stays", rules(named, open), rules(open), false},
		{"another priority", rules(open, other), rules(other), false},
		{"nothing goes", rules(named), rules(named, open), false},
	} {
		if p := diff(tt.have, tt.want); p.lookAgain != tt.again {
			t.Errorf("%s: looks again: %v, want %v", tt.name, p.lookAgain, tt.again)
		}
	}
}

// Carrying out a plan leads to what is wanted, adds nothing that stands and
// removes nothing that is wanted.
func TestDiffLeadsToWhatIsWanted(t *testing.T) {
	genState := rapid.Custom(func(t *rapid.T) *state {
		d := Desired{Link: "lan0"}
		for _, v := range rapid.SliceOfDistinct(rapid.Byte(), rapid.ID[byte]).Draw(t, "local") {
			d.Local4 = append(d.Local4, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, v % 16}), 32))
		}
		for _, v := range rapid.SliceOf(rapid.IntRange(0, 15)).Draw(t, "addrs") {
			d.Addrs6 = append(d.Addrs6, netip.AddrFrom16([16]byte{0x20, 1, 15: byte(v)}))
		}
		for _, v := range rapid.SliceOf(rapid.IntRange(0, 3)).Draw(t, "rules") {
			d.Rules = append(d.Rules, Rule{Priority: PriorityMin + uint32(v), Table: TableZone})
		}
		s, _ := resolve(d, testIndex)
		return s
	})
	rapid.Check(t, func(t *rapid.T) {
		have, want := genState.Draw(t, "have"), genState.Draw(t, "want")
		before := lines(have)
		p := diff(have, want)
		for _, r := range slices.Concat(p.addRoutes, p.addBeside) {
			if _, ok := have.routes[r]; ok {
				t.Fatalf("adds %v, which stands", r)
			}
			have.routes[r] = struct{}{}
		}
		for _, r := range p.addRules {
			have.rules[r] = struct{}{}
		}
		for _, a := range p.addAddrs {
			have.addrs[a] = struct{}{}
		}
		for _, r := range p.delRoutes {
			if _, ok := want.routes[r]; ok {
				t.Fatalf("removes %v, which is wanted", r)
			}
			delete(have.routes, r)
		}
		for _, r := range p.delRules {
			delete(have.rules, r)
		}
		for _, a := range p.delAddrs {
			delete(have.addrs, a)
		}
		if d := cmp.Diff(lines(want), lines(have)); d != "" {
			t.Fatalf("from %v: (-want +got):\n%s", before, d)
		}
	})
}
