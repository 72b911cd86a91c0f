package deception

import "slices"

// Part returns what a node has to know of the whole: its own segments and
// decoys; as an ingress gateway also the decoys of nodes that have none, and
// every zone and service that it can reach; as an egress its zones and their
// services. A document of one machine is its own part, and so is a part.
//
// Known scanners are told to gateways, which record the sessions, and where
// probes are sensed, in the segments of decoys. An agent that listens on a
// machine's own addresses is not told whom nobody looks at.
//
// What is to be analysed is told to the nodes that do it.
//
// An agent on somebody's business server is thus told of its own ports and of
// the gateways, never of other networks, or of services' addresses and ports.
func (s *State) Part(node string) State {
	if len(s.Nodes) == 0 {
		return *s
	}
	part := State{Node: node, Nodes: []Node{{Name: node}}}
	ingress := s.HasGateway(node)
	for _, g := range s.Segments {
		if g.Node == node {
			part.Segments = append(part.Segments, g)
		}
	}
	for _, z := range s.Zones {
		switch {
		case z.Node == node:
			part.Zones = append(part.Zones, z)
		case ingress && z.Egress != nil:
			part.Zones = append(part.Zones, z.fromAfar())
		}
	}
	for _, v := range s.Services {
		z := part.Zone(v.Zone)
		if z == nil {
			continue
		}
		if !z.IsLocal() {
			v.Netns = ""
		}
		part.Services = append(part.Services, v)
	}
	away := false   // some flow leaves the node through a tunnel
	senses := false // decoys stand in a segment of the node
	starts := s.aliasStarts()
	for i, d := range s.Decoys {
		own := d.Node == node
		tunnelled := d.Path != PathKernel && !s.HasGateway(d.Node)
		if own || ingress && tunnelled {
			part.Decoys = append(part.Decoys, d.within(&part, starts[i]))
		}
		away = away || own && tunnelled
		senses = senses || own && d.Segment != HostSegment
	}
	if ingress || senses {
		part.Scanners = s.Scanners
	}
	if s.inspects(node, ingress, &part) {
		own := *s.Inspect
		if len(own.Nodes) > 0 {
			own.Nodes = []string{node}
		}
		part.Inspect = &own
	}
	for _, g := range s.Gateways {
		if away || g.Node == node {
			part.Gateways = append(part.Gateways, g)
		}
	}
	return part
}

// inspects tells whether a node analyses: one that the document names, or where
// it names none, one that takes flows to services by itself.
func (s *State) inspects(node string, ingress bool, part *State) bool {
	switch {
	case s.Inspect == nil:
		return false
	case len(s.Inspect.Nodes) > 0:
		return slices.Contains(s.Inspect.Nodes, node)
	}
	return ingress || slices.ContainsFunc(part.Decoys, func(d Decoy) bool { return len(s.Gateways) == 0 || d.Path == PathKernel })
}

// fromAfar returns what an ingress gateway on another machine has to know.
func (z Zone) fromAfar() Zone {
	egress := *z.Egress
	egress.From = nil
	z.Link, z.Allow, z.Egress = "", nil, &egress
	return z
}

// within returns the decoy as a part holds it: bindings to services that the
// part lacks say no more than their ports and the service's name, and what
// alias addresses it has does not depend on the decoys that are left out.
func (d Decoy) within(part *State, starts []AliasStart) Decoy {
	d.Aliases = nil
	for _, a := range starts {
		if part.Service(a.Service) != nil {
			d.Aliases = append(d.Aliases, a)
		}
	}
	d.Bind = slices.Clone(d.Bind)
	for i := range d.Bind {
		if part.Service(d.Bind[i].Service) == nil {
			d.Bind[i].Target = 0
		}
	}
	return d
}

// HasGateway tells whether an ingress gateway runs on the node.
func (s *State) HasGateway(node string) bool {
	return slices.ContainsFunc(s.Gateways, func(g Gateway) bool { return g.Node == node })
}

// Tunnels tells whether the node brings its flows to ingress gateways on other
// nodes.
func (s *State) Tunnels() bool {
	return len(s.Gateways) > 0 && !s.HasGateway(s.Node)
}

// IsLocal tells whether the services of the zone are behind a link of the
// node whose part this is.
func (z *Zone) IsLocal() bool { return z.Link != "" }
