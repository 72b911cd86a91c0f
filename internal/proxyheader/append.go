package proxyheader

import (
	"encoding/binary"
	"net/netip"

	"decoynet/deception"
)

// Append appends the header to b, at most MaxSize bytes. It returns
// ErrMalformed where the header says what cannot be written: addresses of two
// families or of none, a name that is too long or not printable. b is then
// unchanged. It does not allocate where b has room.
func (h *Header) Append(b []byte) ([]byte, error) {
	start := len(b)
	out, err := h.appendFixed(append(b, signature...))
	if err != nil {
		return b[:start], err
	}
	if !h.Session.IsZero() {
		out = append(out, typeUniqueID, 0, byte(len(h.Session)))
		out = append(out, h.Session[:]...)
	}
	for _, n := range h.names() {
		if n.value == "" {
			continue
		}
		if len(n.value) > MaxName {
			return b[:start], malformed("name of the %s has %d bytes; at most %d", whatIs(n.kind), len(n.value), MaxName)
		}
		for i := range len(n.value) {
			if !printable(n.value[i]) {
				return b[:start], malformed("name of the %s is not printable: %q", whatIs(n.kind), n.value)
			}
		}
		out = append(out, n.kind, 0, byte(len(n.value)))
		out = append(out, n.value...)
	}
	if h.Target.IsValid() {
		if h.Target.Addr().Zone() != "" {
			return b[:start], malformed("target %s has a zone", h.Target)
		}
		out = appendTarget(out, h.Target)
	}
	binary.BigEndian.PutUint16(out[start+fixedSize-2:], uint16(len(out)-start-fixedSize))
	return out, nil
}

// appendFixed appends what stands before the TLVs; the length is still zero.
func (h *Header) appendFixed(b []byte) ([]byte, error) {
	if h.Local {
		if h.Source.IsValid() || h.Destination.IsValid() || h.Transport != 0 {
			return nil, malformed("a header of the sender's own connection (LOCAL) has no addresses")
		}
		return append(b, commandLocal, familyNone, 0, 0), nil
	}
	source, destination := h.Source.Addr().Unmap(), h.Destination.Addr().Unmap()
	if !source.IsValid() || !destination.IsValid() || source.Is4() != destination.Is4() || source.Zone() != "" || destination.Zone() != "" {
		return nil, malformed("source %s and destination %s; both of one family and without a zone", h.Source, h.Destination)
	}
	family := byte(0)
	switch {
	case h.Transport == deception.TCP && source.Is4():
		family = familyTCP4
	case h.Transport == deception.TCP:
		family = familyTCP6
	case h.Transport == deception.UDP && source.Is4():
		family = familyUDP4
	case h.Transport == deception.UDP:
		family = familyUDP6
	default:
		return nil, malformed("transport %s; TCP or UDP", h.Transport)
	}
	b = append(b, commandProxy, family, 0, 0)
	b = appendAddr(appendAddr(b, source), destination)
	b = binary.BigEndian.AppendUint16(b, h.Source.Port())
	return binary.BigEndian.AppendUint16(b, h.Destination.Port()), nil
}

func appendAddr(b []byte, a netip.Addr) []byte {
	if a.Is4() {
		four := a.As4()
		return append(b, four[:]...)
	}
	sixteen := a.As16()
	return append(b, sixteen[:]...)
}

// appendTarget writes what netip.AddrPort.MarshalBinary gives: the address, then
// the port with its low byte first.
func appendTarget(b []byte, target netip.AddrPort) []byte {
	a := target.Addr().Unmap()
	size := byte(target6)
	if a.Is4() {
		size = target4
	}
	b = appendAddr(append(b, typeTarget, 0, size), a)
	return binary.LittleEndian.AppendUint16(b, target.Port())
}
