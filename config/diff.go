package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

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
	Kind   string // node, gateway, segment, zone, service, decoy, scanner or inspect
	Name   string
	Action Action
	Fields []string // keys of the document that differ, or aliases where a decoy's alias addresses move; for Changed only
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
	single := len(old.Nodes) == 0 && len(new.Nodes) == 0
	if single && old.Node != new.Node && old.Node != "" && new.Node != "" {
		out = append(out, Change{Kind: "node", Name: new.Node, Action: Changed, Fields: []string{"node"}})
	}
	out = append(out, diffKind("node", old.Nodes, new.Nodes, nodeAspects)...)
	out = append(out, diffKind("gateway", old.Gateways, new.Gateways, gatewayAspects)...)
	out = append(out, diffKind("segment", old.Segments, new.Segments, segmentAspects)...)
	out = append(out, diffKind("zone", old.Zones, new.Zones, zoneAspects)...)
	out = append(out, diffKind("service", old.Services, new.Services, serviceAspects)...)
	out = append(out, diffKind("decoy", old.Decoys, new.Decoys, decoyAspects)...)
	out = append(out, diffKind("scanner", old.Scanners, new.Scanners, scannerAspects)...)
	return append(out, diffKind("inspect", inspects(old), inspects(new), inspectAspects)...)
}

// NodeChange is what changes on one node.
type NodeChange struct {
	Node string
	Change
}

// String writes the change for people: crm-1: changed decoy crm: bind.
func (c NodeChange) String() string { return c.Node + ": " + c.Change.String() }

// DiffNodes returns what changes on which node between two whole documents: for
// each node, in the order of the new document with those that are removed at
// the end, how its part differs (see deception.State.Part). A node that comes or
// goes is itself the first of its changes. A document of one machine has the
// machine for its only node; a nil state has none.
func DiffNodes(old, new *deception.State) []NodeChange {
	if old == nil {
		old = &deception.State{}
	}
	if new == nil {
		new = &deception.State{}
	}
	var out []NodeChange
	before, after := nodesOf(old), nodesOf(new)
	for _, node := range after {
		if !slices.Contains(before, node) {
			out = append(out, NodeChange{node, Change{Kind: "node", Name: node, Action: Added}})
			out = append(out, diffNode(node, &deception.State{}, new)...)
			continue
		}
		out = append(out, diffNode(node, old, new)...)
	}
	for _, node := range before {
		if !slices.Contains(after, node) {
			out = append(out, NodeChange{node, Change{Kind: "node", Name: node, Action: Removed}})
			out = append(out, diffNode(node, old, &deception.State{})...)
		}
	}
	return out
}

func nodesOf(s *deception.State) []string {
	if len(s.Nodes) == 0 && s.Node != "" {
		return []string{s.Node}
	}
	out := make([]string, len(s.Nodes))
	for i, n := range s.Nodes {
		out[i] = n.Name
	}
	return out
}

func diffNode(node string, old, new *deception.State) []NodeChange {
	before, after := old.Part(node), new.Part(node)
	before.Nodes, after.Nodes = nil, nil // said by DiffNodes
	var out []NodeChange
	for _, c := range Diff(&before, &after) {
		out = append(out, NodeChange{node, c})
	}
	return out
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

func nodeAspects(n *deception.Node) (string, []aspect) { return n.Name, nil }

func gatewayAspects(g *deception.Gateway) (string, []aspect) {
	return g.Name, []aspect{one("node", g.Node), one("listen", g.Listen.String()), {"addresses", g.Addresses}}
}

func segmentAspects(s *deception.Segment) (string, []aspect) {
	subnets := make([]string, len(s.Subnets))
	for i, sub := range s.Subnets {
		subnets[i] = fmt.Sprint(sub.Prefix, " ", sub.Gateway)
	}
	return s.Name, []aspect{
		one("node", s.Node), one("parent", s.Parent), unordered("subnets", subnets),
		ranges("exclude", s.Exclude), one("steering", string(s.Steering)),
		one("vlan", strconv.Itoa(int(s.VLAN))), one("claim", string(s.Claim)),
	}
}

func zoneAspects(z *deception.Zone) (string, []aspect) {
	allow := make([]string, len(z.Allow))
	for i, a := range z.Allow {
		allow[i] = a.To.String() + " " + strings.Join(portTexts(a.Ports), ",")
	}
	egress := aspect{key: "egress"}
	if e := z.Egress; e != nil {
		egress.value = append([]string{e.Node, e.Listen.String()}, slices.Sorted(slices.Values(texts(e.From)))...)
	}
	return z.Name, []aspect{
		one("node", z.Node), unordered("subnet", texts(z.Subnets)), one("link", z.Link), unordered("allow", allow), egress,
	}
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
	var aliases []string
	for _, a := range d.Aliases {
		aliases = append(aliases, fmt.Sprint(a.Service, " ", a.Pool, " ", a.Used))
	}
	return d.Name, []aspect{
		one("segment", d.Segment), one("node", d.Node), addresses, unordered("bind", bind),
		one("path", string(d.Path)), one("idle", d.Idle.String()),
		unordered("aliases", aliases),
		one("mac", d.MAC.String()), one("personality", string(d.Personality)),
	}
}

func scannerAspects(s *deception.Scanner) (string, []aspect) {
	until := ""
	if !s.Until.IsZero() {
		until = s.Until.Format(time.RFC3339Nano)
	}
	return s.Name, []aspect{unordered("from", texts(s.From)), {"ports", portTexts(s.Ports)}, one("until", until)}
}

// inspects returns what the state asks for of analysis as a list of one or none.
func inspects(s *deception.State) []deception.Inspect {
	if s.Inspect == nil {
		return nil
	}
	return []deception.Inspect{*s.Inspect}
}

func inspectAspects(i *deception.Inspect) (string, []aspect) {
	capture := make([]string, len(i.Capture))
	for j, c := range i.Capture {
		capture[j] = c.Interface + " " + strings.Join(portTexts(c.Ports), ",")
	}
	return "all", []aspect{
		one("suricata", string(i.Suricata)), one("eve", i.EVE), one("feeds", strconv.FormatBool(i.FIFO)), one("tap", i.Tap),
		one("depth", strconv.FormatUint(i.Depth, 10)), unordered("rules", i.Rules), one("system-rules", strconv.FormatBool(i.SystemRules)),
		unordered("capture", capture), unordered("nodes", i.Nodes),
		one("pcap", fmt.Sprint(i.PCAP.MaxBytes, " ", i.PCAP.MaxAge, " ", i.PCAP.SessionBytes)),
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
