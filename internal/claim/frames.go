package claim

import (
	"net/netip"

	"decoynet/internal/frame"
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

// probeFrame asks whether somebody has the address, and claims nothing.
func probeFrame(from MAC, a netip.Addr) []byte {
	if a.Is4() {
		return frame.ARPRequest(from, netip.IPv4Unspecified(), a)
	}
	return frame.Solicitation(from, netip.IPv6Unspecified(), a)
}

// announcement has others put the address into their caches.
func announcement(from MAC, a netip.Addr) []byte {
	if a.Is4() {
		return frame.ARPRequest(from, a, a)
	}
	return frame.Advertisement(from, a)
}
