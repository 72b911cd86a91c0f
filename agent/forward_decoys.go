package agent

import (
	"net/netip"
	"slices"

	"decoynet/deception"
)

// decoyIndex finds the decoy that stands at an address and port: what a node
// can know that is not told of services. It is immutable.
type decoyIndex struct {
	ranges   map[string][]decoyRange // by segment, sorted
	shared   map[string]bool         // segments in which ranges overlap
	anywhere map[string][]*deception.Decoy
}

type decoyRange struct {
	deception.AddrRange
	decoy *deception.Decoy
}

// newDecoyIndex indexes the node's own decoys of a validated state.
func newDecoyIndex(state *deception.State) *decoyIndex {
	x := &decoyIndex{ranges: map[string][]decoyRange{}, shared: map[string]bool{}, anywhere: map[string][]*deception.Decoy{}}
	for i := range state.Decoys {
		d := &state.Decoys[i]
		if d.Node != "" && d.Node != state.Node {
			continue
		}
		for _, r := range d.Addresses {
			x.ranges[d.Segment] = append(x.ranges[d.Segment], decoyRange{r, d})
		}
		if d.Any {
			x.anywhere[d.Segment] = append(x.anywhere[d.Segment], d)
		}
	}
	for segment, ranges := range x.ranges {
		slices.SortStableFunc(ranges, func(a, b decoyRange) int { return a.From.Compare(b.From) })
		for i := 1; i < len(ranges); i++ {
			x.shared[segment] = x.shared[segment] || ranges[i].Overlaps(ranges[i-1].AddrRange)
		}
	}
	return x
}

// lookup returns the decoy and its binding for the port, or nil. A decoy that
// names the address comes before one that stands at any. Several decoys of the
// segment host may share an address, each with ports of its own.
func (x *decoyIndex) lookup(segment string, t deception.Transport, at netip.AddrPort) (*deception.Decoy, *deception.Binding) {
	ranges := x.ranges[segment]
	// Behind the last range that begins at or before the address.
	end, _ := slices.BinarySearchFunc(ranges, at.Addr(), func(r decoyRange, a netip.Addr) int {
		if r.From.Compare(a) <= 0 {
			return -1
		}
		return 1
	})
	for i := end - 1; i >= 0; i-- {
		if ranges[i].Contains(at.Addr()) {
			if b := ranges[i].decoy.Lookup(t, at.Port()); b != nil {
				return ranges[i].decoy, b
			}
		}
		if !x.shared[segment] {
			break
		}
	}
	for _, d := range x.anywhere[segment] {
		if b := d.Lookup(t, at.Port()); b != nil {
			return d, b
		}
	}
	return nil, nil
}
