//go:build linux

package agent

import (
	"net/netip"
	"slices"

	"decoynet/deception"
)

// boundPorts tells which ports of a segment's decoys lead to a service now. It
// is immutable.
type boundPorts struct {
	spans  []boundSpan // sorted and disjoint
	kernel map[boundPort]struct{}
}

type boundSpan struct {
	deception.AddrRange
	ports []deception.PortRange
}

type boundPort struct {
	transport deception.Transport
	at        netip.AddrPort
}

// newBoundPorts takes the steered groups, whose addresses are disjoint, and the
// ports of the kernel path.
func newBoundPorts(p *segmentPlan) *boundPorts {
	b := &boundPorts{kernel: map[boundPort]struct{}{}}
	for i := range p.groups {
		g := &p.groups[i]
		for _, prefix := range g.Prefixes {
			b.spans = append(b.spans, boundSpan{deception.RangeOf(prefix), g.Ports})
		}
	}
	for _, d := range p.decoys {
		if d.Path == deception.PathKernel {
			for _, r := range d.Addresses {
				b.spans = append(b.spans, boundSpan{AddrRange: r})
			}
		}
	}
	for _, r := range p.kernel {
		b.kernel[boundPort{r.Transport, r.Decoy}] = struct{}{}
	}
	slices.SortFunc(b.spans, func(x, y boundSpan) int { return x.From.Compare(y.From) })
	return b
}

func (b *boundPorts) find(a netip.Addr) *boundSpan {
	i, _ := slices.BinarySearchFunc(b.spans, a, func(s boundSpan, a netip.Addr) int { return s.To.Compare(a) })
	if i == len(b.spans) || !b.spans[i].Contains(a) {
		return nil
	}
	return &b.spans[i]
}

// decoy tells whether the address is a decoy's.
func (b *boundPorts) decoy(a netip.Addr) bool { return b.find(a) != nil }

// open tells whether the port leads to a service.
func (b *boundPorts) open(t deception.Transport, a netip.Addr, port uint16) bool {
	s := b.find(a)
	if s == nil {
		return false
	}
	for _, r := range s.ports {
		if r.Contains(t, port) {
			return true
		}
	}
	_, ok := b.kernel[boundPort{t, netip.AddrPortFrom(a, port)}]
	return ok
}
