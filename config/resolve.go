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
	if doc.Options.Node == "" {
		doc.Options.Node = hostName()
	}
	doc.State.Node = doc.Options.Node
	for _, s := range d.segments {
		doc.State.Segments = append(doc.State.Segments, s.resolve())
	}
	for _, z := range d.zones {
		doc.State.Zones = append(doc.State.Zones, deception.Zone{
			Name: z.name.v, Subnets: values(z.subnets), Link: z.link.v, Allow: z.allow,
		})
	}
	for _, s := range d.services {
		doc.State.Services = append(doc.State.Services, s.resolve())
	}
	for _, dd := range d.decoys {
		doc.State.Decoys = append(doc.State.Decoys, dd.resolve())
	}
	return doc
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
		Name: s.name.v, Parent: s.parent.v,
		Exclude:  deception.SortRanges(values(s.exclude)),
		Steering: deception.Steering(cmp.Or(s.steering.v, string(deception.SteeringAuto))),
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

func (d *decoyDraft) resolve() deception.Decoy {
	out := deception.Decoy{
		Name: d.name.v, Segment: d.segment.v,
		Addresses: deception.SortRanges(values(d.addresses)),
		Path:      deception.Path(cmp.Or(d.path.v, string(deception.PathRelay))),
		Idle:      cmp.Or(d.idle.v, DefaultIdle),
	}
	for _, b := range d.bind {
		out.Bind = append(out.Bind, deception.Binding{
			Ports: slices.Clip(values(b.ports)), Service: b.service.v, Target: b.target.v,
		})
	}
	return out
}
