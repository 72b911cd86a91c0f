package config

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"decoynet/deception"
)

func (c *checker) checkServices() {
	var spans []span[endpoint]
	for i, s := range c.d.services {
		zone := refer(c, s.zone, "zone", c.zones, c.d.zones, func(z *zoneDraft) located[string] { return z.name })
		for _, a := range s.addresses {
			if zone != nil && zone.sound {
				c.checkInZone(a, zone)
			}
			for _, p := range s.ports {
				ps := portSpan(p, i)
				spans = append(spans, span[endpoint]{
					from: endpoint{a.v, ps.from}, to: endpoint{a.v, ps.to}, at: p.at, owner: i,
					text: fmt.Sprintf("%s of %s", portWord(ps.text), a.v), name: s.name.v,
				})
			}
		}
	}
	for _, x := range clashes(spans, compareEndpoints) {
		c.add(x.at, "%s belongs to service %q already (line %d); bind decoys to that one, or give another address or port", x.text, x.first.name, x.first.at.line)
	}
}

func (c *checker) checkInZone(a located[netip.Addr], z *zoneDraft) {
	var subnets []string
	for _, p := range z.subnets {
		subnets = append(subnets, p.v.String())
		if !p.v.Contains(a.v) {
			continue
		}
		if a.v == p.v.Addr() && hasNetworkAddress(p.v) {
			c.add(a.at, "address %s is the %s of %s; the address of a host, as %s", a.v, networkAddressName(a.v.Is4()), p.v, firstHost(p.v).Next())
		}
		if a.v == deception.LastAddr(p.v) && hasBroadcast(p.v) {
			c.add(a.at, "address %s is the broadcast address of %s; the address of a host, as %s", a.v, p.v, firstHost(p.v).Next())
		}
		return
	}
	c.add(a.at, "address %s is outside zone %q (%s); an address of the zone, or extend its subnet", a.v, z.name.v, strings.Join(subnets, ", "))
}

func (s *serviceDraft) has(four bool) bool {
	for _, a := range s.addresses {
		if a.v.Is4() == four {
			return true
		}
	}
	return false
}

// missing returns the first port of a range that the service does not have.
func (s *serviceDraft) missing(want deception.PortRange) (uint16, bool) {
	next := int(want.First)
	for _, p := range s.sorted {
		if p.Transport == want.Transport && int(p.First) <= next && next <= int(p.Last) {
			next = int(p.Last) + 1
		}
	}
	return uint16(next), next <= int(want.Last)
}

// onlyPort returns the service's port of a transport where it has just one.
func (s *serviceDraft) onlyPort(t deception.Transport) (uint16, bool) {
	var found []deception.PortRange
	for _, p := range s.ports {
		if p.v.Transport == t {
			found = append(found, p.v)
		}
	}
	if len(found) != 1 || found[0].First != found[0].Last {
		return 0, false
	}
	return found[0].First, true
}

// checkAliases checks the pools of further addresses that services answer at.
func (c *checker) checkAliases() {
	var pools []span[netip.Addr]
	needs := c.boundAddresses()
	hosts := c.serviceAddresses()
	for i, s := range c.d.services {
		for _, p := range s.aliases {
			pools = append(pools, prefixSpan(p, i, s.name.v))
			if s.soundAddresses && !s.has(p.v.Addr().Is4()) {
				f := family(p.v.Addr().Is4())
				c.add(p.at, "alias prefix %s is %s, service %q has no %s address to route it through; give the service one, or drop the aliases", p.v, f, s.name.v, f)
			}
			c.checkAliasPlace(s, p, hosts)
			c.checkAliasSize(s, p, needs)
		}
	}
	for _, x := range clashes(pools, netip.Addr.Compare) {
		c.add(x.at, "alias prefix %s overlaps %s of service %q (line %d); a prefix of its own for each service", x.text, x.first.text, x.first.name, x.first.at.line)
	}
}

