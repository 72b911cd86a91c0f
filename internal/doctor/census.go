package doctor

import (
	"net/netip"
	"slices"

	"decoynet/deception"
)

// Bounds of what a census keeps, whatever comes in.
const (
	maxNotices    = 16
	maxStacks     = 256
	maxStrays     = 4 // of one segment
	maxHeardHosts = 8 // of one VLAN
)

// counter takes the census of a NIC, and remembers hosts of its segments.
type counter struct {
	census   Census
	segments []*deception.Segment
	strays   map[string][]Stray      // by segment
	hosts    map[uint16][]netip.Addr // of a segment's own subnets, by VLAN
}

func newCounter(segments []*deception.Segment) *counter {
	return &counter{
		census:   Census{Tags: map[uint16]uint64{}, Stacks: map[Stack]uint64{}},
		segments: segments, strays: map[string][]Stray{}, hosts: map[uint16][]netip.Addr{},
	}
}

// see counts a frame, whose tag the kernel has taken off; 0 stands for none, and
// for a tag that gives a priority only.
func (c *counter) see(frame []byte, vlan uint16) {
	if len(frame) < etherHeader {
		return
	}
	c.census.Frames++
	switch {
	case vlan != 0:
		c.census.Tags[vlan]++
	case isControl(frame):
		c.census.Control++
		if n, ok := parseNotice(frame); ok {
			c.notice(n)
		}
		return
	default:
		c.census.Untagged++
	}
	if inner, ok := innerTag(frame); ok {
		s := Stack{vlan, inner}
		if _, known := c.census.Stacks[s]; known || len(c.census.Stacks) < maxStacks {
			c.census.Stacks[s]++
		}
		return
	}
	if a, _, ok := parseARP(frame); ok && !a.IsUnspecified() {
		c.host(a, vlan)
	}
}

func (c *counter) notice(n Notice) {
	same := func(o Notice) bool { return o.Protocol == n.Protocol && o.Switch == n.Switch && o.Port == n.Port }
	if i := slices.IndexFunc(c.census.Notices, same); i >= 0 {
		c.census.Notices[i] = n // the latest word
	} else if len(c.census.Notices) < maxNotices {
		c.census.Notices = append(c.census.Notices, n)
	}
}

// host remembers the sender of an ARP message where it belongs to a segment.
func (c *counter) host(a netip.Addr, vlan uint16) {
	for _, s := range c.segments {
		if !slices.ContainsFunc(s.Subnets, func(n deception.Subnet) bool { return n.Prefix.Contains(a) }) {
			continue
		}
		if s.VLAN == vlan {
			if h := c.hosts[vlan]; len(h) < maxHeardHosts && !slices.Contains(h, a) {
				c.hosts[vlan] = append(h, a)
			}
			continue
		}
		known := c.strays[s.Name]
		if len(known) < maxStrays && !slices.ContainsFunc(known, func(o Stray) bool { return o.VLAN == vlan }) {
			c.strays[s.Name] = append(known, Stray{vlan, a})
		}
	}
}
