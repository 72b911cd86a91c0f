package controller

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/registry"
	"decoynet/internal/rpc/decoynetv1"

	"connectrpc.com/connect"
)

func (s *site) revoke(t testing.TB, node string) {
	t.Helper()
	if _, err := s.admin(t).RevokeNode(within(t), connect.NewRequest(&decoynetv1.RevokeNodeRequest{Node: node})); err != nil {
		t.Fatal(err)
	}
}

// The present snapshot comes at once, the next with the document, and heartbeats in
// between. Who is not touched by a change hears nothing of it.
func TestWatch(t *testing.T) {
	s := newSite(t, options{})
	_, c1 := s.join(t, "crm-1")
	_, c2 := s.join(t, "crm-2")
	w1, w2 := watch(t, c1, ""), watch(t, c2, "")
	if st := stateOf(t, w1.next(t)); len(st.Decoys) != 0 {
		t.Errorf("without a document: %+v", st)
	}
	w2.next(t)
	s.apply(t, office)
	first := w1.next(t)
	if st := stateOf(t, first); len(st.Decoys) != 1 || st.Decoys[0].Name != "crm" || len(st.Services) != 0 {
		t.Errorf("the agent's part: %+v", st)
	}
	w2.next(t)
	select {
	case <-w1.beats:
	case <-time.After(30 * time.Second):
		t.Error("no heartbeat")
	}
	s.apply(t, strings.Replace(office, "[8080]", "[8081]", 1))
	if st := stateOf(t, w2.next(t)); st.Decoys[0].Bind[0].Ports[0].First != 8081 {
		t.Errorf("the changed part: %+v", st)
	}
	s.apply(t, strings.Replace(office, "ports: [445]", "ports: [3389]", 1))
	if st := stateOf(t, w1.next(t)); st.Decoys[0].Bind[0].Ports[0].First != 3389 {
		t.Errorf("after a change that is somebody else's, the next snapshot is %+v", st)
	}
}

// A node that is cut off loses its streams, and the ingress gateways learn it.
func TestRevocationEndsWatch(t *testing.T) {
	s := newSite(t, options{})
	s.apply(t, office)
	_, agent := s.join(t, "crm-1")
	_, gateway := s.join(t, "hq")
	wa, wg := watch(t, agent, ""), watch(t, gateway, "")
	wa.next(t)
	peers := func(snapshot *decoynetv1.Snapshot) string {
		var out []string
		for _, p := range snapshot.GetPeers() {
			out = append(out, fmt.Sprint(p.GetNode(), p.GetGeneration()))
		}
		return strings.Join(out, " ")
	}
	if got := peers(wg.next(t)); got != "crm-11 hq1" {
		t.Errorf("peers %s", got)
	}
	s.revoke(t, "crm-1")
	took, err := wa.end(t)
	refusedWith(t, err, connect.CodePermissionDenied, "crm-1", "revoked")
	if took > 5*time.Second {
		t.Errorf("cut off after %v", took)
	}
	t.Logf("cut off after %v", took)
	if got := peers(wg.next(t)); got != "hq1" {
		t.Errorf("peers after the revocation: %s", got)
	}
	if n := s.condition(t, "crm-1"); n.GetCondition() != conditionRevoked {
		t.Errorf("the revoked node is %s", n.GetCondition())
	}
	e := s.lastAudit(t, 1)[0]
	if e.Actor != "local" || e.Method != "AdminService/RevokeNode" || e.Object != "crm-1" || e.Result != registry.ResultOK {
		t.Errorf("audit entry: %v", e)
	}
	if got := s.store.eventsOf(deception.EventNodeRevoked, "crm-1"); len(got) != 1 {
		t.Errorf("events %+v", got)
	}
	if _, err := s.admin(t).RevokeNode(within(t), connect.NewRequest(&decoynetv1.RevokeNodeRequest{Node: "nobody"})); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("revoke nobody: %v", err)
	}
	// With a new token it is back, and the gateway takes its flows again.
	_, agent = s.join(t, "crm-1")
	if got := peers(wg.next(t)); got != "crm-13 hq1" {
		t.Errorf("peers after the new enrolment: %s", got)
	}
	watch(t, agent, "").next(t)
}

// Enrolled again elsewhere, a node's old machine is cut off.
func TestANewEnrolmentEndsWatch(t *testing.T) {
	s := newSite(t, options{})
	_, old := s.join(t, "crm-1")
	w := watch(t, old, "")
	w.next(t)
	s.join(t, "crm-1")
	_, err := w.end(t)
	refusedWith(t, err, connect.CodePermissionDenied, "void")
}

func TestShutdownEndsWatch(t *testing.T) {
	s := newSite(t, options{})
	_, c := s.join(t, "crm-1")
	w := watch(t, c, "")
	w.next(t)
	s.stop()
	took, err := w.end(t)
	refusedWith(t, err, connect.CodeUnavailable, "stops")
	t.Logf("ended after %v", took)
	select {
	case <-s.stopped:
	case <-time.After(30 * time.Second):
		t.Error("the port is open for 30 s after it was told to close")
	}
}

// Connections that a node lost without knowing do not pile up.
func TestManyStreamsOfOneNode(t *testing.T) {
	s := newSite(t, options{})
	id, _ := s.join(t, "crm-1")
	first := watch(t, s.node(t, id), "")
	first.next(t)
	for range maxWatchers {
		watch(t, s.node(t, id), "").next(t)
	}
	_, err := first.end(t)
	refusedWith(t, err, connect.CodeAborted, "newer connections")
	s.hub.mu.RLock()
	defer s.hub.mu.RUnlock()
	if n := len(s.hub.watchers["crm-1"]); n != maxWatchers {
		t.Errorf("%d streams", n)
	}
}

// A document that this version cannot read leaves nodes as they are.
func TestAnUnreadableDocument(t *testing.T) {
	s := newSite(t, options{})
	_, c := s.join(t, "crm-1")
	s.apply(t, office)
	w := watch(t, c, "")
	first := w.next(t)
	if _, err := s.cfg.Registry.Apply(within(t), registry.Document{Source: []byte("from: the future\n")}, "", registry.Entry{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "seen", func() bool { return s.hub.present().problem != nil })
	if got := watch(t, c, "").next(t); got.GetRevision() != first.GetRevision() {
		t.Errorf("another snapshot: %+v", stateOf(t, got))
	}
	// One that starts with it says nothing, rather than that there is nothing.
	again := newHub(s.cfg.Registry, "test", s.log)
	if err := again.refresh(within(t)); err != nil {
		t.Fatal(err)
	}
	if p := again.node("crm-1"); p == nil || p.snapshot != nil {
		t.Errorf("planned for the node: %+v", p)
	}
	s.apply(t, strings.Replace(office, "ports: [445]", "ports: [3389]", 1))
	if st := stateOf(t, w.next(t)); st.Decoys[0].Bind[0].Ports[0].First != 3389 {
		t.Errorf("after a good document again: %+v", st)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.hub.refresh(ctx); err == nil {
		t.Error("a registry that was not asked has answered")
	}
}
