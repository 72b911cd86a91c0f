package wire

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"net/netip"
	"slices"

	"golang.org/x/net/bpf"

	"decoynet/deception"
)

// Selection is which packets are taken, in the kernel: whole TCP segments and UDP
// datagrams over IPv4 and IPv6 whose source or destination is selected.
type Selection struct {
	// Ports are those that one of the two is of; empty: any of TCP.
	Ports []deception.PortRange
	// Addresses are those that one of the two is of; empty: any. Where they are
	// many, or of IPv6, others that lie between them are taken, too.
	Addresses []deception.AddrRange
}

// A program of packet filters has 4096 instructions at most (BPF_MAXINSNS).
const (
	maxRanges = 32  // of addresses of a family
	maxPorts  = 128 // of a transport
)

// selector writes the program of a Selection.
type selector struct {
	steps  []step
	places int
}

func (s *Selection) compile() ([]bpf.RawInstruction, error) { return assemble(s.steps()) }

func (s *Selection) steps() []step {
	w := &selector{}
	w.add(load(12, 2))
	w.equal(etherIPv4, "ipv4")
	w.equal(etherIPv6, "ipv6")
	w.jump("drop")
	w.ipv4(s)
	w.ipv6(s)
	w.ports("tcp", s.portsOf(deception.TCP))
	w.ports("udp", s.portsOf(deception.UDP))
	w.add(place("take"), step{do: bpf.RetConstant{Val: math.MaxUint32}})
	w.add(step{name: "drop", do: bpf.RetConstant{Val: 0}})
	return w.steps
}

// portsOf returns the ranges of a transport, those that are too many as one.
func (s *Selection) portsOf(t deception.Transport) []deception.PortRange {
	if len(s.Ports) == 0 && t == deception.TCP {
		return []deception.PortRange{{Transport: t, First: 0, Last: math.MaxUint16}}
	}
	var out []deception.PortRange
	first, last := uint16(math.MaxUint16), uint16(0)
	for _, r := range s.Ports {
		if r.Transport == t {
			out = append(out, r)
			first, last = min(first, r.First), max(last, r.Last)
		}
	}
	if len(out) > maxPorts {
		return []deception.PortRange{{Transport: t, First: first, Last: last}}
	}
	return out
}

// rangesOf returns the addresses of a family, those that are too many as one range.
func (s *Selection) rangesOf(four bool) []deception.AddrRange {
	var out []deception.AddrRange
	for _, r := range s.Addresses {
		if r.From.Is4() == four {
			out = append(out, r)
		}
	}
	if len(out) <= maxRanges {
		return out
	}
	slices.SortFunc(out, func(a, b deception.AddrRange) int { return a.From.Compare(b.From) })
	return []deception.AddrRange{{From: out[0].From, To: slices.MaxFunc(out, func(a, b deception.AddrRange) int { return a.To.Compare(b.To) }).To}}
}

func (w *selector) add(s ...step) { w.steps = append(w.steps, s...) }

func (w *selector) jump(to string) { w.add(step{do: bpf.Jump{}, yes: to}) }

// place returns a new name.
func (w *selector) place() string {
	w.places++
	return fmt.Sprint("place ", w.places)
}

// equal jumps, however far, where the value is in A.
func (w *selector) equal(value uint32, to string) {
	other := w.place()
	w.add(when(bpf.JumpEqual, value, "", other))
	w.jump(to)
	w.add(place(other))
}

// between jumps where A lies between the two.
func (w *selector) between(low, high uint32, to string) {
	other := w.place()
	w.add(when(bpf.JumpLessThan, low, other, ""), when(bpf.JumpGreaterThan, high, other, ""))
	w.jump(to)
	w.add(place(other))
}

func (w *selector) ipv4(s *Selection) {
	w.add(place("ipv4"))
	if len(s.Addresses) > 0 {
		ranges := s.rangesOf(true)
		for _, at := range []uint32{etherHeader + 12, etherHeader + 16} {
			w.add(load(at, 4))
			for _, r := range ranges {
				from, to := r.From.As4(), r.To.As4()
				w.between(binary.BigEndian.Uint32(from[:]), binary.BigEndian.Uint32(to[:]), "ipv4 ours")
			}
		}
		w.jump("drop")
	}
	w.add(place("ipv4 ours"), load(etherHeader+6, 2))
	other := w.place()
	w.add(when(bpf.JumpBitsSet, 0x3fff, "", other)) // a part of a larger packet
	w.jump("drop")
	w.add(place(other), step{do: bpf.LoadMemShift{Off: etherHeader}}, step{do: bpf.TXA{}}, alu(bpf.ALUOpAdd, etherHeader), step{do: bpf.TAX{}})
	w.add(load(etherHeader+9, 1))
	w.transports()
}

func (w *selector) transports() {
	w.equal(protoTCP, "tcp")
	w.equal(protoUDP, "udp")
	w.jump("drop")
}

func (w *selector) ipv6(s *Selection) {
	w.add(place("ipv6"))
	if len(s.Addresses) > 0 {
		for _, r := range s.rangesOf(false) {
			for _, at := range []uint32{etherHeader + 8, etherHeader + 24} {
				w.prefix(at, r)
			}
		}
		w.jump("drop")
	}
	w.add(place("ipv6 ours"))
	w.add(step{do: bpf.LoadConstant{Dst: bpf.RegX, Val: etherHeader + ip6Size}}, load(etherHeader+6, 1))
	for i := range extensionHeaders {
		w.add(extension(i, "no more")...)
	}
	// Jumps reach 255 instructions far, and "drop" is farther.
	w.add(place("extensions done"))
	w.transports()
	w.add(place("no more"))
	w.jump("drop")
}

// prefix jumps where the address at that place has the bits that the range's
// addresses share.
func (w *selector) prefix(at uint32, r deception.AddrRange) {
	from, to := r.From.As16(), r.To.As16()
	other := w.place()
	for i := uint32(0); i < 16; i += 4 {
		a, b := binary.BigEndian.Uint32(from[i:]), binary.BigEndian.Uint32(to[i:])
		mask := uint32(math.MaxUint32)
		if a != b {
			mask = ^(math.MaxUint32 >> bits.LeadingZeros32(a^b))
		}
		w.add(load(at+i, 4), alu(bpf.ALUOpAnd, mask), when(bpf.JumpEqual, a&mask, "", other))
		if a != b {
			break
		}
	}
	w.jump("ipv6 ours")
	w.add(place(other))
}

// ports takes what has one of the ports; X is where the transport's header begins.
func (w *selector) ports(name string, ranges []deception.PortRange) {
	w.add(place(name))
	for _, at := range []uint32{0, 2} {
		w.add(loadAt(at, 2))
		for _, r := range ranges {
			w.between(uint32(r.First), uint32(r.Last), "take")
		}
	}
	w.jump("drop")
}

// Has tells whether the packet with these addresses is one that was asked for:
// the filter takes a few others as well.
func (s *Selection) Has(t deception.Transport, source, destination netip.AddrPort) bool {
	return s.has(t, source) || s.has(t, destination)
}

func (s *Selection) has(t deception.Transport, a netip.AddrPort) bool {
	port := len(s.Ports) == 0 && t == deception.TCP ||
		slices.ContainsFunc(s.Ports, func(r deception.PortRange) bool { return r.Contains(t, a.Port()) })
	return port && (len(s.Addresses) == 0 ||
		slices.ContainsFunc(s.Addresses, func(r deception.AddrRange) bool { return r.Contains(a.Addr()) }))
}
