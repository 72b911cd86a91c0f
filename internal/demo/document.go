package demo

import (
	_ "embed"
	"fmt"
	"net/netip"
	"slices"

	"decoynet/config"
	"decoynet/deception"
)

// Document is what decoynet runs by in the demo, as a person would write it.
//
//go:embed office.yaml
var Document []byte

// mistake is a line that somebody wrote by mistake at the end of the document:
// at that port stands a service of the business server's own.
const mistake = "      - {ports: [8443], service: web, target: 443}\n"

// plan answers what the document promises an intruder.
type plan struct {
	state deception.State
	table *deception.Table
	// hosts are the addresses of nodes whose decoys stand at the machine's own
	// addresses, with the node's name: the document need not know them.
	hosts map[netip.Addr]string
}

func readPlan(document []byte, hosts map[netip.Addr]string) (*plan, error) {
	doc, err := config.Parse("office.yaml", document)
	if err != nil {
		return nil, fmt.Errorf("read the demo's document: %w", err)
	}
	return &plan{state: doc.State, table: deception.NewTable(&doc.State), hosts: hosts}, nil
}

// node tells whether the document has a node of that name.
func (p *plan) node(name string) bool {
	return slices.ContainsFunc(p.state.Nodes, func(n deception.Node) bool { return n.Name == name })
}

// addresses returns the decoy addresses of one path (of all with an empty one),
// in the document's order. Addresses of machines are none.
func (p *plan) addresses(path deception.Path) []netip.Addr {
	var out []netip.Addr
	for i := range p.state.Decoys {
		d := &p.state.Decoys[i]
		if d.Segment == deception.HostSegment || path != "" && d.Path != path {
			continue
		}
		for _, r := range d.Addresses {
			for n := range r.Len() {
				out = append(out, deception.Nth(r.From, n))
			}
		}
	}
	return out
}

// decoys returns all decoy addresses of the family of like.
func (p *plan) decoys(like netip.Addr) []netip.Addr {
	return slices.DeleteFunc(p.addresses(""), func(a netip.Addr) bool { return a.Is4() != like.Is4() })
}

// service returns the name of the service that the decoy's port leads to, ""
// where nothing is bound.
func (p *plan) service(t deception.Transport, decoy netip.AddrPort) string {
	if node, ok := p.hosts[decoy.Addr()]; ok {
		target, ok := p.table.Lookup(deception.SegmentKey(node, deception.HostSegment), t, decoy)
		if !ok {
			return ""
		}
		return target.Service.Name
	}
	for i := range p.state.Segments {
		if target, ok := p.table.Lookup(p.state.Segments[i].Name, t, decoy); ok {
			return target.Service.Name
		}
	}
	return ""
}
