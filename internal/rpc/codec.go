package rpc

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
	"unicode/utf8"

	"decoynet/deception"
	"decoynet/internal/rpc/decoynetv1"

	"google.golang.org/protobuf/proto"
)

// EncodeSession writes a session as a message, which shares the session's heads.
func EncodeSession(s *deception.Session) *decoynetv1.Session {
	m := &decoynetv1.Session{}
	encodeSession(m, s, nil)
	return m
}

// encodeSession fills the message in; it appends identifier and addresses to room,
// which it returns.
func encodeSession(m *decoynetv1.Session, s *deception.Session, room []byte) []byte {
	part := func(a netip.AddrPort) []byte {
		if !a.IsValid() {
			return nil
		}
		at := len(room)
		room, _ = a.AppendBinary(room) // never fails
		return room[at:len(room):len(room)]
	}
	room = append(room, s.ID[:]...)
	m.Id = room[:len(s.ID):len(s.ID)]
	m.Start, m.End = encodeTime(s.Start), encodeTime(s.End)
	m.Node, m.Segment, m.Decoy, m.Service = validText(s.Node), validText(s.Segment), validText(s.Decoy), validText(s.Service)
	m.Transport, m.Path, m.SourceMode = uint32(s.Transport), validText(string(s.Path)), uint32(s.SourceMode)
	m.Source, m.SourceNat = part(s.Source), part(s.SourceNAT)
	m.Destination, m.DestinationNat = part(s.Destination), part(s.DestinationNAT)
	m.SourceBytes, m.DestinationBytes = s.SourceBytes, s.DestinationBytes
	m.SourceHead, m.DestinationHead = s.SourceHead, s.DestinationHead
	m.Reason, m.Scanner = uint32(s.Reason), validText(s.Scanner)
	m.Analysis = encodeAnalysis(s.Analysis)
	return room
}

// DecodeSession reads what EncodeSession wrote, sharing the message's heads. Its
// errors name the field and what would be right.
func DecodeSession(m *decoynetv1.Session) (deception.Session, error) {
	d := decoder{kind: "session"}
	s := deception.Session{
		ID:               d.id("id", m.GetId()),
		Start:            d.needTime("start", m.GetStart()),
		End:              d.time("end", m.GetEnd()),
		Node:             m.GetNode(),
		Segment:          m.GetSegment(),
		Decoy:            m.GetDecoy(),
		Service:          m.GetService(),
		Path:             d.path(m.GetPath()),
		Transport:        d.transport(m.GetTransport()),
		SourceMode:       d.sourceMode(m.GetSourceMode()),
		Source:           d.needAddr("source", m.GetSource()),
		SourceNAT:        d.addr("source_nat", m.GetSourceNat()),
		Destination:      d.needAddr("destination", m.GetDestination()),
		DestinationNAT:   d.addr("destination_nat", m.GetDestinationNat()),
		SourceBytes:      m.GetSourceBytes(),
		DestinationBytes: m.GetDestinationBytes(),
		SourceHead:       d.head("source_head", m.GetSourceHead()),
		DestinationHead:  d.head("destination_head", m.GetDestinationHead()),
		Reason:           d.reason(m.GetReason()),
		Scanner:          m.GetScanner(),
		Analysis:         d.analysis(m.GetAnalysis()),
	}
	return s, d.err
}

// EncodeSourceSeen writes what a service saw as a message.
func EncodeSourceSeen(s *deception.SourceSeen) *decoynetv1.SourceSeen {
	return &decoynetv1.SourceSeen{
		Session:        s.Session[:],
		SourceNat:      encodeAddr(s.SourceNAT),
		SourceMode:     uint32(s.SourceMode),
		DestinationNat: encodeAddr(s.DestinationNAT),
	}
}

// DecodeSourceSeen reads what EncodeSourceSeen wrote.
func DecodeSourceSeen(m *decoynetv1.SourceSeen) (deception.SourceSeen, error) {
	d := decoder{kind: "source_seen"}
	s := deception.SourceSeen{
		Session:        d.id("session", m.GetSession()),
		SourceNAT:      d.needAddr("source_nat", m.GetSourceNat()),
		SourceMode:     d.sourceMode(m.GetSourceMode()),
		DestinationNAT: d.addr("destination_nat", m.GetDestinationNat()),
	}
	return s, d.err
}

// EncodeEvent writes an event as a message.
func EncodeEvent(e *deception.Event) *decoynetv1.Event {
	m := &decoynetv1.Event{
		Id:          e.ID[:],
		Time:        encodeTime(e.Time),
		Kind:        validText(string(e.Kind)),
		Node:        validText(e.Node),
		Segment:     validText(e.Segment),
		Decoy:       validText(e.Decoy),
		Source:      encodeAddr(e.Source),
		Destination: encodeAddr(e.Destination),
		Message:     validText(e.Message),
	}
	if !e.Session.IsZero() {
		m.Session = e.Session[:]
	}
	return m
}

