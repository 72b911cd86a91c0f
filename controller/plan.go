package controller

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"decoynet/config"
	"decoynet/deception"
	"decoynet/internal/registry"
	"decoynet/internal/rpc"
	"decoynet/internal/rpc/decoynetv1"
)

// facts is what a plan is made of.
type facts struct {
	change   int64  // of the registry
	revision string // of the document, "" where there is none
	document *config.Document
	enrolled []registry.Node
	urls     []string
	version  string // of this program
}

// plan is what every node is to be. It is never changed, only replaced.
type plan struct {
	facts
	nodes map[string]*planned
	// parts are the document's, per node. They are the costly part of a plan, and most
	// changes (who enrolled, what is where) leave the document alone.
	parts map[string]deception.State
	// problem is why the document that was applied is not what nodes are told.
	problem error
}

// planned is one node in a plan: one that was enrolled, one of the document, or both.
type planned struct {
	name     string
	enrolled *registry.Node // nil where it never was
	inside   bool           // the document names it
	gateway  bool           // it has an ingress gateway
	// relays: it has one, or had one while this controller ran. What it recorded as
	// one may arrive when it is none any more.
	relays bool
	// snapshot is nil where nothing can be said: the document is unreadable.
	snapshot *decoynetv1.Snapshot
}

// wanted returns the revision that the node is to hold.
func (p *planned) wanted() string { return p.snapshot.GetRevision() }

// makePlan works out every node's snapshot. A snapshot's revision is a hash of what it
// says, so one that a change does not touch keeps it. Snapshots that are as in the
// previous plan are taken from there.
func makePlan(f facts, previous *plan) (*plan, error) {
	p := &plan{facts: f, nodes: make(map[string]*planned), parts: make(map[string]deception.State)}
	if previous != nil && previous.document == f.document {
		p.parts = previous.parts
	}
	for i := range f.enrolled {
		n := &f.enrolled[i]
		p.nodes[n.Name] = &planned{name: n.Name, enrolled: n}
	}
	state := &deception.State{}
	if f.document != nil {
		state = &f.document.State
	}
	for _, name := range documentNodes(state) {
		if p.nodes[name] == nil {
			p.nodes[name] = &planned{name: name}
		}
		p.nodes[name].inside = true
		p.nodes[name].gateway = state.HasGateway(name)
	}
	w := newWords(state, f, p.parts)
	for name, n := range p.nodes {
		snapshot, err := w.snapshot(n)
		if err != nil {
			return nil, fmt.Errorf("work out the part of node %s: %w", name, err)
		}
		n.snapshot, n.relays = snapshot, n.gateway
		if previous == nil {
			continue
		}
		if before := previous.nodes[name]; before != nil {
			n.relays = n.relays || before.relays
			if before.wanted() == snapshot.Revision {
				n.snapshot = before.snapshot
			}
		}
	}
	return p, nil
}

// documentNodes returns the machines that a document is about.
func documentNodes(s *deception.State) []string {
	if len(s.Nodes) == 0 {
		if s.Node == "" {
			return nil
		}
		return []string{s.Node}
	}
	out := make([]string, len(s.Nodes))
	for i, n := range s.Nodes {
		out[i] = n.Name
	}
	return out
}

// words is what goes into snapshots of one plan.
type words struct {
	state    *deception.State
	facts    facts
	parts    map[string]deception.State // filled as they are asked for
	gateways []deception.Gateway        // with addresses filled in
	from     []netip.Prefix             // that ingress gateways come from
	peers    []*decoynetv1.Peer
}

