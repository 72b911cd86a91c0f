package rpc

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/spool"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

var same = cmp.Options{
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) }),
	cmp.Comparer(func(a, b []byte) bool { return bytes.Equal(a, b) }),
}

var (
	anyID = rapid.Custom(func(t *rapid.T) (id deception.SessionID) {
		copy(id[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
		id[0] |= 1
		return id
	})
	anyTime = rapid.Map(rapid.Int64Range(1, 1<<62), func(ns int64) time.Time { return time.Unix(0, ns) })
	anyIP   = rapid.Custom(func(t *rapid.T) netip.Addr {
		b := rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "address")
		if rapid.Bool().Draw(t, "IPv4") {
			return netip.AddrFrom4([4]byte(b))
		}
		b[0] |= 0x20 // no IPv4 address in IPv6 form
		return netip.AddrFrom16([16]byte(b))
	})
	anyAddr = rapid.Custom(func(t *rapid.T) netip.AddrPort {
		return netip.AddrPortFrom(anyIP.Draw(t, "address"), rapid.Uint16().Draw(t, "port"))
	})
	maybeAddr = rapid.Custom(func(t *rapid.T) netip.AddrPort {
		if rapid.Bool().Draw(t, "none") {
			return netip.AddrPort{}
		}
		return anyAddr.Draw(t, "some")
	})
	anyMode = rapid.SampledFrom([]deception.SourceMode{deception.SourceKept, deception.SourcePortMoved, deception.SourceMasquerade})
	anyHead = rapid.SliceOfN(rapid.Byte(), 0, deception.HeadBytes)

	anySession = rapid.Custom(func(t *rapid.T) *deception.Session {
		s := &deception.Session{
			ID: anyID.Draw(t, "id"), Start: anyTime.Draw(t, "start"),
			Node: rapid.String().Draw(t, "node"), Segment: rapid.String().Draw(t, "segment"),
			Decoy: rapid.String().Draw(t, "decoy"), Service: rapid.String().Draw(t, "service"),
			Transport:  rapid.SampledFrom([]deception.Transport{deception.TCP, deception.UDP}).Draw(t, "transport"),
			Path:       rapid.SampledFrom([]deception.Path{deception.PathRelay, deception.PathKernel}).Draw(t, "path"),
			SourceMode: anyMode.Draw(t, "mode"),
			Source:     anyAddr.Draw(t, "source"), SourceNAT: maybeAddr.Draw(t, "source_nat"),
			Destination: anyAddr.Draw(t, "destination"), DestinationNAT: maybeAddr.Draw(t, "destination_nat"),
			SourceBytes: rapid.Uint64().Draw(t, "source_bytes"), DestinationBytes: rapid.Uint64().Draw(t, "destination_bytes"),
			SourceHead: anyHead.Draw(t, "source_head"), DestinationHead: anyHead.Draw(t, "destination_head"),
			Reason:  deception.EndReason(rapid.Byte().Draw(t, "reason")),
			Scanner: rapid.String().Draw(t, "scanner"),
		}
		if rapid.Bool().Draw(t, "ended") {
			s.End = anyTime.Draw(t, "end")
		}
		if rapid.Bool().Draw(t, "analysed") {
			s.Analysis = &deception.Analysis{
				Findings: rapid.Uint64().Draw(t, "findings"), Alerts: rapid.Uint64().Draw(t, "alerts"), Severity: rapid.Byte().Draw(t, "severity"),
				Application: rapid.String().Draw(t, "application"), Partial: rapid.Bool().Draw(t, "partial"),
			}
			for _, text := range s.Analysis.Texts() {
				*text = rapid.String().Draw(t, "text")
			}
		}
		return s
	})
	anyFinding = rapid.Custom(func(t *rapid.T) *deception.Finding {
		f := &deception.Finding{
			ID: anyID.Draw(t, "id"), Time: anyTime.Draw(t, "time"), Node: rapid.String().Draw(t, "node"),
			Kind: rapid.StringN(1, 20, -1).Draw(t, "kind"), Source: maybeAddr.Draw(t, "source"), Destination: maybeAddr.Draw(t, "destination"),
			Transport: deception.Transport(rapid.Byte().Draw(t, "transport")), Application: rapid.String().Draw(t, "application"),
			Document: rapid.SliceOf(rapid.Byte()).Draw(t, "document"), FeedLost: rapid.Uint64().Draw(t, "lost"),
			Partial: rapid.Bool().Draw(t, "partial"), Scanner: rapid.String().Draw(t, "scanner"),
		}
		if rapid.Bool().Draw(t, "of a session") {
			f.Session = anyID.Draw(t, "session")
			f.Of = deception.Place{
				Node: rapid.String().Draw(t, "node"), Segment: rapid.String().Draw(t, "segment"),
				Decoy: rapid.String().Draw(t, "decoy"), Service: rapid.String().Draw(t, "service"),
			}
		}
		if rapid.Bool().Draw(t, "alert") {
			f.Alert = &deception.Alert{
				GID: rapid.Uint32().Draw(t, "gid"), SID: rapid.Uint32().Draw(t, "sid"), Revision: rapid.Uint32().Draw(t, "revision"),
				Signature: rapid.String().Draw(t, "signature"), Category: rapid.String().Draw(t, "category"),
				Severity: rapid.Byte().Draw(t, "severity"), ToService: rapid.Bool().Draw(t, "to service"),
			}
		}
		return f
	})
	anySeen = rapid.Custom(func(t *rapid.T) *deception.SourceSeen {
		return &deception.SourceSeen{
			Session: anyID.Draw(t, "session"), SourceNAT: anyAddr.Draw(t, "source_nat"),
			SourceMode: anyMode.Draw(t, "mode"), DestinationNAT: maybeAddr.Draw(t, "destination_nat"),
		}
	})
	anyEvent = rapid.Custom(func(t *rapid.T) *deception.Event {
		e := &deception.Event{
			ID: anyID.Draw(t, "id"), Time: anyTime.Draw(t, "time"),
			Kind: deception.EventKind(rapid.StringN(1, 20, -1).Draw(t, "kind")),
			Node: rapid.String().Draw(t, "node"), Segment: rapid.String().Draw(t, "segment"), Decoy: rapid.String().Draw(t, "decoy"),
			Source: maybeAddr.Draw(t, "source"), Destination: maybeAddr.Draw(t, "destination"), Message: rapid.String().Draw(t, "message"),
		}
		if rapid.Bool().Draw(t, "about a session") {
			e.Session = anyID.Draw(t, "session")
		}
		return e
	})
	anyProbe = rapid.Custom(func(t *rapid.T) *deception.Probe {
		p := &deception.Probe{
			ID: anyID.Draw(t, "id"), Start: anyTime.Draw(t, "start"), Last: anyTime.Draw(t, "last"),
			Node: rapid.String().Draw(t, "node"), Segment: rapid.String().Draw(t, "segment"),
			SourceMAC: rapid.String().Draw(t, "MAC"), Sources: rapid.Uint64().Draw(t, "sources"),
			Kind:      rapid.SampledFrom([]deception.ScanKind{deception.ScanContact, deception.ScanPort, deception.ScanNetwork}).Draw(t, "kind"),
			Addresses: rapid.Uint64().Draw(t, "addresses"), Ports: rapid.Uint64().Draw(t, "ports"),
			Approximate: rapid.Bool().Draw(t, "approximate"),
			First:       maybeAddr.Draw(t, "first"), Latest: maybeAddr.Draw(t, "latest"), Scanner: rapid.String().Draw(t, "scanner"),
		}
		for i := range p.Contacts {
			p.Contacts[i] = rapid.Uint64().Draw(t, "contacts")
		}
		if rapid.Bool().Draw(t, "one source") {
			p.Source = anyIP.Draw(t, "source")
		}
		if rapid.Bool().Draw(t, "over") {
			p.End = anyTime.Draw(t, "end")
		}
		return p
	})
)

// What a recorder puts into the spool is what the controller reads out of a record.
func TestRecordsRoundTrip(t *testing.T) {
	s, err := spool.Open(spool.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(t.Context())
	r := NewRecorder(s)
	rapid.Check(t, func(t *rapid.T) {
		var want Record
		switch rapid.IntRange(0, 4).Draw(t, "kind") {
		case 0:
			want.Session = anySession.Draw(t, "session")
			if want.Session.End.IsZero() {
				r.Started(want.Session)
			} else {
				r.Ended(want.Session)
			}
		case 1:
			want.SourceSeen = anySeen.Draw(t, "seen")
			r.SourceSeen(want.SourceSeen)
		case 2:
			want.Event = anyEvent.Draw(t, "event")
			r.Event(want.Event)
		case 3:
			want.Probe = anyProbe.Draw(t, "probe")
			r.Probe(want.Probe)
		case 4:
			want.Finding = anyFinding.Draw(t, "finding")
			r.Finding(want.Finding)
		}
		b, err := s.Next(t.Context(), 1, 1)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeRecord(b.Records[0])
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, same); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
		if err := s.Ack(b); err != nil {
			t.Fatal(err)
		}
	})
}

// A spool that takes nothing any more counts by kind what it is given.
func TestLostRecordsByKind(t *testing.T) {
	s, err := spool.Open(spool.Config{Dir: t.TempDir(), Kind: KindOf})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := NewRecorder(s)
	var want spool.Tally
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.IntRange(KindSession, KindFinding).Draw(t, "kind")
		want[kind]++
		switch kind {
		case KindSession:
			r.Ended(anySession.Draw(t, "session"))
		case KindStart:
			session := *anySession.Draw(t, "session")
			session.End = time.Time{}
			r.Started(&session)
		case KindSourceSeen:
			r.SourceSeen(anySeen.Draw(t, "seen"))
		case KindEvent:
			r.Event(anyEvent.Draw(t, "event"))
		case KindProbe:
			r.Probe(anyProbe.Draw(t, "probe"))
		case KindFinding:
			r.Finding(anyFinding.Draw(t, "finding"))
		}
		if got := s.Stats(); got.DroppedKinds != want {
			t.Fatalf("given up %v, want %v", got.DroppedKinds, want)
		}
	})
	for _, other := range []string{"", "\x0a", "\x0a\x7f", "\x08\x01", "\x7a\x00", "\xff"} {
		if kind := KindOf([]byte(other)); kind != KindUnknown && kind != KindStart {
			t.Errorf("record %q is of kind %d", other, kind)
		}
	}
}