// checkAliasPlace sees to it that an alias prefix takes addresses from nobody.
func (c *checker) checkAliasPlace(s *serviceDraft, p located[netip.Prefix], hosts []span[netip.Addr]) {
	const right = "a prefix that nothing else uses"
	i, _ := slices.BinarySearchFunc(hosts, p.v.Addr(), func(h span[netip.Addr], a netip.Addr) int { return h.from.Compare(a) })
	if i < len(hosts) && p.v.Contains(hosts[i].from) {
		c.add(p.at, "alias prefix %s holds the address %s of service %q (line %d); "+right, p.v, hosts[i].text, hosts[i].name, hosts[i].at.line)
		return
	}
	for _, seg := range c.d.segments {
		for _, sub := range seg.subnets {
			if sub.prefix.ok && sub.prefix.v.Overlaps(p.v) {
				c.add(p.at, "alias prefix %s overlaps the subnet %s of segment %q (line %d); "+right, p.v, sub.prefix.v, seg.name.v, sub.prefix.at.line)
				return
			}
		}
	}
	own := c.zoneOf(s)
	for _, z := range c.d.zones {
		for _, sub := range z.subnets {
			switch {
			case !sub.v.Overlaps(p.v):
			case own != nil && z != own:
				c.add(p.at, "alias prefix %s overlaps the subnet %s of another zone, %q (line %d); "+right, p.v, sub.v, z.name.v, sub.at.line)
				return
			case hasNetworkAddress(sub.v) && p.v.Contains(sub.v.Addr()), hasBroadcast(sub.v) && p.v.Contains(deception.LastAddr(sub.v)):
				c.add(p.at, "alias prefix %s holds the network or broadcast address of the zone's subnet %s; "+right, p.v, sub.v)
				return
			}
		}
	}
}

// checkAliasSize compares a pool with the decoy addresses that lead to the
// service: each needs an alias of its own, or an intruder's source port is not free for all of them.
func (c *checker) checkAliasSize(s *serviceDraft, p located[netip.Prefix], needs map[string]map[bool]uint64) {
	if c.services[s.name.v] != s {
		return
	}
	four := p.v.Addr().Is4()
	need := needs[s.name.v][four]
	bits := p.v.Addr().BitLen()
	if free := bits - p.v.Bits(); free >= 63 || uint64(1)<<free >= need {
		return
	}
	right := "fewer decoys"
	for free := 0; free <= min(bits, 62); free++ {
		if uint64(1)<<free >= need {
			right = fmt.Sprintf("a prefix of /%d or larger", bits-free)
			break
		}
	}
	c.add(p.at, "alias prefix %s holds %d addresses, but %d %s decoy addresses are bound to service %q; %s",
		p.v, deception.RangeOf(p.v).Len(), need, family(four), s.name.v, right)
}

// boundAddresses counts, by service and family (true for IPv4), the decoy
// addresses that lead to it.
func (c *checker) boundAddresses() map[string]map[bool]uint64 {
	out := map[string]map[bool]uint64{}
	for _, d := range c.d.decoys {
		counted := map[string]bool{}
		for _, b := range d.bind {
			if !b.service.ok || counted[b.service.v] {
				continue
			}
			counted[b.service.v] = true
			n := out[b.service.v]
			if n == nil {
				n = map[bool]uint64{}
				out[b.service.v] = n
			}
			for _, four := range []bool{true, false} {
				n[four] = addSaturated(n[four], d.count(four))
			}
		}
	}
	return out
}

// serviceAddresses lists the addresses of all services, sorted.
func (c *checker) serviceAddresses() []span[netip.Addr] {
	var out []span[netip.Addr]
	for i, s := range c.d.services {
		for _, a := range s.addresses {
			out = append(out, span[netip.Addr]{from: a.v, to: a.v, at: a.at, owner: i, text: a.v.String(), name: s.name.v})
		}
	}
	slices.SortStableFunc(out, func(a, b span[netip.Addr]) int { return a.from.Compare(b.from) })
	return out
}

// count returns how many different addresses of a family the decoy has. Those
// that any stands for count, and get an alias, as one.
func (d *decoyDraft) count(four bool) uint64 {
	var n uint64
	if d.any.ok {
		n = 1
	}
	for _, r := range deception.SortRanges(values(d.addresses)) {
		if r.From.Is4() == four {
			n = addSaturated(n, r.Len())
		}
	}
	return n
}

func addSaturated(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}
