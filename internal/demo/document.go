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

// plan answers what the document promises an intruder.
type plan struct {
	state deception.State
	table *deception.Table
}

func readPlan(document []byte) (*plan, error) {
	doc, err := config.Parse("office.yaml", document)
	if err != nil {
		return nil, fmt.Errorf("read the demo's document: %w", err)
	}
	return &plan{state: doc.State, table: deception.NewTable(&doc.State)}, nil
}

// addresses returns the decoy addresses of one path (of all with an empty one),
// in the document's order.
func (p *plan) addresses(path deception.Path) []netip.Addr {
	var out []netip.Addr
	for i := range p.state.Decoys {
		d := &p.state.Decoys[i]
		if path != "" && d.Path != path {
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
	for i := range p.state.Segments {
		if target, ok := p.table.Lookup(p.state.Segments[i].Name, t, decoy); ok {
			return target.Service.Name
		}
	}
	return ""
}
