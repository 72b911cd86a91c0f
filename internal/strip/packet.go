package strip

import (
	"encoding/binary"
	"net/netip"

	"decoynet/deception"
	"decoynet/internal/frame"
)

// Flags of a TCP header (RFC 9293, section 3.1; CWR: RFC 3168).
const (
	FlagFIN = 0x01
	FlagSYN = 0x02
	FlagRST = 0x04
	FlagPSH = 0x08
	FlagACK = 0x10
	FlagURG = 0x20
	FlagCWR = 0x80
)

const (
	ip4Size = 20 // without options
	ip6Size = 40
	tcpSize = 20 // without options
	udpSize = 8

	headerHopByHop    = 0
	headerRouting     = 43
	headerFragment    = 44
	headerDestination = 60
)

// Packet is an IP packet as it was captured.
type Packet struct {
	At   int64  // Unix nanoseconds
	Data []byte // from the IP header on; what follows the packet (a frame's padding) is passed over
	// Unsummed says that the transport's checksum says nothing: the sender leaves
	// it to a card that does not exist (CHECKSUM_PARTIAL), or the kernel has
	// verified it.
	Unsummed bool
	// Size is how much payload each segment has that a super-segment stands for
	// (gso_size); 0 where it is none, or where that is not known.
	Size int
}

// Segment is a packet taken apart. Its slices are parts of the packet.
type Segment struct {
	Transport           deception.Transport
	Source, Destination netip.AddrPort
	Class, Hops         byte // traffic class (TOS) and hop limit (TTL)
	// Seq to Options are TCP's.
	Seq, Ack       uint32
	Flags          byte
	Window, Urgent uint16
	Options        []byte
	Payload        []byte

	whole []byte // the packet
	at    int    // where the transport's header begins in it
}

// Has tells whether one of the flags is set.
func (s *Segment) Has(flags byte) bool { return s.Flags&flags != 0 }

// fault is why a packet is passed over.
type fault uint8

const (
	fine      fault = iota
	malformed       // no TCP or UDP over IP, or lengths that contradict each other
	fragment        // a part of a datagram
	corrupt         // its checksum is wrong: the receiver passes it over, too
)

// parse takes a packet apart.
func (s *Segment) parse(p *Packet) fault {
	if len(p.Data) == 0 {
		return malformed
	}
	*s = Segment{}
	var body []byte
	var why fault
	switch p.Data[0] >> 4 {
	case 4:
		body, why = s.parseIPv4(p.Data)
	case 6:
		body, why = s.parseIPv6(p.Data)
	default:
		return malformed
	}
	if why != fine {
		return why
	}
	s.at = len(s.whole) - len(body)
	if s.Transport == deception.TCP {
		why = s.parseTCP(body)
	} else {
		why = s.parseUDP(body)
	}
	if why == fine && !p.Unsummed && !s.intact() {
		return corrupt
	}
	return why
}

// intact tells whether the checksum is right. A datagram over IPv4 need not have
// one (RFC 768).
func (s *Segment) intact() bool {
	body := s.whole[s.at:]
	if s.Transport == deception.UDP {
		if binary.BigEndian.Uint16(body[6:]) == 0 {
			return true
		}
		body = body[:udpSize+len(s.Payload)]
	}
	return transportSum(s.Source.Addr(), s.Destination.Addr(), s.Transport, body) == 0
}

func (s *Segment) parseIPv4(b []byte) ([]byte, fault) {
	if len(b) < ip4Size {
		return nil, malformed
	}
	header, total := int(b[0]&0xf)*4, int(binary.BigEndian.Uint16(b[2:]))
	if total == 0 {
		total = len(b) // a super-segment beyond 64 KiB (BIG TCP)
	}
	if header < ip4Size || total < header || len(b) < total {
		return nil, malformed
	}
	if binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
		return nil, fragment
	}
	s.Class, s.Hops, s.Transport = b[1], b[8], deception.Transport(b[9])
	s.Source = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:16])), 0)
	s.Destination = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:20])), 0)
	s.whole = b[:total]
	return s.known(b[header:total])
}

func (s *Segment) parseIPv6(b []byte) ([]byte, fault) {
	if len(b) < ip6Size {
		return nil, malformed
	}
	size := int(binary.BigEndian.Uint16(b[4:]))
	if size == 0 {
		size = len(b) - ip6Size // a jumbogram (RFC 2675)
	}
	if len(b)-ip6Size < size {
		return nil, malformed
	}
	s.Class, s.Hops = b[0]<<4|b[1]>>4, b[7]
	s.Source = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), 0)
	s.Destination = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[24:40])), 0)
	s.whole = b[:ip6Size+size]
	next, body := b[6], s.whole[ip6Size:]
	for {
		size := 8
		switch next {
		case headerHopByHop, headerRouting, headerDestination:
			if len(body) < 2 {
				return nil, malformed
			}
			size = (int(body[1]) + 1) * 8
		case headerFragment:
			if len(body) < 4 || binary.BigEndian.Uint16(body[2:])&^6 != 0 {
				return nil, fragment
			}
		default:
			s.Transport = deception.Transport(next)
			return s.known(body)
		}
		if len(body) < size {
			return nil, malformed
		}
		next, body = body[0], body[size:]
	}
}

func (s *Segment) known(body []byte) ([]byte, fault) {
	if s.Transport != deception.TCP && s.Transport != deception.UDP {
		return nil, malformed
	}
	return body, fine
}

func (s *Segment) parseTCP(b []byte) fault {
	if len(b) < tcpSize {
		return malformed
	}
	header := int(b[12]>>4) * 4
	if header < tcpSize || len(b) < header {
		return malformed
	}
	s.ports(b)
	s.Seq, s.Ack, s.Flags = binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:]), b[13]
	s.Window, s.Urgent = binary.BigEndian.Uint16(b[14:]), binary.BigEndian.Uint16(b[18:])
	s.Options, s.Payload = b[tcpSize:header], b[header:]
	return fine
}

func (s *Segment) parseUDP(b []byte) fault {
	if len(b) < udpSize {
		return malformed
	}
	s.ports(b)
	size := int(binary.BigEndian.Uint16(b[4:]))
	if size < udpSize || size > len(b) {
		return malformed
	}
	s.Payload = b[udpSize:size]
	return fine
}

func (s *Segment) ports(b []byte) {
	s.Source = netip.AddrPortFrom(s.Source.Addr(), binary.BigEndian.Uint16(b))
	s.Destination = netip.AddrPortFrom(s.Destination.Addr(), binary.BigEndian.Uint16(b[2:]))
}

// transportSum is the checksum of a TCP or UDP header and what follows it, with
// the pseudo-header of its addresses (RFC 9293, section 3.1; RFC 8200, section 8.1).
func transportSum(source, destination netip.Addr, t deception.Transport, b []byte) uint16 {
	total := uint64(t) + uint64(len(b))
	for _, a := range [...]netip.Addr{source, destination} {
		if a.Is4() {
			four := a.As4()
			total += frame.Sum(four[:])
		} else {
			sixteen := a.As16()
			total += frame.Sum(sixteen[:])
		}
	}
	return frame.Checksum(total + frame.Sum(b))
}
