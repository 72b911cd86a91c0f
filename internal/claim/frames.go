package claim

import (
	"encoding/binary"
	"net/netip"
)

// Kind is what a frame is.
type Kind uint8

// The kinds of frames that say something about who has an address.
const (
	ARPRequest Kind = iota
	ARPReply
	Solicitation  // neighbour solicitation, that of duplicate address detection too
	Advertisement // neighbour advertisement
)

// Frame is an ARP or NDP packet that was seen in the segment.
type Frame struct {
	Kind                 Kind
	SourceMAC, TargetMAC MAC // of the Ethernet header
	// SenderMAC is the ARP sender hardware address, or that of the link-layer
	// address option; zero where there is none.
	SenderMAC MAC
	// Source is the ARP sender protocol address, or the IPv6 source; unspecified
	// (or the zero Addr) in a probe. Target is what is asked for or advertised.
	Source, Target netip.Addr
}

// claimant returns the Ethernet address at which the frame says the address is.
func (f *Frame) claimant() MAC {
	if f.SenderMAC != (MAC{}) {
		return f.SenderMAC
	}
	return f.SourceMAC
}

// Protocol numbers.
const (
	etherARP    = 0x0806
	etherIPv6   = 0x86dd
	protoICMPv6 = 58
)

var broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// probeFrame asks whether somebody has the address, and claims nothing.
func probeFrame(from MAC, a netip.Addr) []byte {
	if a.Is4() {
		return arpRequest(from, netip.IPv4Unspecified(), a) // RFC 5227, section 2.1.1
	}
	// RFC 4862, section 5.4.2, and RFC 4861, section 4.3: from nobody, hence
	// without a source link-layer address, to the solicited-node group.
	t := a.As16()
	group := netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 11: 0x01, 12: 0xff, 13: t[13], 14: t[14], 15: t[15]})
	return icmpv6(from, netip.IPv6Unspecified(), group, append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, t[:]...))
}

// announcement has others put the address into their caches.
func announcement(from MAC, a netip.Addr) []byte {
	if a.Is4() {
		return arpRequest(from, a, a) // RFC 5227, section 2.3
	}
	// RFC 4861, section 7.2.6: unsolicited, to all nodes, overriding.
	t := a.As16()
	body := append([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, t[:]...)
	body = append(append(body, 2, 1), from[:]...) // target link-layer address
	return icmpv6(from, a, netip.IPv6LinkLocalAllNodes(), body)
}

// arpRequest builds a request (RFC 826), padded to the least length of a frame.
func arpRequest(from MAC, sender, target netip.Addr) []byte {
	b := append(make([]byte, 0, 60), broadcast[:]...)
	b = append(b, from[:]...)
	b = binary.BigEndian.AppendUint16(b, etherARP)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, request
	b = append(append(b, from[:]...), sender.AsSlice()...)
	b = append(append(b, make([]byte, 6)...), target.AsSlice()...)
	return b[:60]
}

// icmpv6 builds a frame to a multicast group (RFC 2464, section 7). The hop
// limit of NDP is 255 (RFC 4861, section 3.1).
func icmpv6(from MAC, source, group netip.Addr, body []byte) []byte {
	g := group.As16()
	b := append(make([]byte, 0, 14+40+len(body)), 0x33, 0x33, g[12], g[13], g[14], g[15])
	b = append(b, from[:]...)
	b = binary.BigEndian.AppendUint16(b, etherIPv6)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	b = append(b, protoICMPv6, 255)
	b = append(append(b, source.AsSlice()...), g[:]...)
	binary.BigEndian.PutUint16(body[2:], checksum(b[22:54], body))
	return append(b, body...)
}

// checksum is ICMPv6's (RFC 4443, section 2.3) over both addresses and the body,
// whose length is even.
func checksum(addresses, body []byte) uint16 {
	total := uint32(protoICMPv6 + len(body))
	for _, part := range [][]byte{addresses, body} {
		for i := 0; i+1 < len(part); i += 2 {
			total += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for total>>16 != 0 {
		total = total&0xffff + total>>16
	}
	return ^uint16(total)
}
