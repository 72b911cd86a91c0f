package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"decoynet/deception"
)

func (c *checker) checkSegments() {
	lans := map[string][]span[netip.Addr]{}
	network := map[string]string{} // in words, where it is not the parent's own
	owner := 0
	for _, s := range c.d.segments {
		c.checkOneGateway(s)
		for _, sub := range s.subnets {
			c.checkGateway(sub)
			if !sub.prefix.ok || s.elsewhere {
				continue
			}
			owner++
			// Without a readable parent, the segment is still compared with itself.
			lan := "segment " + s.name.v
			if s.parent.ok && s.place.known {
				lan = fmt.Sprintf("parent %s of %s, VLAN %d", s.parent.v, s.place.node, s.vlan.v)
				if s.vlan.v != 0 {
					network[lan] = fmt.Sprintf("in VLAN %d on the same parent", s.vlan.v)
				}
			}
			lans[lan] = append(lans[lan], prefixSpan(sub.prefix, owner, s.name.v))
		}
		c.checkExcludes(s)
	}
	for lan, spans := range lans {
		for _, x := range clashes(spans, netip.Addr.Compare) {
			where := fmt.Sprintf("of segment %q %s", x.first.name, cmp.Or(network[lan], "on the same parent"))
			if x.first.name == x.name {
				where = "of this segment"
			}
			c.add(x.at, "subnet %s overlaps %s %s (line %d); subnets of one network must be apart", x.text, x.first.text, where, x.first.at.line)
		}
	}
}

// checkOneGateway wants one way out a family: a segment has one routing table,
// and a reply that leaves by another subnet's gateway may never arrive.
func (c *checker) checkOneGateway(s *segmentDraft) {
	first := map[bool]subnetDraft{}
	for _, sub := range s.subnets {
		four := sub.gateway.v.Is4()
		if !sub.gateway.ok || !sub.prefix.ok || sub.prefix.v.Addr().Is4() != four {
			continue
		}
		other, second := first[four]
		if !second {
			first[four] = sub
			continue
		}
		c.add(sub.gateway.at, "a second %s gateway, after %s (line %d); one for a family, or a segment for each subnet",
			family(four), other.gateway.v, other.gateway.at.line)
	}
}

func (c *checker) checkGateway(sub subnetDraft) {
	p, gw := sub.prefix, sub.gateway
	if !p.ok || !gw.ok {
		return
	}
	switch four := p.v.Addr().Is4(); {
	case four != gw.v.Is4():
		c.add(gw.at, "gateway %s is %s, the subnet %s is %s; a gateway inside the subnet, as %s", gw.v, family(gw.v.Is4()), p.v, family(four), firstHost(p.v))
	case gw.v.Is6() && gw.v.IsLinkLocalUnicast():
		// Usual in IPv6: routers announce themselves by it (RFC 4861, 4.2).
	case !p.v.Contains(gw.v):
		c.add(gw.at, "gateway %s is outside its subnet %s; a gateway inside it, as %s", gw.v, p.v, firstHost(p.v))
	case gw.v == p.v.Addr() && hasNetworkAddress(p.v):
		c.add(gw.at, "gateway %s is the %s of %s; the address of a router, as %s", gw.v, networkAddressName(four), p.v, firstHost(p.v))
	case gw.v == deception.LastAddr(p.v) && hasBroadcast(p.v):
		c.add(gw.at, "gateway %s is the broadcast address of %s; the address of a router, as %s", gw.v, p.v, firstHost(p.v))
	}
}

func (c *checker) checkExcludes(s *segmentDraft) {
	if !s.sound {
		return
	}
	for _, x := range s.exclude {
		if s.subnetOverlapping(x.v) == nil {
			c.add(x.at, "exclude %s is in no subnet of the segment (%s); an address or range of them, or drop it", x.v, s.subnetList())
		}
	}
}

func (s *segmentDraft) subnetOverlapping(r deception.AddrRange) *subnetDraft {
	for i := range s.subnets {
		if p := s.subnets[i].prefix; p.ok && deception.RangeOf(p.v).Overlaps(r) {
			return &s.subnets[i]
		}
	}
	return nil
}

func (s *segmentDraft) subnetHolding(a netip.Addr) (netip.Prefix, bool) {
	for _, sub := range s.subnets {
		if sub.prefix.ok && sub.prefix.v.Contains(a) {
			return sub.prefix.v, true
		}
	}
	return netip.Prefix{}, false
}

func (s *segmentDraft) subnetList() string {
	var out []string
	for _, sub := range s.subnets {
		out = append(out, sub.prefix.v.String())
	}
	return strings.Join(out, ", ")
}

// taken is a run of addresses that no decoy of a segment may have.
type taken struct {
	deception.AddrRange
	what string
}

