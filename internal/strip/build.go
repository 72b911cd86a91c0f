package strip

import (
	"encoding/binary"

	"decoynet/deception"
	"decoynet/internal/frame"
)

// mtu is what a packet has at most that is made here: that of Ethernet.
const mtu = 1500

// builder writes packets. They are valid until it writes the next one.
type builder struct {
	buf []byte
	id  uint16 // of the next IPv4 packet
}

// build writes what s says, cut to packets of the MTU or to payloads of the given
// size, whichever is less. A datagram is not cut.
func (b *builder) build(s *Segment, size int, emit func(ip []byte)) {
	if s.Transport == deception.UDP {
		emit(b.datagram(s))
		return
	}
	room := mtu - tcpSize - len(s.Options) - ip4Size
	if s.Source.Addr().Is6() {
		room -= ip6Size - ip4Size
	}
	if size > 0 {
		room = min(room, size)
	}
	piece := *s
	for first, sent := true, 0; first || sent < len(s.Payload); first = false {
		n := min(room, len(s.Payload)-sent)
		piece.Payload = s.Payload[sent:][:n]
		piece.Seq = s.Seq + uint32(sent)
		if s.Has(FlagSYN) && !first {
			piece.Seq++
		}
		piece.Flags = s.Flags
		if sent+n < len(s.Payload) {
			piece.Flags &^= FlagFIN | FlagPSH
		}
		if !first {
			piece.Flags &^= FlagCWR | FlagSYN
		}
		piece.Urgent = s.Urgent - uint16(sent)
		if s.Has(FlagURG) && int(s.Urgent) <= sent && !first {
			piece.Flags &^= FlagURG
			piece.Urgent = 0
		}
		emit(b.segment(&piece))
		sent += n
	}
}

// same writes the packet as it is, with a checksum where that may be missing.
func (b *builder) same(s *Segment, unsummed bool) []byte {
	if !unsummed {
		return s.whole
	}
	ip := b.room(len(s.whole))
	copy(ip, s.whole)
	body, at := ip[s.at:], 16
	if s.Transport == deception.UDP {
		body, at = body[:udpSize+len(s.Payload)], 6
	}
	binary.BigEndian.PutUint16(body[at:], 0)
	check := transportSum(s.Source.Addr(), s.Destination.Addr(), s.Transport, body)
	if check == 0 && s.Transport == deception.UDP {
		check = 0xffff // 0 means that there is none (RFC 768)
	}
	binary.BigEndian.PutUint16(body[at:], check)
	return ip
}

func (b *builder) segment(s *Segment) []byte {
	header := tcpSize + (len(s.Options)+3)&^3
	ip, body := b.packet(s, header+len(s.Payload))
	clear(body[:header])
	binary.BigEndian.PutUint16(body, s.Source.Port())
	binary.BigEndian.PutUint16(body[2:], s.Destination.Port())
	binary.BigEndian.PutUint32(body[4:], s.Seq)
	binary.BigEndian.PutUint32(body[8:], s.Ack)
	body[12], body[13] = byte(header/4)<<4, s.Flags
	binary.BigEndian.PutUint16(body[14:], s.Window)
	if s.Has(FlagURG) {
		binary.BigEndian.PutUint16(body[18:], s.Urgent)
	}
	copy(body[tcpSize:], s.Options)
	copy(body[header:], s.Payload)
	binary.BigEndian.PutUint16(body[16:], transportSum(s.Source.Addr(), s.Destination.Addr(), s.Transport, body))
	return ip
}

func (b *builder) datagram(s *Segment) []byte {
	ip, body := b.packet(s, udpSize+len(s.Payload))
	binary.BigEndian.PutUint16(body, s.Source.Port())
	binary.BigEndian.PutUint16(body[2:], s.Destination.Port())
	binary.BigEndian.PutUint16(body[4:], uint16(len(body)))
	binary.BigEndian.PutUint16(body[6:], 0)
	copy(body[udpSize:], s.Payload)
	if check := transportSum(s.Source.Addr(), s.Destination.Addr(), s.Transport, body); check != 0 {
		binary.BigEndian.PutUint16(body[6:], check)
	} else {
		binary.BigEndian.PutUint16(body[6:], 0xffff) // 0 means that there is none (RFC 768)
	}
	return ip
}

// packet writes the IP header and returns the packet and the room behind that.
func (b *builder) packet(s *Segment, size int) (ip, body []byte) {
	if s.Source.Addr().Is4() {
		ip = b.room(ip4Size + size)
		clear(ip[:ip4Size])
		ip[0], ip[1] = 0x45, s.Class
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		binary.BigEndian.PutUint16(ip[4:], b.id)
		b.id++
		ip[6] = 0x40 // do not fragment
		ip[8], ip[9] = s.Hops, byte(s.Transport)
		source, destination := s.Source.Addr().As4(), s.Destination.Addr().As4()
		copy(ip[12:], source[:])
		copy(ip[16:], destination[:])
		binary.BigEndian.PutUint16(ip[10:], frame.Checksum(frame.Sum(ip[:ip4Size])))
		return ip, ip[ip4Size:]
	}
	ip = b.room(ip6Size + size)
	clear(ip[:8])
	ip[0], ip[1] = 0x60|s.Class>>4, s.Class<<4
	binary.BigEndian.PutUint16(ip[4:], uint16(size))
	ip[6], ip[7] = byte(s.Transport), s.Hops
	source, destination := s.Source.Addr().As16(), s.Destination.Addr().As16()
	copy(ip[8:], source[:])
	copy(ip[24:], destination[:])
	return ip, ip[ip6Size:]
}

func (b *builder) room(size int) []byte {
	if cap(b.buf) < size {
		b.buf = make([]byte, max(size, mtu))
	}
	return b.buf[:size]
}
