package route

import (
	"bytes"
	"net/netip"

	"golang.org/x/sys/unix"
)

const (
	addrProto  = 11 // IFA_PROTO, since Linux 5.18
	decoyFlags = unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE
)

// attribute appends a netlink attribute, padded.
func attribute(b []byte, kind uint16, value []byte) []byte {
	size := 4 + len(value)
	b = native.AppendUint16(b, uint16(size))
	b = native.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, align(size)-size)...)
}

func attribute32(b []byte, kind uint16, value uint32) []byte {
	b = native.AppendUint16(b, 8)
	b = native.AppendUint16(b, kind)
	return native.AppendUint32(b, value)
}

func attributeAddr(b []byte, kind uint16, a netip.Addr) []byte {
	if a.Is4() {
		v := a.As4()
		return attribute(b, kind, v[:])
	}
	v := a.As16()
	return attribute(b, kind, v[:])
}

// attributes walks over a message's attributes; it stops at malformed ones.
func attributes(b []byte, fn func(kind uint16, value []byte)) {
	for len(b) >= 4 {
		size := int(native.Uint16(b))
		if size < 4 || size > len(b) {
			return
		}
		fn(native.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:size])
		b = b[min(align(size), len(b)):]
	}
}

func u32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return native.Uint32(b)
}

