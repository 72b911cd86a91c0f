package steer

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"decoynet/deception"
)

// group makes a group from words: "192.0.2.0/24 80 53/udp".
func group(id uint32, words string) Group {
	g := Group{ID: id}
	for _, w := range strings.Fields(words) {
		if p, err := netip.ParsePrefix(w); err == nil {
			g.Prefixes = append(g.Prefixes, p)
		} else if a, err := netip.ParseAddr(w); err == nil {
			g.Prefixes = append(g.Prefixes, netip.PrefixFrom(a, a.BitLen()))
		} else if r, err := deception.ParsePortRange(w); err == nil {
			g.Ports = append(g.Ports, r)
		} else {
			panic("neither prefix, address nor ports: " + w)
		}
	}
	return g
}

// oracle answers, in the plainest way there is, whether groups open a port.
func oracle(groups []Group, a netip.Addr, t deception.Transport, port uint16) bool {
	var best netip.Prefix
	open := false
	for _, g := range groups {
		for _, p := range g.Prefixes {
			if p.Contains(a) && (!best.IsValid() || p.Bits() > best.Bits()) {
				best = p
				open = slices.ContainsFunc(g.Ports, func(r deception.PortRange) bool { return r.Contains(t, port) })
			}
		}
	}
	return open
}

// open answers as the kernel does from its tables.
func (s *state) open(a netip.Addr, t deception.Transport, port uint16) bool {
	for bits := a.BitLen(); bits >= 0; bits-- {
		if tag, ok := s.prefixes[netip.PrefixFrom(a, bits).Masked()]; ok {
			return s.ports[tag].has(t, port)
		}
	}
	return false
}

// The addresses and ports that property tests look at. The ports are in three
// slots and two transports.
var (
	someAddrs = addresses("198.18.0.0/28", "2001:db8:1::/124")
	somePorts = []deception.PortRange{
		deception.Port(deception.TCP, 22), deception.Port(deception.TCP, 80),
		deception.Port(deception.TCP, 8080), deception.Port(deception.UDP, 80),
	}
)

func addresses(prefixes ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range prefixes {
		p := netip.MustParsePrefix(s)
		for a := p.Addr(); p.Contains(a); a = a.Next() {
			out = append(out, a)
		}
	}
	return out
}

// drawGroups makes up to five groups of nested prefixes, no prefix in two.
func drawGroups(t *rapid.T, name string) []Group {
	taken := map[netip.Prefix]bool{}
	var groups []Group
	for _, id := range rapid.SliceOfNDistinct(rapid.Uint32Range(1, 6), 0, 5, rapid.ID).Draw(t, name+" groups") {
		g := Group{ID: id}
		for range rapid.IntRange(0, 4).Draw(t, name+" prefixes") {
			a := rapid.SampledFrom(someAddrs).Draw(t, name+" address")
			p := netip.PrefixFrom(a, a.BitLen()-rapid.IntRange(0, 5).Draw(t, name+" host bits")).Masked()
			if !taken[p] {
				taken[p] = true
				g.Prefixes = append(g.Prefixes, p)
			}
		}
		g.Ports = rapid.SliceOfN(rapid.SampledFrom(somePorts), 0, 3).Draw(t, name+" ports")
		groups = append(groups, g)
	}
	return groups
}

// picture is what a scan of all of someAddrs and somePorts would see.
func picture(open func(netip.Addr, deception.Transport, uint16) bool) []bool {
	var out []bool
	for _, a := range someAddrs {
		for _, p := range somePorts {
			out = append(out, open(a, p.Transport, p.First))
		}
	}
	return out
}

