package rpc

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/rpc/decoynetv1"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
)

// snapshot makes one of a small state.
func snapshot(t testing.TB, revision string, controllers ...string) *decoynetv1.Snapshot {
	t.Helper()
	b, err := EncodeState(&deception.State{Node: "crm-1", Nodes: []deception.Node{{Name: "crm-1"}}})
	if err != nil {
		t.Fatal(err)
	}
	return &decoynetv1.Snapshot{Revision: revision, State: b, Version: "1.0", Controllers: controllers}
}

func TestSnapshotsAndReports(t *testing.T) {
	a := newAuthority(t)
	c := startController(t, a, newStore())
	c.publish(snapshot(t, "r1"))
	id, dir := a.identity(t, "crm-1", time.Hour, c.url), t.TempDir()
	if _, err := LoadSnapshot(dir); !errors.Is(err, ErrNoSnapshot) {
		t.Errorf("before the first: %v", err)
	}
	saved := make(chan error, 10)
	n := runNode(t, id, dir, func(cfg *ClientConfig) {
		apply := cfg.Apply
		cfg.Apply = func(ctx context.Context, s *decoynetv1.Snapshot) {
			on, err := LoadSnapshot(dir)
			if err == nil && !proto.Equal(on, s) {
				err = errors.New("another one is saved")
			}
			saved <- err
			apply(ctx, s)
		}
	})
	n.wantApplied(t, "r1")
	if err := <-saved; err != nil {
		t.Errorf("while r1 is applied: %v", err)
	}
	eventually(t, "reported", func() bool { return c.lastReport().GetRevision() == "r1" }, n.Status)
	r := c.lastReport()
	if r.Version != "1.0" || r.Boot != "boot-1" || r.Flows != 7 || r.State != decoynetv1.ReportRequest_STATE_CONVERGED ||
		r.Spool == nil || !strings.Contains(r.Platform, "/") || r.Time == 0 || len(r.Problems) != 0 {
		t.Errorf("report %v", r)
	}
	c.publish(snapshot(t, "r2"))
	n.wantApplied(t, "r2")
	eventually(t, "reported", func() bool { return c.lastReport().GetRevision() == "r2" }, n.Status)

	// What runs is not applied again: neither when the controller repeats it ...
	c.stop()
	c.restart(t)
	eventually(t, "connected again", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return len(c.watches) == 2 }, n.Status)
	if w := c.watches[1]; w.Revision != "r2" || w.Boot != "boot-1" || w.Version != "1.0" {
		t.Errorf("watch request %v", w)
	}
	c.publish(snapshot(t, "r3"))
	n.wantApplied(t, "r3")
	n.stopNow()

	// ... nor when a process that loaded it from disk hears of it.
	last, err := LoadSnapshot(dir)
	if err != nil || last.GetRevision() != "r3" {
		t.Fatalf("on disk: %v, %v", last, err)
	}
	m := runNode(t, id, dir, func(cfg *ClientConfig) { cfg.Held = func() string { return "r3" } })
	m.wantConnected(t, c.url)
	c.publish(snapshot(t, "r4"))
	m.wantApplied(t, "r4")
	if left, err := filepath.Glob(filepath.Join(dir, snapshotName+".*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A node runs what it has when the controller asks for what it does not know.
func TestSnapshotOfNewerController(t *testing.T) {
	a := newAuthority(t)
	c := startController(t, a, newStore())
	c.publish(snapshot(t, "r1"))
	dir := t.TempDir()
	n := runNode(t, a.identity(t, "crm-1", time.Hour, c.url), dir, nil)
	n.wantApplied(t, "r1")
	strange := snapshot(t, "r2")
	strange.State, strange.Version = []byte(`{"Node":"crm-1","Lures":[]}`), "2.0"
	c.publish(strange)
	eventually(t, "reported as failed", func() bool {
		return c.lastReport().GetState() == decoynetv1.ReportRequest_STATE_FAILED
	}, n.Status)
	r := c.lastReport()
	want := "the controller runs 2.0, this node 1.0: upgrade this node"
	if len(r.Problems) != 1 || !strings.Contains(r.Problems[0], want) || r.Revision != "r1" || !strings.Contains(n.Status().SnapshotErr, "Lures") {
		t.Errorf("report %v, status %+v", r, n.Status())
	}
	if s, err := LoadSnapshot(dir); err != nil || s.GetRevision() != "r1" {
		t.Errorf("on disk: %v, %v", s, err)
	}
	c.publish(snapshot(t, "r3"))
	n.wantApplied(t, "r3")
	eventually(t, "well again", func() bool {
		return c.lastReport().GetState() == decoynetv1.ReportRequest_STATE_CONVERGED
	}, n.Status)
}

func TestDamagedSnapshot(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, snapshotName), []byte{0xff}, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadSnapshot(dir); err == nil || !strings.Contains(err.Error(), "is damaged") {
		t.Errorf("got %v", err)
	}
}

// tarPit accepts connections and never says a word.
func tarPit(t *testing.T) (url string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var conns []net.Conn
		for {
			conn, err := ln.Accept()
			if err != nil {
				break
			}
			conns = append(conns, conn)
		}
		for _, conn := range conns {
			conn.Close()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return "https://" + ln.Addr().String()
}

func TestControllerThatNeverAnswers(t *testing.T) {
	a, pit := newAuthority(t), tarPit(t)
	alone := startNode(t, a, pit)
	eventually(t, "said to be silent", func() bool {
		s := alone.Status()
		return !s.Connected && s.URL == pit && strings.Contains(s.Err, "does not answer")
	}, alone.Status)

	c := startController(t, a, newStore())
	c.publish(snapshot(t, "r1"))
	n := startNode(t, a, pit, c.url)
	n.rec.Event(event(1))
	n.wantApplied(t, "r1")
	n.wantConnected(t, c.url)
	eventually(t, "delivered", func() bool { return c.store.count() == 1 }, n.Status)
}

func TestControllerFallsSilent(t *testing.T) {
	a, s := newAuthority(t), newStore()
	first, second := startController(t, a, s), startController(t, a, s)
	first.publish(snapshot(t, "r1"))
	second.publish(snapshot(t, "r2"))
	n := startNode(t, a, first.url, second.url)
	n.wantApplied(t, "r1")
	first.set(func() { first.mute = true })
	n.wantApplied(t, "r2")
	n.wantConnected(t, second.url)
	n.rec.Event(event(1))
	eventually(t, "delivered", func() bool { return s.count() == 1 }, n.Status)
}

// Failing over and back, and the controllers' own word on where they are.
func TestTwoControllers(t *testing.T) {
	a, s := newAuthority(t), newStore()
	first, second := startController(t, a, s), startController(t, a, s)
	both := []string{first.url, second.url}
	first.publish(snapshot(t, "r1", both...))
	second.publish(snapshot(t, "r2", both...))
	n := startNode(t, a, first.url) // knows of the first only
	n.wantApplied(t, "r1")
	sent := 0
	deliver := func() {
		t.Helper()
		for range 50 {
			n.rec.Event(event(sent))
			sent++
		}
		eventually(t, "delivered", func() bool { return s.count() == sent }, n.Status)
	}
	deliver()
	first.stop()
	n.wantApplied(t, "r2")
	n.wantConnected(t, second.url)
	deliver()
	first.restart(t)
	second.stop()
	n.wantApplied(t, "r1")
	n.wantConnected(t, first.url)
	deliver()
	if st := n.spool.Stats(); st.Dropped != 0 {
		t.Errorf("spool %+v", st)
	}
}

func TestClockOffset(t *testing.T) {
	a := newAuthority(t)
	for _, ahead := range []time.Duration{-time.Hour, 0, time.Hour} {
		c := startController(t, a, newStore())
		c.set(func() { c.ahead = ahead })
		n := startNode(t, a, c.url)
		n.wantConnected(t, c.url)
		eventually(t, "measured", func() bool { return n.Status().RoundTrip > 0 }, n.Status)
		s := n.Status()
		if off := s.ClockOffset + ahead; !s.ClockKnown || off.Abs() > 5*time.Second {
			t.Errorf("controller ahead by %v: status %+v", ahead, s)
		}
		n.stopNow()
		if (ahead != 0) != strings.Contains(s.ClockErr, "clock of this machine is 1h0m0s") {
			t.Errorf("controller ahead by %v: %q", ahead, s.ClockErr)
		}
	}
}

// A node that was revoked says so, in the controller's words, and is heard again
// when that is taken back.
func TestDenied(t *testing.T) {
	a := newAuthority(t)
	c := startController(t, a, newStore())
	c.publish(snapshot(t, "r1"))
	n := startNode(t, a, c.url)
	n.wantApplied(t, "r1")
	c.set(func() {
		c.deny = connect.NewError(connect.CodePermissionDenied, errors.New("node crm-1 was revoked by anna on 2026-01-02"))
	})
	n.rec.Event(event(1))
	eventually(t, "denied", func() bool { return n.Status().Denied && n.Status().UploadErr != "" }, n.Status)
	s := n.Status()
	for _, text := range []string{s.Err, s.UploadErr} {
		if s.Connected || !strings.Contains(text, c.url) || !strings.Contains(text, "does not let this node in: node crm-1 was revoked by anna") {
			t.Errorf("status %+v", s)
		}
	}
	c.set(func() { c.deny = nil })
	n.wantConnected(t, c.url)
	eventually(t, "delivered, and all well", func() bool {
		s := n.Status()
		return c.store.count() == 1 && s.Uploaded == 1 && !s.Denied && s.Err == "" && s.UploadErr == ""
	}, n.Status)
}

// A controller of another CA is not spoken to, and the status says what it is.
func TestStrangeController(t *testing.T) {
	a := newAuthority(t)
	c := startController(t, newAuthority(t), newStore())
	n := startNode(t, a, c.url)
	n.rec.Event(event(1))
	eventually(t, "explained", func() bool { return strings.Contains(n.Status().Err, "another CA") }, n.Status)
	if c.store.count() != 0 || n.spool.Stats().Waiting != 1 {
		t.Error("something was delivered to it")
	}
}

func TestRenewal(t *testing.T) {
	for name, ttl := range map[string]time.Duration{
		"due":     2 * time.Second, // with a fifth of spread: due within 1.2 s
		"expired": -24 * time.Hour,
	} {
		t.Run(name, func(t *testing.T) {
			a := newAuthority(t)
			c := startController(t, a, newStore())
			c.publish(snapshot(t, "r1"))
			id := a.identity(t, "crm-1", ttl, c.url)
			before, _ := id.Certificate()
			n := runNode(t, id, t.TempDir(), func(*ClientConfig) {})
			n.rec.Event(event(1))
			n.wantApplied(t, "r1")
			eventually(t, "renewed", func() bool {
				_, expires := id.Certificate()
				return time.Until(expires) > 30*time.Minute
			}, n.Status)
			n.wantConnected(t, c.url)
			eventually(t, "delivered", func() bool { return c.store.count() == 1 }, n.Status)
			after, expires := id.Certificate()
			if after.Equal(before) || !n.Status().CertificateExpires.Equal(expires) || n.Status().RenewErr != "" {
				t.Errorf("status %+v", n.Status())
			}
			// The stream was made anew with the new certificate.
			n.stopNow()
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.renewals != 1 || len(c.watches) == 0 {
				t.Errorf("%d renewals, %d watches", c.renewals, len(c.watches))
			}
		})
	}
}

func TestRenewalIsTriedAgain(t *testing.T) {
	a := newAuthority(t)
	c := startController(t, a, newStore())
	c.set(func() {
		c.deny = connect.NewError(connect.CodeUnavailable, errors.New("the registry is away"))
	})
	n := runNode(t, a.identity(t, "crm-1", -time.Hour, c.url), t.TempDir(), nil)
	eventually(t, "explained", func() bool { return strings.Contains(n.Status().RenewErr, "the registry is away") }, n.Status)
	c.set(func() { c.deny = nil })
	eventually(t, "renewed", func() bool { return n.Status().RenewErr == "" && n.Status().Connected }, n.Status)
}
