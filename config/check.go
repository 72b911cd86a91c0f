package config

import (
	"cmp"
	"fmt"
	"net/netip"

	"decoynet/deception"
)

// checker compares the parts of a draft with each other. Each check looks at
// what could be read and passes over the rest, about which a fault is on record.
type checker struct {
	*report
	d        *draft
	nodes    map[string]*nodeDraft
	listed   []string // the names in nodes; in addition, nodes holds those that stand in an egress only
	segments map[string]*segmentDraft
	zones    map[string]*zoneDraft
	services map[string]*serviceDraft
	// hints holds the suggestions made, by kind and unknown name: one slip tends
	// to be repeated, and looking for the nearest of many names is slow.
	hints map[[2]string]string
}

func check(d *draft, r *report) {
	c := &checker{report: r, d: d, hints: map[[2]string]string{}}
	c.nodes = unique(r, "node", d.nodes, func(n *nodeDraft) located[string] { return n.name })
	unique(r, "gateway", d.gateways, func(g *gatewayDraft) located[string] { return g.name })
	c.segments = unique(r, "segment", d.segments, func(s *segmentDraft) located[string] { return s.name })
	c.zones = unique(r, "zone", d.zones, func(z *zoneDraft) located[string] { return z.name })
	c.services = unique(r, "service", d.services, func(s *serviceDraft) located[string] { return s.name })
	unique(r, "decoy", d.decoys, func(d *decoyDraft) located[string] { return d.name })
	unique(r, "scanner", d.scanners, func(s *scannerDraft) located[string] { return s.name })
	c.checkMachines()
	c.checkSegments()
	c.checkZones()
	c.checkServices()
	c.checkDecoys()
	c.checkLooks()
	c.checkBindings()
	c.checkWays()
	c.checkAliases()
	c.checkLimits()
	c.checkListeners()
	c.checkInspect()
}

// unique indexes objects by name and reports names that stand twice.
func unique[T any](r *report, what string, list []*T, name func(*T) located[string]) map[string]*T {
	out := make(map[string]*T, len(list))
	first := map[string]pos{}
	for _, v := range list {
		n := name(v)
		if !n.ok {
			continue
		}
		if at, twice := first[n.v]; twice {
			r.add(n.at, "%s %q a second time, first in line %d; a name of its own", what, n.v, at.line)
			continue
		}
		first[n.v] = n.at
		out[n.v] = v
	}
	return out
}

// refer reports a reference to something that the document does not have.
func refer[T any](c *checker, ref located[string], what string, known map[string]*T, list []*T, name func(*T) located[string]) *T {
	if !ref.ok {
		return nil
	}
	if v := known[ref.v]; v != nil {
		return v
	}
	if c.d.opaque[what+"s"] {
		return nil
	}
	slip := [2]string{what, ref.v}
	if c.hints[slip] == "" {
		var names []string
		for _, v := range list {
			if n := name(v); n.ok && known[n.v] == v {
				names = append(names, n.v)
			}
		}
		c.hints[slip] = suggest(ref.v, what+"s", names)
	}
	c.add(ref.at, "unknown %s %q; %s", what, ref.v, c.hints[slip])
	return nil
}

func (c *checker) zoneOf(s *serviceDraft) *zoneDraft {
	return c.zones[s.zone.v]
}

// checkPortsOnce refuses a port that stands twice in one list of an object.
func checkPortsOnce(r *report, label string, ports []located[deception.PortRange]) {
	spans := make([]span[uint32], len(ports))
	for i, p := range ports {
		spans[i] = portSpan(p, i)
	}
	for _, x := range clashes(spans, cmp.Compare[uint32]) {
		r.add(x.at, "%s a second time in %s, first as %s in line %d; each port once", portWord(x.text), label, x.first.text, x.first.at.line)
	}
}

// portSpan orders ports by transport first, so that 53 and 53/udp stay apart.
func portSpan(p located[deception.PortRange], owner int) span[uint32] {
	base := uint32(p.v.Transport) << 16
	return span[uint32]{from: base + uint32(p.v.First), to: base + uint32(p.v.Last), at: p.at, owner: owner, text: p.v.String()}
}

func portWord(text string) string {
	if r, err := deception.ParsePortRange(text); err == nil && r.First != r.Last {
		return "ports " + text
	}
	return "port " + text
}

func prefixSpan(p located[netip.Prefix], owner int, name string) span[netip.Addr] {
	return span[netip.Addr]{from: p.v.Addr(), to: deception.LastAddr(p.v), at: p.at, owner: owner, text: p.text, name: name}
}

func rangeSpan(p located[deception.AddrRange], owner int, name string) span[netip.Addr] {
	return span[netip.Addr]{from: p.v.From, to: p.v.To, at: p.at, owner: owner, text: p.text, name: name}
}

// more says what else a clash meets, besides the one that is named.
func more(others int) string {
	switch others {
	case 0:
		return ""
	case 1:
		return " and one more"
	}
	return fmt.Sprintf(" and %d more", others)
}
