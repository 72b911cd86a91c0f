package controller

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/rpc"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/store"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
)

func session(n int, node, decoy string) *deception.Session {
	start := time.Unix(1_700_000_000, 0).Add(time.Duration(n) * time.Millisecond)
	return &deception.Session{
		ID: deception.NewSessionID(start), Start: start, End: start.Add(time.Second), Node: node, Segment: deception.HostSegment,
		Decoy: decoy, Service: "web", Transport: deception.TCP, Path: deception.PathRelay,
		Source: addrPort("198.51.100.1:1024"), SourceNAT: addrPort("198.51.100.1:1024"),
		Destination: addrPort("192.0.2.4:445"), DestinationNAT: addrPort("10.2.0.2:445"),
		SourceBytes: uint64(n), Reason: deception.EndClientClosed,
	}
}

func encoded(t testing.TB, m *decoynetv1.Record) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sessionRecord(t testing.TB, s *deception.Session) []byte {
	return encoded(t, &decoynetv1.Record{Kind: &decoynetv1.Record_Session{Session: rpc.EncodeSession(s)}})
}

// probe makes the n-th probe, as told for the times-th time.
func probe(n, times int, node string) *deception.Probe {
	start := time.Unix(1_700_000_000, 0).Add(time.Duration(n) * time.Millisecond)
	p := &deception.Probe{
		Start: start, Last: start.Add(time.Duration(times) * time.Second), Node: node, Segment: "office",
		Source: addrPort("198.51.100.1:0").Addr(), Sources: 1, Kind: deception.ScanHorizontal, Addresses: uint64(n), Ports: 1,
		First: addrPort("192.0.2.4:445"), Latest: addrPort("192.0.2.5:445"),
	}
	p.ID = deception.SessionID{6: 0x70, 8: 0x80, 15: byte(n + 1)}
	p.Contacts[deception.ContactSYN] = uint64(times)
	return p
}

func probeRecord(t testing.TB, p *deception.Probe) []byte {
	return encoded(t, &decoynetv1.Record{Kind: &decoynetv1.Record_Probe{Probe: rpc.EncodeProbe(p)}})
}

// finding makes the n-th finding; every third is an alert.
func finding(n int, node string) *deception.Finding {
	f := &deception.Finding{
		Time: time.Unix(1_700_000_000, 0).Add(time.Duration(n) * time.Second), Node: node, Kind: "http",
		Source: addrPort("198.51.100.1:40000"), Destination: addrPort("192.0.2.4:80"), Transport: deception.TCP, Application: "http",
		Document: []byte(`{"http":{"http_user_agent":"curl/8"}}`), FeedLost: uint64(n),
	}
	f.ID = deception.SessionID{6: 0x70, 8: 0x80, 15: byte(n + 1)}
	if n%3 == 0 {
		f.Kind = deception.KindAlert
		f.Alert = &deception.Alert{GID: 1, SID: uint32(100 + n), Severity: uint8(1 + n/3), Signature: "rule", Category: "class"}
	}
	return f
}

func findingRecord(t testing.TB, f *deception.Finding) []byte {
	return encoded(t, &decoynetv1.Record{Kind: &decoynetv1.Record_Finding{Finding: rpc.EncodeFinding(f)}})
}

// Agents speak for themselves, ingress gateways for their agents too.
func TestWhoseRecordsTheyAre(t *testing.T) {
	s := newSite(t, options{})
	s.apply(t, office)
	for node, want := range map[string]string{"crm-1": "crm-1 crm-1 crm-1", "hq": "crm-2 hq crm-2"} {
		_, c := s.join(t, node)
		claimed, unsaid := session(1, "crm-2", "crm2"), session(2, "", "crm2")
		event := &deception.Event{ID: deception.NewSessionID(time.Now()), Time: time.Now(), Kind: deception.EventClaimRefused, Node: "crm-2", Message: node}
		_, err := c.Upload(within(t), connect.NewRequest(&decoynetv1.UploadRequest{Records: [][]byte{
			sessionRecord(t, claimed), sessionRecord(t, unsaid),
			encoded(t, &decoynetv1.Record{Kind: &decoynetv1.Record_Event{Event: rpc.EncodeEvent(event)}}),
			encoded(t, &decoynetv1.Record{Kind: &decoynetv1.Record_SourceSeen{SourceSeen: rpc.EncodeSourceSeen(&deception.SourceSeen{
				Session: claimed.ID, SourceNAT: addrPort("198.51.100.1:9"), SourceMode: deception.SourcePortMoved,
			})}}),
			probeRecord(t, probe(1, 1, "crm-2")), findingRecord(t, finding(1, "crm-2")),
		}}))
		if err != nil {
			t.Fatal(err)
		}
		b := s.store.batches[len(s.store.batches)-1]
		if b.Node != node || len(b.Seen) != 1 || b.Seen[0].Session != claimed.ID {
			t.Errorf("batch of %s: %+v", node, b)
		}
		if got := fmt.Sprint(b.Sessions[0].Node, " ", b.Sessions[1].Node, " ", b.Events[0].Node); got != want {
			t.Errorf("records of %s are of %s, want %s", node, got, want)
		}
		// What an ingress gateway relays is sensed by the agents themselves.
		if len(b.Probes) != 1 || b.Probes[0].Node != node {
			t.Errorf("probes of %s: %+v", node, b.Probes)
		}
		if len(b.Findings) != 1 || b.Findings[0].Node != node {
			t.Errorf("findings of %s: %+v", node, b.Findings)
		}
	}
}