// Entry by entry, no port of any address is ever in a state that is neither the
// old nor the new one, and none goes back.
func TestPlanHasNoHalfWay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cur := newState()
		var groups []Group
		for step := range 3 {
			old := picture(cur.open)
			groups = drawGroups(t, fmt.Sprint("step ", step))
			want, faults := compile(groups, defaultLimits)
			if faults != nil {
				t.Fatal(faults)
			}
			shall := picture(func(a netip.Addr, tr deception.Transport, port uint16) bool {
				return oracle(groups, a, tr, port)
			})
			c := plan(cur, want)
			arrived := make([]bool, len(old))
			look := func(what any) {
				now := picture(cur.open)
				for i := range now {
					if now[i] != old[i] && now[i] != shall[i] || arrived[i] && now[i] != shall[i] {
						t.Fatalf("%v port %v: was %v, shall be %v, is %v after %+v",
							someAddrs[i/len(somePorts)], somePorts[i%len(somePorts)], old[i], shall[i], now[i], what)
					}
					arrived[i] = now[i] == shall[i]
				}
			}
			for _, e := range c.openPorts {
				cur.setPort(e)
				look(e)
			}
			for _, e := range c.setPrefixes {
				cur.setPrefix(e)
				look(e)
			}
			for _, e := range c.dropPrefixes {
				cur.dropPrefix(e)
				look(e)
			}
			for _, e := range c.dropPorts {
				cur.dropPort(e)
				look(e)
			}
			cur.tags, cur.last = c.tags, c.last
			if diff := cmp.Diff(shall, picture(cur.open)); diff != "" {
				t.Fatalf("after all entries: %s", diff)
			}
			checkTight(t, cur, want)
		}
	})
}

// checkTight fails where the state holds more than is wanted, or where planning
// the same again finds something to do.
func checkTight(t *rapid.T, cur *state, want desired) {
	c := plan(cur, want)
	if n := len(c.openPorts) + len(c.setPrefixes) + len(c.dropPrefixes) + len(c.dropPorts); n > 0 {
		t.Fatalf("the same again is %d entries: %+v", n, c)
	}
	ports := map[tag]portSet{}
	for id, set := range want.groups {
		if len(set) > 0 {
			ports[cur.tags[id]] = set
		}
	}
	if diff := cmp.Diff(ports, cur.ports); diff != "" {
		t.Fatalf("ports that are there against those wanted: %s", diff)
	}
}

// after must lead where the entries lead, and leave the old state alone.
func TestStateAfter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cur := newState()
		for step := range 3 {
			groups := drawGroups(t, fmt.Sprint("step ", step))
			want, _ := compile(groups, defaultLimits)
			old := picture(cur.open)
			next := cur.after(plan(cur, want))
			if diff := cmp.Diff(old, picture(cur.open)); diff != "" {
				t.Fatalf("the old state changed: %s", diff)
			}
			shall := picture(func(a netip.Addr, tr deception.Transport, port uint16) bool {
				return oracle(groups, a, tr, port)
			})
			if diff := cmp.Diff(shall, picture(next.open)); diff != "" {
				t.Fatal(diff)
			}
			checkTight(t, next, want)
			cur = next
		}
	})
}

func TestPlanWritesOnlyTheDifference(t *testing.T) {
	web, ssh := group(1, "192.0.2.0/24 80 443"), group(2, "198.18.0.0/16 2001:db8::/64 22")
	for _, c := range []struct {
		name     string
		from, to []Group
		want     [4]int // openPorts, setPrefixes, dropPrefixes, dropPorts
	}{
		{name: "nothing to do", from: []Group{web, ssh}, to: []Group{ssh, web}},
		{name: "from nothing", to: []Group{web, ssh}, want: [4]int{2, 3, 0, 0}},
		{name: "to nothing", from: []Group{web, ssh}, want: [4]int{0, 0, 3, 2}},
		{
			name: "one more address", from: []Group{web, ssh},
			to: []Group{web, group(2, "198.18.0.0/16 2001:db8::/64 192.0.2.7 22")}, want: [4]int{0, 1, 0, 0},
		},
		{
			name: "one more port in the same block", from: []Group{web, ssh},
			to: []Group{group(1, "192.0.2.0/24 80 443 81"), ssh}, want: [4]int{1, 0, 0, 0},
		},
		{
			name: "a port goes, with its block", from: []Group{group(1, "192.0.2.0/24 80 8080"), ssh},
			to: []Group{group(1, "192.0.2.0/24 80"), ssh}, want: [4]int{0, 0, 0, 1},
		},
		{
			name: "ports and addresses at once: a new tag", from: []Group{web, ssh},
			to: []Group{group(1, "192.0.2.0/25 81"), ssh}, want: [4]int{1, 1, 1, 1},
		},
		{
			name: "a prefix changes hands", from: []Group{web, ssh},
			to: []Group{group(1, "80 443"), group(2, "192.0.2.0/24 198.18.0.0/16 2001:db8::/64 22")}, want: [4]int{0, 1, 0, 0},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			from, _ := compile(c.from, defaultLimits)
			to, _ := compile(c.to, defaultLimits)
			cur := newState()
			cur = cur.after(plan(cur, from))
			p := plan(cur, to)
			got := [4]int{len(p.openPorts), len(p.setPrefixes), len(p.dropPrefixes), len(p.dropPorts)}
			if got != c.want {
				t.Errorf("ports, prefixes written, prefixes, ports deleted: %v, want %v", got, c.want)
			}
		})
	}
}

