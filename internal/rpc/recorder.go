package rpc

import (
	"sync"
	"time"

	"decoynet/deception"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/spool"

	"google.golang.org/protobuf/proto"
)

// Recorder records sessions, probes, findings and events on a node without a store of its own: they
// go into the spool, from where a Client delivers them. Its methods copy what they
// need, never wait and may be called from any thread.
type Recorder struct {
	spool *spool.Spool
}

// NewRecorder returns a recorder over the spool.
func NewRecorder(s *spool.Spool) *Recorder { return &Recorder{spool: s} }

// Started records that a session runs.
func (r *Recorder) Started(s *deception.Session) { r.session(s, s.End) }

// Ended records a session that is over, whether or not Started was called for it.
// A session without an end is taken as ended now.
func (r *Recorder) Ended(s *deception.Session) {
	end := s.End
	if end.IsZero() {
		end = time.Now()
	}
	r.session(s, end)
}

func (r *Recorder) session(s *deception.Session, end time.Time) {
	m := sessionRecords.Get().(*sessionRecord)
	m.addresses = encodeSession(&m.session, s, m.addresses[:0])
	m.session.End = encodeTime(end)
	m.record.Kind = &m.kind
	m.kind.Session = &m.session
	r.put(&m.record, &m.buf)
	m.session.SourceHead, m.session.DestinationHead = nil, nil // they are the caller's
	sessionRecords.Put(m)
}

// sessionRecord is what recording a session needs, kept for the next one.
type sessionRecord struct {
	record    decoynetv1.Record
	kind      decoynetv1.Record_Session
	session   decoynetv1.Session
	addresses []byte
	buf       []byte
}

var sessionRecords = sync.Pool{New: func() any { return &sessionRecord{} }}

// Event records an event. One without an identifier or time gets them.
func (r *Recorder) Event(e *deception.Event) {
	whole := *e
	if whole.Time.IsZero() {
		whole.Time = time.Now()
	}
	if whole.ID.IsZero() {
		whole.ID = deception.NewSessionID(whole.Time)
	}
	r.put(&decoynetv1.Record{Kind: &decoynetv1.Record_Event{Event: EncodeEvent(&whole)}}, nil)
}

// SourceSeen records what the service of a session saw.
func (r *Recorder) SourceSeen(s *deception.SourceSeen) {
	r.put(&decoynetv1.Record{Kind: &decoynetv1.Record_SourceSeen{SourceSeen: EncodeSourceSeen(s)}}, nil)
}

// Probe records what a source has done so far. One without an identifier is none.
func (r *Recorder) Probe(p *deception.Probe) {
	if p.ID.IsZero() {
		return
	}
	r.put(&decoynetv1.Record{Kind: &decoynetv1.Record_Probe{Probe: EncodeProbe(p)}}, nil)
}

// Finding records what Suricata says of a session. One without an identifier is none.
// Who can wait asks Room first.
func (r *Recorder) Finding(f *deception.Finding) {
	if f.ID.IsZero() {
		return
	}
	r.put(&decoynetv1.Record{Kind: &decoynetv1.Record_Finding{Finding: EncodeFinding(f)}}, nil)
}

// Room tells whether there is room for findings, with some to spare: they must not
// push sessions out of the spool.
func (r *Recorder) Room() bool { return r.spool.Room() }

// put hands the record over; buf, where there is one, is room to write it in.
func (r *Recorder) put(m *decoynetv1.Record, buf *[]byte) {
	if buf == nil {
		buf = new([]byte)
	}
	b, err := proto.MarshalOptions{}.MarshalAppend((*buf)[:0], m)
	if err != nil { // cannot be: every text is UTF-8 by now
		return
	}
	*buf = b
	r.spool.Put(b)
}