// One bad record holds up nothing, and is not forgotten either.
func TestBadRecords(t *testing.T) {
	s := newSite(t, options{})
	s.store.poison = map[string]bool{"poison": true}
	_, c := s.join(t, "crm-1")
	records := [][]byte{[]byte("garbage"), encoded(t, &decoynetv1.Record{}), sessionRecord(t, session(0, "", "poison"))}
	var want []deception.SessionID
	for i := range 20 {
		v := session(i+1, "", "crm")
		want = append(want, v.ID)
		records = append(records, sessionRecord(t, v))
		if i == 7 {
			records = append(records, sessionRecord(t, session(100, "", "poison")))
		}
	}
	if _, err := c.Upload(within(t), connect.NewRequest(&decoynetv1.UploadRequest{Records: records})); err != nil {
		t.Fatal(err)
	}
	for _, id := range want {
		if _, ok := s.store.sessions[id]; !ok {
			t.Errorf("session %s is lost", id)
		}
	}
	if len(s.store.sessions) != len(want) {
		t.Errorf("%d sessions", len(s.store.sessions))
	}
	got := s.store.eventsOf(deception.EventRecordRefused, "crm-1")
	if len(got) != 1 || got[0].Message[:2] != "4 " {
		t.Errorf("events %+v", got)
	}
	// Nothing but bad ones is acknowledged as well: they would come for ever.
	if _, err := c.Upload(within(t), connect.NewRequest(&decoynetv1.UploadRequest{Records: records[:3]})); err != nil {
		t.Error(err)
	}
}

// What is not committed is not acknowledged.
func TestUploadWaitsForTheStore(t *testing.T) {
	s := newSite(t, options{})
	_, c := s.join(t, "crm-1")
	v := session(1, "", "crm")
	up := func() error {
		_, err := c.Upload(within(t), connect.NewRequest(&decoynetv1.UploadRequest{Records: [][]byte{sessionRecord(t, v)}}))
		return err
	}
	s.store.set(errors.New("disk full"))
	refusedWith(t, up(), connect.CodeUnavailable, "disk full")
	s.store.set(nil)
	for range 2 { // the acknowledgement of the first was lost
		if err := up(); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.store.sessions) != 1 {
		t.Errorf("%d sessions", len(s.store.sessions))
	}
}

func TestUploadIsBounded(t *testing.T) {
	s := newSite(t, options{})
	_, c := s.join(t, "crm-1")
	_, err := c.Upload(within(t), connect.NewRequest(&decoynetv1.UploadRequest{Records: [][]byte{make([]byte, maxNodeBytes)}}))
	refusedWith(t, err, connect.CodeResourceExhausted)
}

func TestHalves(t *testing.T) {
	whole := store.Batch{Node: "n"}
	for i := range 3 {
		whole.Sessions = append(whole.Sessions, *session(i, "", ""))
		whole.Seen = append(whole.Seen, deception.SourceSeen{SourceNAT: addrPort(fmt.Sprintf("192.0.2.1:%d", i+1))})
		whole.Events = append(whole.Events, deception.Event{Message: fmt.Sprint(i)})
		whole.Probes = append(whole.Probes, *probe(i, 1, ""))
		whole.Findings = append(whole.Findings, *finding(i, ""))
	}
	var singles int
	var cut func(b store.Batch)
	cut = func(b store.Batch) {
		n := len(b.Sessions) + len(b.Seen) + len(b.Events) + len(b.Probes) + len(b.Findings)
		if n == 1 {
			singles++
			return
		}
		first, second := halves(b)
		if first.Node != "n" || second.Node != "n" {
			t.Errorf("whose are %+v and %+v", first, second)
		}
		cut(first)
		cut(second)
	}
	cut(whole)
	if singles != 15 {
		t.Errorf("%d records of 15", singles)
	}
}

