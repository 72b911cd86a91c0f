package config

import (
	"fmt"
	"net/netip"
	"strings"

	"decoynet/deception"
)

// checkMachines finds out which machine each thing is on. Everything else that
// is checked between things of one machine goes by that.
func (c *checker) checkMachines() {
	c.checkNodeNames()
	for _, n := range c.d.nodes {
		if n.name.ok && c.nodes[n.name.v] == n {
			c.listed = append(c.listed, n.name.v)
		}
	}
	c.addEgressNodes()
	if len(c.d.nodes) > 0 {
		c.nodeNamed(c.d.node)
	}
	for _, g := range c.d.gateways {
		c.settle(&g.place)
		if g.place.known && g.place.node == "" {
			c.add(g.place.object, "%s has no node; add node: hq to it, and the machines as nodes: [{name: hq}, {name: branch}]", g.place.label)
			g.place.known = false
		}
	}
	c.checkOneGatewayANode()
	for _, s := range c.d.segments {
		c.settle(&s.place)
	}
	for _, z := range c.d.zones {
		c.settleZone(z)
	}
	c.checkEgresses()
	for _, d := range c.d.decoys {
		c.settleDecoy(d)
	}
	if p := c.d.controller; p != nil && (p.place.written.ok || len(c.listed) == 1) {
		c.settle(&p.place)
	}
}

// checkNodeNames refuses names that differ in case only: host names are the
// same in either (RFC 4343).
func (c *checker) checkNodeNames() {
	first := map[string]located[string]{}
	for _, n := range c.d.nodes {
		low := strings.ToLower(n.name.v)
		if other, twice := first[low]; twice && n.name.ok && other.v != n.name.v {
			c.add(n.name.at, "node %q differs from %q (line %d) in case only, which host names do not heed; a name of its own", n.name.v, other.v, other.at.line)
		} else if n.name.ok && !twice {
			first[low] = n.name
		}
	}
}

// addEgressNodes makes nodes of the machines that stand in an egress only,
// unless the name looks like a slip.
func (c *checker) addEgressNodes() {
	if len(c.listed) == 0 {
		return
	}
	for _, z := range c.d.zones {
		if z.egress == nil || !z.egress.node.ok || c.nodes[z.egress.node.v] != nil {
			continue
		}
		name := z.egress.node
		if near := nearest(name.v, c.listed); near != "" {
			c.add(name.at, "unknown node %q; did you mean %q, or else add {name: %s} to nodes", name.v, near, name.v)
			name.ok = false
			z.egress.node = name
			continue
		}
		n := &nodeDraft{name: name}
		c.d.nodes = append(c.d.nodes, n)
		c.nodes[name.v] = n
	}
}

func (c *checker) nodeNamed(ref located[string]) *nodeDraft {
	return refer(c, ref, "node", c.nodes, c.d.nodes, func(n *nodeDraft) located[string] { return n.name })
}

// settle finds the machine of an object by its node key, or by there being one
// machine only. others are further machines that it can only mean.
func (c *checker) settle(p *place, others ...string) {
	switch names := c.listed; {
	case p.written.ok:
		p.node, p.known = p.written.v, c.nodeNamed(p.written) != nil
	case !p.known: // a node key that could not be read
	case len(names) == 1:
		p.node, p.known = names[0], true
	case len(others) == 1:
		p.node = others[0]
	case len(names) > 1:
		p.known = false
		c.add(p.object, "%s has no node, and the document names several; add node: %s (nodes: %s)", p.label, names[0], listed(names))
	default:
		p.known = len(c.d.nodes) == 0 && !c.d.opaque["nodes"]
	}
}

// settleZone finds the machine of a zone's edge: its egress's, or the one that
// the only gateway runs on.
func (c *checker) settleZone(z *zoneDraft) {
	e := z.egress
	if e == nil {
		var others []string
		if len(c.d.gateways) == 1 && c.d.gateways[0].place.known {
			others = []string{c.d.gateways[0].place.node}
		}
		c.settle(&z.place, others...)
		return
	}
	written := z.place.written
	z.place.node, z.place.known = e.node.v, e.node.ok && c.nodeNamed(e.node) != nil
	if z.place.known && written.ok && c.nodeNamed(written) != nil && written.v != e.node.v {
		c.add(written.at, "%s is on node %s, but its egress on node %s (line %d); the egress stands where the zone is, so drop node here or change that one",
			z.place.label, written.v, e.node.v, e.node.at.line)
	}
	if e.listen.ok && e.listen.v.Addr().IsUnspecified() {
		c.add(e.listen.at, "ingress gateways connect to the egress and cannot to %s; the address of node %s that they reach, as 172.16.23.2:%d",
			e.listen.v.Addr(), e.node.v, e.listen.v.Port())
	}
}

