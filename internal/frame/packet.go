package frame

import (
	"encoding/binary"
	"math/bits"
	"net/netip"

	"decoynet/deception"
)

// The flags of a TCP segment (RFC 9293, section 3.1).
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
)

// MTU is the size of the largest TCP packet that is made.
const MTU = 1500

// MaxDatagram is the largest payload of a UDP datagram: what an IPv4 packet
// holds at most.
const MaxDatagram = 65535 - ipv4Size - udpSize

const (
	etherSize = 14
	tagSize   = 4
	ipv4Size  = 20
	ipv6Size  = 40
	tcpSize   = 20
	udpSize   = 8

	typeIPv4 = 0x0800
	typeIPv6 = 0x86dd
	typeVLAN = 0x8100

	// hops is the TTL of what is made: that of a host of the same network.
	hops = 64
	// window is what both sides announce. With the scale it is large enough for a
	// sensor to follow a flow with a hole of hundreds of megabytes.
	window      = 65535
	windowScale = 10

	dontFragment = 0x4000
)

// WindowSize is how far a side may be ahead of what was acknowledged.
const WindowSize = window << windowScale

// Header is what every packet of one direction of a flow begins with, ready made.
type Header struct {
	b         [etherSize + 2*tagSize + ipv6Size]byte
	ip        uint8 // where the IP header begins
	n         uint8 // bytes of b
	v6        bool
	ports     [4]byte
	headerSum uint32 // IPv4: of the header's words that never change
	pseudoSum uint32 // of the pseudo header without its length, and of the ports
}

// Tags are the VLAN identifiers of a frame, outer first; zero ones are left out.
type Tags [2]uint16

// Ether appends an Ethernet header with its tags.
func Ether(b []byte, from, to MAC, tags Tags, etherType uint16) []byte {
	b = append(b, to[:]...)
	b = append(b, from[:]...)
	for _, tag := range tags {
		if tag != 0 {
			b = binary.BigEndian.AppendUint16(b, typeVLAN)
			b = binary.BigEndian.AppendUint16(b, tag)
		}
	}
	return binary.BigEndian.AppendUint16(b, etherType)
}

// NewHeader returns the header of packets from one address to another, which are
// both of IPv4 or both of IPv6.
func NewHeader(transport deception.Transport, fromMAC, toMAC MAC, tags Tags, from, to netip.AddrPort) Header {
	h := Header{v6: from.Addr().Is6()}
	b := Ether(h.b[:0], fromMAC, toMAC, tags, h.etherType())
	h.ip = uint8(len(b))
	source, destination := from.Addr().AsSlice(), to.Addr().AsSlice()
	if h.v6 {
		b = append(b, 0x60, 0, 0, 0, 0, 0, byte(transport), hops)
	} else {
		b = append(b, 0x45, 0, 0, 0, 0, 0, 0, 0, hops, byte(transport), 0, 0)
	}
	b = append(append(b, source...), destination...)
	h.n = uint8(len(b))
	if !h.v6 {
		h.headerSum = fold(Sum(b[h.ip:]))
	}
	binary.BigEndian.PutUint16(h.ports[:], from.Port())
	binary.BigEndian.PutUint16(h.ports[2:], to.Port())
	h.pseudoSum = fold(Sum(source) + Sum(destination) + Sum(h.ports[:]) + uint64(transport))
	return h
}

// NewPacketHeader returns the header of packets that have all but an Ethernet
// header already.
func NewPacketHeader(fromMAC, toMAC MAC, tags Tags, v6 bool) Header {
	h := Header{v6: v6}
	b := Ether(h.b[:0], fromMAC, toMAC, tags, h.etherType())
	h.ip, h.n = uint8(len(b)), uint8(len(b))
	return h
}

// Packet appends the frame of an IP packet.
func (h *Header) Packet(b, ip []byte) []byte { return append(append(b, h.b[:h.ip]...), ip...) }

func (h *Header) etherType() uint16 {
	if h.v6 {
		return typeIPv6
	}
	return typeIPv4
}

// Cut is the most payload that one TCP segment of this direction holds.
func (h *Header) Cut() int {
	if h.v6 {
		return MTU - ipv6Size - tcpSize
	}
	return MTU - ipv4Size - tcpSize
}

// Segment is what is different in each packet of a TCP flow.
type Segment struct {
	Flags    uint8
	ID       uint16 // of the IPv4 header
	Seq, Ack uint32
	Data     []byte // at most Header.Cut bytes
}

