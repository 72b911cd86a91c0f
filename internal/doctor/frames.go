package doctor

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"

	"decoynet/internal/frame"
)

// Protocol numbers of frames and packets.
const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd

	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58

	etherHeader = 14
)

// parseARP returns who says to have which address, in a request or an answer.
func parseARP(frame []byte) (netip.Addr, net.HardwareAddr, bool) {
	if len(frame) < etherHeader+28 || !bytes.Equal(frame[12:20], []byte{8, 6, 0, 1, 8, 0, 6, 4}) {
		return netip.Addr{}, nil, false
	}
	a := frame[etherHeader:]
	return netip.AddrFrom4([4]byte(a[14:18])), bytes.Clone(a[8:14]), true
}

// parseAdvertisement returns who says to have which IPv6 address.
func parseAdvertisement(frame []byte) (netip.Addr, net.HardwareAddr, bool) {
	const header = etherHeader + 40
	if len(frame) < header+24 || frame[12] != 0x86 || frame[13] != 0xdd || frame[20] != protoICMPv6 || frame[header] != 136 {
		return netip.Addr{}, nil, false
	}
	mac := net.HardwareAddr(bytes.Clone(frame[6:12]))
	if o := frame[header+24:]; len(o) >= 8 && o[0] == 2 && o[1] == 1 { // target link-layer address
		mac = bytes.Clone(o[2:8])
	}
	return netip.AddrFrom16([16]byte(frame[header+8 : header+24])), mac, true
}

// linkLocal is the link-local address that a MAC address makes (RFC 4291,
// appendix A).
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// TCP flags.
const (
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

// segment builds a TCP segment without data (RFC 9293, section 3.1).
func segment(from, to netip.AddrPort, sequence uint32, flags byte) []byte {
	b := make([]byte, 20, 24)
	binary.BigEndian.PutUint16(b[0:], from.Port())
	binary.BigEndian.PutUint16(b[2:], to.Port())
	binary.BigEndian.PutUint32(b[4:], sequence)
	b[12], b[13] = 5<<4, flags
	binary.BigEndian.PutUint16(b[14:], 64240)
	if flags&flagSYN != 0 {
		b = append(b, 2, 4, 0x05, 0xb4) // MSS 1460
		b[12] = 6 << 4
	}
	binary.BigEndian.PutUint16(b[16:], frame.PacketChecksum(from.Addr(), to.Addr(), protoTCP, b))
	return b
}

// packetOf puts an IP header in front of a payload.
func packetOf(from, to netip.Addr, proto byte, payload []byte) []byte {
	if from.Is6() {
		b := append([]byte{0x60, 0, 0, 0}, 0, 0, proto, 64)
		binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
		return append(append(append(b, from.AsSlice()...), to.AsSlice()...), payload...)
	}
	b := []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, proto, 0, 0}
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(payload)))
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	binary.BigEndian.PutUint16(b[10:], frame.Checksum(frame.Sum(b)))
	return append(b, payload...)
}

// heard is a packet as far as it matters: a TCP segment that opens or refuses a
// connection, or the word that a UDP port is closed, which is given the
// addresses and flags of a segment that refuses.
type heard struct {
	src, dst netip.AddrPort
	flags    byte
	sequence uint32
}

// parsePacket reads an IP packet.
func parsePacket(b []byte) (heard, bool) {
	from, to, proto, body, ok := parseIP(b)
	if !ok {
		return heard{}, false
	}
	switch {
	case proto == protoTCP && len(body) >= 20:
		return heard{
			src: netip.AddrPortFrom(from, binary.BigEndian.Uint16(body)), dst: netip.AddrPortFrom(to, binary.BigEndian.Uint16(body[2:])),
			sequence: binary.BigEndian.Uint32(body[4:]), flags: body[13],
		}, true
	// Destination unreachable, port unreachable (RFC 792, RFC 4443), with the
	// packet that it is about.
	case len(body) > 8 && (proto == protoICMP && body[0] == 3 && body[1] == 3 || proto == protoICMPv6 && body[0] == 1 && body[1] == 4):
		from, to, proto, about, ok := parseIP(body[8:])
		if !ok || proto != protoUDP || len(about) < 4 {
			return heard{}, false
		}
		return heard{
			src: netip.AddrPortFrom(to, binary.BigEndian.Uint16(about[2:])), dst: netip.AddrPortFrom(from, binary.BigEndian.Uint16(about)),
			flags: flagRST,
		}, true
	}
	return heard{}, false
}

func parseIP(b []byte) (from, to netip.Addr, proto byte, body []byte, ok bool) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		from, to = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		return from, to, b[9], b[min(len(b), int(b[0]&0xf)*4):], true
	case len(b) >= 40 && b[0]>>4 == 6:
		from, to = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		return from, to, b[6], b[40:], true
	}
	return from, to, 0, nil, false
}