// storedSite is a site with a real store behind it.
func storedSite(t *testing.T) (*site, *store.Recorder) {
	path := filepath.Join(t.TempDir(), store.FileName)
	recorder, err := store.OpenRecorder(store.RecorderConfig{Path: path, Flush: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := recorder.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	reader, err := store.OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.Close() })
	return newSite(t, options{store: recorder, reader: reader}), recorder
}

// Findings come back through the API, and what they say of their sessions.
func TestFindingsListing(t *testing.T) {
	s, recorder := storedSite(t)
	_, node := s.join(t, "crm-1")
	var records [][]byte
	var id deception.SessionID
	for i := range 10 {
		v, f := session(i, "", fmt.Sprint("decoy", i%2)), finding(i, "")
		f.Session = v.ID
		if i == 7 {
			id = v.ID
		}
		records = append(records, findingRecord(t, f), sessionRecord(t, v))
	}
	known := finding(12, "")
	known.Scanner = "audit"
	records = append(records, findingRecord(t, known))
	for range 2 {
		if _, err := node.Upload(within(t), connect.NewRequest(&decoynetv1.UploadRequest{Records: records})); err != nil {
			t.Fatal(err)
		}
	}
	c, _ := s.user(t, "viewer")
	findings := func(m *decoynetv1.ListFindingsRequest) (out []uint64, err error) {
		stream, err := c.ListFindings(within(t), connect.NewRequest(m))
		if err != nil {
			return nil, err
		}
		defer stream.Close()
		for (!m.GetWatch() || len(out) < 12) && stream.Receive() {
			f := stream.Msg().GetFinding()
			if whole := len(f.GetDocument()) > 0; whole != m.GetDocuments() {
				t.Errorf("%v: document %q", m, f.GetDocument())
			}
			if out = append(out, f.GetFeedLost()); len(out) == 11 && m.GetWatch() {
				recorder.Finding(finding(20, "crm-1"))
			}
		}
		return out, stream.Err()
	}
	for want, m := range map[string]*decoynetv1.ListFindingsRequest{
		"[0 1 2 3 4 5 6 7 8 9 12]": {Node: "crm-1", Documents: true},
		"[9 12]":                   {Limit: 2},
		"[0 3 6 9]":                {Alerts: true, Unknown: true},
		"[3]":                      {Sid: 103},
		"[0 3]":                    {Severity: 2},
		"[12]":                     {Scanner: "audit"},
		"[1 5 7]":                  {Kind: "http", Decoy: "decoy1"},
		"[7]":                      {Session: id[:]},
		"[]":                       {Source: "198.51.100.2"},
	} {
		got, err := findings(m)
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("%v: %v, %v; want %s", m, got, err, want)
		}
	}
	if got, err := findings(&decoynetv1.ListFindingsRequest{Watch: true}); fmt.Sprint(got) != "[0 1 2 3 4 5 6 7 8 9 12 20]" {
		t.Errorf("watched %v, %v", got, err)
	}
	for _, m := range []*decoynetv1.ListFindingsRequest{{Source: "nonsense"}, {Session: []byte("abc")}} {
		if _, err := findings(m); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%v: %v", m, err)
		}
	}
	one, err := c.ListSessions(within(t), connect.NewRequest(&decoynetv1.ListSessionsRequest{Id: id[:]}))
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	if !one.Receive() || one.Msg().GetSession().GetAnalysis().GetUserAgent() != "curl/8" || one.Receive() {
		t.Errorf("session %s: %v, %v", id, one.Msg(), one.Err())
	}
}