// DecodeEvent reads what EncodeEvent wrote. Kinds that this program does not know
// are taken: a node may be newer than its controller.
func DecodeEvent(m *decoynetv1.Event) (deception.Event, error) {
	d := decoder{kind: "event"}
	e := deception.Event{
		ID:          d.id("id", m.GetId()),
		Time:        d.needTime("time", m.GetTime()),
		Kind:        deception.EventKind(m.GetKind()),
		Node:        m.GetNode(),
		Segment:     m.GetSegment(),
		Decoy:       m.GetDecoy(),
		Source:      d.addr("source", m.GetSource()),
		Destination: d.addr("destination", m.GetDestination()),
		Message:     m.GetMessage(),
	}
	if len(m.GetSession()) > 0 {
		e.Session = d.id("session", m.GetSession())
	}
	if e.Kind == "" {
		d.fail("kind", "is empty")
	}
	return e, d.err
}

// Record is one thing that a node tells: exactly one of its fields is set.
type Record struct {
	Session    *deception.Session
	SourceSeen *deception.SourceSeen
	Event      *deception.Event
	Probe      *deception.Probe
	Finding    *deception.Finding
}

// DecodeRecord reads one record of an UploadRequest. It shares the heads' bytes with
// nobody. Its errors name the field and what would be right.
func DecodeRecord(b []byte) (Record, error) {
	var m decoynetv1.Record
	if err := proto.Unmarshal(b, &m); err != nil {
		return Record{}, fmt.Errorf("read record: %w", err)
	}
	switch k := m.GetKind().(type) {
	case *decoynetv1.Record_Session:
		s, err := DecodeSession(k.Session)
		return Record{Session: &s}, err
	case *decoynetv1.Record_SourceSeen:
		s, err := DecodeSourceSeen(k.SourceSeen)
		return Record{SourceSeen: &s}, err
	case *decoynetv1.Record_Event:
		e, err := DecodeEvent(k.Event)
		return Record{Event: &e}, err
	case *decoynetv1.Record_Probe:
		p, err := DecodeProbe(k.Probe)
		return Record{Probe: &p}, err
	case *decoynetv1.Record_Finding:
		f, err := DecodeFinding(k.Finding)
		return Record{Finding: &f}, err
	}
	return Record{}, errors.New("read record: it is neither session, source_seen, event, probe nor finding; the node may be newer than the controller")
}

// encodeTime writes ns since 1970, 0 for the zero time.
func encodeTime(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func encodeAddr(a netip.AddrPort) []byte {
	if !a.IsValid() {
		return nil
	}
	b, _ := a.MarshalBinary() // never fails
	return b
}

// validText makes UTF-8 of anything, since protobuf refuses what is none: peers
// and other programs have their say in these texts.
func validText(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return string([]rune(s)) // every bad byte becomes U+FFFD
}

// decoder reads fields and keeps the first error.
type decoder struct {
	kind string
	err  error
}

func (d *decoder) fail(field, format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%s.%s %s", d.kind, field, fmt.Sprintf(format, args...))
	}
}

func (d *decoder) id(field string, b []byte) (id deception.SessionID) {
	if len(b) != len(id) {
		d.fail(field, "has %d bytes, not 16", len(b))
		return id
	}
	if copy(id[:], b); id.IsZero() {
		d.fail(field, "is zero")
	}
	return id
}

func (d *decoder) time(field string, ns int64) time.Time {
	switch {
	case ns == 0:
		return time.Time{}
	case ns < 0:
		d.fail(field, "is before 1970")
	}
	return time.Unix(0, ns)
}

func (d *decoder) needTime(field string, ns int64) time.Time {
	if ns == 0 {
		d.fail(field, "is missing")
	}
	return d.time(field, ns)
}

func (d *decoder) addr(field string, b []byte) (a netip.AddrPort) {
	if len(b) == 0 {
		return a
	}
	if len(b) != 4+2 && len(b) != 16+2 {
		d.fail(field, "has %d bytes; 6 for IPv4, 18 for IPv6: address and port as netip.AddrPort writes them", len(b))
		return a
	}
	_ = a.UnmarshalBinary(b) // fails on lengths only
	if a.Addr().Is4In6() {
		d.fail(field, "%s is an IPv4 address in IPv6 form; as plain IPv4", a)
	}
	return a
}

func (d *decoder) needAddr(field string, b []byte) netip.AddrPort {
	if len(b) == 0 {
		d.fail(field, "is missing")
	}
	return d.addr(field, b)
}

func (d *decoder) transport(n uint32) deception.Transport {
	if n != uint32(deception.TCP) && n != uint32(deception.UDP) {
		d.fail("transport", "is %d; 6 (TCP) or 17 (UDP)", n)
	}
	return deception.Transport(n)
}

func (d *decoder) path(s string) deception.Path {
	switch p := deception.Path(s); p {
	case "", deception.PathRelay, deception.PathKernel:
		return p
	}
	d.fail("path", "is %q; relay or kernel", s)
	return ""
}

func (d *decoder) sourceMode(n uint32) deception.SourceMode {
	if n > uint32(deception.SourceMasquerade) {
		d.fail("source_mode", "is %d; at most %d", n, deception.SourceMasquerade)
		return 0
	}
	return deception.SourceMode(n)
}

// reason takes numbers that this program has no name for: a node may be newer.
func (d *decoder) reason(n uint32) deception.EndReason {
	if n > 255 {
		d.fail("reason", "is %d; at most 255", n)
	}
	return deception.EndReason(n)
}

func (d *decoder) head(field string, b []byte) []byte {
	if len(b) > deception.HeadBytes {
		d.fail(field, "has %d bytes; at most %d", len(b), deception.HeadBytes)
	}
	return b
}