// synOptions follow the maximum segment size: SACK permitted, no-operation, window
// scale.
var synOptions = [...]byte{4, 2, 1, 3, 3, windowScale, 0, 0}

// TCP appends the frame of a segment. One with SYN has the options that hosts
// send; no other has any.
func (h *Header) TCP(b []byte, s *Segment) []byte {
	size := tcpSize
	if s.Flags&SYN != 0 {
		size += 4 + len(synOptions)
	}
	b = h.begin(b, size+len(s.Data), s.ID, dontFragment)
	at := len(b)
	b = append(b, h.ports[:]...)
	b = binary.BigEndian.AppendUint32(b, s.Seq)
	b = binary.BigEndian.AppendUint32(b, s.Ack)
	b = append(b, byte(size/4)<<4, s.Flags, window>>8, window&0xff, 0, 0, 0, 0)
	if s.Flags&SYN != 0 {
		b = append(b, 2, 4)
		b = binary.BigEndian.AppendUint16(b, uint16(h.Cut()))
		b = append(b, synOptions[:]...)
	}
	head := Sum(b[at+len(h.ports):])
	b = append(b, s.Data...)
	total := head + Sum(s.Data) + uint64(h.pseudoSum) + uint64(size+len(s.Data))
	binary.BigEndian.PutUint16(b[at+16:], Checksum(total))
	return b
}

// UDP appends the frame of a datagram of at most MaxDatagram bytes. It is never
// cut into fragments: Suricata does not know the MAC addresses of what it has put
// together.
func (h *Header) UDP(b []byte, id uint16, data []byte) []byte {
	b = h.begin(b, udpSize+len(data), id, 0)
	return append(h.udpHeader(b, data), data...)
}

func (h *Header) udpHeader(b, data []byte) []byte {
	length := udpSize + len(data)
	b = append(b, h.ports[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	check := Checksum(Sum(data) + uint64(h.pseudoSum) + 2*uint64(length))
	if check == 0 {
		check = 0xffff // zero means that there is none (RFC 768)
	}
	return binary.BigEndian.AppendUint16(b, check)
}

// begin appends the headers of a packet with so many bytes behind the IP header.
func (h *Header) begin(b []byte, size int, id, fragment uint16) []byte {
	ip := len(b) + int(h.ip)
	b = append(b, h.b[:h.n]...)
	if h.v6 {
		binary.BigEndian.PutUint16(b[ip+4:], uint16(size))
		return b
	}
	length := uint16(ipv4Size + size)
	binary.BigEndian.PutUint16(b[ip+2:], length)
	binary.BigEndian.PutUint16(b[ip+4:], id)
	binary.BigEndian.PutUint16(b[ip+6:], fragment)
	check := Checksum(uint64(h.headerSum) + uint64(length) + uint64(id) + uint64(fragment))
	binary.BigEndian.PutUint16(b[ip+10:], check)
	return b
}

// Sum adds the 16-bit words of b (RFC 1071), four at a time: the carries of a sum
// of 64-bit words are folded away by Checksum. Sums of parts of even length may be
// added up.
func Sum(b []byte) uint64 {
	var total, c uint64
	for len(b) >= 32 {
		total, c = bits.Add64(total, binary.BigEndian.Uint64(b), c)
		total, c = bits.Add64(total, binary.BigEndian.Uint64(b[8:]), c)
		total, c = bits.Add64(total, binary.BigEndian.Uint64(b[16:]), c)
		total, c = bits.Add64(total, binary.BigEndian.Uint64(b[24:]), c)
		b = b[32:]
	}
	for len(b) >= 8 {
		total, c = bits.Add64(total, binary.BigEndian.Uint64(b), c)
		b = b[8:]
	}
	if len(b) > 0 {
		var rest [8]byte
		copy(rest[:], b)
		total, c = bits.Add64(total, binary.BigEndian.Uint64(rest[:]), c)
	}
	return fold64(total) + c
}

// Checksum is the Internet checksum of what was summed up.
func Checksum(total uint64) uint16 { return ^uint16(fold(total)) }

// fold64 folds a sum of 64-bit words to 32 bits.
func fold64(s uint64) uint64 {
	s = s>>32 + s&0xffffffff
	return s>>32 + s&0xffffffff
}

// fold folds a sum of words to 16 bits.
func fold(s uint64) uint32 {
	s = fold64(s)
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint32(s)
}
