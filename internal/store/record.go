package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"decoynet/deception"
)

// The form of a session in the queue: what is fixed in size, then the four
// endpoints and the two heads, each behind its length.
//
//	id 16 | start 8 | end 8 | binding 4 | mode 1 | reason 1 | bytes 8 + 8
//	4 x (length 1, address 4 or 16, port 2) | 2 x (length 2, head)
//
// Flat bytes instead of structures, because a queue of a few hundred thousand
// structures with strings in them is work for the garbage collector, in the
// process that relays.
const (
	recordFixed = 16 + 8 + 8 + 4 + 1 + 1 + 8 + 8
	maxEndpoint = 16 + 2
	recordMax   = recordFixed + 4*(1+maxEndpoint) + 2*(2+deception.HeadBytes)
)

// bindingKey is what sessions share: one row of the table binding.
type bindingKey struct {
	node, segment, decoy, service string
	transport                     deception.Transport
	path                          deception.Path
	scanner                       string // a known one; empty for everybody else
}

func keyOf(s *deception.Session) bindingKey {
	return bindingKey{s.Node, s.Segment, s.Decoy, s.Service, s.Transport, s.Path, s.Scanner}
}

// appendRecord writes the session behind buf, which has room for recordMax.
func appendRecord(buf []byte, s *deception.Session, binding uint32, heads bool) []byte {
	le := binary.LittleEndian
	buf = append(buf, s.ID[:]...)
	buf = le.AppendUint64(buf, uint64(nanos(s.Start)))
	buf = le.AppendUint64(buf, uint64(nanos(s.End)))
	buf = le.AppendUint32(buf, binding)
	buf = append(buf, byte(min(s.SourceMode, deception.SourceMasquerade)), byte(s.Reason))
	buf = le.AppendUint64(buf, s.SourceBytes)
	buf = le.AppendUint64(buf, s.DestinationBytes)
	buf = appendEndpoint(buf, s.Source)
	if s.SourceNAT == s.Source {
		buf = append(buf, sameAsSource)
	} else {
		buf = appendEndpoint(buf, s.SourceNAT)
	}
	buf = appendEndpoint(buf, s.Destination)
	buf = appendEndpoint(buf, s.DestinationNAT)
	if !heads {
		return append(buf, 0, 0, 0, 0)
	}
	buf = appendHead(buf, s.SourceHead)
	return appendHead(buf, s.DestinationHead)
}

// sameAsSource stands in the place of an endpoint's length.
const sameAsSource = 0xff

func appendEndpoint(buf []byte, a netip.AddrPort) []byte {
	addr := a.Addr()
	switch {
	case !addr.IsValid():
		return append(buf, 0)
	case addr.Is4():
		b := addr.As4()
		buf = append(buf, 6, b[0], b[1], b[2], b[3])
		return binary.LittleEndian.AppendUint16(buf, a.Port())
	}
	// A zone is the name of an interface of ours; the segment says as much.
	b := addr.As16()
	buf = append(buf, maxEndpoint)
	buf = append(buf, b[:]...)
	return binary.LittleEndian.AppendUint16(buf, a.Port())
}

func appendHead(buf, head []byte) []byte {
	head = head[:min(len(head), deception.HeadBytes)]
	buf = binary.LittleEndian.AppendUint16(buf, uint16(len(head)))
	return append(buf, head...)
}

// record is a session as the writer takes it out of the queue. Its slices lie
// in the queue's chunk.
type record struct {
	id              []byte
	start, end      int64
	binding         uint32
	mode, reason    byte
	up, down        uint64
	source          []byte
	sourceNAT       []byte
	same            bool // sourceNAT is source
	destination     []byte
	destinationNAT  []byte
	sourceHead      []byte
	destinationHead []byte

	// What the writer adds: the row of the table binding, and what else the
	// row of the session holds.
	bindingID, origin int64
	flags             uint8
}

// The values of the column flags; the schema says them too.
const (
	flagSeen   = 1 << iota // an egress said what the service saw
	flagKnew               // so did, before, who recorded the session
	flagSkewed             // identifier and start were made by different clocks
)

