package steer

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"decoynet/deception"
)

// contents is what a set holds: runs written out port by port.
type contents map[entry]bool

type entry struct {
	prefix    netip.Prefix
	transport deception.Transport
	port      uint16
}

func (c contents) put(m member, there bool) {
	for port := uint32(m.ports.First); port <= uint32(m.ports.Last); port++ {
		e := entry{m.prefix, m.ports.Transport, uint16(port)}
		delete(c, e)
		if there {
			c[e] = true
		}
	}
}

func (c contents) open(a netip.Addr, t deception.Transport, port uint16) bool {
	for bits := a.BitLen(); bits > 0; bits-- {
		if c[entry{netip.PrefixFrom(a, bits).Masked(), t, port}] {
			return true
		}
	}
	return false
}

// From any state to any other, member by member: no port changes more than once.
func TestProductHasNoHalfWay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cur, held := newState(), contents{}
		was := picture(held.open)
		for range 3 {
			groups := drawGroups(t, "groups")
			want, _ := compile(groups, defaultLimits)
			next := cur.after(plan(cur, want))
			from, to := multiply(cur), multiply(next)
			shall := picture(func(a netip.Addr, tr deception.Transport, port uint16) bool { return oracle(groups, a, tr, port) })
			for m := range to.minus(from) {
				held.put(m, true)
				check(t, picture(held.open), was, shall, true)
			}
			for m := range from.minus(to) {
				held.put(m, false)
				check(t, picture(held.open), was, shall, false)
			}
			check(t, picture(held.open), shall, shall, false)
			cur, was = next, shall
		}
	})
}

// check expects a port open that stays so, closed one that stays so, and while
// members are added none closed that was open.
func check(t *rapid.T, is, was, shall []bool, adding bool) {
	for i := range is {
		if was[i] == shall[i] && is[i] != was[i] || adding && was[i] && !is[i] {
			t.Fatalf("entry %d is %v, was %v, shall be %v", i, is[i], was[i], shall[i])
		}
	}
}

func TestRunsOf(t *testing.T) {
	set := portSet{}
	set.add(deception.PortRange{Transport: deception.TCP, First: 1, Last: 65535})
	set.add(deception.Port(deception.UDP, 53))
	covered := 0
	for _, run := range runsOf(set, nil) {
		n := int(run.Last-run.First) + 1
		if covered += n; n > maxRun {
			t.Errorf("a run of %d ports: %s", n, run)
		}
	}
	if covered != 65536 {
		t.Errorf("the runs cover %d ports", covered)
	}
	less := portSet{}
	less.add(deception.PortRange{Transport: deception.TCP, First: 3, Last: 65535})
	if got := runsOf(set, less); len(got) != 2 || got[0].String() != "1-2/tcp" && got[0].String() != "1-2" || got[1].Transport != deception.UDP {
		t.Errorf("1, 2 and 53/udp are left, got %v", got)
	}
}