// With the real store behind it: sessions and events come back through the API.
func TestListing(t *testing.T) {
	s, recorder := storedSite(t)
	_, node := s.join(t, "crm-1")
	var records [][]byte
	for i := range 10 {
		v := session(i, "", fmt.Sprint("decoy", i%2))
		if i == 4 {
			v.Scanner = "audit"
		}
		records = append(records, sessionRecord(t, v), probeRecord(t, probe(i, 1, "")))
	}
	known := probe(3, 2, "")
	known.Scanner = "audit"
	records = append(records, probeRecord(t, known))
	for range 2 {
		if _, err := node.Upload(within(t), connect.NewRequest(&decoynetv1.UploadRequest{Records: records})); err != nil {
			t.Fatal(err)
		}
	}
	c, name := s.user(t, "viewer")
	var ids [][]byte // of those listed last
	sessions := func(m *decoynetv1.ListSessionsRequest) (out []uint64, err error) {
		ids = nil
		stream, err := c.ListSessions(within(t), connect.NewRequest(m))
		if err != nil {
			return nil, err
		}
		defer stream.Close()
		for stream.Receive() {
			v := stream.Msg().GetSession()
			if v.GetNode() != "crm-1" {
				t.Errorf("session of %s", v.GetNode())
			}
			out, ids = append(out, v.GetSourceBytes()), append(ids, v.GetId())
		}
		return out, stream.Err()
	}
	if _, err := sessions(&decoynetv1.ListSessionsRequest{}); err != nil || len(ids) != 10 {
		t.Fatalf("%d sessions, %v", len(ids), err)
	}
	for want, m := range map[string]*decoynetv1.ListSessionsRequest{
		"[4 5]":                 {After: ids[3], Limit: 2},
		"[9]":                   {After: ids[8], Limit: 2},
		"[0 1 2 3 4 5 6 7 8 9]": {},
		"[8 9]":                 {Limit: 2},
		"[1 3 5 7 9]":           {Decoy: "decoy1", Segment: "host", Service: "web"},
		"[]":                    {Source: "198.51.100.0/25", Decoy: "none"},
		"[6 8]":                 {Source: "198.51.100.1", Decoy: "decoy0", Limit: 2},
		"[4]":                   {Scanner: "audit"},
		"[0 2 6 8]":             {Decoy: "decoy0", Unknown: true},
	} {
		got, err := sessions(m)
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("%v: %v, %v; want %s", m, got, err, want)
		}
	}
	if _, err := sessions(&decoynetv1.ListSessionsRequest{After: []byte("who")}); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("after three bytes: %v", err)
	}
	if _, err := sessions(&decoynetv1.ListSessionsRequest{Source: "nonsense"}); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("source nonsense: %v", err)
	}

	probes := func(m *decoynetv1.ListProbesRequest) (out []uint64, err error) {
		stream, err := c.ListProbes(within(t), connect.NewRequest(m))
		if err != nil {
			return nil, err
		}
		defer stream.Close()
		for (!m.GetWatch() || len(out) < 11) && stream.Receive() {
			if out = append(out, stream.Msg().GetProbe().GetAddresses()); len(out) == 10 && m.GetWatch() {
				recorder.Probe(probe(5, 9, "crm-1"))
			}
		}
		return out, stream.Err()
	}
	for want, m := range map[string]*decoynetv1.ListProbesRequest{
		"[0 1 2 3 4 5 6 7 8 9]": {Node: "crm-1", Segment: "office"},
		"[8 9]":                 {Limit: 2},
		"[3]":                   {Scanner: "audit"},
		"[7 8 9]":               {Source: "198.51.100.0/24", Unknown: true, Limit: 3},
		"[]":                    {Source: "198.51.100.2"},
	} {
		got, err := probes(m)
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("%v: %v, %v; want %s", m, got, err, want)
		}
	}
	if got, err := probes(&decoynetv1.ListProbesRequest{Watch: true}); fmt.Sprint(got) != "[0 1 2 3 4 5 6 7 8 9 5]" {
		t.Errorf("watched %v, %v", got, err)
	}
	if _, err := probes(&decoynetv1.ListProbesRequest{Source: "nonsense"}); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("source nonsense: %v", err)
	}

	events, err := c.ListEvents(within(t), connect.NewRequest(&decoynetv1.ListEventsRequest{Node: "crm-1", Watch: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	var kinds []string
	for !slices.Contains(kinds, string(deception.EventNodeRevoked)) {
		if !events.Receive() {
			t.Fatalf("events end after %v: %v", kinds, events.Err())
		}
		if kinds = append(kinds, events.Msg().GetEvent().GetKind()); len(kinds) == 1 {
			s.revoke(t, "crm-1")
		}
	}
	if kinds[0] != string(deception.EventNodeEnrolled) {
		t.Errorf("events %v", kinds)
	}

	// A stream ends with its user.
	watched, err := c.ListSessions(within(t), connect.NewRequest(&decoynetv1.ListSessionsRequest{Watch: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer watched.Close()
	for range 10 {
		if !watched.Receive() {
			t.Fatal(watched.Err())
		}
	}
	if _, err := s.admin(t).DeleteUser(within(t), connect.NewRequest(&decoynetv1.DeleteUserRequest{Name: name})); err != nil {
		t.Fatal(err)
	}
	for watched.Receive() {
	}
	refusedWith(t, watched.Err(), connect.CodeCanceled, "not valid any more")
}
