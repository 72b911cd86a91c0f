package frame

import (
	"encoding/binary"
	"net/netip"
)

const (
	typeARP = 0x0806

	minSize = 60 // of a frame, without its check sequence

	icmpv6 = 58
	// neighbourHops is the hop limit of neighbour discovery: what was routed has less
	// (RFC 4861, section 3.1).
	neighbourHops = 255

	solicitation  = 135
	advertisement = 136
	override      = 0x20
	sourceOption  = 1 // link-layer addresses, in units of eight bytes
	targetOption  = 2
	oneUnit       = 1
)

var broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// ARPRequest asks everybody who has the target (RFC 826). From the unspecified (or
// the zero) address it is a probe, which claims nothing (RFC 5227, section 2.1.1);
// from the target itself it announces that it is there (section 2.3).
func ARPRequest(from MAC, sender, target netip.Addr) []byte {
	if !sender.IsValid() {
		sender = netip.IPv4Unspecified()
	}
	b := Ether(make([]byte, 0, minSize), from, broadcast, Tags{}, typeARP)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, request
	b = append(append(b, from[:]...), sender.AsSlice()...)
	b = append(append(b, make([]byte, len(from))...), target.AsSlice()...)
	return b[:minSize]
}

// Solicitation asks for an IPv6 neighbour (RFC 4861, section 4.3). From the
// unspecified (or the zero) address it is that of duplicate address detection, which
// claims nothing (RFC 4862, section 5.4.2) and is answered to all nodes.
func Solicitation(from MAC, sender, target netip.Addr) []byte {
	if !sender.IsValid() {
		sender = netip.IPv6Unspecified()
	}
	t := target.As16()
	group := netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 11: 0x01, 12: 0xff, 13: t[13], 14: t[14], 15: t[15]})
	body := append([]byte{solicitation, 0, 0, 0, 0, 0, 0, 0}, t[:]...)
	if !sender.IsUnspecified() {
		body = append(append(body, sourceOption, oneUnit), from[:]...)
	}
	return discovery(from, sender, group, body)
}

// Advertisement has all others put an IPv6 address into their caches, unasked and in
// place of what they have (RFC 4861, section 7.2.6).
func Advertisement(from MAC, address netip.Addr) []byte {
	a := address.As16()
	body := append([]byte{advertisement, 0, 0, 0, override, 0, 0, 0}, a[:]...)
	body = append(append(body, targetOption, oneUnit), from[:]...)
	return discovery(from, address, netip.IPv6LinkLocalAllNodes(), body)
}

// discovery makes the frame of a message to a multicast group (RFC 2464, section 7).
func discovery(from MAC, source, group netip.Addr, body []byte) []byte {
	binary.BigEndian.PutUint16(body[2:], PacketChecksum(source, group, icmpv6, body))
	g := group.As16()
	b := Ether(make([]byte, 0, etherSize+ipv6Size+len(body)), from, MAC{0x33, 0x33, g[12], g[13], g[14], g[15]}, Tags{}, typeIPv6)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	b = append(b, icmpv6, neighbourHops)
	b = append(append(b, source.AsSlice()...), g[:]...)
	return append(b, body...)
}

// PacketChecksum is the checksum of what an IP packet holds, with its pseudo header;
// of a payload that has its checksum already it is zero.
func PacketChecksum(from, to netip.Addr, protocol byte, payload []byte) uint16 {
	return Checksum(Sum(from.AsSlice()) + Sum(to.AsSlice()) + uint64(protocol) + uint64(len(payload)) + Sum(payload))
}
