package route

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// metric6 is what the kernel makes of metric 0 in IPv6 (IP6_RT_PRIO_USER).
const metric6 = 1024

// state is what is ours in a namespace: wanted, or held by the kernel.
type state struct {
	routes map[routeEntry]struct{}
	addrs  map[addrEntry]struct{}
	rules  map[ruleEntry]struct{}
}

// newState makes a state with room for so many routes.
func newState(routes int) *state {
	return &state{
		routes: make(map[routeEntry]struct{}, routes),
		addrs:  map[addrEntry]struct{}{},
		rules:  map[ruleEntry]struct{}{},
	}
}

// resolve turns what is desired into the kernel's terms. An object that makes
// no sense, or whose interface is missing, becomes a failure; the others stand.
func resolve(d Desired, index func(dev string) (int, bool)) (*state, []Failure) {
	r := resolver{link: d.Link, index: index, state: newState(len(d.Local4)), taken: make(map[slot]routeEntry, len(d.Local4))}
	for _, p := range d.Local4 {
		if !p.Addr().Is4() {
			r.fail("local "+p.String(), errors.New("not an IPv4 prefix"))
			continue
		}
		r.route(Route{Dst: p, Type: Local})
	}
	for _, a := range d.Addrs6 {
		r.addr(a)
	}
	for _, p := range d.Connected {
		r.route(Route{Dst: p})
	}
	seen := map[bool]netip.Addr{}
	for _, g := range d.Gateways {
		if other, dup := seen[g.Is4()]; dup {
			r.fail("gateway "+g.String(), fmt.Errorf("%s is the family's gateway already", other))
			continue
		}
		seen[g.Is4()] = g
		r.route(Route{Dst: defaultOf(g), Via: g, Onlink: true})
	}
	for _, rt := range d.Routes {
		r.route(rt)
	}
	for _, rule := range d.Rules {
		r.rule(rule)
	}
	return r.state, r.failed
}

