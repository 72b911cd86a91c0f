// Package frame makes and cuts Ethernet frames of flows as they are shown to
// Suricata and other sensors: the intruder's and the decoy's addresses, and the
// session's identifier in the frames' MAC addresses. And it makes the frames by
// which machines of a network find each other (ARP, neighbour discovery).
package frame

import (
	"fmt"
	"net"

	"decoynet/deception"
)

// MAC is an Ethernet address.
type MAC [6]byte

// String writes the address as sensors do: 02:00:5e:10:00:01.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// The first octet of a MAC address of ours: five bits of the key, one that is set
// in the decoy's, and the two that say "locally administered, for one station"
// (IEEE 802, section 8.2). A sensor that swaps the directions of a flow thus loses
// nothing.
const (
	localUnicast = 0x02
	decoySide    = 0x04
	firstShift   = 3
)

// Addresses returns the MAC addresses of the intruder's and the decoy's side of a
// session.
func Addresses(k deception.SessionKey) (intruder, decoy MAC) {
	return half(k.Hi, localUnicast), half(k.Lo, localUnicast|decoySide)
}

func half(bits uint64, first byte) MAC {
	return MAC{byte(bits>>40)<<firstShift | first, byte(bits >> 32), byte(bits >> 24), byte(bits >> 16), byte(bits >> 8), byte(bits)}
}

// Key is the inverse of Addresses, whichever of the two comes first. reversed says
// that a is the decoy's. False where they are not the two sides of a session.
func Key(a, b MAC) (k deception.SessionKey, reversed, ok bool) {
	if a[0]&decoySide != 0 {
		a, b, reversed = b, a, true
	}
	if a[0]&7 != localUnicast || b[0]&7 != localUnicast|decoySide {
		return k, false, false
	}
	return deception.SessionKey{Hi: number(a), Lo: number(b)}, reversed, true
}

func number(m MAC) uint64 {
	return uint64(m[0]>>firstShift)<<40 | uint64(m[1])<<32 | uint64(m[2])<<24 | uint64(m[3])<<16 | uint64(m[4])<<8 | uint64(m[5])
}

// ParseMAC reads an address as sensors write it.
func ParseMAC(s string) (MAC, error) {
	a, err := net.ParseMAC(s)
	if err != nil || len(a) != len(MAC{}) {
		return MAC{}, fmt.Errorf("bad MAC address %q; six pairs of hexadecimal digits as 02:00:5e:10:00:01", s)
	}
	return MAC(a), nil
}