// taken lists what decoys of the segment may not have.
func (s *segmentDraft) taken() []taken {
	var out []taken
	one := func(a netip.Addr) deception.AddrRange { return deception.AddrRange{From: a, To: a} }
	for _, sub := range s.subnets {
		p := sub.prefix.v
		if sub.gateway.ok {
			out = append(out, taken{one(sub.gateway.v), fmt.Sprintf("the gateway, line %d", sub.gateway.at.line)})
		}
		if !sub.prefix.ok {
			continue
		}
		if hasNetworkAddress(p) {
			out = append(out, taken{one(p.Addr()), fmt.Sprintf("the %s of %s", networkAddressName(p.Addr().Is4()), p)})
		}
		if hasBroadcast(p) {
			out = append(out, taken{one(deception.LastAddr(p)), fmt.Sprintf("the broadcast address of %s", p)})
		}
	}
	for _, x := range s.exclude {
		out = append(out, taken{x.v, fmt.Sprintf("excluded, line %d", x.at.line)})
	}
	return out
}

// takenIn lists what of a range decoys of the segment may not have.
func (s *segmentDraft) takenIn(r deception.AddrRange) []taken {
	if s.barred == nil {
		var all []deception.AddrRange
		for _, t := range s.taken() {
			all = append(all, t.AddrRange)
		}
		s.barred = deception.SortRanges(all)
	}
	// Nearly every range is free, and excludes can be many: a search first.
	i, _ := slices.BinarySearchFunc(s.barred, r.From, func(b deception.AddrRange, from netip.Addr) int { return b.To.Compare(from) })
	if i == len(s.barred) || !s.barred[i].Overlaps(r) {
		return nil
	}
	return slices.DeleteFunc(s.taken(), func(t taken) bool { return !t.Overlaps(r) })
}

// hasNetworkAddress tells whether the first address of a prefix is no host's:
// the network's own in IPv4 (not in a /31, RFC 3021), the anycast address of
// the subnet's routers in IPv6 (RFC 4291, 2.6.1; not in a /127, RFC 6164).
func hasNetworkAddress(p netip.Prefix) bool { return p.Addr().BitLen()-p.Bits() >= 2 }

// hasBroadcast tells whether the last address of a prefix is its broadcast
// address: IPv6 has none.
func hasBroadcast(p netip.Prefix) bool { return p.Addr().Is4() && hasNetworkAddress(p) }

func networkAddressName(four bool) string {
	if four {
		return "network address"
	}
	return "routers' anycast address"
}

// firstHost returns the first address of a prefix that a host can have.
func firstHost(p netip.Prefix) netip.Addr {
	if hasNetworkAddress(p) {
		return p.Addr().Next()
	}
	return p.Addr()
}

func (c *checker) checkZones() {
	type nic struct{ node, name string }
	links := map[nic]located[string]{}
	var zones, all []span[netip.Addr]
	parents := map[nic]*segmentDraft{}
	for i, s := range c.d.segments {
		if at := (nic{s.place.node, s.parent.v}); s.parent.ok && s.place.known && !s.elsewhere && s.vlan.v == 0 && parents[at] == nil {
			parents[at] = s
		}
		for _, sub := range s.subnets {
			if sub.prefix.ok {
				all = append(all, prefixSpan(sub.prefix, -1-i, fmt.Sprintf("segment %q", s.name.v)))
			}
		}
	}
	owner := 0
	for _, z := range c.d.zones {
		for _, p := range z.subnets {
			owner++
			zones = append(zones, prefixSpan(p, owner, fmt.Sprintf("zone %q", z.name.v)))
		}
		if !z.link.ok || !z.place.known || z.link.v == deception.LinkAuto {
			continue
		}
		at := nic{z.place.node, z.link.v}
		if first, twice := links[at]; twice {
			c.add(z.link.at, "link %s is that of another zone already (line %d); an interface of its own for each zone", z.link.v, first.at.line)
		} else {
			links[at] = z.link
		}
		if s := parents[at]; s != nil {
			c.add(z.link.at, "link %s is the parent of segment %q (line %d); the interface of the services, apart from every network of decoys", z.link.v, s.name.v, s.parent.at.line)
		}
	}
	for _, x := range clashes(zones, netip.Addr.Compare) {
		c.add(x.at, "subnet %s overlaps %s of %s (line %d); zones must be apart", x.text, x.first.text, x.first.name, x.first.at.line)
	}
	c.zonesAgainst(zones, all)
}

// zonesAgainst compares zones with segments. Each zone is looked at alone, or
// the overlap of two segments would be reported as one of theirs.
func (c *checker) zonesAgainst(zones, segments []span[netip.Addr]) {
	for _, z := range zones {
		for _, s := range segments {
			if z.from.Compare(s.to) <= 0 && s.from.Compare(z.to) <= 0 {
				c.add(z.at, "subnet %s overlaps %s of %s (line %d); services must not share addresses with a network of decoys", z.text, s.text, s.name, s.at.line)
				break
			}
		}
	}
}
