package config

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"decoynet/deception"
)

// endpoint is an address and port of one machine; port holds the transport, as
// portSpan writes it.
type endpoint struct {
	addr netip.Addr
	port uint32
}

func compareEndpoints(a, b endpoint) int {
	return cmp.Or(a.addr.Compare(b.addr), cmp.Compare(a.port, b.port))
}

// listeners is what listens on one machine: at every address of a family, by
// port, and at single addresses.
type listeners struct {
	every  map[bool][]span[uint32] // true for IPv4
	single []span[endpoint]
	owners int
}

// checkListeners sees to it that no two things listen at one address and port of
// a machine: gateways, egresses, the controller, decoys in the segment host.
func (c *checker) checkListeners() {
	nodes := map[string]*listeners{}
	of := func(node string) *listeners {
		if nodes[node] == nil {
			nodes[node] = &listeners{every: map[bool][]span[uint32]{}}
		}
		return nodes[node]
	}
	for _, g := range c.d.gateways {
		if g.place.known && g.listen.ok {
			of(g.place.node).addListen(g.listen, g.place.label)
		}
	}
	egresses := map[netip.AddrPort]bool{} // zones of one machine may share one
	for _, z := range c.d.zones {
		if z.egress != nil && z.place.known && z.egress.listen.ok && !egresses[z.egress.listen.v] {
			egresses[z.egress.listen.v] = true
			of(z.place.node).addListen(z.egress.listen, "the egress of "+z.place.label)
		}
	}
	// Without a machine, the controller runs by itself and takes nobody's port.
	if p := c.d.controller; p != nil && p.place.known && p.listen.ok && (p.place.node != "" || len(c.d.nodes) == 0) {
		of(p.place.node).addListen(p.listen, "the controller")
	}
	counts := map[string]uint64{}
	for _, d := range c.d.decoys {
		if !d.host || !d.place.known {
			continue
		}
		before := counts[d.place.node]
		counts[d.place.node] = addSaturated(before, d.sockets())
		if counts[d.place.node] <= MaxHostListeners {
			of(d.place.node).addDecoy(d)
		} else if before <= MaxHostListeners {
			c.add(d.place.object, "with %s the decoys in the segment host%s take more than %d addresses and ports of the machine; fewer ports, each is a listening socket",
				d.place.label, onNode(d.place.node), MaxHostListeners)
		}
	}
	for _, node := range slices.Sorted(maps.Keys(nodes)) {
		c.checkListenersOf(nodes[node], onNode(node))
	}
}

func onNode(node string) string {
	if node == "" {
		return ""
	}
	return " on node " + node
}

// sockets returns how many addresses and ports the decoy takes.
func (d *decoyDraft) sockets() uint64 {
	addrs := addSaturated(d.count(true), d.count(false))
	if d.any.ok {
		addrs = 1 // one socket that takes both families
	}
	var ports uint64
	for _, b := range d.bind {
		for _, p := range b.ports {
			ports += uint64(p.v.Last-p.v.First) + 1
		}
	}
	if addrs > MaxHostListeners || ports > MaxHostListeners {
		return MaxHostListeners + 1
	}
	return addrs * ports
}

// addListen adds a TCP port. One that listens at :: takes IPv4 as well, as the
// kernel has it where nothing is said (RFC 3493, 3.7).
func (l *listeners) addListen(at located[netip.AddrPort], label string) {
	port := portSpan(located[deception.PortRange]{v: deception.Port(deception.TCP, at.v.Port()), at: at.at}, l.owners)
	l.owners++
	port.text, port.name = at.v.String(), label
	l.add(at.v.Addr(), at.v.Addr().IsUnspecified(), port)
}

func (l *listeners) addDecoy(d *decoyDraft) {
	owner := l.owners
	l.owners++
	for _, b := range d.bind {
		for _, p := range b.ports {
			port := portSpan(p, owner)
			port.text, port.name = portWord(port.text), d.place.label
			if d.any.ok {
				l.add(netip.IPv6Unspecified(), true, port)
			}
			for _, r := range d.addresses {
				for a := r.v.From; a.IsValid() && !r.v.To.Less(a); a = a.Next() {
					l.add(a, false, port)
				}
			}
		}
	}
}

func (l *listeners) add(addr netip.Addr, every bool, port span[uint32]) {
	if !every {
		l.single = append(l.single, span[endpoint]{
			from: endpoint{addr, port.from}, to: endpoint{addr, port.to}, at: port.at, owner: port.owner, text: port.text, name: port.name,
		})
		return
	}
	l.every[addr.Is4()] = append(l.every[addr.Is4()], port)
	if addr.Is6() {
		l.every[true] = append(l.every[true], port)
	}
}

func (c *checker) checkListenersOf(l *listeners, where string) {
	// The same two things can meet at several addresses: one fault for them.
	said := map[[2]pos]bool{}
	add := func(at pos, name, text string, other span[uint32]) {
		if key := [2]pos{at, other.at}; !said[key] {
			said[key] = true
			c.add(at, "%s cannot have %s%s: %s has %s already (line %d); another port or address for one of the two",
				name, text, where, other.name, other.text, other.at.line)
		}
	}
	for _, x := range clashes(l.single, compareEndpoints) {
		add(x.at, x.name, x.text, span[uint32]{at: x.first.at, text: x.first.text, name: x.first.name})
	}
	for _, four := range []bool{true, false} {
		every := apart(l.every[four], func(x clash[uint32]) { add(x.at, x.name, x.text, x.first) })
		for _, s := range l.single {
			if s.from.addr.Is4() != four {
				continue
			}
			i, _ := slices.BinarySearchFunc(every, s.from.port, func(e span[uint32], port uint32) int { return cmp.Compare(e.to, port) })
			if i == len(every) || every[i].from > s.to.port {
				continue
			}
			if e := every[i]; s.at.compare(e.at) > 0 {
				add(s.at, s.name, s.text, e)
			} else {
				add(e.at, e.name, e.text, span[uint32]{at: s.at, text: s.text, name: s.name})
			}
		}
	}
}

// apart returns those of the spans, sorted, that meet none before them in the
// document, and tells of the others.
func apart(spans []span[uint32], tell func(clash[uint32])) []span[uint32] {
	type place struct {
		at    pos
		owner int
	}
	met := map[place]bool{}
	for _, x := range clashes(spans, cmp.Compare[uint32]) {
		tell(x)
		met[place{x.at, x.owner}] = true
	}
	out := slices.DeleteFunc(slices.Clone(spans), func(s span[uint32]) bool { return met[place{s.at, s.owner}] })
	slices.SortFunc(out, func(a, b span[uint32]) int { return cmp.Compare(a.from, b.from) })
	return out
}
