package script

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// Packet is a packet of a capture file.
type Packet struct {
	Info gopacket.CaptureInfo
	Link layers.LinkType
	Data []byte // from the link layer on
	// What follows is of the outermost IP header and the transport header on it;
	// zero where there is none.
	Source, Destination netip.AddrPort
	IP                  int // where the IP header begins in Data
	TCP                 *layers.TCP
	UDP                 *layers.UDP
	Payload             []byte // of the transport layer
	Cut                 bool   // the file lacks bytes of the packet
	Fragment            bool
}

// Packets calls fn for every packet of a capture file, pcap or pcapng.
func Packets(file []byte, fn func(Packet) error) error {
	src, link, err := open(file)
	if err != nil {
		return err
	}
	for {
		data, info, err := src.ReadPacketData()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil // a capture that was cut off holds what it holds
		}
		if err != nil {
			return fmt.Errorf("read a packet: %w", err)
		}
		if err := fn(decode(link, data, info)); err != nil {
			return err
		}
	}
}

// section header block of pcapng, in either byte order the same.
const pcapng = 0x0a0d0d0a

func open(file []byte) (gopacket.PacketDataSource, layers.LinkType, error) {
	if len(file) < 4 {
		return nil, 0, errors.New("no capture: less than four bytes")
	}
	if binary.LittleEndian.Uint32(file) == pcapng {
		r, err := pcapgo.NewNgReader(bytes.NewReader(file), pcapgo.DefaultNgReaderOptions)
		if err != nil {
			return nil, 0, fmt.Errorf("read the header: %w", err)
		}
		return r, r.LinkType(), nil
	}
	r, err := pcapgo.NewReader(bytes.NewReader(file))
	if err != nil {
		return nil, 0, fmt.Errorf("read the header: %w", err)
	}
	r.SetSnaplen(1 << 18) // some writers say less than they wrote
	return r, r.LinkType(), nil
}

// Raw IP has a number for files and, on some systems, others for devices, which
// got into files as well (pcap-linktype(7), LINKTYPE_RAW).
const (
	rawBSD     = layers.LinkType(12)
	rawOpenBSD = layers.LinkType(14)
)

func decode(link layers.LinkType, data []byte, info gopacket.CaptureInfo) Packet {
	p := Packet{Info: info, Link: link, Data: data, IP: -1, Cut: info.CaptureLength < info.Length}
	var first gopacket.Decoder = link
	if link == rawBSD || link == rawOpenBSD {
		first = layers.LinkTypeRaw
	}
	var source, destination netip.Addr
	at := 0
	decoded := gopacket.NewPacket(data, first, gopacket.DecodeOptions{NoCopy: true})
	p.Cut = p.Cut || decoded.Metadata().Truncated
	for _, l := range decoded.Layers() {
		if p.IP >= 0 && !above(l) {
			return p // a tunnel, or nothing that is replayed
		}
		switch l := l.(type) {
		case *layers.IPv4:
			p.IP = at
			source, destination = addr(l.SrcIP), addr(l.DstIP)
			p.Fragment = l.FragOffset != 0 || l.Flags&layers.IPv4MoreFragments != 0
		case *layers.IPv6:
			p.IP = at
			source, destination = addr(l.SrcIP), addr(l.DstIP)
		case *layers.IPv6Fragment:
			p.Fragment = true
		case *layers.TCP:
			p.TCP, p.Payload = l, l.Payload
			p.Source, p.Destination = netip.AddrPortFrom(source, uint16(l.SrcPort)), netip.AddrPortFrom(destination, uint16(l.DstPort))
			return p
		case *layers.UDP:
			p.UDP, p.Payload = l, l.Payload
			p.Source, p.Destination = netip.AddrPortFrom(source, uint16(l.SrcPort)), netip.AddrPortFrom(destination, uint16(l.DstPort))
			return p
		}
		at += len(l.LayerContents())
	}
	return p
}

// above tells whether the layer may stand between an IP header and a transport's,
// or is one.
func above(l gopacket.Layer) bool {
	switch l.(type) {
	case *layers.IPv6Fragment, *layers.IPv6HopByHop, *layers.IPv6Destination, *layers.IPv6Routing, *layers.TCP, *layers.UDP:
		return true
	}
	return false
}

func addr(ip []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(ip) // the decoder has checked the length
	return a.Unmap()
}