func cString(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

func familyOf(is4 bool) byte {
	if is4 {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// appendRoute writes struct rtmsg and its attributes.
func appendRoute(b []byte, r routeEntry) []byte {
	is4 := r.Dst.Addr().Is4()
	// Only IPv4 knows scopes: how far away the destination is at most.
	scope := byte(unix.RT_SCOPE_UNIVERSE)
	if is4 && r.Type == Local {
		scope = unix.RT_SCOPE_HOST
	} else if is4 && r.Type == Unicast && !r.Via.IsValid() {
		scope = unix.RT_SCOPE_LINK
	}
	var flags uint32
	if r.Onlink {
		flags = unix.RTNH_F_ONLINK
	}
	b = append(b, familyOf(is4), byte(r.Dst.Bits()), 0, 0, table8(r.Table), Protocol, scope, byte(r.Type))
	b = native.AppendUint32(b, flags)
	if r.Dst.Bits() > 0 {
		b = attributeAddr(b, unix.RTA_DST, r.Dst.Addr())
	}
	b = attribute32(b, unix.RTA_TABLE, r.Table)
	if r.Type != Throw {
		b = attribute32(b, unix.RTA_OIF, uint32(r.Dev))
	}
	if r.Metric != 0 {
		b = attribute32(b, unix.RTA_PRIORITY, r.Metric)
	}
	if r.Via.IsValid() {
		b = attributeAddr(b, unix.RTA_GATEWAY, r.Via)
	}
	return b
}

// table8 is the header's field of one byte; larger numbers are told by the
// attribute alone.
func table8(t uint32) byte {
	if t > 255 {
		return unix.RT_TABLE_UNSPEC
	}
	return byte(t)
}

// routeFilter asks for the routes of ours of one family.
func routeFilter(family byte) []byte {
	b := make([]byte, unix.SizeofRtMsg)
	b[0], b[5] = family, Protocol
	return b
}

// parseRoute reads a route of ours; a multipath route is one entry per next hop.
func parseRoute(data []byte, family byte) []routeEntry {
	if len(data) < unix.SizeofRtMsg || data[0] != family || data[5] != Protocol {
		return nil
	}
	flags := native.Uint32(data[8:])
	if flags&unix.RTM_F_CLONED != 0 {
		return nil
	}
	dst := netip.IPv4Unspecified()
	if family == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	r := routeEntry{
		Table: uint32(data[4]), Type: Type(data[7]),
		Onlink: flags&unix.RTNH_F_ONLINK != 0,
	}
	var hops []byte
	attributes(data[unix.SizeofRtMsg:], func(kind uint16, v []byte) {
		switch kind {
		case unix.RTA_DST:
			if a, ok := netip.AddrFromSlice(v); ok {
				dst = a
			}
		case unix.RTA_TABLE:
			r.Table = u32(v)
		case unix.RTA_OIF:
			r.Dev = int(u32(v))
		case unix.RTA_PRIORITY:
			r.Metric = u32(v)
		case unix.RTA_GATEWAY:
			r.Via, _ = netip.AddrFromSlice(v)
		case unix.RTA_MULTIPATH:
			hops = v
		}
	})
	r.Dst = netip.PrefixFrom(dst, int(data[1]))
	if hops == nil {
		return []routeEntry{r}
	}
	return parseHops(r, hops)
}

// parseHops reads an array of struct rtnexthop.
func parseHops(r routeEntry, b []byte) []routeEntry {
	var out []routeEntry
	for len(b) >= unix.SizeofRtNexthop {
		size := int(native.Uint16(b))
		if size < unix.SizeofRtNexthop || size > len(b) {
			break
		}
		hop := r
		hop.Onlink = b[2]&unix.RTNH_F_ONLINK != 0
		hop.Dev = int(native.Uint32(b[4:]))
		attributes(b[unix.SizeofRtNexthop:size], func(kind uint16, v []byte) {
			if kind == unix.RTA_GATEWAY {
				hop.Via, _ = netip.AddrFromSlice(v)
			}
		})
		out = append(out, hop)
		b = b[min(align(size), len(b)):]
	}
	return out
}

// appendAddr writes struct ifaddrmsg and its attributes.
func appendAddr(b []byte, a addrEntry) []byte {
	b = append(b, familyOf(a.Addr.Is4()), byte(a.Bits), 0, unix.RT_SCOPE_UNIVERSE)
	b = native.AppendUint32(b, uint32(a.Dev))
	b = attributeAddr(b, unix.IFA_LOCAL, a.Addr)
	b = attributeAddr(b, unix.IFA_ADDRESS, a.Addr)
	b = attribute32(b, unix.IFA_FLAGS, decoyFlags)
	return attribute(b, addrProto, []byte{Protocol})
}

// heldAddr is an IPv6 address as the kernel tells it.
type heldAddr struct {
	addrEntry
	flags uint32
	proto uint8 // 0 also where the kernel does not know of it
}

func parseAddr(data []byte) (heldAddr, bool) {
	if len(data) < unix.SizeofIfAddrmsg || data[0] != unix.AF_INET6 {
		return heldAddr{}, false
	}
	h := heldAddr{flags: uint32(data[2])}
	h.Bits, h.Dev = int(data[1]), int(native.Uint32(data[4:]))
	var local netip.Addr
	attributes(data[unix.SizeofIfAddrmsg:], func(kind uint16, v []byte) {
		switch kind {
		case unix.IFA_ADDRESS:
			h.Addr, _ = netip.AddrFromSlice(v)
		case unix.IFA_LOCAL: // with a peer, IFA_ADDRESS is the peer's
			local, _ = netip.AddrFromSlice(v)
		case unix.IFA_FLAGS:
			h.flags = u32(v)
		case addrProto:
			if len(v) > 0 {
				h.proto = v[0]
			}
		}
	})
	if local.IsValid() {
		h.Addr = local
	}
	return h, h.Addr.IsValid()
}

// ourAddrs picks our addresses. A kernel before 5.18 keeps no origin: seen from
// that not even ::1 has one. There an address on our link with the very flags
// that we set counts as ours; link is 0 where no link is.
func ourAddrs(held []heldAddr, link int) []addrEntry {
	origins := false
	for _, h := range held {
		origins = origins || h.proto != 0
	}
	var out []addrEntry
	for _, h := range held {
		alike := h.Dev == link && h.Bits == 128 && h.flags&decoyFlags == decoyFlags
		if h.proto == Protocol || !origins && alike {
			out = append(out, h.addrEntry)
		}
	}
	return out
}

// appendRule writes struct fib_rule_hdr and its attributes.
func appendRule(b []byte, r ruleEntry) []byte {
	bits := func(p netip.Prefix) byte {
		if !p.IsValid() {
			return 0
		}
		return byte(p.Bits())
	}
	b = append(b, familyOf(r.Family == IPv4), bits(r.To), bits(r.From), 0, table8(r.Table), 0, 0, r.Action)
	b = native.AppendUint32(b, 0)
	b = attribute32(b, unix.FRA_PRIORITY, r.Priority)
	b = attribute32(b, unix.FRA_TABLE, r.Table)
	if r.IIF != "" {
		b = attribute(b, unix.FRA_IIFNAME, append([]byte(r.IIF), 0))
	}
	if r.Mark != 0 || r.Mask != 0 {
		b = attribute32(b, unix.FRA_FWMARK, r.Mark)
		b = attribute32(b, unix.FRA_FWMASK, r.Mask)
	}
	if r.From.IsValid() {
		b = attributeAddr(b, unix.FRA_SRC, r.From.Addr())
	}
	if r.To.IsValid() {
		b = attributeAddr(b, unix.FRA_DST, r.To.Addr())
	}
	return attribute(b, unix.FRA_PROTOCOL, []byte{Protocol})
}

// parseRule reads a rule of ours.
func parseRule(data []byte, family byte) (ruleEntry, bool) {
	const header = 12 // struct fib_rule_hdr
	if len(data) < header || data[0] != family {
		return ruleEntry{}, false
	}
	r := ruleEntry{Family: IPv4, Table: uint32(data[4]), Action: data[7]}
	if family == unix.AF_INET6 {
		r.Family = IPv6
	}
	ours := false
	attributes(data[header:], func(kind uint16, v []byte) {
		switch kind {
		case unix.FRA_PRIORITY:
			r.Priority = u32(v)
		case unix.FRA_TABLE:
			r.Table = u32(v)
		case unix.FRA_IIFNAME:
			r.IIF = cString(v)
		case unix.FRA_FWMARK:
			r.Mark = u32(v)
		case unix.FRA_FWMASK:
			r.Mask = u32(v)
		case unix.FRA_DST:
			if a, ok := netip.AddrFromSlice(v); ok {
				r.To = netip.PrefixFrom(a, int(data[1]))
			}
		case unix.FRA_SRC:
			if a, ok := netip.AddrFromSlice(v); ok {
				r.From = netip.PrefixFrom(a, int(data[2]))
			}
		case unix.FRA_PROTOCOL:
			ours = len(v) > 0 && v[0] == Protocol
		}
	})
	return r, ours
}