// skew is the flag for a session's identifier and start.
func skew(id []byte, start int64) uint8 {
	millis := int64(binary.BigEndian.Uint64(id) >> 16)
	if d := start/int64(time.Millisecond) - millis; d > clockSkew.Milliseconds() || d < -clockSkew.Milliseconds() {
		return flagSkewed
	}
	return 0
}

// readRecord takes the first record off buf.
func readRecord(buf []byte, r *record) (rest []byte) {
	le := binary.LittleEndian
	r.bindingID, r.origin, r.flags = 0, 0, 0
	r.id = buf[:16:16]
	r.start = int64(le.Uint64(buf[16:]))
	r.end = int64(le.Uint64(buf[24:]))
	r.binding = le.Uint32(buf[32:])
	r.mode, r.reason = buf[36], buf[37]
	r.up = le.Uint64(buf[38:])
	r.down = le.Uint64(buf[46:])
	buf = buf[recordFixed:]
	r.source, buf = readShort(buf)
	if r.same = buf[0] == sameAsSource; r.same {
		r.sourceNAT, buf = nil, buf[1:]
	} else {
		r.sourceNAT, buf = readShort(buf)
	}
	r.destination, buf = readShort(buf)
	r.destinationNAT, buf = readShort(buf)
	r.sourceHead, buf = readHead(buf)
	r.destinationHead, buf = readHead(buf)
	return buf
}

func readShort(buf []byte) (field, rest []byte) {
	n := int(buf[0]) + 1
	return buf[1:n], buf[n:]
}

func readHead(buf []byte) (field, rest []byte) {
	n := int(binary.LittleEndian.Uint16(buf)) + 2
	return buf[2:n:n], buf[n:]
}

// portOf returns the port of an endpoint of the queue.
func portOf(b []byte) uint16 { return binary.LittleEndian.Uint16(b[len(b)-2:]) }

// column turns an endpoint of the queue into what its column holds.
func column(b []byte) any {
	switch len(b) {
	case 0:
		return nil
	case 6:
		v := int64(binary.BigEndian.Uint32(b))<<16 | int64(portOf(b))
		if v != 0 { // 0 has another meaning in source_nat
			return v
		}
		return "0.0.0.0 0"
	}
	text := make([]byte, 0, 64)
	text = netip.AddrFrom16([16]byte(b)).AppendTo(text)
	text = append(text, ' ')
	return string(strconv.AppendUint(text, uint64(portOf(b)), 10))
}

var errEndpoint = errors.New("not an endpoint")

// parseColumn is the inverse of column.
func parseColumn(v any) (netip.AddrPort, error) {
	switch v := v.(type) {
	case nil:
		return netip.AddrPort{}, nil
	case int64:
		ip := [4]byte{byte(v >> 40), byte(v >> 32), byte(v >> 24), byte(v >> 16)}
		return netip.AddrPortFrom(netip.AddrFrom4(ip), uint16(v)), nil
	case string:
		host, number, _ := strings.Cut(v, " ")
		addr, err := netip.ParseAddr(host)
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("read endpoint: %w", err)
		}
		port, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("read endpoint %q: %w", v, err)
		}
		return netip.AddrPortFrom(addr, uint16(port)), nil
	}
	return netip.AddrPort{}, fmt.Errorf("read endpoint %v: %w", v, errEndpoint)
}

// nanos is UnixNano, with 0 for the zero time. Times before 1970 and after 2116
// become these: nobody's clock says so in earnest, and the difference of two
// stays a number that databases can hold.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return min(max(t.UnixNano(), 1), 1<<62)
}

// idAt returns the lowest UUIDv7 of the time's millisecond: what sorts before
// every session that started at or after it (RFC 9562, section 5.7).
func idAt(t time.Time) deception.SessionID {
	var id deception.SessionID
	ms := max(t.UnixMilli(), 0)
	binary.BigEndian.PutUint64(id[:8], uint64(ms)<<16)
	return id
}

// addrPort turns an endpoint of the queue into what it was.
func addrPort(b []byte) netip.AddrPort {
	if len(b) == 0 {
		return netip.AddrPort{}
	}
	addr, _ := netip.AddrFromSlice(b[:len(b)-2])
	return netip.AddrPortFrom(addr, portOf(b))
}
