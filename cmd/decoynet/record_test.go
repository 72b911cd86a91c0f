package main

import (
	"context"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/testing/protocmp"

	"decoynet/deception"
	"decoynet/internal/rpc"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/rpc/decoynetv1/decoynetv1connect"
	"decoynet/internal/store"

	"github.com/google/go-cmp/cmp"
)

// admin answers as a controller does, and keeps what it was asked.
type admin struct {
	decoynetv1connect.UnimplementedAdminServiceHandler
	session  deception.Session
	findings []deception.Finding
	asked    *decoynetv1.ListFindingsRequest
}

func (a *admin) ListSessions(_ context.Context, req *connect.Request[decoynetv1.ListSessionsRequest], s *connect.ServerStream[decoynetv1.ListSessionsResponse]) error {
	after := string(req.Msg.GetAfter())
	if (after == "" || after >= string(a.session.ID[:]) || req.Msg.GetLimit() != 2) && string(req.Msg.GetId()) != string(a.session.ID[:]) {
		return nil
	}
	return s.Send(&decoynetv1.ListSessionsResponse{Session: rpc.EncodeSession(&a.session)})
}

func (a *admin) ListFindings(_ context.Context, req *connect.Request[decoynetv1.ListFindingsRequest], s *connect.ServerStream[decoynetv1.ListFindingsResponse]) error {
	a.asked = req.Msg
	for i := range a.findings {
		if err := s.Send(&decoynetv1.ListFindingsResponse{Finding: rpc.EncodeFinding(&a.findings[i])}); err != nil {
			return err
		}
	}
	return nil
}

// A controller's record reads as the one of this machine does.
func TestRemoteRecord(t *testing.T) {
	k := &keeper{}
	at := time.Unix(1_700_000_000, 5)
	a := &admin{session: deception.Session{
		ID: deception.NewSessionID(at), Start: at, End: at.Add(time.Second), Decoy: "web", Transport: deception.TCP, Path: deception.PathRelay,
		Source: netip.MustParseAddrPort("192.0.2.1:5"), Destination: netip.MustParseAddrPort("198.51.100.1:80"), Analysis: &deception.Analysis{Findings: 1, UserAgent: "curl"},
	}}
	k.Finding(&deception.Finding{ID: deception.NewSessionID(at), Session: a.session.ID, Time: at, Kind: "http", Document: []byte("{}"), Of: deception.Place{Decoy: "web"}})
	a.findings = k.findings
	_, handler := decoynetv1connect.NewAdminServiceHandler(a)
	server := httptest.NewServer(handler)
	defer server.Close()
	r := &remoteRecord{decoynetv1connect.NewAdminServiceClient(server.Client(), server.URL), true}
	whole, err := readSession(t.Context(), r, a.session.ID, 7)
	if err != nil {
		t.Fatal(err)
	}
	if whole.Session.Decoy != "web" || whole.Session.Analysis.UserAgent != "curl" || len(whole.Findings) != 1 || string(whole.Findings[0].Document) != "{}" {
		t.Errorf("%+v", whole)
	}
	name, err := parseSessionName(a.session.ID.String()[:23])
	if err != nil {
		t.Fatal(err)
	}
	if id, err := name.find(t.Context(), r); err != nil || id != a.session.ID {
		t.Errorf("by the beginning of its identifier: %v, %v", id, err)
	}
	if _, err := readSession(t.Context(), r, deception.NewSessionID(at), 7); err == nil || !strings.HasPrefix(err.Error(), "no session") {
		t.Errorf("of another session: %v", err)
	}
	source, err := parseNetwork("192.0.2.0/24")
	if err != nil {
		t.Fatal(err)
	}
	for range r.WatchFindings(t.Context(), store.FindingFilter{
		Since: at, Session: a.session.ID, Source: source, Node: "n", Kind: "k", Segment: "s", Decoy: "d", Service: "v",
		Alerts: true, SID: 3, Severity: 2, Scanner: "c", Unknown: true, Limit: 9,
	}) {
		continue
	}
	want := &decoynetv1.ListFindingsRequest{
		Since: at.UnixNano(), Source: "192.0.2.0/24", Segment: "s", Decoy: "d", Service: "v", Node: "n", Kind: "k", Session: a.session.ID[:],
		Alerts: true, Sid: 3, Severity: 2, Scanner: "c", Unknown: true, Documents: true, Limit: 9, Watch: true,
	}
	if diff := cmp.Diff(want, a.asked, protocmp.Transform()); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
	server.Close()
	for _, err := range r.Findings(t.Context(), store.FindingFilter{}) {
		if err == nil {
			t.Error("a controller that is gone has findings")
		}
	}
}