func TestFlattenKeepsLongestPrefix(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		prefixes := map[netip.Prefix]tag{}
		for range rapid.IntRange(0, 12).Draw(t, "prefixes") {
			a := rapid.SampledFrom(someAddrs).Draw(t, "address")
			p := netip.PrefixFrom(a, rapid.IntRange(a.BitLen()-6, a.BitLen()).Draw(t, "bits")).Masked()
			prefixes[p] = tag(rapid.IntRange(1, 3).Draw(t, "tag"))
		}
		spans := flatten(prefixes)
		for i, s := range spans {
			if s.to.Less(s.from) || s.from.BitLen() != s.to.BitLen() {
				t.Fatalf("span %v", s)
			}
			if i > 0 && (!spans[i-1].to.Less(s.from) || spans[i-1].tag == s.tag && spans[i-1].to.Next() == s.from) {
				t.Fatalf("spans %v and %v overlap or should be one", spans[i-1], s)
			}
		}
		cur := &state{prefixes: prefixes}
		for _, a := range addresses("198.18.0.0/25", "2001:db8:1::/121") {
			var want tag
			for bits := a.BitLen(); bits >= 0 && want == 0; bits-- {
				want = cur.prefixes[netip.PrefixFrom(a, bits).Masked()]
			}
			var got tag
			for _, s := range spans {
				if !a.Less(s.from) && !s.to.Less(a) && a.BitLen() == s.from.BitLen() {
					got = s.tag
				}
			}
			if got != want {
				t.Fatalf("%s belongs to %d, want %d, in %v", a, got, want, spans)
			}
		}
	})
}

