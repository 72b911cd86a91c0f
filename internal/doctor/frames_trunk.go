package doctor

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"

	"decoynet/internal/frame"
)

// Types of tags (IEEE 802.1Q, section 9.5), the older ones of 802.1ad included.
const (
	tagCustomer = 0x8100
	tagService  = 0x88a8
	tagOld      = 0x9100

	etherLLDP = 0x88cc
)

// tagMask leaves the VLAN's number of a tag's control information.
const tagMask = 0x0fff

// tagged puts a frame into a VLAN.
func tagged(frame []byte, vlan uint16) []byte {
	out := make([]byte, 0, len(frame)+4)
	out = append(out, frame[:12]...)
	out = binary.BigEndian.AppendUint16(out, tagCustomer)
	out = binary.BigEndian.AppendUint16(out, vlan)
	return append(out, frame[12:]...)
}

// innerTag returns the VLAN of a tag that the frame begins with. The kernel takes
// the outermost one off, so that this is the second of a frame that had two.
func innerTag(frame []byte) (uint16, bool) {
	if len(frame) < etherHeader+2 {
		return 0, false
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case tagCustomer, tagService, tagOld:
		return binary.BigEndian.Uint16(frame[14:]) & tagMask, true
	}
	return 0, false
}

// isControl tells whether the frame is of a protocol between neighbouring
// switches: those addresses are forwarded by none (IEEE 802.1Q, table 8-1), and
// Cisco's are likewise. They travel without a tag whatever the native VLAN is.
func isControl(frame []byte) bool {
	return bytes.HasPrefix(frame, []byte{0x01, 0x80, 0xc2, 0, 0}) && frame[5] < 0x10 ||
		bytes.HasPrefix(frame, []byte{0x01, 0, 0x0c, 0xcc, 0xcc}) && frame[5]&0xf0 == 0xc0
}

// parseNotice reads what a switch says of the port: LLDP, CDP, and the spanning
// tree of a VLAN that Cisco's send without a tag in the port's native one.
func parseNotice(frame []byte) (Notice, bool) {
	if len(frame) < etherHeader {
		return Notice{}, false
	}
	kind, rest := binary.BigEndian.Uint16(frame[12:]), frame[etherHeader:]
	snap := []byte{0xaa, 0xaa, 0x03, 0, 0, 0x0c} // LLC and SNAP with Cisco's number
	switch {
	case kind == etherLLDP:
		return parseLLDP(rest)
	case kind <= 1500 && len(rest) > 8 && bytes.HasPrefix(rest, snap):
		switch rest = rest[:min(len(rest), int(kind))]; {
		case len(rest) < 8:
		case rest[6] == 0x20 && rest[7] == 0:
			return parseCDP(rest[8:])
		case rest[6] == 0x01 && rest[7] == 0x0b:
			return parsePVST(rest[8:])
		}
	}
	return Notice{}, false
}

// parseLLDP reads IEEE 802.1AB TLVs: a type of 7 bits and a length of 9 each.
func parseLLDP(b []byte) (Notice, bool) {
	n := Notice{Protocol: "LLDP"}
	first := true
	for len(b) >= 2 {
		head := binary.BigEndian.Uint16(b)
		kind, size := head>>9, int(head&0x1ff)
		if kind == 0 || len(b) < 2+size {
			break
		}
		if first && kind != 1 {
			return Notice{}, false // the chassis comes first
		}
		first = false
		v := b[2 : 2+size]
		b = b[2+size:]
		switch {
		case kind == 2 && size > 1: // port identifier
			n.Port = printable(v[1:])
			if v[0] == 3 && size == 7 { // a MAC address
				n.Port = net.HardwareAddr(v[1:]).String()
			}
		case kind == 5:
			n.Switch = printable(v)
		case kind == 127 && size >= 6 && bytes.HasPrefix(v, []byte{0, 0x80, 0xc2}):
			switch id := binary.BigEndian.Uint16(v[4:]) & tagMask; {
			case v[3] == 1: // port VLAN identifier
				n.Native = binary.BigEndian.Uint16(v[4:]) & tagMask
			case v[3] == 3 && id != 0 && len(n.VLANs) < tagMask: // VLAN name
				n.VLANs = append(n.VLANs, id)
			}
		}
	}
	return n, !first
}

// parseCDP reads the TLVs of Cisco's protocol, whose lengths count their heads.
func parseCDP(b []byte) (Notice, bool) {
	n := Notice{Protocol: "CDP"}
	if len(b) < 4 {
		return n, false
	}
	for b = b[4:]; len(b) >= 4; {
		kind, size := binary.BigEndian.Uint16(b), int(binary.BigEndian.Uint16(b[2:]))
		if size < 4 || size > len(b) {
			break
		}
		switch v := b[4:size]; {
		case kind == 1:
			n.Switch = printable(v)
		case kind == 3:
			n.Port = printable(v)
		case kind == 0x0a && len(v) >= 2:
			n.Native = binary.BigEndian.Uint16(v) & tagMask
		}
		b = b[size:]
	}
	return n, true
}

// parsePVST reads the VLAN that a spanning tree of Cisco's is for, which follows
// the 36 bytes of the tree itself.
func parsePVST(b []byte) (Notice, bool) {
	const tree = 36
	if len(b) < tree+6 || !bytes.Equal(b[tree:tree+4], []byte{0, 0, 0, 2}) {
		return Notice{}, false
	}
	return Notice{Protocol: "PVST+", Native: binary.BigEndian.Uint16(b[tree+4:]) & tagMask}, true
}

// printable keeps what may go to a terminal of what a stranger has sent.
func printable(b []byte) string {
	const most = 64
	text := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, string(b[:min(len(b), most)]))
	return strings.TrimSpace(text)
}

// echoRequest builds a ping of that size, IP header included, which may not be
// fragmented.
func echoRequest(from, to netip.Addr, id uint16, size int) []byte {
	body := make([]byte, max(size-20, 8))
	body[0] = 8
	binary.BigEndian.PutUint16(body[4:], id)
	binary.BigEndian.PutUint16(body[6:], 1)
	binary.BigEndian.PutUint16(body[2:], frame.Checksum(frame.Sum(body)))
	return packetOf(from, to, protoICMP, body) // which sets DF
}

// ethernet puts an Ethernet header in front of an IPv4 packet.
func ethernet(from, to net.HardwareAddr, packet []byte) []byte {
	b := append(bytes.Clone(to), from...)
	return append(binary.BigEndian.AppendUint16(b, etherIPv4), packet...)
}

// echoReply is an answer to a ping, or its first fragment.
type echoReply struct {
	id       uint16
	size     int // of the packet, as its header says
	fragment bool
}

func parseEchoReply(frame []byte) (echoReply, bool) {
	if len(frame) < etherHeader+20+8 || binary.BigEndian.Uint16(frame[12:]) != etherIPv4 {
		return echoReply{}, false
	}
	ip := frame[etherHeader:]
	header := int(ip[0]&0xf) * 4
	offset := binary.BigEndian.Uint16(ip[6:])
	if ip[0]>>4 != 4 || header < 20 || len(ip) < header+8 || ip[9] != protoICMP || ip[header] != 0 || offset&0x1fff != 0 {
		return echoReply{}, false
	}
	return echoReply{
		id: binary.BigEndian.Uint16(ip[header+4:]), size: int(binary.BigEndian.Uint16(ip[2:])), fragment: offset&0x2000 != 0,
	}, true
}
