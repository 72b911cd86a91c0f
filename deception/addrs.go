package deception

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
)

// AddrRange is a run of consecutive addresses of one family, both ends
// included; From <= To.
type AddrRange struct {
	From, To netip.Addr
}

// ParseAddrRange reads a single address, a range (192.0.2.10-192.0.2.20) or a
// prefix (192.0.2.64/28: every address of it). Its errors say what would be
// right. IPv4-mapped IPv6 addresses and zones are refused.
func ParseAddrRange(s string) (AddrRange, error) {
	if from, to, ok := strings.Cut(s, "-"); ok {
		a, err := parseAddr(strings.TrimSpace(from))
		if err != nil {
			return AddrRange{}, err
		}
		b, err := parseAddr(strings.TrimSpace(to))
		if err != nil {
			return AddrRange{}, err
		}
		if a.Is4() != b.Is4() {
			return AddrRange{}, fmt.Errorf("range %q mixes IPv4 and IPv6; both ends of one family", s)
		}
		if b.Less(a) {
			return AddrRange{}, fmt.Errorf("range %q runs backwards; write %s-%s", s, b, a)
		}
		return AddrRange{From: a, To: b}, nil
	}
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Addr().Is4In6() {
			return AddrRange{}, fmt.Errorf("bad prefix %q; as 192.0.2.64/28 or 2001:db8::/120", s)
		}
		if p.Masked() != p {
			return AddrRange{}, fmt.Errorf("prefix %q has host bits set; write %s", s, p.Masked())
		}
		return RangeOf(p), nil
	}
	a, err := parseAddr(s)
	return AddrRange{From: a, To: a}, err
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.Is4In6() {
		return netip.Addr{}, fmt.Errorf("bad address %q; an address as 192.0.2.10, a range as 192.0.2.10-192.0.2.20 or a prefix as 192.0.2.64/28", s)
	}
	return a, nil
}

// RangeOf returns the addresses of a prefix, network and broadcast included.
func RangeOf(p netip.Prefix) AddrRange {
	return AddrRange{From: p.Masked().Addr(), To: LastAddr(p)}
}

// LastAddr returns the highest address of a prefix: the broadcast address of
// an IPv4 subnet.
func LastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 1 << (7 - bit%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Contains tells whether the address lies in the range.
func (r AddrRange) Contains(a netip.Addr) bool {
	return a.BitLen() == r.From.BitLen() && !a.Less(r.From) && !r.To.Less(a)
}

// Overlaps tells whether the two ranges share an address.
func (r AddrRange) Overlaps(o AddrRange) bool {
	return r.From.BitLen() == o.From.BitLen() && !o.To.Less(r.From) && !r.To.Less(o.From)
}

// Len returns the number of addresses, math.MaxUint64 where there are more.
func (r AddrRange) Len() uint64 {
	hi1, lo1 := halves(r.From)
	hi2, lo2 := halves(r.To)
	n, hi := lo2-lo1, hi2-hi1
	if lo2 < lo1 {
		hi--
	}
	if hi != 0 || n == math.MaxUint64 {
		return math.MaxUint64
	}
	return n + 1
}

// Offset returns how far a lies behind the range's first address; a must lie in
// the range and the range hold fewer than 2^64 addresses.
func (r AddrRange) Offset(a netip.Addr) uint64 {
	return AddrRange{From: r.From, To: a}.Len() - 1
}

// Nth returns the n-th address behind a (n = 0 is a itself), or the zero Addr
// where the family ends before it.
func Nth(a netip.Addr, n uint64) netip.Addr {
	hi, lo := halves(a)
	sum := lo + n
	if sum < lo {
		hi++
	}
	if a.Is4() {
		if sum > math.MaxUint32 {
			return netip.Addr{}
		}
		return netip.AddrFrom4([4]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
	}
	var b [16]byte
	for i := range 8 {
		b[7-i] = byte(hi >> (8 * i))
		b[15-i] = byte(sum >> (8 * i))
	}
	return netip.AddrFrom16(b)
}

// Prefixes returns the fewest prefixes that hold exactly the range's addresses.
func (r AddrRange) Prefixes() []netip.Prefix {
	var out []netip.Prefix
	for from := r.From; from.IsValid() && !r.To.Less(from); {
		bits := from.BitLen()
		for bits > 0 {
			p := netip.PrefixFrom(from, bits-1)
			if p.Masked().Addr() != from || r.To.Less(LastAddr(p)) {
				break
			}
			bits--
		}
		p := netip.PrefixFrom(from, bits)
		out = append(out, p)
		from = LastAddr(p).Next()
	}
	return out
}

// String writes the range as the document does.
func (r AddrRange) String() string {
	if r.From == r.To {
		return r.From.String()
	}
	return r.From.String() + "-" + r.To.String()
}

// SortRanges sorts the ranges by family and first address and joins those that
// touch or overlap.
func SortRanges(in []AddrRange) []AddrRange {
	sorted := slices.Clone(in)
	slices.SortFunc(sorted, func(a, b AddrRange) int { return a.From.Compare(b.From) })
	var out []AddrRange
	for _, r := range sorted {
		if n := len(out); n > 0 && sameRun(out[n-1], r) {
			if out[n-1].To.Less(r.To) {
				out[n-1].To = r.To
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

func sameRun(a, b AddrRange) bool {
	if a.From.BitLen() != b.From.BitLen() {
		return false
	}
	next := a.To.Next()
	return !next.IsValid() || !next.Less(b.From)
}

func halves(a netip.Addr) (hi, lo uint64) {
	b := a.As16()
	if a.Is4() {
		clear(b[:12])
	}
	for i := range 8 {
		hi = hi<<8 | uint64(b[i])
		lo = lo<<8 | uint64(b[8+i])
	}
	return hi, lo
}