// checkEgresses refuses one address for egresses of two machines: gateways
// connect to it and would not know which of them they reach.
func (c *checker) checkEgresses() {
	first := map[netip.AddrPort]*zoneDraft{}
	for _, z := range c.d.zones {
		if z.egress == nil || !z.egress.listen.ok || !z.place.known {
			continue
		}
		at := z.egress.listen
		if other := first[at.v]; other != nil && other.place.node != z.place.node {
			c.add(at.at, "%s is where the egress of %s on node %s listens (line %d); an address of node %s",
				at.v, other.place.label, other.place.node, other.egress.listen.at.line, z.place.node)
		} else if other == nil {
			first[at.v] = z
		}
	}
}

// settleDecoy finds the machine of a decoy: that of its segment or, in the
// segment host, the one that it names.
func (c *checker) settleDecoy(d *decoyDraft) {
	p := &d.place
	if d.host {
		c.settle(p)
		return
	}
	written := p.written
	seg := c.segments[d.segment.v]
	if !d.segment.ok || seg == nil || !seg.place.known {
		p.known = false
		c.nodeNamed(written)
		return
	}
	p.node, p.known = seg.place.node, true
	if written.ok && c.nodeNamed(written) != nil && written.v != p.node {
		c.add(written.at, "%s is on node %s, but its segment %q on node %s (line %d); drop node, it is where its segment is",
			p.label, written.v, d.segment.v, p.node, seg.place.object.line)
	}
}

func (c *checker) checkOneGatewayANode() {
	first := map[string]*gatewayDraft{}
	for _, g := range c.d.gateways {
		if !g.place.known {
			continue
		}
		if other := first[g.place.node]; other != nil {
			c.add(g.place.object, "%s is a second one on node %s, after %q (line %d); one gateway on a node, with several addresses where needed",
				g.place.label, g.place.node, other.name.v, other.name.at.line)
			g.place.known = false
			continue
		}
		first[g.place.node] = g
	}
}

// checkWays sees to it that flows get from each decoy to the services that it
// is bound to.
func (c *checker) checkWays() {
	c.checkHostPaths()
	if len(c.d.nodes) == 0 {
		return
	}
	gateways := map[string]*gatewayDraft{}
	for _, g := range c.d.gateways {
		if g.place.known {
			gateways[g.place.node] = g
		}
	}
	said := map[[2]string]bool{}
	for _, d := range c.d.decoys {
		if !d.place.known {
			continue
		}
		for _, b := range d.bind {
			svc := c.services[b.service.v]
			if !b.service.ok || svc == nil || c.zoneOf(svc) == nil || !c.zoneOf(svc).place.known {
				continue
			}
			c.checkWay(d, b, c.zoneOf(svc), gateways, said)
		}
	}
}

// checkHostPaths refuses the kernel path where nothing is routed.
func (c *checker) checkHostPaths() {
	for _, d := range c.d.decoys {
		if d.host && d.path.v == string(deception.PathKernel) {
			c.add(d.path.at, "path kernel in the segment host, whose ports decoynet itself listens on; path: relay")
		}
	}
}

// checkWay follows the flows of one binding. said holds the ways that were
// found missing already: hundreds of decoys may want the same one.
func (c *checker) checkWay(d *decoyDraft, b *bindDraft, z *zoneDraft, gateways map[string]*gatewayDraft, said map[[2]string]bool) {
	from, to := d.place.node, z.place.node
	once := func(a, b string) bool {
		before := said[[2]string{a, b}]
		said[[2]string{a, b}] = true
		return !before
	}
	service := fmt.Sprintf("service %q is in zone %q on node %s", b.service.v, z.name.v, to)
	switch own := gateways[from]; {
	case d.path.v == string(deception.PathKernel):
		if from != to && !d.host {
			c.add(d.path.at, "path kernel on node %s, but %s; path: relay, or services behind a link of node %s", from, service, from)
		}
	case own != nil:
		if from != to && z.egress == nil && once(from, z.name.v) {
			c.add(b.service.at, "%s, where gateway %q on node %s cannot lead flows; give the zone an egress, as egress: {node: %s, listen: ADDRESS:7445}",
				service, own.name.v, from, to)
		}
	case len(gateways) == 0 && len(c.d.gateways) == 0 && !c.d.opaque["gateways"]:
		if from != to && once(from, z.name.v) {
			c.add(b.service.at, "%s, and no gateway takes flows there from node %s; add one, as gateways: [{name: gw1, node: %s, listen: 0.0.0.0:7444}]",
				service, from, to)
		}
	default:
		if z.egress != nil || !once("any gateway", z.name.v) {
			return
		}
		for _, g := range c.d.gateways {
			if g.place.known && g.place.node != to && once(g.place.node, z.name.v) {
				right := ""
				if from == to {
					right = fmt.Sprintf(", or node %s a gateway of its own", from)
				}
				c.add(b.service.at, "%s, where gateway %q on node %s cannot lead flows from node %s; give the zone an egress, as egress: {node: %s, listen: ADDRESS:7445}%s",
					service, g.name.v, g.place.node, from, to, right)
			}
		}
	}
}
