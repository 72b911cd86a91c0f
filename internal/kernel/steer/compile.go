package steer

import (
	"fmt"
	"maps"
	"math/bits"
	"net/netip"

	"decoynet/deception"
)

// blockPorts is the number of ports that one entry of the port table holds.
const blockPorts = 512

// slot names a run of blockPorts ports of one transport.
type slot struct {
	Transport deception.Transport
	Index     uint8 // port / blockPorts
}

// bitmap holds one bit a port of a slot; struct bitmap of the BPF program.
type bitmap [blockPorts / 64]uint64

// portSet is a set of ports; it holds no empty bitmap.
type portSet map[slot]bitmap

func (s portSet) add(r deception.PortRange) {
	for port := uint32(r.First); port <= uint32(r.Last); port++ {
		at := slot{r.Transport, uint8(port / blockPorts)}
		b := s[at]
		b[port%blockPorts/64] |= 1 << (port % 64)
		s[at] = b
	}
}

func (s portSet) has(t deception.Transport, port uint16) bool {
	b := s[slot{t, uint8(port / blockPorts)}]
	return b[port%blockPorts/64]>>(port%64)&1 == 1
}

func (s portSet) len() int {
	n := 0
	for _, b := range s {
		for _, w := range b {
			n += bits.OnesCount64(w)
		}
	}
	return n
}

// limits is how much the kernel's tables take. They are checked here, where the
// group at fault can be named and left out as a whole; the kernel's own maps
// have room for twice as much, since old and new entries stand side by side
// during a change.
type limits struct {
	prefixes int
	slots    int
	members  int // of the sets of iptables steering, which checks it
}

// A prefix costs about 100 bytes of kernel memory and only once it is there. A
// hash costs 16 bytes for each entry it might hold, from the start: hence bitmaps,
// no more of them than this, and a table that grows.
var defaultLimits = limits{prefixes: 1 << 20, slots: 1 << 16, members: 1 << 21}

// desired is a checked Apply argument.
type desired struct {
	prefixes map[netip.Prefix]uint32 // to the group's ID
	groups   map[uint32]portSet
}

// compile checks the groups and turns them into tables. A group at fault never
// blocks the others; each fault is one of the errors. Where only a group's ports are at fault its addresses are kept with all ports closed, lest
// the group of a wider prefix answers for them.
func compile(groups []Group, lim limits) (desired, []*GroupError) {
	total := 0
	for i := range groups {
		total += len(groups[i].Prefixes)
	}
	want := desired{
		prefixes: make(map[netip.Prefix]uint32, total),
		groups:   make(map[uint32]portSet, len(groups)),
	}
	var faults []*GroupError
	slots := 0
	for i := range groups {
		g := &groups[i]
		fail := func(err error) { faults = append(faults, &GroupError{g.ID, err}) }
		if _, twice := want.groups[g.ID]; twice {
			fail(fmt.Errorf("%w: two groups with this number", ErrInvalid))
			continue
		}
		if len(want.prefixes)+len(g.Prefixes) > lim.prefixes {
			fail(fmt.Errorf("%w: %d prefixes more than the %d there may be", ErrFull,
				len(want.prefixes)+len(g.Prefixes)-lim.prefixes, lim.prefixes))
			continue
		}
		set, err := compilePorts(g.Ports)
		if err == nil && slots+len(set) > lim.slots {
			err = fmt.Errorf("%w: %d runs of %d ports more than the %d there may be", ErrFull,
				slots+len(set)-lim.slots, blockPorts, lim.slots)
		}
		if err != nil {
			fail(err)
			set = portSet{}
		}
		slots += len(set)
		want.groups[g.ID] = set
		for _, p := range g.Prefixes {
			if err := want.claim(p, g.ID); err != nil {
				fail(err)
			}
		}
	}
	return want, faults
}

func compilePorts(ranges []deception.PortRange) (portSet, error) {
	set := portSet{}
	for _, r := range ranges {
		if r.Transport != deception.TCP && r.Transport != deception.UDP || r.First == 0 || r.Last < r.First {
			return nil, fmt.Errorf("%w: ports %s", ErrInvalid, r)
		}
		set.add(r)
	}
	return set, nil
}

func (d *desired) claim(p netip.Prefix, group uint32) error {
	if !p.IsValid() || p.Masked() != p || p.Addr().Is4In6() {
		return fmt.Errorf("%w: prefix %s", ErrInvalid, p)
	}
	if other, taken := d.prefixes[p]; taken && other != group {
		return fmt.Errorf("%w: prefix %s belongs to group %d", ErrInvalid, p, other)
	}
	d.prefixes[p] = group
	return nil
}

func (s portSet) equal(o portSet) bool { return maps.Equal(s, o) }
