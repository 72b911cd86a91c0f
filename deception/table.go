package deception

import (
	"cmp"
	"net/netip"
	"slices"
)

// Table is an immutable snapshot of who is led where: for each segment the
// decoys' address ranges, sorted, so that a lookup is one binary search however
// many addresses there are.
type Table struct {
	segments map[string][]entry
}

type entry struct {
	AddrRange
	decoy  *Decoy
	routes []route // one a binding, in the decoy's order
}

// route is where a binding leads for the addresses of one entry.
type route struct {
	segment string
	decoy   *Decoy
	binding *Binding
	service *Service
	address netip.Addr // the service's, of the decoy's family
	// alias is the alias address that stands for the entry's first address; the
	// following ones stand for the following addresses. Zero without a pool.
	alias netip.Addr
}

// Target is what a decoy's address and port lead to.
type Target struct {
	Decoy   *Decoy
	Service *Service
	Address netip.AddrPort // the service, or its alias for this decoy address
	Alias   bool
}

// NewTable builds the table of a validated state.
func NewTable(state *State) *Table {
	t := &Table{segments: map[string][]entry{}}
	pools := map[aliasPool]uint64{}
	for i := range state.Decoys {
		d := &state.Decoys[i]
		for _, addrs := range d.Addresses {
			e := entry{AddrRange: addrs, decoy: d}
			given := map[string]netip.Addr{}
			for b := range d.Bind {
				if r, ok := newRoute(state, d, &d.Bind[b], addrs, pools, given); ok {
					e.routes = append(e.routes, r)
				}
			}
			t.segments[d.Segment] = append(t.segments[d.Segment], e)
		}
	}
	for _, entries := range t.segments {
		slices.SortFunc(entries, func(a, b entry) int { return a.From.Compare(b.From) })
	}
	return t
}

// aliasPool names one of a service's alias prefixes; its value in the builder
// is how many addresses are given away.
type aliasPool struct {
	service string
	prefix  netip.Prefix
}

// newRoute resolves one binding. Aliases are given out in the document's
// order, so decoys that are added at its end leave the others' as they were;
// all bindings of one decoy to one service share an alias.
func newRoute(state *State, d *Decoy, b *Binding, addrs AddrRange, pools map[aliasPool]uint64, given map[string]netip.Addr) (route, bool) {
	s := state.Service(b.Service)
	if s == nil || !s.Addr(addrs.From).IsValid() {
		return route{}, false
	}
	r := route{segment: d.Segment, decoy: d, binding: b, service: s, address: s.Addr(addrs.From)}
	prefix, ok := s.AliasPrefix(addrs.From)
	if !ok {
		return r, true
	}
	if r.alias, ok = given[s.Name]; ok {
		return r, true
	}
	pool := aliasPool{s.Name, prefix}
	first := Nth(prefix.Masked().Addr(), pools[pool])
	if first.IsValid() && prefix.Contains(Nth(first, addrs.Len()-1)) {
		pools[pool] += addrs.Len()
		r.alias = first
	}
	given[s.Name] = r.alias
	return r, true
}

// Lookup returns what the decoy address leads to, or false where nothing is
// bound there. It does not allocate.
func (t *Table) Lookup(segment string, transport Transport, decoy netip.AddrPort) (Target, bool) {
	entries := t.segments[segment]
	i, found := slices.BinarySearchFunc(entries, decoy.Addr(), func(e entry, a netip.Addr) int {
		switch {
		case e.To.Less(a):
			return -1
		case a.Less(e.From):
			return 1
		}
		return 0
	})
	if !found {
		return Target{}, false
	}
	e := &entries[i]
	for j := range e.routes {
		r := &e.routes[j]
		for _, p := range r.binding.Ports {
			if p.Contains(transport, decoy.Port()) {
				return r.target(e, decoy), true
			}
		}
	}
	return Target{}, false
}

func (r *route) target(e *entry, decoy netip.AddrPort) Target {
	t := Target{Decoy: r.decoy, Service: r.service}
	address := r.address
	if r.alias.IsValid() {
		address, t.Alias = Nth(r.alias, e.Offset(decoy.Addr())), true
	}
	t.Address = netip.AddrPortFrom(address, r.binding.TargetPort(decoy.Port()))
	return t
}

// KernelRoute is one translation of the kernel path.
type KernelRoute struct {
	Segment   string
	Transport Transport
	Decoy     netip.AddrPort
	Service   string
	Target    netip.AddrPort
	Alias     bool // Target is an alias that stands for this decoy address alone
}

// KernelRoutes lists the translations for a segment's decoys on the kernel
// path, in a fixed order. open tells which services' ports are to
// be led to; family is any address of the family in question.
func (t *Table) KernelRoutes(segment string, open func(s *Service, t Transport, port uint16, family netip.Addr) bool) []KernelRoute {
	var out []KernelRoute
	for i := range t.segments[segment] {
		e := &t.segments[segment][i]
		if e.decoy.Path != PathKernel {
			continue
		}
		for a := e.From; a.IsValid() && !e.To.Less(a); a = a.Next() {
			for j := range e.routes {
				out = appendKernelRoutes(out, &e.routes[j], e, a, open)
			}
		}
	}
	slices.SortFunc(out, func(a, b KernelRoute) int {
		return cmp.Or(cmp.Compare(a.Transport, b.Transport), a.Decoy.Compare(b.Decoy))
	})
	return out
}

func appendKernelRoutes(out []KernelRoute, r *route, e *entry, a netip.Addr, open func(*Service, Transport, uint16, netip.Addr) bool) []KernelRoute {
	for _, ports := range r.binding.Ports {
		for port := int(ports.First); port <= int(ports.Last); port++ {
			decoy := netip.AddrPortFrom(a, uint16(port))
			target := r.target(e, decoy)
			if open(r.service, ports.Transport, target.Address.Port(), a) {
				out = append(out, KernelRoute{
					Segment: r.segment, Transport: ports.Transport, Decoy: decoy,
					Service: r.service.Name, Target: target.Address, Alias: target.Alias,
				})
			}
		}
	}
	return out
}
