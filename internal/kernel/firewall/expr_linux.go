package firewall

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"decoynet/deception"
)

// The words that our rules are made of. Each returns the expressions of one
// match or statement; a rule is a row of them. Values are compared in register
// 1 where nothing else is said.

type exprs = []expr.Any

// reg32 is the number of the n-th 32-bit register; registers 1 to 4 of 128 bits
// are the same memory.
func reg32(n uint32) uint32 { return unix.NFT_REG32_00 + n }

func equal(data ...byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

func differs(data ...byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: data} }

func meta(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: 1} }

// ifname pads an interface's name as the kernel compares it.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func iif(name string) exprs    { return exprs{meta(expr.MetaKeyIIFNAME), equal(ifname(name)...)} }
func notIIF(name string) exprs { return exprs{meta(expr.MetaKeyIIFNAME), differs(ifname(name)...)} }
func oif(name string) exprs    { return exprs{meta(expr.MetaKeyOIFNAME), equal(ifname(name)...)} }

// iifPrefix matches every interface whose name begins with prefix.
func iifPrefix(prefix string) exprs {
	return exprs{meta(expr.MetaKeyIIFNAME), equal([]byte(prefix)...)}
}

func oifPrefix(prefix string) exprs {
	return exprs{meta(expr.MetaKeyOIFNAME), equal([]byte(prefix)...)}
}

// iifGoto continues in the chain that the verdict map names for the interface.
func iifGoto(vmap string) exprs {
	return exprs{meta(expr.MetaKeyIIFNAME), &expr.Lookup{SourceRegister: 1, SetName: vmap, IsDestRegSet: true, DestRegister: unix.NFT_REG_VERDICT}}
}

func ipv4() exprs { return exprs{meta(expr.MetaKeyNFPROTO), equal(unix.NFPROTO_IPV4)} }
func ipv6() exprs { return exprs{meta(expr.MetaKeyNFPROTO), equal(unix.NFPROTO_IPV6)} }

func family(a netip.Addr) exprs {
	if a.Is4() {
		return ipv4()
	}
	return ipv6()
}

func l4(proto byte) exprs { return exprs{meta(expr.MetaKeyL4PROTO), equal(proto)} }

func masked(mask ...byte) expr.Any {
	return &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))}
}

// Bits of the TCP header's flags (RFC 9293, section 3.1).
const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpACK = 0x10
)

func tcpFlags(mask byte, cmp expr.Any) exprs {
	return append(l4(unix.IPPROTO_TCP),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1}, masked(mask), cmp)
}

// tcpAnswer matches every TCP segment that cannot begin a connection.
func tcpAnswer() exprs { return tcpFlags(tcpSYN|tcpACK, differs(tcpSYN)) }

func tcpAny(flags byte) exprs { return tcpFlags(flags, differs(0)) }

// socketTransparent matches what belongs to a socket with IP_TRANSPARENT, or,
// with an ICMP error, the packet that it is about.
func socketTransparent() exprs {
	return exprs{&expr.Socket{Key: expr.SocketKeyTransparent, Register: 1}, equal(1)}
}

// socketBound excludes sockets bound to the wildcard address.
func socketBound() exprs {
	return exprs{&expr.Socket{Key: expr.SocketKeyWildcard, Register: 1}, equal(0)}
}

// laterFragment matches IPv6 fragments but a datagram's first.
func laterFragment() exprs {
	return append(ipv6(),
		&expr.Exthdr{DestRegister: 1, Type: unix.IPPROTO_FRAGMENT, Offset: 2, Len: 2, Op: expr.ExthdrOpIpv6},
		masked(0xff, 0xf8), differs(0, 0))
}

func socketMark(mark uint32) exprs {
	return exprs{&expr.Socket{Key: expr.SocketKeyMark, Register: 1}, equal(nativeUint32(mark)...)}
}

// toType matches the type of the destination in the routing tables local and
// main: `ip rule iif` does not count, for which every packet of a zone would be
// to this host.
func toType(t uint32) exprs {
	return exprs{&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true}, equal(nativeUint32(t)...)}
}

func notToType(t uint32) exprs {
	return exprs{&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true}, differs(nativeUint32(t)...)}
}

// routedBack matches packets whose source address is routed to the interface
// that they came in on.
func routedBack() exprs {
	return exprs{&expr.Fib{Register: 1, FlagSADDR: true, FlagIIF: true, ResultOIF: true}, differs(nativeUint32(0)...)}
}

// icmp matches the types of one family's ICMP, which must be consecutive.
func icmp(proto byte, first, last byte) exprs {
	e := append(l4(proto), &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1})
	if first == last {
		return append(e, equal(first))
	}
	return append(e, &expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: []byte{first}, ToData: []byte{last}})
}

