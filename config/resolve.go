package config

import (
	"cmp"
	"os"
	"slices"

	"decoynet/deception"
)

// resolve makes the document of a draft without faults, with its defaults.
func (d *draft) resolve() *Document {
	doc := &Document{Options: Options{
		Node:      d.node.v,
		Data:      d.data.v,
		Retention: cmp.Or(d.retention.v, DefaultRetention),
		Heads:     d.heads.v != "false",
	}}
	switch {
	case doc.Options.Node != "":
	case len(d.nodes) == 1:
		doc.Options.Node = d.nodes[0].name.v
	default:
		doc.Options.Node = hostName()
	}
	doc.State.Node = doc.Options.Node
	d.resolveMachines(doc)
	for _, s := range d.segments {
		doc.State.Segments = append(doc.State.Segments, s.resolve())
	}
	for _, z := range d.zones {
		doc.State.Zones = append(doc.State.Zones, z.resolve())
	}
	for _, s := range d.services {
		doc.State.Services = append(doc.State.Services, s.resolve())
	}
	for _, dd := range d.decoys {
		doc.State.Decoys = append(doc.State.Decoys, dd.resolve(doc.Options.Node))
	}
	for _, s := range d.scanners {
		doc.State.Scanners = append(doc.State.Scanners, s.resolve())
	}
	if d.inspect != nil {
		doc.State.Inspect = d.inspect.resolve()
	}
	return doc
}

func (d *draft) resolveMachines(doc *Document) {
	for _, n := range d.nodes {
		doc.State.Nodes = append(doc.State.Nodes, deception.Node{Name: n.name.v})
	}
	for _, g := range d.gateways {
		out := deception.Gateway{Name: g.name.v, Node: g.place.node, Listen: g.listen.v}
		if len(g.addresses) > 0 {
			out.Addresses = values(g.addresses)
		}
		doc.State.Gateways = append(doc.State.Gateways, out)
	}
	if c := d.controller; c != nil {
		doc.Options.Controller = &Controller{Node: c.place.node, Listen: c.listen.v}
		if len(c.urls) > 0 {
			doc.Options.Controller.URLs = values(c.urls)
		}
		if len(d.nodes) == 0 {
			doc.Options.Controller.Node = doc.Options.Node
		}
	}
}

func (z *zoneDraft) resolve() deception.Zone {
	out := deception.Zone{Name: z.name.v, Node: z.place.node, Subnets: values(z.subnets), Link: z.link.v, Allow: z.allow}
	if e := z.egress; e != nil {
		out.Link = cmp.Or(out.Link, deception.LinkAuto)
		out.Egress = &deception.Egress{Node: e.node.v, Listen: e.listen.v}
		if len(e.from) > 0 {
			out.Egress.From = values(e.from)
		}
	}
	return out
}

// hostName returns the machine's name as the kernel has it. Where it has none
// at all, events still need some node to be of.
func hostName() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "localhost"
	}
	return name
}

func (s *segmentDraft) resolve() deception.Segment {
	out := deception.Segment{
		Name: s.name.v, Node: s.place.node, Parent: s.parent.v, VLAN: s.vlan.v,
		Exclude:  deception.SortRanges(values(s.exclude)),
		Steering: deception.Steering(cmp.Or(s.steering.v, string(deception.SteeringAuto))),
		Claim:    deception.Claim(cmp.Or(s.claim.v, string(deception.ClaimProbe))),
	}
	for _, sub := range s.subnets {
		out.Subnets = append(out.Subnets, deception.Subnet{Prefix: sub.prefix.v, Gateway: sub.gateway.v})
	}
	return out
}

func (s *serviceDraft) resolve() deception.Service {
	out := deception.Service{Name: s.name.v, Zone: s.zone.v, Ports: values(s.ports), Netns: s.netns.v}
	if len(s.aliases) > 0 {
		out.Aliases = values(s.aliases)
	}
	for _, a := range s.addresses {
		if a.v.Is4() {
			out.Addr4 = a.v
		} else {
			out.Addr6 = a.v
		}
	}
	return out
}

// resolve makes the decoy; self is the machine's name in a document of one.
func (d *decoyDraft) resolve(self string) deception.Decoy {
	out := deception.Decoy{
		Name: d.name.v, Segment: d.segment.v, Node: d.place.node, Any: d.any.ok,
		Addresses: deception.SortRanges(values(d.addresses)),
		Path:      deception.Path(cmp.Or(d.path.v, string(deception.PathRelay))),
		Idle:      cmp.Or(d.idle.v, DefaultIdle),
		MAC:       d.looks.mac.v, Personality: deception.Personality(d.looks.personality.v),
	}
	if d.host {
		out.Node = cmp.Or(out.Node, self)
	}
	for _, b := range d.bind {
		out.Bind = append(out.Bind, deception.Binding{
			Ports: slices.Clip(values(b.ports)), Service: b.service.v, Target: b.target.v,
		})
	}
	return out
}