func TestFlattenAtTheEdges(t *testing.T) {
	span := func(from, to string, id tag) span {
		return span{netip.MustParseAddr(from), netip.MustParseAddr(to), id}
	}
	got := flatten(map[netip.Prefix]tag{
		netip.MustParsePrefix("0.0.0.0/0"):          1,
		netip.MustParsePrefix("0.0.0.0/32"):         2,
		netip.MustParsePrefix("255.255.255.255/32"): 3,
		netip.MustParsePrefix("::/0"):               4,
		netip.MustParsePrefix("ffff::/16"):          5,
	})
	want := []struct {
		from, to string
		tag      tag
	}{
		{"0.0.0.0", "0.0.0.0", 2},
		{"0.0.0.1", "255.255.255.254", 1},
		{"255.255.255.255", "255.255.255.255", 3},
		{"::", "fffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 4},
		{"ffff::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 5},
	}
	for i, w := range want {
		if i >= len(got) || got[i] != span(w.from, w.to, w.tag) {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
}

func TestDiffSpans(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) []span {
			want, _ := compile(drawGroups(t, name), defaultLimits)
			prefixes := map[netip.Prefix]tag{}
			for p, g := range want.prefixes {
				prefixes[p] = tag(g)
			}
			return flatten(prefixes)
		}
		old, new := draw("old"), draw("new")
		gone, added := diffSpans(old, new)
		var wantGone, wantAdded []span
		for _, s := range old {
			if !slices.Contains(new, s) {
				wantGone = append(wantGone, s)
			}
		}
		for _, s := range new {
			if !slices.Contains(old, s) {
				wantAdded = append(wantAdded, s)
			}
		}
		if !slices.Equal(gone, wantGone) || !slices.Equal(added, wantAdded) {
			t.Fatalf("from %v to %v: gone %v, added %v", old, new, gone, added)
		}
	})
}

func TestCompileFaults(t *testing.T) {
	odd := Group{ID: 3, Prefixes: []netip.Prefix{
		{}, netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("::ffff:192.0.2.0/120"), netip.MustParsePrefix("192.0.2.3/32"),
	}}
	ports := group(4, "192.0.2.4")
	ports.Ports = []deception.PortRange{{Transport: 132, First: 1, Last: 2}}
	backwards := group(5, "192.0.2.5")
	backwards.Ports = []deception.PortRange{{Transport: deception.TCP, First: 9, Last: 8}}
	zero := group(6, "192.0.2.6")
	zero.Ports = []deception.PortRange{{Transport: deception.TCP, First: 0, Last: 8}}
	want, faults := compile([]Group{
		group(1, "192.0.2.1 80"), group(1, "192.0.2.9 80"), group(2, "192.0.2.1 192.0.2.2 22"), odd, ports, backwards, zero,
		group(7, "192.0.2.7 1-65535"), group(8, "192.0.2.8 192.0.2.88 192.0.2.89 80"), group(9, "192.0.2.10 443"),
	}, limits{prefixes: 11, slots: 100})
	var got []string
	for _, f := range faults {
		got = append(got, f.Error())
	}
	if diff := cmp.Diff([]string{
		"steer group 1: invalid steering group: two groups with this number",
		"steer group 2: invalid steering group: prefix 192.0.2.1/32 belongs to group 1",
		"steer group 3: invalid steering group: prefix invalid Prefix",
		"steer group 3: invalid steering group: prefix 192.0.2.1/24",
		"steer group 3: invalid steering group: prefix ::ffff:192.0.2.0/120",
		"steer group 4: invalid steering group: ports 1-2/proto-132",
		"steer group 5: invalid steering group: ports 9-8",
		"steer group 6: invalid steering group: ports 0-8",
		"steer group 7: steering table is full: 30 runs of 512 ports more than the 100 there may be",
	}, got); diff != "" {
		t.Error(diff)
	}
	open := map[string]uint32{}
	for p, id := range want.prefixes {
		open[p.Addr().String()] = id
	}
	if diff := cmp.Diff(map[string]uint32{
		"192.0.2.1": 1, "192.0.2.2": 2, "192.0.2.3": 3, "192.0.2.4": 4, "192.0.2.5": 5, "192.0.2.6": 6,
		"192.0.2.7": 7, "192.0.2.8": 8, "192.0.2.88": 8, "192.0.2.89": 8, "192.0.2.10": 9,
	}, open); diff != "" {
		t.Error(diff)
	}
	for id := uint32(3); id <= 7; id++ {
		if n := want.groups[id].len(); n != 0 {
			t.Errorf("group %d is at fault and has %d open ports", id, n)
		}
	}
	_, faults = compile([]Group{group(1, "192.0.2.1 192.0.2.2 80"), group(2, "192.0.2.3 80")}, limits{prefixes: 2, slots: 10})
	if len(faults) != 1 || faults[0].Group != 2 || !errors.Is(faults[0], ErrFull) {
		t.Errorf("faults %v", faults)
	}
	if diff := cmp.Diff([]uint32{1, 2}, failedGroups(errors.Join(
		&GroupError{2, ErrFull}, errors.Join(&GroupError{1, ErrInvalid}, &GroupError{2, ErrInvalid}), errors.New("else")))); diff != "" {
		t.Error(diff)
	}
}