func newWords(state *deception.State, f facts, parts map[string]deception.State) *words {
	w := &words{state: state, facts: f, parts: parts, gateways: slices.Clone(state.Gateways)}
	nodes := make(map[string]*registry.Node, len(f.enrolled))
	for i := range f.enrolled {
		n := &f.enrolled[i]
		nodes[n.Name] = n
		if n.Revoked.IsZero() {
			w.peers = append(w.peers, &decoynetv1.Peer{Node: n.Name, Generation: n.Generation})
		}
	}
	for i := range w.gateways {
		g := &w.gateways[i]
		if len(g.Addresses) == 0 && g.Listen.Addr().IsUnspecified() {
			g.Addresses = gatewayAddresses(g, nodes[g.Node], state.Zones)
		}
		w.from = append(w.from, machineAddresses(nodes[g.Node])...)
	}
	slices.SortFunc(w.from, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	w.from = slices.Compact(w.from)
	return w
}

// snapshot returns one node's part.
func (w *words) snapshot(n *planned) (*decoynetv1.Snapshot, error) {
	part := w.part(n)
	if part.Tunnels() {
		part.Gateways = slices.Clone(part.Gateways)
		for i := range part.Gateways {
			at := slices.IndexFunc(w.gateways, func(g deception.Gateway) bool { return g.Name == part.Gateways[i].Name })
			part.Gateways[i] = w.gateways[at]
		}
	}
	part.Zones = slices.Clone(part.Zones)
	for i := range part.Zones {
		z := &part.Zones[i]
		if z.Egress != nil && z.Node == n.name && len(z.Egress.From) == 0 {
			egress := *z.Egress // the document's own stays as it is
			egress.From = w.comers(egress.Listen.Addr())
			z.Egress = &egress
		}
	}
	encoded, err := rpc.EncodeState(&part)
	if err != nil {
		return nil, err
	}
	s := &decoynetv1.Snapshot{
		State: encoded, Version: w.facts.version, Controllers: w.facts.urls,
		Heads: w.facts.document != nil && w.facts.document.Options.Heads,
	}
	if n.gateway {
		s.Peers = w.peers
	}
	s.Revision = revisionOf(s)
	return s, nil
}

// part is deception.State.Part, but nothing for a node that the document does not
// name: a document of one machine is that machine's alone.
func (w *words) part(n *planned) deception.State {
	if !n.inside {
		return deception.State{Node: n.name, Nodes: []deception.Node{{Name: n.name}}}
	}
	part, ok := w.parts[n.name]
	if !ok {
		part = w.state.Part(n.name)
		w.parts[n.name] = part
	}
	return part
}

// comers returns the networks that ingress gateways connect to an egress from,
// empty where none was heard of yet.
func (w *words) comers(listen netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range w.from {
		a := p.Addr()
		if !listen.IsUnspecified() && (a.Is4() != listen.Is4() || a.IsLoopback() != listen.IsLoopback()) {
			continue
		}
		out = append(out, p)
	}
	return out
}

// maxGatewayAddresses is at how many addresses agents try a gateway.
const maxGatewayAddresses = 8

// gatewayAddresses returns where a gateway that listens on every address of its node
// is probably reached: where its node is seen at, then what the machine reports. The
// zones' networks are nobody's business, and lead nowhere for an agent.
func gatewayAddresses(g *deception.Gateway, n *registry.Node, zones []deception.Zone) []string {
	if n == nil {
		return nil
	}
	var out, loopback []string
	add := func(host string) {
		a, err := netip.ParseAddr(host)
		address := net.JoinHostPort(host, strconv.Itoa(int(g.Listen.Port())))
		switch {
		case slices.Contains(out, address) || slices.Contains(loopback, address):
		case err != nil: // a name
			out = append(out, address)
		case g.Listen.Addr().Is4() && !a.Is4(), a.IsLinkLocalUnicast(), inZone(a, zones):
		case a.IsLoopback():
			loopback = append(loopback, address)
		default:
			out = append(out, address)
		}
	}
	for _, host := range n.Reach {
		add(host)
	}
	for _, a := range slices.Sorted(slices.Values(n.Addresses)) {
		add(a)
	}
	if len(out) == 0 {
		return loopback // everything is on one machine
	}
	return out[:min(len(out), maxGatewayAddresses)]
}

func inZone(a netip.Addr, zones []deception.Zone) bool {
	return slices.ContainsFunc(zones, func(z deception.Zone) bool {
		return slices.ContainsFunc(z.Subnets, func(p netip.Prefix) bool { return p.Contains(a) })
	})
}

// machineAddresses returns the node's addresses, each as a network of one.
func machineAddresses(n *registry.Node) []netip.Prefix {
	if n == nil {
		return nil
	}
	var out []netip.Prefix
	for _, s := range slices.Concat(n.Reach, n.Addresses) {
		if a, err := netip.ParseAddr(s); err == nil && !a.IsLinkLocalUnicast() {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

// revisionOf hashes what a snapshot asks of a node. The controller's version is not
// part of it: two controllers may differ in that.
func revisionOf(s *decoynetv1.Snapshot) string {
	h := sha256.New()
	put := func(b []byte) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(b)))
		h.Write(n[:])
		h.Write(b)
	}
	put(s.State)
	put(strconv.AppendBool(nil, s.Heads))
	put(binary.BigEndian.AppendUint64(nil, uint64(len(s.Peers))))
	for _, p := range s.Peers {
		put([]byte(p.Node))
		put(binary.BigEndian.AppendUint32(nil, p.Generation))
	}
	for _, u := range s.Controllers {
		put([]byte(u))
	}
	return hex.EncodeToString(h.Sum(nil)[:6])
}

// changes says what a document changes, node by node, as people read it.
func changes(old, new *config.Document) []*decoynetv1.Change {
	var before, after *deception.State
	if old != nil {
		before = &old.State
	}
	if new != nil {
		after = &new.State
	}
	var out []*decoynetv1.Change
	for _, c := range config.DiffNodes(before, after) {
		sign := map[config.Action]string{config.Added: "+", config.Removed: "-", config.Changed: "~"}[c.Action]
		text := fmt.Sprintf("%s %s %s", cmp.Or(sign, "~"), c.Kind, c.Name)
		for i, f := range c.Fields {
			text += map[bool]string{true: ": ", false: ", "}[i == 0] + f
		}
		out = append(out, &decoynetv1.Change{Node: c.Node, Text: text})
	}
	return out
}
