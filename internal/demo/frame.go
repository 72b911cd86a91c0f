package demo

import (
	"encoding/binary"
	"net/netip"

	"decoynet/deception"
)

// flow is a connection or a UDP conversation by its two ends, seen from the side
// that began it.
type flow struct {
	Transport           deception.Transport
	Source, Destination netip.AddrPort
}

func (f flow) reversed() flow {
	return flow{Transport: f.Transport, Source: f.Destination, Destination: f.Source}
}

// String writes the flow as SOURCE -> DESTINATION.
func (f flow) String() string { return f.Source.String() + " -> " + f.Destination.String() }

// mac is an Ethernet address.
type mac [6]byte

// frame is what one Ethernet frame says that the demo wants to know.
type frame struct {
	flow                     // of a TCP segment or UDP datagram
	syn, ack, rst bool       // of a TCP segment
	owner         netip.Addr // whom an ARP reply or neighbour advertisement speaks for
	at            mac        // where it says that the owner is
}

// The numbers of the protocols: IEEE 802.3 EtherTypes, IANA's protocol numbers.
const (
	etherIPv4, etherARP, etherIPv6 = 0x0800, 0x0806, 0x86dd

	protocolTCP, protocolUDP, protocolICMPv6 = 6, 17, 58
)

// parseFrame reads the head of a frame; false where it says nothing of interest.
// Later fragments, VLAN tags and IPv6 extension headers do not occur in the
// office.
func parseFrame(b []byte) (frame, bool) {
	const header = 14
	if len(b) < header {
		return frame{}, false
	}
	body := b[header:]
	switch binary.BigEndian.Uint16(b[12:]) {
	case etherARP:
		return parseARP(body)
	case etherIPv4:
		if len(body) < 20 {
			return frame{}, false
		}
		size := int(body[0]&0x0f) * 4
		if size < 20 || len(body) < size || binary.BigEndian.Uint16(body[6:])&0x1fff != 0 {
			return frame{}, false
		}
		return parseTransport(body[9], netip.AddrFrom4([4]byte(body[12:16])), netip.AddrFrom4([4]byte(body[16:20])), body[size:])
	case etherIPv6:
		if len(body) < 40 {
			return frame{}, false
		}
		if body[6] == protocolICMPv6 {
			return parseAdvertisement(body[40:])
		}
		return parseTransport(body[6], netip.AddrFrom16([16]byte(body[8:24])), netip.AddrFrom16([16]byte(body[24:40])), body[40:])
	}
	return frame{}, false
}

// parseARP reads a reply (RFC 826); requests claim nothing that others rely on.
func parseARP(b []byte) (frame, bool) {
	if len(b) < 28 || binary.BigEndian.Uint16(b[6:]) != 2 {
		return frame{}, false
	}
	return frame{at: mac(b[8:14]), owner: netip.AddrFrom4([4]byte(b[14:18]))}, true
}

// parseAdvertisement reads a neighbour advertisement (RFC 4861, section 4.4)
// that tells the link-layer address.
func parseAdvertisement(b []byte) (frame, bool) {
	if len(b) < 24 || b[0] != 136 {
		return frame{}, false
	}
	f := frame{owner: netip.AddrFrom16([16]byte(b[8:24]))}
	for options := b[24:]; len(options) >= 8; {
		if options[0] == 2 && options[1] == 1 { // target link-layer address
			f.at = mac(options[2:8])
			return f, true
		}
		size := int(options[1]) * 8
		if size == 0 || size > len(options) {
			break
		}
		options = options[size:]
	}
	return frame{}, false
}

func parseTransport(protocol byte, from, to netip.Addr, b []byte) (frame, bool) {
	if len(b) < 8 || protocol == protocolTCP && len(b) < 20 {
		return frame{}, false
	}
	f := frame{flow: flow{
		Source:      netip.AddrPortFrom(from, binary.BigEndian.Uint16(b[0:])),
		Destination: netip.AddrPortFrom(to, binary.BigEndian.Uint16(b[2:])),
	}}
	switch protocol {
	case protocolTCP:
		f.Transport = deception.TCP
		f.syn, f.rst, f.ack = b[13]&0x02 != 0, b[13]&0x04 != 0, b[13]&0x10 != 0
	case protocolUDP:
		f.Transport = deception.UDP
	default:
		return frame{}, false
	}
	return f, true
}
