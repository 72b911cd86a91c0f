package rpc

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"decoynet/internal/pki"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/spool"

	"go.uber.org/goleak"
)

// The test binary becomes a node's client, to be killed.
const (
	roleVar = "DECOYNET_RPC_TEST_ROLE"
	dirVar  = "DECOYNET_RPC_TEST_DIR"
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleVar) {
	case "":
		goleak.VerifyTestMain(m)
	case "client":
		if err := clientProcess(os.Getenv(dirVar)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// quickPace is for tests in which a controller is dead on purpose.
var quickPace = pace{
	silence: 1500 * time.Millisecond,
	first:   10 * time.Millisecond, last: 100 * time.Millisecond,
	steady: 100 * time.Millisecond,
	denied: 100 * time.Millisecond,
	report: 100 * time.Millisecond, gap: 10 * time.Millisecond,
	call: 5 * time.Second, upload: 2 * time.Second,
	gather: time.Millisecond,
	renew:  100 * time.Millisecond,
}

// node is a client that runs, and what it was told.
type node struct {
	*Client
	id      *pki.Identity
	spool   *spool.Spool
	rec     *Recorder
	applied chan *decoynetv1.Snapshot
	held    chan string // holds one value
	stop    func()
}

// startNode runs a client of these controllers.
func startNode(t *testing.T, a *authority, urls ...string) *node {
	t.Helper()
	return runNode(t, a.identity(t, "crm-1", time.Hour, urls...), t.TempDir(), nil)
}

func runNode(t *testing.T, id *pki.Identity, dir string, change func(*ClientConfig)) *node {
	t.Helper()
	s, err := spool.Open(spool.Config{Dir: dir + "/spool"})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{id: id, spool: s, rec: NewRecorder(s), applied: make(chan *decoynetv1.Snapshot, 100), held: make(chan string, 1)}
	n.held <- ""
	cfg := ClientConfig{
		Identity: id, Spool: s, Dir: dir, Version: "1.0", Boot: "boot-1",
		Held: func() string {
			h := <-n.held
			n.held <- h
			return h
		},
		Apply: func(_ context.Context, s *decoynetv1.Snapshot) {
			<-n.held
			n.held <- s.GetRevision()
			n.applied <- s
		},
		Report: func() *decoynetv1.ReportRequest {
			return &decoynetv1.ReportRequest{State: decoynetv1.ReportRequest_STATE_CONVERGED, Flows: 7}
		},
	}
	if change != nil {
		change(&cfg)
	}
	if n.Client, err = NewClient(cfg); err != nil {
		t.Fatal(err)
	}
	n.pace = quickPace
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		n.Run(ctx)
		close(done)
	}()
	n.stop = func() {
		cancel()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Error("the client does not end")
		}
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() { n.stop() })
	return n
}

// once is for stop functions that a test calls before its end.
func (n *node) stopNow() {
	n.stop()
	n.stop = func() {}
}

// wantApplied waits for the revision to be applied, and for no other.
func (n *node) wantApplied(t *testing.T, revision string) *decoynetv1.Snapshot {
	t.Helper()
	select {
	case s := <-n.applied:
		if s.GetRevision() != revision {
			t.Fatalf("revision %s was applied, want %s", s.GetRevision(), revision)
		}
		return s
	case <-time.After(20 * time.Second):
		t.Fatalf("revision %s was not applied; %+v", revision, n.Status())
	}
	return nil
}

func (n *node) wantConnected(t *testing.T, url string) {
	t.Helper()
	eventually(t, "connected to "+url, func() bool {
		s := n.Status()
		return s.Connected && s.URL == url
	}, n.Status)
}

// eventually waits until ok is true; state says how things are if it does not come.
func eventually[T any](t testing.TB, what string, ok func() bool, state func() T) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after 20 s still not: %s: %+v", what, state())
		}
	}
}