// notFragmentationNeeded excludes, of ICMP's destination unreachable, the code
// that only tells the path's MTU (RFC 1191).
func notFragmentationNeeded() exprs {
	return exprs{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 1, Len: 1}, differs(4)}
}

// onLink matches a hop limit that no router can have let through (RFC 4861,
// section 7.1).
func onLink() exprs {
	return exprs{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 7, Len: 1}, equal(255)}
}

// loadAddr reads the source or destination address out of the IP header.
func loadAddr(is4, source bool, reg uint32) expr.Any {
	offset, size := uint32(24), uint32(16)
	if is4 {
		offset, size = 16, 4
	}
	if source {
		offset -= size
	}
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}
}

func addrType(is4 bool) nftables.SetDatatype {
	if is4 {
		return nftables.TypeIPAddr
	}
	return nftables.TypeIP6Addr
}

// addrRegs is how many 32-bit registers an address takes.
func addrRegs(is4 bool) uint32 {
	if is4 {
		return 1
	}
	return 4
}

func toPrefix(p netip.Prefix) exprs {
	e := append(family(p.Addr()), loadAddr(p.Addr().Is4(), false, 1))
	if p.Bits() == 0 {
		return family(p.Addr())
	}
	if p.IsSingleIP() {
		return append(e, equal(p.Addr().AsSlice()...))
	}
	return append(e, &expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: p.Masked().Addr().AsSlice(), ToData: deception.LastAddr(p).AsSlice()})
}

func toPorts(r deception.PortRange) exprs {
	e := append(l4(byte(r.Transport)), &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2})
	first, last := binary.BigEndian.AppendUint16(nil, r.First), binary.BigEndian.AppendUint16(nil, r.Last)
	if r.First == r.Last {
		return append(e, equal(first...))
	}
	return append(e, &expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: first, ToData: last})
}

// toSet matches destinations that the set holds.
func toSet(is4 bool, name string) exprs {
	return append(family(zeroAddr(is4)), loadAddr(is4, false, 1), &expr.Lookup{SourceRegister: 1, SetName: name})
}

func zeroAddr(is4 bool) netip.Addr {
	if is4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func ct(key expr.CtKey) expr.Any { return &expr.Ct{Key: key, Register: 1} }

func ctSet(key expr.CtKey, value uint32) exprs {
	return exprs{&expr.Immediate{Register: 1, Data: nativeUint32(value)}, &expr.Ct{Key: key, Register: 1, SourceRegister: true}}
}

func ctMark(mark uint32) exprs    { return exprs{ct(expr.CtKeyMARK), equal(nativeUint32(mark)...)} }
func setCtMark(mark uint32) exprs { return ctSet(expr.CtKeyMARK, mark) }

// ctTagged matches connections that carry the mark of any segment.
func ctTagged() exprs {
	return exprs{ct(expr.CtKeyMARK), masked(nativeUint32(MarkMask)...), equal(nativeUint32(MarkTag)...)}
}

func ctStatus(bit uint32, cmp expr.Any) exprs {
	return exprs{ct(expr.CtKeySTATUS), masked(nativeUint32(bit)...), cmp}
}

func ctState(bit uint32) exprs {
	return exprs{ct(expr.CtKeySTATE), masked(nativeUint32(bit)...), differs(nativeUint32(0)...)}
}

func ctOriginal() exprs { return exprs{ct(expr.CtKeyDIRECTION), equal(0)} }
func ctReply() exprs    { return exprs{ct(expr.CtKeyDIRECTION), equal(1)} }

// segmentMark matches packets that carry the mark of any segment.
func segmentMark() exprs {
	return exprs{meta(expr.MetaKeyMARK), masked(nativeUint32(MarkMask)...), equal(nativeUint32(MarkTag)...)}
}

func accept() exprs { return exprs{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() exprs   { return exprs{&expr.Verdict{Kind: expr.VerdictDrop}} }
func ret() exprs    { return exprs{&expr.Verdict{Kind: expr.VerdictReturn}} }

func jump(chain string) exprs {
	return exprs{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

func count(counter string) exprs {
	return exprs{&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: counter}}
}

// sample logs at most ten packets a second, their first 128 bytes, to LogGroup.
func sample(prefix string) exprs {
	return exprs{
		&expr.Limit{Type: expr.LimitTypePkts, Rate: 10, Unit: expr.LimitTimeSecond, Burst: 5},
		&expr.Log{
			Key:     1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_SNAPLEN,
			Group:   LogGroup,
			Snaplen: 128,
			Data:    []byte(prefix),
		},
	}
}
