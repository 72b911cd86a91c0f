package proxyheader

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"

	"decoynet/deception"
)

// Parse reads the header that b begins with and returns its size; what follows
// it in b is the flow's data. It returns ErrShort where more bytes are needed,
// and ErrMalformed with the first byte after which no header can come of it. A
// checksum (PP2_TYPE_CRC32C) is verified where there is one; TLVs of other
// meanings are passed over.
func Parse(b []byte) (h Header, n int, err error) { return parse(b, false) }

// ParseForeign is Parse for headers of any sender. Where a TLV of the types that
// are ours has a value that ours cannot have (HAProxy's identifiers may have any
// length, Google Cloud uses 0xE0), another meaning is taken for granted and it is
// passed over.
func ParseForeign(b []byte) (h Header, n int, err error) { return parse(b, true) }

func parse(b []byte, foreign bool) (h Header, n int, err error) {
	known := min(len(b), len(signature))
	if string(b[:known]) != signature[:known] {
		return Header{}, 0, malformed("it does not begin with the signature")
	}
	family, size, err := parseFixed(b)
	if err != nil {
		return Header{}, 0, err
	}
	end := fixedSize + size
	rest := b[fixedSize:min(end, len(b))]
	h.Local = b[len(signature)] == commandLocal
	addresses := addressSize(family)
	switch vector := size - addresses; {
	case vector < 0:
		return Header{}, 0, malformed("length %d is too small for its addresses", size)
	case 0 < vector && vector < tlvHead:
		return Header{}, 0, errLeft(vector)
	}
	if len(rest) < addresses {
		return Header{}, 0, ErrShort
	}
	if !h.Local {
		if err := h.parseAddresses(family, rest); err != nil {
			return Header{}, 0, err
		}
	}
	t := tlvs{header: h, whole: b[:min(end, len(b))], foreign: foreign}
	if err := t.parse(rest[addresses:], size-addresses); err != nil {
		return Header{}, 0, err
	}
	return t.header, end, nil
}

// parseFixed reads what stands behind the signature, as much as is there.
func parseFixed(b []byte) (family byte, size int, err error) {
	const command, familyAt, high, low = len(signature), len(signature) + 1, len(signature) + 2, len(signature) + 3
	if len(b) <= command {
		return 0, 0, ErrShort
	}
	if b[command] != commandProxy && b[command] != commandLocal {
		return 0, 0, malformed("version and command 0x%02x; version 2, LOCAL or PROXY", b[command])
	}
	if len(b) <= familyAt {
		return 0, 0, ErrShort
	}
	family = b[familyAt]
	if b[command] == commandProxy && addressSize(family) == 0 {
		return 0, 0, malformed("family and transport 0x%02x; TCP or UDP over IPv4 or IPv6", family)
	}
	if len(b) <= high {
		return 0, 0, ErrShort
	}
	size = int(b[high]) << 8
	if len(b) > low {
		size |= int(b[low])
	}
	if fixedSize+size > MaxSize {
		return 0, 0, fmt.Errorf("%w: %w: it claims %d bytes or more; at most %d", ErrMalformed, ErrSize, fixedSize+size, MaxSize)
	}
	if len(b) < fixedSize {
		return 0, 0, ErrShort
	}
	return family, size, nil
}

// addressSize returns how many bytes of addresses a family has; the sender's
// own connections (LOCAL) may name any and mean nothing by it.
func addressSize(family byte) int {
	switch family {
	case familyTCP4, familyUDP4:
		return addresses4
	case familyTCP6, familyUDP6:
		return addresses6
	}
	return 0
}

func (h *Header) parseAddresses(family byte, b []byte) error {
	h.Transport = deception.TCP
	if family == familyUDP4 || family == familyUDP6 {
		h.Transport = deception.UDP
	}
	var source, destination netip.Addr
	if family == familyTCP4 || family == familyUDP4 {
		source, destination = netip.AddrFrom4([4]byte(b[0:4])), netip.AddrFrom4([4]byte(b[4:8]))
		b = b[8:]
	} else {
		// Senders whose socket takes both families write IPv4 in IPv6 form.
		source, destination = netip.AddrFrom16([16]byte(b[0:16])).Unmap(), netip.AddrFrom16([16]byte(b[16:32])).Unmap()
		b = b[32:]
	}
	if source.Is4() != destination.Is4() {
		return malformed("source %s and destination %s are of two families", source, destination)
	}
	h.Source = netip.AddrPortFrom(source, binary.BigEndian.Uint16(b[0:]))
	h.Destination = netip.AddrPortFrom(destination, binary.BigEndian.Uint16(b[2:]))
	return nil
}

