package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/pgtest"
	"decoynet/internal/rpc"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/spool"

	"connectrpc.com/connect"
)

// two are controllers on one database.
func two(t *testing.T) (a, b *site) {
	t.Helper()
	location := pgtest.Database(t)
	a = newSite(t, options{location: location})
	b = newSite(t, options{location: location})
	return a, b
}

func TestTwoControllers(t *testing.T) {
	a, b := two(t)
	if a.Pin() != b.Pin() {
		t.Fatal("two authorities")
	}
	if a.adminToken(t) == b.adminToken(t) {
		t.Error("one token for two machines")
	}
	// Enrolled here, known there at once.
	id, atA := a.join(t, "crm-1")
	atB := b.node(t, id)
	wa, wb := watch(t, atA, "boot"), watch(t, atB, "boot")
	wa.next(t)
	wb.next(t)
	if got := id.Controllers(); len(got) != 2 || got[0] != a.url || got[1] != b.url {
		t.Errorf("the node knows of %v", got)
	}
	// Applied on either, seen at the other, as the same revision.
	text := office
	for i, s := range []*site{a, b} {
		text = strings.Replace(text, "ports: [445]", fmt.Sprintf("ports: [%d]", 446+i), 1)
		text = strings.Replace(text, "ports: [445, 3389]", "ports: [445, 446, 447, 3389]", 1)
		text = strings.Replace(text, "ports: [446], service", fmt.Sprintf("ports: [%d], service", 446+i), 1)
		begun := time.Now()
		s.apply(t, text)
		ra, rb := wa.next(t), wb.next(t)
		t.Logf("at both after %v", time.Since(begun))
		if ra.GetRevision() != rb.GetRevision() || string(ra.GetState()) != string(rb.GetState()) {
			t.Errorf("snapshots %s and %s", ra, rb)
		}
	}
	// Reported there, listed here.
	wanted := b.hub.node("crm-1").wanted()
	report(t, atB, &decoynetv1.ReportRequest{Boot: "boot", Revision: wanted, State: decoynetv1.ReportRequest_STATE_CONVERGED, Flows: 9})
	eventually(t, "converged at the other controller", func() bool {
		n := a.condition(t, "crm-1")
		return n.GetCondition() == conditionConverged && n.GetFlows() == 9
	})
	// A change made with an eye on a past revision is refused at the other as well.
	_, err := a.admin(t).Apply(within(t), connect.NewRequest(&decoynetv1.ApplyRequest{Document: []byte(office), ExpectRevision: "1-x"}))
	refusedWith(t, err, connect.CodeAborted)
	// Revoked there, cut off here.
	begun := time.Now()
	b.revoke(t, "crm-1")
	for _, w := range []*watching{wa, wb} {
		_, err := w.end(t)
		refusedWith(t, err, connect.CodePermissionDenied, "revoked")
	}
	took := time.Since(begun)
	t.Logf("cut off at both after %v", took)
	if took > 5*time.Second {
		t.Errorf("cut off after %v", took)
	}
	// One of them said that the node came.
	n := len(a.store.eventsOf(deception.EventNodeConnected, "crm-1")) + len(b.store.eventsOf(deception.EventNodeConnected, "crm-1"))
	if n != 1 {
		t.Errorf("%d events that the node is connected", n)
	}
	// One token, shown to both at once.
	token := a.token(t, "crm-2")
	var mu sync.Mutex
	enrolled := 0
	var wg sync.WaitGroup
	for _, s := range []*site{a, b, a, b} {
		wg.Go(func() {
			_, err := s.show(t, token)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				enrolled++
			} else {
				refusedWith(t, err, connect.CodePermissionDenied, "used before")
			}
		})
	}
	wg.Wait()
	if enrolled != 1 {
		t.Errorf("one token enrolled %d machines", enrolled)
	}
	// One audit log.
	var actors []string
	for _, e := range a.lastAudit(t, 0) {
		if e.GetMethod() == "AdminService/Apply" && e.GetResult() == "ok" {
			actors = append(actors, e.GetActor())
		}
	}
	slices.Sort(actors)
	if len(actors) != 2 || actors[0] != "local" || !strings.HasPrefix(actors[1], "local@") {
		t.Errorf("who applied: %v", actors)
	}
}

// The node's own side of the conversation, as shipped: it fails over from one
// controller to the other, and what it recorded is in the store once.
func TestANodeFailsOver(t *testing.T) {
	a, b := two(t)
	token := a.token(t, "crm-1")
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	id, err := rpc.Enrol(ctx, rpc.EnrolConfig{URL: a.url, Token: token, Pin: a.Pin(), Dir: dir, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	records, err := spool.Open(spool.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer records.Close(ctx)
	var mu sync.Mutex
	held := ""
	node, err := rpc.NewClient(rpc.ClientConfig{
		Identity: id, Spool: records, Dir: dir, Version: "test", Boot: bootAt(time.Now()),
		Held: func() string { mu.Lock(); defer mu.Unlock(); return held },
		Apply: func(_ context.Context, s *decoynetv1.Snapshot) {
			mu.Lock()
			defer mu.Unlock()
			held = s.GetRevision()
		},
		Report: func() *decoynetv1.ReportRequest {
			return &decoynetv1.ReportRequest{State: decoynetv1.ReportRequest_STATE_CONVERGED}
		},
		Log: a.log,
	})
	if err != nil {
		t.Fatal(err)
	}
	run, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		node.Run(run)
	}()
	defer func() { stop(); <-ended }()

	a.apply(t, office)
	converged := func(s *site) func() bool {
		return func() bool {
			n := s.condition(t, "crm-1")
			return n.GetCondition() == conditionConverged && n.GetRevisionHeld() == s.hub.node("crm-1").wanted()
		}
	}
	eventually(t, "converged", converged(b))
	a.stop()
	<-a.stopped
	recorder := rpc.NewRecorder(records)
	v := session(1, "crm-1", "crm")
	recorder.Ended(v)
	b.apply(t, strings.Replace(office, "ports: [445]", "ports: [3389]", 1))
	eventually(t, "converged at the other controller", converged(b))
	eventually(t, "the session is in the other's store", func() bool {
		b.store.mu.Lock()
		defer b.store.mu.Unlock()
		return len(b.store.sessions) == 1 && b.store.sessions[v.ID].Decoy == "crm"
	})
}
