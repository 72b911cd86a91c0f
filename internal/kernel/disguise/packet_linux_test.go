package disguise

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// checksums verifies those of an IPv4 or IPv6 packet. Between namespaces of one
// kernel a packet's transport checksum is left to a device that never comes
// (CHECKSUM_PARTIAL): such a packet holds the sum of its pseudo header.
func checksums(frame []byte) error {
	var pseudo []byte
	var protocol byte
	var payload []byte
	ip := frame[14:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		size := int(ip[0]&15) * 4
		if got := sum(ip[:size]); got != 0xffff {
			return fmt.Errorf("IPv4 header sums up to %04x", got)
		}
		if binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 {
			return nil // a fragment
		}
		protocol, payload = ip[9], ip[size:binary.BigEndian.Uint16(ip[2:])]
		pseudo = append(append([]byte{}, ip[12:20]...), 0, protocol, byte(len(payload)>>8), byte(len(payload)))
	case unix.ETH_P_IPV6:
		protocol, payload = ip[6], ip[40:40+int(binary.BigEndian.Uint16(ip[4:]))]
		pseudo = append(append([]byte{}, ip[8:40]...), 0, 0, byte(len(payload)>>8), byte(len(payload)), 0, 0, 0, protocol)
	default:
		return nil
	}
	at := 0
	switch protocol {
	case unix.IPPROTO_TCP:
		at = 16
	case unix.IPPROTO_UDP:
		at = 6
	case unix.IPPROTO_ICMPV6:
		at = 2
	case unix.IPPROTO_ICMP:
		if got := sum(payload); got != 0xffff {
			return fmt.Errorf("ICMP sums up to %04x", got)
		}
		return nil
	default:
		return nil // IPv6 extension headers, as MLD has
	}
	whole := sum(append(pseudo, payload...))
	if partial := binary.BigEndian.Uint16(payload[at:]); whole != 0xffff && partial != sum(pseudo) {
		return fmt.Errorf("protocol %d sums up to %04x", protocol, whole)
	}
	return nil
}

// sum is the ones' complement sum of RFC 1071.
func sum(b []byte) uint16 {
	var s uint32
	for ; len(b) > 1; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}
