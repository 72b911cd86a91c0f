package store

import (
	"context"
	"database/sql"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/pgtest"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

// roleVar makes the test binary a process of another kind: a writer to be
// killed, a test in a mount namespace of its own.
const roleVar = "DECOYNET_STORE_TEST_ROLE"

// roles are the other kinds of process.
var roles = map[string]func(){"writer": writerProcess}

func TestMain(m *testing.M) {
	name := os.Getenv(roleVar)
	if name == "" {
		goleak.VerifyTestMain(pgtest.Main(m))
	}
	role, ok := roles[name]
	if !ok {
		fmt.Fprintln(os.Stderr, "unknown role", name)
		os.Exit(2)
	}
	role()
}

// session makes the n-th session after base: 1 ms apart, 5 ms long, ended.
func session(base time.Time, n int) *deception.Session {
	s := &deception.Session{
		Start: base.Add(time.Duration(n) * time.Millisecond),
		Node:  "hq", Segment: "office", Decoy: "office-web", Service: "web",
		Transport: deception.TCP, Path: deception.PathRelay,
		Source:           netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), uint16(1024+n%60000)),
		Destination:      netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(n)}), 80),
		DestinationNAT:   netip.MustParseAddrPort("10.1.0.2:8080"),
		SourceBytes:      uint64(n),
		DestinationBytes: uint64(2 * n),
		Reason:           deception.EndClientClosed,
	}
	s.End = s.Start.Add(5 * time.Millisecond)
	s.SourceNAT = s.Source
	s.ID = idAt(s.Start)
	s.ID[6] = 0x70
	binary.BigEndian.PutUint64(s.ID[8:], 1<<63|uint64(n))
	return s
}

// running is a copy of the session as it was before its end.
func running(s *deception.Session) *deception.Session {
	r := *s
	r.End, r.Reason, r.SourceBytes, r.DestinationBytes = time.Time{}, deception.EndNone, 0, 0
	r.SourceHead, r.DestinationHead = nil, nil
	return &r
}

func open(t testing.TB, cfg RecorderConfig) *Recorder {
	t.Helper()
	if cfg.Flush == 0 {
		cfg.Flush = 5 * time.Millisecond
	}
	r, err := OpenRecorder(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeRecorder(t, r) })
	return r
}

func closeRecorder(t testing.TB, r *Recorder) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := r.Close(ctx); err != nil {
		t.Errorf("close: %v", err)
	}
}

func openReader(t testing.TB, path string) *Reader {
	t.Helper()
	r, err := OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// all reads what the filter chooses.
func all(t testing.TB, r *Reader, f Filter) []deception.Session {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var out []deception.Session
	for s, err := range r.Sessions(ctx, f) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

// eventually waits until ok is true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after 60 s still not: %s", what)
		}
	}
}

func settled(t testing.TB, r *Recorder) {
	t.Helper()
	eventually(t, "queue written", func() bool { return r.Stats().Queued == 0 })
}

var same = cmp.Options{
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) }),
	cmp.Transformer("bytes", func(b []byte) string { return string(b) }),
}

func compare(t testing.TB, want []*deception.Session, got []deception.Session) {
	t.Helper()
	plain := make([]deception.Session, len(want))
	for i, s := range want {
		plain[i] = *s
	}
	if diff := cmp.Diff(plain, got, same); diff != "" {
		t.Errorf("sessions (-want +got):\n%s", diff)
	}
}

func execute(t testing.TB, c *sql.Conn, text string, args ...any) {
	t.Helper()
	if _, err := c.ExecContext(context.Background(), text, args...); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

func names(sessions []deception.Session) string {
	var parts []string
	for _, s := range sessions {
		parts = append(parts, s.Decoy)
	}
	return strings.Join(parts, " ")
}

// testWriter is a recorder's writer without the recorder.
func testWriter(t testing.TB, path string) *writer {
	t.Helper()
	back, err := choose(path)
	if err != nil {
		t.Fatal(err)
	}
	cfg := RecorderConfig{Path: path}
	name, err := cfg.identity()
	if err != nil {
		t.Fatal(err)
	}
	w, err := openWriter(t.Context(), back, name, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.close(); err != nil {
			t.Error(err)
		}
	})
	return w
}
