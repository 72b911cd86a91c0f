package steer

import (
	"cmp"
	"net/netip"
	"slices"

	"decoynet/deception"
)

// span is a run of addresses that belong to one group.
type span struct {
	from, to netip.Addr
	tag      tag
}

// flatten turns nested prefixes, the longest of which wins, into disjoint spans
// sorted by family and address. Neighbours of one group are one span.
func flatten(prefixes map[netip.Prefix]tag) []span {
	sorted := make([]netip.Prefix, 0, len(prefixes))
	for p := range prefixes {
		sorted = append(sorted, p)
	}
	slices.SortFunc(sorted, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	f := flattener{spans: make([]span, 0, len(prefixes))}
	for _, p := range sorted {
		f.closeBefore(p.Addr())
		if n := len(f.open); n > 0 {
			f.emit(f.next, p.Addr().Prev(), f.open[n-1].tag)
		}
		f.next = p.Addr()
		f.open = append(f.open, span{to: deception.LastAddr(p), tag: prefixes[p]})
	}
	f.closeBefore(netip.Addr{})
	return f.spans
}

// flattener walks up the addresses. open holds the prefixes that the walk is
// in, the innermost last; next is the first address not yet given to a span.
type flattener struct {
	spans []span
	open  []span
	next  netip.Addr
}

// closeBefore leaves the prefixes that end before a, all where a is zero.
func (f *flattener) closeBefore(a netip.Addr) {
	for n := len(f.open); n > 0; n = len(f.open) {
		top := f.open[n-1]
		if a.IsValid() && !top.to.Less(a) {
			return
		}
		f.emit(f.next, top.to, top.tag)
		f.next = top.to.Next() // the zero Addr behind a family's last address: nothing is left to emit
		f.open = f.open[:n-1]
	}
}

func (f *flattener) emit(from, to netip.Addr, t tag) {
	if !from.IsValid() || to.Less(from) {
		return
	}
	if n := len(f.spans); n > 0 && f.spans[n-1].tag == t && f.spans[n-1].to.Next() == from {
		f.spans[n-1].to = to
		return
	}
	f.spans = append(f.spans, span{from, to, t})
}

// diffSpans returns the spans of old that are not in new, and the other way
// round. Both are sorted and disjoint.
func diffSpans(old, new []span) (gone, added []span) {
	for len(old) > 0 && len(new) > 0 {
		switch {
		case old[0] == new[0]:
			old, new = old[1:], new[1:]
		case new[0].from.Less(old[0].from):
			added, new = append(added, new[0]), new[1:]
		default:
			gone, old = append(gone, old[0]), old[1:]
		}
	}
	return append(gone, old...), append(added, new...)
}
