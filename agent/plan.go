//go:build linux

package agent

import (
	"net/netip"
	"slices"

	"decoynet/deception"
	"decoynet/internal/health"
	"decoynet/internal/kernel/disguise"
	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/route"
	"decoynet/internal/kernel/steer"
)

// segmentPlan is everything that the kernel is to hold for one segment.
type segmentPlan struct {
	segment deception.Segment
	decoys  []*deception.Decoy
	index   int // of the segment's routing table and mark on the kernel path
	link    link.Desired
	routes  route.Desired
	groups  []steer.Group
	kernel  []deception.KernelRoute
	looks   []disguise.Policy // without seeds, which are the machine's
}

// openPort tells whether a port of a service is to be reachable now.
type openPort func(health.Port) bool

// opening decides which ports are open: by the service where this node knows it,
// by what the gateway says of the decoy where it does not.
type opening struct {
	service openPort
	decoy   Up // nil: every port
}

// planSegment is the whole way from the document to the kernel's objects of one
// segment. groupID gives each name the same number for ever.
func planSegment(state *deception.State, table *deception.Table, seg deception.Segment, index int, open opening, groupID func(string) uint32) segmentPlan {
	decoys := state.DecoysOf(seg.Name)
	p := segmentPlan{segment: seg, decoys: decoys, index: index}
	for _, d := range decoys {
		if d.Path == deception.PathKernel {
			p.link.Uplink = true
			continue
		}
		p.groups = append(p.groups, planGroups(state, d, open, groupID)...)
	}
	if p.link.Uplink {
		p.kernel = table.KernelRoutes(seg.Name, func(s *deception.Service, t deception.Transport, port uint16, family netip.Addr) bool {
			unit, ok := health.PortOf(s, t, port, family)
			return ok && open.service(unit)
		})
	}
	p.link.Segment, p.link.Parent, p.link.VLAN, p.link.Node = seg.Name, seg.Parent, seg.VLAN, state.Node
	p.routes = planRoutes(state, seg, decoys, p.link.Uplink)
	p.looks = planLooks(decoys)
	return p
}

// planLooks says how the decoys look that are not to look as the node does.
func planLooks(decoys []*deception.Decoy) []disguise.Policy {
	var out []disguise.Policy
	for _, d := range decoys {
		if !d.MAC.IsValid() && d.Personality == "" {
			continue
		}
		p := disguise.Policy{OUI: d.MAC, Personality: d.Personality}
		for _, r := range d.Addresses {
			p.Prefixes = append(p.Prefixes, r.Prefixes()...)
		}
		out = append(out, p)
	}
	return out
}

// planRoutes lays out the segment's namespace but for the decoys' addresses, which
// are ours only once they are claimed (see holding): the subnets are on the link,
// the gateways lead out.
func planRoutes(state *deception.State, seg deception.Segment, decoys []*deception.Decoy, uplink bool) route.Desired {
	d := route.Desired{Link: link.LANName}
	for _, s := range seg.Subnets {
		d.Connected = append(d.Connected, s.Prefix)
		if s.Gateway.IsValid() {
			d.Gateways = append(d.Gateways, s.Gateway)
		}
	}
	if uplink {
		d.Routes = uplinkRoutes(state, decoys)
	}
	return d
}

// holding adds the addresses that are held to what a segment's namespace is to be.
func holding(d route.Desired, held []deception.AddrRange) route.Desired {
	for _, r := range held {
		if r.From.Is4() {
			d.Local4 = append(d.Local4, r.Prefixes()...)
			continue
		}
		for a := r.From; a.IsValid() && !r.To.Less(a); a = a.Next() {
			d.Addrs6 = append(d.Addrs6, a)
		}
	}
	return d
}

// uplinkRoutes lead the segment's namespace to the services of its kernel-path
// decoys, and to nothing else.
func uplinkRoutes(state *deception.State, decoys []*deception.Decoy) []route.Route {
	var targets []netip.Prefix
	for _, d := range decoys {
		if d.Path != deception.PathKernel {
			continue
		}
		for _, b := range d.Bind {
			s := state.Service(b.Service)
			targets = append(targets, s.Aliases...)
			for _, a := range []netip.Addr{s.Addr4, s.Addr6} {
				if a.IsValid() {
					targets = append(targets, netip.PrefixFrom(a, a.BitLen()))
				}
			}
		}
	}
	slices.SortFunc(targets, netip.Prefix.Compare)
	var out []route.Route
	for _, t := range slices.Compact(targets) {
		via := link.NextHopHost4
		if t.Addr().Is6() {
			via = link.NextHopHost6
		}
		out = append(out, route.Route{Dst: t, Via: via, Dev: link.UplinkName, Onlink: true})
	}
	return out
}

// planGroups returns a decoy's steering groups, one a family: the same service
// may be up at its IPv4 address and down at its IPv6 address.
func planGroups(state *deception.State, d *deception.Decoy, open opening, groupID func(string) uint32) []steer.Group {
	var out []steer.Group
	for _, is4 := range []bool{true, false} {
		g := steer.Group{ID: groupID(d.Name + family(is4))}
		for _, r := range d.Addresses {
			if r.From.Is4() == is4 {
				g.Prefixes = append(g.Prefixes, r.Prefixes()...)
			}
		}
		if len(g.Prefixes) == 0 {
			continue
		}
		for i := range d.Bind {
			b := &d.Bind[i]
			if s := state.Service(b.Service); s != nil {
				g.Ports = append(g.Ports, openPorts(s, b, g.Prefixes[0].Addr(), open.service)...)
			} else {
				g.Ports = append(g.Ports, forwardedPorts(d, b, !is4, open.decoy)...)
			}
		}
		out = append(out, g)
	}
	return out
}

func family(is4 bool) string {
	if is4 {
		return "/ipv4"
	}
	return "/ipv6"
}

// forwardedPorts returns the decoy's ports of one binding that the gateway, which
// knows the service, wants open.
func forwardedPorts(d *deception.Decoy, b *deception.Binding, ipv6 bool, up Up) []deception.PortRange {
	if up == nil {
		return b.Ports
	}
	var out []deception.PortRange
	for _, r := range b.Ports {
		open := false // the port before is, and in the last range
		for port := int(r.First); port <= int(r.Last); port++ {
			was := open
			if open = up(d, r.Transport, uint16(port), ipv6); !open {
				continue
			}
			if was {
				out[len(out)-1].Last = uint16(port)
			} else {
				out = append(out, deception.Port(r.Transport, uint16(port)))
			}
		}
	}
	return out
}

// openPorts returns the decoy's ports of one binding whose service port is up.
func openPorts(s *deception.Service, b *deception.Binding, address netip.Addr, open openPort) []deception.PortRange {
	var out []deception.PortRange
	for _, decoyPorts := range b.Ports {
		if b.Target != 0 {
			if unit, ok := health.PortOf(s, decoyPorts.Transport, b.Target, address); ok && open(unit) {
				out = append(out, decoyPorts)
			}
			continue
		}
		for _, served := range s.Ports {
			if !served.Overlaps(decoyPorts) {
				continue
			}
			if unit, ok := health.PortOf(s, served.Transport, served.First, address); ok && open(unit) {
				out = append(out, deception.PortRange{
					Transport: served.Transport,
					First:     max(served.First, decoyPorts.First), Last: min(served.Last, decoyPorts.Last),
				})
			}
		}
	}
	return out
}
