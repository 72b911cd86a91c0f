package config

import (
	"fmt"
	"slices"
	"strings"

	"decoynet/deception"
)

// Action is what happened to an object between two states.
type Action string

// The actions of a Change.
const (
	Added   Action = "added"
	Removed Action = "removed"
	Changed Action = "changed"
)

// Change is one object in which two states differ.
type Change struct {
	Kind   string // node, segment, zone, service or decoy
	Name   string
	Action Action
	Fields []string // keys of the document that differ; for Changed only
}

// String writes the change for people: changed decoy office-web: addresses, bind.
func (c Change) String() string {
	s := fmt.Sprintf("%s %s %s", c.Action, c.Kind, c.Name)
	if len(c.Fields) > 0 {
		s += ": " + strings.Join(c.Fields, ", ")
	}
	return s
}

// Diff returns the objects in which the states differ: by kind, then in the
// order of the new state, with what was removed at each kind's end. Orders that
// mean nothing (of ports, subnets, bindings) are not compared. A nil state has
// no objects.
func Diff(old, new *deception.State) []Change {
	if old == nil {
		old = &deception.State{}
	}
	if new == nil {
		new = &deception.State{}
	}
	var out []Change
	if old.Node != new.Node && old.Node != "" && new.Node != "" {
		out = append(out, Change{Kind: "node", Name: new.Node, Action: Changed, Fields: []string{"node"}})
	}
	out = append(out, diffKind("segment", old.Segments, new.Segments, segmentAspects)...)
	out = append(out, diffKind("zone", old.Zones, new.Zones, zoneAspects)...)
	out = append(out, diffKind("service", old.Services, new.Services, serviceAspects)...)
	return append(out, diffKind("decoy", old.Decoys, new.Decoys, decoyAspects)...)
}

// aspect is one key of an object, in a form in which equal means the same.
type aspect struct {
	key   string
	value []string
}

func diffKind[T any](kind string, old, new []T, aspects func(*T) (name string, all []aspect)) []Change {
	before := make(map[string][]aspect, len(old))
	for i := range old {
		name, all := aspects(&old[i])
		before[name] = all
	}
	var out []Change
	kept := make(map[string]bool, len(new))
	for i := range new {
		name, all := aspects(&new[i])
		kept[name] = true
		was, known := before[name]
		if !known {
			out = append(out, Change{Kind: kind, Name: name, Action: Added})
			continue
		}
		var fields []string
		for j, a := range all {
			if !slices.Equal(a.value, was[j].value) {
				fields = append(fields, a.key)
			}
		}
		if fields != nil {
			out = append(out, Change{Kind: kind, Name: name, Action: Changed, Fields: fields})
		}
	}
	for i := range old {
		if name, _ := aspects(&old[i]); !kept[name] {
			out = append(out, Change{Kind: kind, Name: name, Action: Removed})
		}
	}
	return out
}

func segmentAspects(s *deception.Segment) (string, []aspect) {
	subnets := make([]string, len(s.Subnets))
	for i, sub := range s.Subnets {
		subnets[i] = fmt.Sprint(sub.Prefix, " ", sub.Gateway)
	}
	return s.Name, []aspect{
		one("parent", s.Parent), unordered("subnets", subnets),
		ranges("exclude", s.Exclude), one("steering", string(s.Steering)),
	}
}

func zoneAspects(z *deception.Zone) (string, []aspect) {
	allow := make([]string, len(z.Allow))
	for i, a := range z.Allow {
		allow[i] = a.To.String() + " " + strings.Join(portTexts(a.Ports), ",")
	}
	return z.Name, []aspect{unordered("subnet", texts(z.Subnets)), one("link", z.Link), unordered("allow", allow)}
}

func serviceAspects(s *deception.Service) (string, []aspect) {
	return s.Name, []aspect{
		one("zone", s.Zone),
		{"address", []string{s.Addr4.String(), s.Addr6.String()}},
		{"ports", portTexts(s.Ports)},
		unordered("aliases", texts(s.Aliases)), one("netns", s.Netns),
	}
}

func decoyAspects(d *deception.Decoy) (string, []aspect) {
	addresses := ranges("addresses", d.Addresses)
	if d.Any {
		addresses.value = append(addresses.value, "any")
	}
	var bind []string
	for _, b := range d.Bind {
		for _, p := range b.Ports {
			bind = append(bind, fmt.Sprintf("%s %s %d", p, b.Service, b.Target))
		}
	}
	return d.Name, []aspect{
		one("segment", d.Segment), addresses, unordered("bind", bind),
		one("path", string(d.Path)), one("idle", d.Idle.String()),
	}
}

func one(key, value string) aspect { return aspect{key, []string{value}} }

func unordered(key string, list []string) aspect {
	return aspect{key, slices.Sorted(slices.Values(list))}
}

func ranges(key string, list []deception.AddrRange) aspect {
	return aspect{key, texts(deception.SortRanges(list))}
}

func portTexts(list []deception.PortRange) []string {
	return slices.Sorted(slices.Values(texts(list)))
}

func texts[T fmt.Stringer](list []T) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = v.String()
	}
	return out
}
