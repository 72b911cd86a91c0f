package wire

import (
	"encoding/binary"
	"net/netip"
)

// Numbers of protocols, in the order of the layers.
const (
	etherHeader = 14
	etherARP    = 0x0806
	etherIPv4   = 0x0800
	etherIPv6   = 0x86dd

	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58

	headerHopByHop    = 0
	headerRouting     = 43
	headerFragment    = 44
	headerDestination = 60

	icmpEcho          = 8
	icmp6Echo         = 128
	icmp6Solicitation = 135
	icmp6Advert       = 136

	flagSYN = 0x02
	flagACK = 0x10

	arpBody  = 28
	ip4Least = 20
	ip6Size  = 40
	ndBody   = 24 // of a neighbour solicitation or advertisement without options
)

// extensionHeaders is how many IPv6 extension headers are looked through. RFC 8200
// allows more; what comes in earnest has one or two.
const extensionHeaders = 4

// decode reads a frame without a VLAN tag (the kernel takes it out of the data).
// It fills everything but At and Link, and is false for frames of no kind. It
// takes exactly what the filter takes; a fuzz test holds the two together.
func decode(b []byte, f *Frame) bool {
	if len(b) < etherHeader {
		return false
	}
	f.TargetMAC, f.SourceMAC, f.SenderMAC = [6]byte(b[0:6]), [6]byte(b[6:12]), [6]byte{}
	f.SourcePort, f.Port = 0, 0
	switch binary.BigEndian.Uint16(b[12:]) {
	case etherARP:
		return decodeARP(b[etherHeader:], f)
	case etherIPv4:
		return decodeIPv4(b[etherHeader:], f)
	case etherIPv6:
		return decodeIPv6(b[etherHeader:], f)
	}
	return false
}

// decodeARP reads RFC 826 for Ethernet and IPv4.
func decodeARP(b []byte, f *Frame) bool {
	if len(b) < arpBody || binary.BigEndian.Uint32(b) != 0x0001_0800 || binary.BigEndian.Uint16(b[4:]) != 0x0604 {
		return false
	}
	switch binary.BigEndian.Uint16(b[6:]) {
	case 1:
		f.Kind = ARPRequest
	case 2:
		f.Kind = ARPReply
	default:
		return false
	}
	f.SenderMAC = [6]byte(b[8:14])
	f.Source, f.Target = netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
	return true
}

func decodeIPv4(b []byte, f *Frame) bool {
	if len(b) < ip4Least || b[0] < 0x45 || b[0] > 0x4f {
		return false
	}
	header := int(b[0]&0xf) * 4
	// The rest of a fragmented packet holds no header to read.
	if len(b) < header || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
		return false
	}
	f.Source, f.Target = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	body := b[header:]
	if b[9] == protoICMP {
		f.Kind = Echo
		return len(body) >= 1 && body[0] == icmpEcho
	}
	return decodePorts(b[9], body, f)
}

func decodeIPv6(b []byte, f *Frame) bool {
	if len(b) < ip6Size || b[0]>>4 != 6 {
		return false
	}
	f.Source, f.Target = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	next, body, ok := pastExtensions(b[6], b[ip6Size:])
	switch {
	case !ok:
		return false
	case next == protoICMPv6:
		return decodeICMPv6(b[7], body, f)
	}
	return decodePorts(next, body, f)
}

// pastExtensions returns the protocol and header behind the extension headers;
// false for the later fragments of a packet.
func pastExtensions(next byte, b []byte) (byte, []byte, bool) {
	for range extensionHeaders {
		size := 8
		switch next {
		case headerHopByHop, headerRouting, headerDestination:
			if len(b) < 2 {
				return 0, nil, false
			}
			size = (int(b[1]) + 1) * 8
		case headerFragment:
			if len(b) < 4 || binary.BigEndian.Uint16(b[2:])&^7 != 0 {
				return 0, nil, false
			}
		default:
			return next, b, true
		}
		if len(b) < size {
			return 0, nil, false
		}
		next, b = b[0], b[size:]
	}
	return next, b, true
}

func decodeICMPv6(hopLimit byte, b []byte, f *Frame) bool {
	if len(b) < 1 {
		return false
	}
	option := byte(1) // source link-layer address
	switch b[0] {
	case icmp6Echo:
		f.Kind = Echo
		return true
	case icmp6Solicitation:
		f.Kind = Solicitation
	case icmp6Advert:
		f.Kind, option = Advertisement, 2 // target link-layer address
	default:
		return false
	}
	// A lower hop limit says that it comes from another link (RFC 4861, section
	// 7.1.1): no host heeds it.
	if hopLimit != 255 || len(b) < ndBody {
		return false
	}
	f.Target = netip.AddrFrom16([16]byte(b[8:24]))
	if o := b[ndBody:]; len(o) >= 8 && o[0] == option && o[1] == 1 {
		f.SenderMAC = [6]byte(o[2:8])
	}
	return true
}

func decodePorts(proto byte, b []byte, f *Frame) bool {
	switch proto {
	case protoTCP:
		f.Kind = SYN
		if len(b) < 14 || b[13]&(flagSYN|flagACK) != flagSYN {
			return false
		}
	case protoUDP:
		f.Kind = Datagram
		if len(b) < 8 {
			return false
		}
	default:
		return false
	}
	f.SourcePort, f.Port = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	return true
}
