package steer

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"decoynet/deception"
)

// product is a state as one table of prefix and port. Its prefixes are disjoint,
// so that membership alone says what is open and no order of lookups matters.
type product struct {
	pieces []piece // by family and address
	ports  map[tag]portSet
}

// piece is a prefix that belongs to one group as a whole.
type piece struct {
	prefix netip.Prefix
	tag    tag
}

// member is a run of ports at a prefix.
type member struct {
	piece
	ports deception.PortRange
}

func (m member) len() int { return int(m.ports.Last-m.ports.First) + 1 }

// multiply flattens the prefixes and cuts what that leaves into prefixes again.
func multiply(s *state) product {
	p := product{ports: make(map[tag]portSet, len(s.ports)), pieces: make([]piece, 0, len(s.prefixes))}
	for t, set := range s.ports {
		p.ports[t] = maps.Clone(set)
	}
	for _, span := range flatten(s.prefixes) {
		for _, prefix := range (deception.AddrRange{From: span.from, To: span.to}).Prefixes() {
			if prefix.Bits() == 0 { // no set takes it
				upper := deception.LastAddr(netip.PrefixFrom(prefix.Addr(), 1)).Next()
				p.pieces = append(p.pieces, piece{netip.PrefixFrom(prefix.Addr(), 1), span.tag}, piece{netip.PrefixFrom(upper, 1), span.tag})
				continue
			}
			p.pieces = append(p.pieces, piece{prefix, span.tag})
		}
	}
	return p
}

// minus yields the members of p that are not in o.
func (p product) minus(o product) iter.Seq[member] {
	type tags struct{ in, out tag }
	known := map[tags][]deception.PortRange{} // few pairs, many prefixes
	return func(yield func(member) bool) {
		rest := o.pieces
		for _, piece := range p.pieces {
			for len(rest) > 0 && comparePieces(rest[0], piece) < 0 {
				rest = rest[1:]
			}
			pair := tags{in: piece.tag}
			var without portSet
			if len(rest) > 0 && rest[0].prefix == piece.prefix {
				pair.out, without = rest[0].tag, o.ports[rest[0].tag]
			}
			runs, seen := known[pair]
			if !seen {
				runs = runsOf(p.ports[piece.tag], without)
				known[pair] = runs
			}
			for _, run := range runs {
				if !yield(member{piece, run}) {
					return
				}
			}
		}
	}
}

func comparePieces(a, b piece) int {
	return cmp.Or(a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()))
}

// maxRun is the longest run of ports: the kernel writes a run in one go, and as
// of 6.2 none that is longer than 16,384.
const maxRun = 4096

// runsOf returns the ports of one set that the other lacks, as runs.
func runsOf(set, without portSet) []deception.PortRange {
	var out []deception.PortRange
	slots := slices.SortedFunc(maps.Keys(set), func(a, b slot) int {
		return cmp.Or(cmp.Compare(a.Transport, b.Transport), cmp.Compare(a.Index, b.Index))
	})
	for _, at := range slots {
		bits, less := set[at], without[at]
		for i := range blockPorts {
			if (bits[i/64]&^less[i/64])>>(i%64)&1 == 0 {
				continue
			}
			port := uint16(int(at.Index)*blockPorts + i)
			if n := len(out); n > 0 && out[n-1].Transport == at.Transport && out[n-1].Last+1 == port &&
				port-out[n-1].First < maxRun {
				out[n-1].Last = port
				continue
			}
			out = append(out, deception.PortRange{Transport: at.Transport, First: port, Last: port})
		}
	}
	return out
}

// fit closes, in the order of their numbers, the groups with which the product
// would be larger than limit, and returns them with what they would have taken.
func (p product) fit(tags map[uint32]tag, limit int) map[uint32]int {
	pieces := make(map[tag]int, len(p.ports))
	for _, piece := range p.pieces {
		pieces[piece.tag]++
	}
	out := map[uint32]int{}
	total := 0
	for _, group := range slices.Sorted(maps.Keys(tags)) {
		t := tags[group]
		n := pieces[t] * p.ports[t].len()
		if total+n > limit {
			out[group] = n
			delete(p.ports, t)
			continue
		}
		total += n
	}
	return out
}