func TestRecorderFillsIn(t *testing.T) {
	s, err := spool.Open(spool.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(t.Context())
	r := NewRecorder(s)
	running := session(1)
	running.End = time.Time{}
	r.Ended(running)
	r.Event(&deception.Event{Kind: deception.EventClaimRefused, Decoy: "a\xffb", Message: "\xc3("})
	b, err := s.Next(t.Context(), 2, 1<<20)
	if err != nil || len(b.Records) != 2 {
		t.Fatal(len(b.Records), err)
	}
	if got, err := DecodeRecord(b.Records[0]); err != nil || got.Session.Running() || !running.End.IsZero() {
		t.Errorf("%+v, %v", got.Session, err)
	}
	got, err := DecodeRecord(b.Records[1])
	if err != nil || got.Event.ID.IsZero() || got.Event.Time.IsZero() || got.Event.Decoy != "a\ufffdb" || got.Event.Message != "\ufffd(" {
		t.Errorf("%+v, %v", got.Event, err)
	}
}

// Each field that can be wrong is named, with what would be right.
func TestBadRecords(t *testing.T) {
	for _, c := range []struct {
		want   string
		change func(m *decoynetv1.Session)
	}{
		{"session.id has 3 bytes, not 16", func(m *decoynetv1.Session) { m.Id = []byte("abc") }},
		{"session.id is zero", func(m *decoynetv1.Session) { m.Id = make([]byte, 16) }},
		{"session.start is missing", func(m *decoynetv1.Session) { m.Start = 0 }},
		{"session.start is before 1970", func(m *decoynetv1.Session) { m.Start = -1 }},
		{"session.transport is 1; 6 (TCP) or 17 (UDP)", func(m *decoynetv1.Session) { m.Transport = 1 }},
		{`session.path is "tunnel"; relay or kernel`, func(m *decoynetv1.Session) { m.Path = "tunnel" }},
		{"session.source_mode is 3; at most 2", func(m *decoynetv1.Session) { m.SourceMode = 3 }},
		{"session.source is missing", func(m *decoynetv1.Session) { m.Source = nil }},
		{"session.source has 5 bytes; 6 for IPv4, 18 for IPv6", func(m *decoynetv1.Session) { m.Source = make([]byte, 5) }},
		{"session.destination [::ffff:192.0.2.1]:80 is an IPv4 address in IPv6 form", func(m *decoynetv1.Session) {
			m.Destination, _ = netip.MustParseAddrPort("[::ffff:192.0.2.1]:80").MarshalBinary()
		}},
		{"session.source_head has 257 bytes; at most 256", func(m *decoynetv1.Session) { m.SourceHead = make([]byte, 257) }},
		{"session.reason is 256; at most 255", func(m *decoynetv1.Session) { m.Reason = 256 }},
	} {
		m := EncodeSession(session(1))
		c.change(m)
		b, err := proto.Marshal(&decoynetv1.Record{Kind: &decoynetv1.Record_Session{Session: m}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeRecord(b); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
	for want, change := range map[string]func(m *decoynetv1.Probe){
		"probe.id has 3 bytes, not 16":                                 func(m *decoynetv1.Probe) { m.Id = []byte("abc") },
		"probe.last is missing":                                        func(m *decoynetv1.Probe) { m.Last = 0 },
		"probe.source has 5 bytes; 4 for IPv4, 16 for IPv6":            func(m *decoynetv1.Probe) { m.Source = make([]byte, 5) },
		"probe.source ::ffff:192.0.2.1 is an IPv4 address in IPv6":     func(m *decoynetv1.Probe) { m.Source = netip.MustParseAddr("::ffff:192.0.2.1").AsSlice() },
		"probe.latest has 3 bytes; 6 for IPv4, 18 for IPv6: address a": func(m *decoynetv1.Probe) { m.Latest = make([]byte, 3) },
	} {
		m := EncodeProbe(probe(1))
		change(m)
		if _, err := DecodeProbe(m); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	for want, change := range map[string]func(m *decoynetv1.Finding){
		"finding.id has 3 bytes, not 16":                func(m *decoynetv1.Finding) { m.Id = []byte("abc") },
		"finding.session has 1 bytes, not 16":           func(m *decoynetv1.Finding) { m.Session = []byte("a") },
		"finding.time is missing":                       func(m *decoynetv1.Finding) { m.Time = 0 },
		"finding.kind is empty":                         func(m *decoynetv1.Finding) { m.Kind = "" },
		"finding.transport is 256; at most 255":         func(m *decoynetv1.Finding) { m.Transport = 256 },
		"finding.alert.severity is 1000; at most 255":   func(m *decoynetv1.Finding) { m.Alert.Severity = 1000 },
		"finding.document has 65537 bytes; at most 655": func(m *decoynetv1.Finding) { m.Document = make([]byte, deception.FindingBytes+1) },
	} {
		m := EncodeFinding(finding(1))
		change(m)
		if _, err := DecodeFinding(m); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	newer := EncodeProbe(probe(1))
	newer.Kind = "slow_scan"
	if p, err := DecodeProbe(newer); err != nil || p.Kind != deception.ScanContact {
		t.Errorf("a kind that is not known: %+v, %v", p, err)
	}
	for want, b := range map[string][]byte{
		"read record: proto":                  []byte("what is this"),
		"read record: it is neither session,": nil,
	} {
		if _, err := DecodeRecord(b); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// No record makes the controller panic, and what is taken can be written again.
func FuzzRecord(f *testing.F) {
	for _, m := range []*decoynetv1.Record{
		{Kind: &decoynetv1.Record_Session{Session: EncodeSession(session(1))}},
		{Kind: &decoynetv1.Record_Event{Event: EncodeEvent(event(1))}},
		{Kind: &decoynetv1.Record_Probe{Probe: EncodeProbe(probe(1))}},
		{Kind: &decoynetv1.Record_Finding{Finding: EncodeFinding(finding(1))}},
		{Kind: &decoynetv1.Record_SourceSeen{SourceSeen: EncodeSourceSeen(&deception.SourceSeen{
			Session: id(1), SourceNAT: netip.MustParseAddrPort("[2001:db8::1]:7"), SourceMode: deception.SourcePortMoved,
		})}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRecord(b)
		if err != nil {
			return
		}
		again := &decoynetv1.Record{}
		switch {
		case r.Session != nil:
			_, _ = r.Session.Reason.String(), r.Session.SourceMode.String()
			again.Kind = &decoynetv1.Record_Session{Session: EncodeSession(r.Session)}
		case r.SourceSeen != nil:
			again.Kind = &decoynetv1.Record_SourceSeen{SourceSeen: EncodeSourceSeen(r.SourceSeen)}
		case r.Probe != nil:
			again.Kind = &decoynetv1.Record_Probe{Probe: EncodeProbe(r.Probe)}
		case r.Finding != nil:
			again.Kind = &decoynetv1.Record_Finding{Finding: EncodeFinding(r.Finding)}
		default:
			again.Kind = &decoynetv1.Record_Event{Event: EncodeEvent(r.Event)}
		}
		if b, err = proto.Marshal(again); err != nil {
			t.Fatal(err)
		}
		got, err := DecodeRecord(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(r, got, same); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	})
}

func BenchmarkRecorder(b *testing.B) {
	s, err := spool.Open(spool.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close(b.Context())
	r, one := NewRecorder(s), session(1)
	one.SourceHead = make([]byte, 200)
	b.ReportAllocs()
	for b.Loop() {
		r.Ended(one)
	}
}