// tlvs reads the vector behind the addresses.
type tlvs struct {
	header  Header
	whole   []byte // the header from its first byte on, for the checksum
	seen    uint16 // a bit for each type that may come once
	foreign bool   // TLVs of our types may be somebody else's
}

// parse reads what is there of a vector of the given size.
func (t *tlvs) parse(b []byte, size int) error {
	for size > 0 {
		if size < tlvHead {
			return errLeft(size)
		}
		if len(b) == 0 {
			return ErrShort
		}
		kind := b[0]
		if err := t.once(kind); err != nil {
			return err
		}
		if len(b) < tlvHead {
			// The length's upper byte alone can be too much already.
			if len(b) == 2 && tlvHead+int(b[1])<<8 > size {
				return malformed("its %s is longer than the header", whatIs(kind))
			}
			return ErrShort
		}
		length := int(binary.BigEndian.Uint16(b[1:]))
		if tlvHead+length > size {
			return malformed("its %s is longer than the header", whatIs(kind))
		}
		value := b[tlvHead:min(tlvHead+length, len(b))]
		if err := t.take(kind, value, length); err != nil && (!t.foreign || kind == typeCRC32C) {
			return err
		}
		if len(value) < length {
			return ErrShort
		}
		b, size = b[tlvHead+length:], size-tlvHead-length
	}
	return nil
}

func errLeft(n int) error { return malformed("%d bytes are left behind its last TLV", n) }

// once refuses a second TLV of a type that says one thing.
func (t *tlvs) once(kind byte) error {
	var bit uint16
	switch kind {
	case typeCRC32C, typeUniqueID:
		bit = 1 << kind
	case typeNode, typeSegment, typeDecoy, typeService, typeTarget:
		bit = 1 << (8 + kind&0xf)
	}
	if t.seen&bit != 0 && (!t.foreign || kind == typeCRC32C) {
		return malformed("its %s is given twice", whatIs(kind))
	}
	t.seen |= bit
	return nil
}

// take reads one value, of which the end may still be missing.
func (t *tlvs) take(kind byte, value []byte, length int) error {
	h := &t.header
	whole := len(value) == length
	switch kind {
	case typeCRC32C:
		if length != crcBytes {
			return malformed("its checksum has %d bytes; %d", length, crcBytes)
		}
		if whole {
			return t.verify(value)
		}
	case typeUniqueID:
		if length != len(h.Session) {
			return malformed("its session identifier (UNIQUE_ID) has %d bytes; %d, a UUID", length, len(h.Session))
		}
		if whole {
			h.Session = deception.SessionID(value)
		}
	case typeNode:
		return takeName(&h.Node, kind, value, length)
	case typeSegment:
		return takeName(&h.Segment, kind, value, length)
	case typeDecoy:
		return takeName(&h.Decoy, kind, value, length)
	case typeService:
		return takeName(&h.Service, kind, value, length)
	case typeTarget:
		return takeTarget(&h.Target, value, length)
	}
	return nil
}

func takeName(to *string, kind byte, value []byte, length int) error {
	if length == 0 || length > MaxName {
		return malformed("name of the %s has %d bytes; 1 to %d", whatIs(kind), length, MaxName)
	}
	for _, c := range value {
		if !printable(c) {
			return malformed("name of the %s is not printable: %q", whatIs(kind), value)
		}
	}
	if len(value) == length {
		*to = string(value)
	}
	return nil
}

func takeTarget(to *netip.AddrPort, value []byte, length int) error {
	if length != target4 && length != target6 {
		return malformed("its target has %d bytes; %d or %d", length, target4, target6)
	}
	if len(value) < length {
		return nil
	}
	a, _ := netip.AddrFromSlice(value[:length-2])
	*to = netip.AddrPortFrom(a.Unmap(), binary.LittleEndian.Uint16(value[length-2:]))
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// verify checks the checksum of the whole header, whose own field counts as
// zero. Until the header is whole nothing can be said.
func (t *tlvs) verify(field []byte) error {
	size := fixedSize + int(binary.BigEndian.Uint16(t.whole[fixedSize-2:]))
	if len(t.whole) < size {
		return nil
	}
	at := cap(t.whole) - cap(field) // both are parts of one array, and end where it ends
	var zero [crcBytes]byte
	sum := crc32.Update(0, castagnoli, t.whole[:at])
	sum = crc32.Update(sum, castagnoli, zero[:])
	sum = crc32.Update(sum, castagnoli, t.whole[at+crcBytes:])
	if sum != binary.BigEndian.Uint32(field) {
		return malformed("its checksum is wrong")
	}
	return nil
}
