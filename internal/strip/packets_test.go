package strip

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"

	"decoynet/deception"
	"decoynet/internal/proxyheader"
)

// The tests write and read packets by themselves: plainly, and with a checksum
// of their own.

// naiveSum is RFC 1071 as it is written there.
func naiveSum(b []byte) uint16 {
	var total uint32
	for i := 0; i < len(b); i += 2 {
		word := uint32(b[i]) << 8
		if i+1 < len(b) {
			word |= uint32(b[i+1])
		}
		total += word
		if total > 0xffff {
			total = total&0xffff + 1
		}
	}
	return ^uint16(total)
}

func pseudo(source, destination netip.Addr, proto byte, body []byte) []byte {
	b := append(source.AsSlice(), destination.AsSlice()...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	return append(append(b, 0, 0, 0, proto), body...)
}

func writeIP(source, destination netip.Addr, proto byte, body []byte) []byte {
	if source.Is4() {
		h := make([]byte, 20)
		h[0], h[8], h[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(body)))
		copy(h[12:], source.AsSlice())
		copy(h[16:], destination.AsSlice())
		binary.BigEndian.PutUint16(h[10:], naiveSum(h))
		return append(h, body...)
	}
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, proto, 64
	binary.BigEndian.PutUint16(h[4:], uint16(len(body)))
	copy(h[8:], source.AsSlice())
	copy(h[24:], destination.AsSlice())
	return append(h, body...)
}

type wireTCP struct {
	source, destination netip.AddrPort
	seq, ack            uint32
	flags               byte
	options, payload    []byte
}

func (w *wireTCP) bytes() []byte {
	b := make([]byte, 20, 20+len(w.options)+len(w.payload))
	binary.BigEndian.PutUint16(b, w.source.Port())
	binary.BigEndian.PutUint16(b[2:], w.destination.Port())
	binary.BigEndian.PutUint32(b[4:], w.seq)
	binary.BigEndian.PutUint32(b[8:], w.ack)
	b[12], b[13] = byte(20+len(w.options))/4<<4, w.flags
	b[14] = 0x20
	b = append(append(b, w.options...), w.payload...)
	binary.BigEndian.PutUint16(b[16:], naiveSum(pseudo(w.source.Addr(), w.destination.Addr(), 6, b)))
	return writeIP(w.source.Addr(), w.destination.Addr(), 6, b)
}

func writeUDP(source, destination netip.AddrPort, payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b, source.Port())
	binary.BigEndian.PutUint16(b[2:], destination.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[6:], naiveSum(pseudo(source.Addr(), destination.Addr(), 17, b)))
	return writeIP(source.Addr(), destination.Addr(), 17, b)
}

// readPacket takes an emitted packet apart and says what is wrong with it.
func readPacket(ip []byte) (w wireTCP, transport deception.Transport, err error) {
	var source, destination netip.Addr
	var proto byte
	var body []byte
	switch ip[0] >> 4 {
	case 4:
		if naiveSum(ip[:20]) != 0 || ip[0] != 0x45 || int(binary.BigEndian.Uint16(ip[2:])) != len(ip) {
			return w, 0, fmt.Errorf("bad IPv4 header %x", ip[:20])
		}
		source, _ = netip.AddrFromSlice(ip[12:16])
		destination, _ = netip.AddrFromSlice(ip[16:20])
		proto, body = ip[9], ip[20:]
	case 6:
		if int(binary.BigEndian.Uint16(ip[4:])) != len(ip)-40 {
			return w, 0, fmt.Errorf("bad IPv6 header %x", ip[:40])
		}
		source, _ = netip.AddrFromSlice(ip[8:24])
		destination, _ = netip.AddrFromSlice(ip[24:40])
		proto, body = ip[6], ip[40:]
	default:
		return w, 0, fmt.Errorf("no IP: %x", ip)
	}
	if naiveSum(pseudo(source, destination, proto, body)) != 0 {
		return w, 0, fmt.Errorf("bad checksum in %x", ip)
	}
	w.source = netip.AddrPortFrom(source, binary.BigEndian.Uint16(body))
	w.destination = netip.AddrPortFrom(destination, binary.BigEndian.Uint16(body[2:]))
	if proto == 17 {
		w.payload = body[8:]
		return w, deception.UDP, nil
	}
	if len(ip) > mtu {
		return w, 0, fmt.Errorf("a packet of %d bytes", len(ip))
	}
	w.seq, w.ack, w.flags = binary.BigEndian.Uint32(body[4:]), binary.BigEndian.Uint32(body[8:]), body[13]
	size := int(body[12]>>4) * 4
	w.options, w.payload = body[20:size], body[size:]
	return w, deception.TCP, nil
}

// taken is what a sink was told.
type taken struct {
	side int
	at   int64
	wireTCP
	flow *Flow
}

type sink struct {
	refuse  bool
	begun   []*Flow
	packets []taken
	ended   []deception.EndReason
	err     error
}

func (s *sink) Begin(f *Flow) bool { s.begun = append(s.begun, f); return !s.refuse }

func (s *sink) Packet(f *Flow, side int, at int64, ip []byte) {
	w, _, err := readPacket(ip)
	if err != nil && s.err == nil {
		s.err = err
	}
	w.payload, w.options = bytes.Clone(w.payload), bytes.Clone(w.options)
	s.packets = append(s.packets, taken{side, at, w, f})
}

func (s *sink) End(_ *Flow, _ int64, reason deception.EndReason) { s.ended = append(s.ended, reason) }

var (
	gateway4, server4 = netip.MustParseAddrPort("172.16.23.1:40000"), netip.MustParseAddrPort("172.16.23.2:80")
	gateway6, server6 = netip.MustParseAddrPort("[fd00::1]:40000"), netip.MustParseAddrPort("[fd00::2]:80")
	intruder, decoy   = netip.MustParseAddrPort("192.0.2.66:4711"), netip.MustParseAddrPort("192.0.2.10:80")
	intruder6, decoy6 = netip.MustParseAddrPort("[2001:db8::66]:4711"), netip.MustParseAddrPort("[2001:db8::10]:80")
)

func headerOf(source, destination netip.AddrPort) []byte {
	h := proxyheader.Header{Transport: deception.TCP, Source: source, Destination: destination}
	b, err := h.Append(nil)
	if err != nil {
		panic(err)
	}
	return b
}
