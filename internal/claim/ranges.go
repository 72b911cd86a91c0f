package claim

import (
	"math"
	"net/netip"
	"slices"

	"decoynet/deception"
)

// Sets of addresses are slices of ranges, sorted and disjoint, as
// deception.SortRanges makes them.

// barred returns what no decoy of the segment may ever have. The document's
// check refuses such decoys; to answer for a gateway would cut off a network, so
// it is looked at twice.
func barred(s *deception.Segment) []deception.AddrRange {
	out := slices.Clone(s.Exclude)
	one := func(a netip.Addr) { out = append(out, deception.AddrRange{From: a, To: a}) }
	for _, sub := range s.Subnets {
		if sub.Gateway.IsValid() {
			one(sub.Gateway)
		}
		p := sub.Prefix.Masked()
		if p.Addr().BitLen()-p.Bits() < 2 {
			continue // both addresses of a /31 or /127 are hosts' (RFC 3021, RFC 6164)
		}
		one(p.Addr()) // in IPv6 the routers' anycast address (RFC 4291, 2.6.1)
		if p.Addr().Is4() {
			one(deception.LastAddr(p))
		}
	}
	return deception.SortRanges(out)
}

// contains tells whether the address is in the set.
func contains(set []deception.AddrRange, a netip.Addr) bool {
	i, _ := slices.BinarySearchFunc(set, a, func(r deception.AddrRange, a netip.Addr) int { return r.To.Compare(a) })
	return i < len(set) && set[i].Contains(a)
}

// subtract returns what of a is not in b.
func subtract(a, b []deception.AddrRange) []deception.AddrRange {
	var out []deception.AddrRange
	for _, r := range a {
		for len(b) > 0 && b[0].To.Less(r.From) {
			b = b[1:]
		}
		rest, whole := b, true
		for whole && len(rest) > 0 && rest[0].Overlaps(r) {
			if r.From.Less(rest[0].From) {
				out = append(out, deception.AddrRange{From: r.From, To: rest[0].From.Prev()})
			}
			next := rest[0].To.Next()
			whole = next.IsValid() && !r.To.Less(next)
			r.From, rest = next, rest[1:]
		}
		if whole {
			out = append(out, r)
		}
	}
	return out
}

// intersect returns what is in both.
func intersect(a, b []deception.AddrRange) []deception.AddrRange {
	return subtract(a, subtract(a, b))
}

// union returns what is in either.
func union(a, b []deception.AddrRange) []deception.AddrRange {
	return deception.SortRanges(append(slices.Clone(a), b...))
}

// count returns the number of addresses in the set.
func count(set []deception.AddrRange) uint64 {
	var n uint64
	for _, r := range set {
		if l := r.Len(); n+l >= n {
			n += l
		} else {
			return math.MaxUint64
		}
	}
	return n
}

// take splits off the first addresses of a set, batchSize at most. Runs are cut
// where their last byte is zero, so that whole /24 networks become held at
// once and stay one route each.
func take(set []deception.AddrRange) (taken, rest []deception.AddrRange) {
	room := uint64(batchSize)
	for len(set) > 0 {
		r := set[0]
		bytes := r.From.AsSlice()
		n := min(batchSize-uint64(bytes[len(bytes)-1]), r.Len())
		if n > room {
			break
		}
		last := deception.Nth(r.From, n-1)
		taken = append(taken, deception.AddrRange{From: r.From, To: last})
		room -= n
		if last == r.To {
			set = set[1:]
			continue
		}
		// A copy: the set may be shared.
		set = append([]deception.AddrRange{{From: last.Next(), To: r.To}}, set[1:]...)
	}
	return taken, set
}