func defaultOf(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

type resolver struct {
	link   string
	index  func(string) (int, bool)
	state  *state
	taken  map[slot]routeEntry
	failed []Failure
}

func (r *resolver) fail(object string, err error) {
	r.failed = append(r.failed, Failure{Object: object, Err: err})
}

func (r *resolver) dev(name string) (int, error) {
	if name == "" {
		return 0, errors.New("no interface is named")
	}
	i, ok := r.index(name)
	if !ok {
		return 0, fmt.Errorf("interface %s does not exist", name)
	}
	return i, nil
}

func (r *resolver) route(rt Route) {
	if rt.Type == 0 {
		rt.Type = Unicast
	}
	if rt.Table == 0 {
		rt.Table = TableMain
		if rt.Type == Local {
			rt.Table = TableLocal
		}
	}
	if rt.Dev == "" {
		rt.Dev = r.link
		if rt.Type == Local {
			rt.Dev = "lo"
		}
	}
	e := routeEntry{
		Dst: rt.Dst.Masked(), Table: rt.Table, Metric: rt.Metric,
		Type: rt.Type, Via: rt.Via, Onlink: rt.Onlink,
	}
	name := func(int) string { return rt.Dev }
	var err error
	switch {
	case !rt.Dst.IsValid():
		err = errors.New("no destination")
	case rt.Type == Throw && (rt.Dst.Addr().Is6() || rt.Via.IsValid()):
		err = errors.New("a throw route is IPv4 and leads nowhere")
	case rt.Type == Throw:
	case rt.Type != Unicast && rt.Type != Local:
		err = fmt.Errorf("unknown type %d", rt.Type)
	case rt.Via.IsValid() && rt.Via.Is4() != rt.Dst.Addr().Is4():
		err = errors.New("next hop is of another family than the destination")
	case rt.Onlink && !rt.Via.IsValid():
		err = errors.New("onlink without a next hop")
	default:
		e.Dev, err = r.dev(rt.Dev)
	}
	if err != nil {
		r.fail(e.describe(name), err)
		return
	}
	if e.Dst.Addr().Is6() && e.Metric == 0 {
		e.Metric = metric6
	}
	if other, dup := r.taken[e.slot()]; dup && other != e {
		r.fail(e.describe(name), errors.New("another route is desired for the same destination, table and metric"))
		return
	}
	r.taken[e.slot()] = e
	r.state.routes[e] = struct{}{}
}

func (r *resolver) addr(a netip.Addr) {
	e := addrEntry{Addr: a, Bits: 128}
	var err error
	if !a.Is6() || a.Is4In6() || a.Zone() != "" || a.IsMulticast() || a.IsUnspecified() {
		err = errors.New("not a plain IPv6 address")
	} else {
		e.Dev, err = r.dev(r.link)
	}
	if err != nil {
		r.fail("address "+a.String(), err)
		return
	}
	r.state.addrs[e] = struct{}{}
}

func (r *resolver) rule(rule Rule) {
	e := ruleEntry{
		Priority: rule.Priority, IIF: rule.IIF, Mark: rule.Mark, Mask: rule.Mask,
		From: selector(rule.From), To: selector(rule.To), Table: rule.Table, Action: toTable,
	}
	if e.Mark != 0 && e.Mask == 0 {
		e.Mask = ^uint32(0)
	}
	families, err := ruleFamilies(rule)
	e.Family = rule.Family
	switch {
	case err != nil:
	case rule.Priority < PriorityMin || rule.Priority > PriorityMax:
		err = fmt.Errorf("priority is not one of ours, %d to %d", PriorityMin, PriorityMax)
	case rule.Table == 0:
		err = errors.New("no table")
	case e.Mark&^e.Mask != 0:
		err = errors.New("mark has bits outside of its mask")
	}
	if err != nil {
		r.fail(e.describe(), err)
		return
	}
	for _, e.Family = range families {
		r.state.rules[e] = struct{}{}
	}
}

// selector drops a prefix that selects everything, as the kernel does.
func selector(p netip.Prefix) netip.Prefix {
	if !p.IsValid() || p.Bits() == 0 {
		return netip.Prefix{}
	}
	return p.Masked()
}

// ruleFamilies returns the families that a rule is for.
func ruleFamilies(r Rule) ([]Family, error) {
	family := r.Family
	for _, p := range []netip.Prefix{r.From, r.To} {
		if !p.IsValid() {
			continue
		}
		of := IPv6
		if p.Addr().Is4() {
			of = IPv4
		}
		if family != 0 && family != of {
			return nil, errors.New("mixes IPv4 and IPv6")
		}
		family = of
	}
	switch family {
	case 0:
		return []Family{IPv4, IPv6}, nil
	case IPv4, IPv6:
		return []Family{family}, nil
	}
	return nil, fmt.Errorf("unknown family %d", family)
}

// plan is the difference between two states, in the order of its carrying out:
// addresses, routes and rules are added, then rules, routes and addresses
// removed, so that at no time something is missing that stands both before and
// after.
type plan struct {
	addAddrs  []addrEntry
	addRoutes []routeEntry // into an empty slot, or else it is somebody else's
	addBeside []routeEntry // into a slot from which another of ours will be removed
	addRules  []ruleEntry
	delRules  []ruleEntry
	delRoutes []routeEntry
	delAddrs  []addrEntry

	// lookAgain tells that the outcome is not certain beforehand, and that the
	// kernel has to be read, and the difference taken, once more.
	lookAgain bool
}

// diff plans the way from what the kernel has to what is wanted.
func diff(have, want *state) *plan {
	p := &plan{
		addAddrs:  missing(want.addrs, have.addrs, addrEntry.compare),
		addRules:  missing(want.rules, have.rules, ruleEntry.compare),
		delRules:  missing(have.rules, want.rules, ruleEntry.compare),
		delRoutes: missing(have.routes, want.routes, routeEntry.compare),
		delAddrs:  missing(have.addrs, want.addrs, addrEntry.compare),
	}
	// Only a route that goes can share a slot with one that comes: each slot is
	// wanted for one route only.
	taken := make(map[slot]bool, len(p.delRoutes))
	for _, r := range p.delRoutes {
		taken[r.slot()] = true
	}
	for _, r := range missing(want.routes, have.routes, routeEntry.compare) {
		if taken[r.slot()] {
			p.addBeside = append(p.addBeside, r)
		} else {
			p.addRoutes = append(p.addRoutes, r)
		}
	}
	p.lookAgain = len(p.addBeside) > 0
	for _, gone := range p.delRules {
		for stays := range want.rules {
			p.lookAgain = p.lookAgain || gone.describesToo(stays)
		}
	}
	return p
}

// describesToo tells whether the kernel, told to remove r, may take o instead:
// what r leaves open fits everything (rule_find in the kernel).
func (r ruleEntry) describesToo(o ruleEntry) bool {
	return r.Family == o.Family && r.Priority == o.Priority && r.Table == o.Table &&
		(r.IIF == "" || r.IIF == o.IIF) &&
		(r.Mark == 0 || r.Mark == o.Mark) && (r.Mask == 0 || r.Mask == o.Mask) &&
		(!r.From.IsValid() || r.From == o.From) && (!r.To.IsValid() || r.To == o.To)
}

// missing returns the sorted elements of in that are not in from.
func missing[T comparable](in, from map[T]struct{}, compare func(T, T) int) []T {
	var out []T
	for e := range maps.Keys(in) {
		if _, ok := from[e]; !ok {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, compare)
	return out
}
