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
	// anywhere holds the decoys that stand at every address of their machine.
	anywhere map[string][]entry
}

// SegmentKey names a segment to a Table. Segments have names that are unique in
// the document, but every machine has a segment HostSegment.
func SegmentKey(node, segment string) string {
	if segment == HostSegment {
		return HostSegment + "@" + node
	}
	return segment
}

// families are all addresses there are.
var families = []AddrRange{
	RangeOf(netip.PrefixFrom(netip.IPv4Unspecified(), 0)), RangeOf(netip.PrefixFrom(netip.IPv6Unspecified(), 0)),
}

type entry struct {
	AddrRange
	decoy  *Decoy
	any    bool    // the range stands for the addresses of one machine
	routes []route // one a binding, in the decoy's order
}

// aliases returns how many alias addresses of a service the entry takes: one
// for each of its addresses. A machine has few addresses, and mostly one for a
// family, so it takes one alias however many they are.
func (e *entry) aliases() uint64 {
	if e.any {
		return 1
	}
	return e.Len()
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

// NewTable builds the table of a validated state, or of a part of one.
func NewTable(state *State) *Table {
	t := &Table{segments: map[string][]entry{}, anywhere: map[string][]entry{}}
	pools := aliasPools{}
	for i := range state.Decoys {
		d := &state.Decoys[i]
		key := SegmentKey(d.Node, d.Segment)
		pools.resume(d)
		for _, e := range newEntries(state, d, pools) {
			switch {
			case e.any:
				t.anywhere[key] = append(t.anywhere[key], e)
			case d.Segment == HostSegment:
				t.segments[key] = e.appendSingly(t.segments[key])
			default:
				t.segments[key] = append(t.segments[key], e)
			}
		}
	}
	for _, entries := range t.segments {
		slices.SortStableFunc(entries, func(a, b entry) int { return a.From.Compare(b.From) })
	}
	return t
}

// appendSingly appends an entry for each address of the entry. Decoys of a
// machine itself are few, and may share addresses, each with ports of its own:
// entries of equal or disjoint ranges keep a lookup one binary search.
func (e *entry) appendSingly(out []entry) []entry {
	for a := e.From; a.IsValid() && !e.To.Less(a); a = a.Next() {
		one := *e
		one.AddrRange = AddrRange{From: a, To: a}
		one.routes = slices.Clone(e.routes)
		for i := range one.routes {
			if r := &one.routes[i]; r.alias.IsValid() {
				r.alias = Nth(r.alias, e.Offset(a))
			}
		}
		out = append(out, one)
	}
	return out
}

// newEntries resolves a decoy, and takes its alias addresses out of the pools.
func newEntries(state *State, d *Decoy, pools aliasPools) []entry {
	var out []entry
	for _, addrs := range d.Addresses {
		out = append(out, entry{AddrRange: addrs, decoy: d})
	}
	if d.Any {
		for _, family := range families {
			out = append(out, entry{AddrRange: family, decoy: d, any: true})
		}
	}
	for i := range out {
		e := &out[i]
		given := map[string]netip.Addr{}
		for b := range d.Bind {
			if r, ok := newRoute(state, e, &d.Bind[b], pools, given); ok {
				e.routes = append(e.routes, r)
			}
		}
	}
	return out
}

// newRoute resolves one binding; all bindings of one entry to one service share
// an alias, which is in given.
func newRoute(state *State, e *entry, b *Binding, pools aliasPools, given map[string]netip.Addr) (route, bool) {
	s := state.Service(b.Service)
	if s == nil || !s.Addr(e.From).IsValid() {
		return route{}, false
	}
	r := route{segment: e.decoy.Segment, decoy: e.decoy, binding: b, service: s, address: s.Addr(e.From)}
	prefix, ok := s.AliasPrefix(e.From)
	if !ok {
		return r, true
	}
	if r.alias, ok = given[s.Name]; !ok {
		r.alias = pools.take(aliasPool{s.Name, prefix}, e.aliases())
		given[s.Name] = r.alias
	}
	return r, true
}

// Lookup returns what the decoy address leads to, or false where nothing is
// bound there. The segment is named by its SegmentKey. A decoy that names the
// address comes before one that stands at any. Lookup does not allocate.
func (t *Table) Lookup(segment string, transport Transport, decoy netip.AddrPort) (Target, bool) {
	for _, entries := range [...][]entry{t.at(segment, decoy.Addr()), t.anywhere[segment]} {
		for i := range entries {
			if !entries[i].Contains(decoy.Addr()) {
				continue
			}
			if target, ok := entries[i].lookup(transport, decoy); ok {
				return target, true
			}
		}
	}
	return Target{}, false
}

// at returns the entries that hold the address.
func (t *Table) at(segment string, a netip.Addr) []entry {
	entries := t.segments[segment]
	i, _ := slices.BinarySearchFunc(entries, a, func(e entry, a netip.Addr) int { return e.To.Compare(a) })
	j := i
	for j < len(entries) && entries[j].Contains(a) {
		j++
	}
	return entries[i:j]
}

// Binds tells whether a decoy stands at the address and binds the port, whether
// or not its service can be reached over the address's family: a decoy at any
// address of a machine may lead to a service that has an IPv4 address only.
func (t *Table) Binds(segment string, transport Transport, decoy netip.AddrPort) bool {
	binds := func(e entry) bool {
		return e.Contains(decoy.Addr()) && e.decoy.Lookup(transport, decoy.Port()) != nil
	}
	return slices.ContainsFunc(t.at(segment, decoy.Addr()), binds) || slices.ContainsFunc(t.anywhere[segment], binds)
}

func (e *entry) lookup(transport Transport, decoy netip.AddrPort) (Target, bool) {
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
	switch {
	case !r.alias.IsValid():
	case e.any:
		address, t.Alias = r.alias, true
	default:
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
