package rpc

import (
	"net/netip"

	"decoynet/deception"
	"decoynet/internal/rpc/decoynetv1"
)

// EncodeProbe writes a probe as a message.
func EncodeProbe(p *deception.Probe) *decoynetv1.Probe {
	m := &decoynetv1.Probe{
		Id:          p.ID[:],
		Start:       encodeTime(p.Start),
		End:         encodeTime(p.End),
		Last:        encodeTime(p.Last),
		Node:        validText(p.Node),
		Segment:     validText(p.Segment),
		SourceMac:   validText(p.SourceMAC),
		Sources:     p.Sources,
		Kind:        p.Kind.String(),
		Arp:         p.Contacts[deception.ContactARP],
		Ping:        p.Contacts[deception.ContactPing],
		Syn:         p.Contacts[deception.ContactSYN],
		Datagram:    p.Contacts[deception.ContactDatagram],
		Addresses:   p.Addresses,
		Ports:       p.Ports,
		Approximate: p.Approximate,
		First:       encodeAddr(p.First),
		Latest:      encodeAddr(p.Latest),
		Scanner:     validText(p.Scanner),
	}
	if p.Source.IsValid() {
		m.Source = p.Source.WithZone("").AsSlice() // the segment says which link it is
	}
	return m
}

// DecodeProbe reads what EncodeProbe wrote. A kind of scan that this program does
// not know is taken for a contact: a node may be newer than its controller.
func DecodeProbe(m *decoynetv1.Probe) (deception.Probe, error) {
	d := decoder{kind: "probe"}
	p := deception.Probe{
		ID:          d.id("id", m.GetId()),
		Start:       d.needTime("start", m.GetStart()),
		End:         d.time("end", m.GetEnd()),
		Last:        d.needTime("last", m.GetLast()),
		Node:        m.GetNode(),
		Segment:     m.GetSegment(),
		Source:      d.ip("source", m.GetSource()),
		SourceMAC:   m.GetSourceMac(),
		Sources:     m.GetSources(),
		Addresses:   m.GetAddresses(),
		Ports:       m.GetPorts(),
		Approximate: m.GetApproximate(),
		First:       d.addr("first", m.GetFirst()),
		Latest:      d.addr("latest", m.GetLatest()),
		Scanner:     m.GetScanner(),
	}
	p.Kind, _ = deception.ParseScanKind(m.GetKind())
	p.Contacts = [deception.ContactKinds]uint64{
		deception.ContactARP:      m.GetArp(),
		deception.ContactPing:     m.GetPing(),
		deception.ContactSYN:      m.GetSyn(),
		deception.ContactDatagram: m.GetDatagram(),
	}
	return p, d.err
}

func (d *decoder) ip(field string, b []byte) netip.Addr {
	if len(b) == 0 {
		return netip.Addr{}
	}
	a, ok := netip.AddrFromSlice(b)
	switch {
	case !ok:
		d.fail(field, "has %d bytes; 4 for IPv4, 16 for IPv6", len(b))
	case a.Is4In6():
		d.fail(field, "%s is an IPv4 address in IPv6 form; as plain IPv4", a)
	}
	return a
}
