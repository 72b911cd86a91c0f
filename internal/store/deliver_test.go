package store

import (
	"context"
	"errors"
	"math"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"decoynet/deception"
)

func commit(t testing.TB, r *Recorder, b Batch) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := r.Commit(ctx, b); err != nil {
		t.Fatal(err)
	}
}

func totals(t testing.TB, r *Reader) []Total {
	t.Helper()
	got, err := r.Totals(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// When Commit returns, everybody can read it.
func TestCommit(t *testing.T) { eachBackend(t, testCommit) }

func testCommit(t *testing.T, at place) {
	r := open(t, RecorderConfig{Path: at.path, Flush: time.Hour})
	reader := openReader(t, at.path)
	var b Batch
	var want []*deception.Session
	for i := range 5000 { // more than one chunk, and more than one statement
		s := session(base, i)
		if i%10 == 0 {
			s = running(s)
		}
		b.Sessions = append(b.Sessions, *s)
		want = append(want, s)
	}
	commit(t, r, b)
	compare(t, want, all(t, reader, Filter{}))
	if s := r.Stats(); s.Written != 4500 || s.WrittenStarts != 500 || s.Queued != 0 {
		t.Errorf("stats %+v", s)
	}
	commit(t, r, Batch{})
}

func TestVariedSessionsAreDelivered(t *testing.T) { eachBackend(t, testVariedSessionsAreDelivered) }

func testVariedSessionsAreDelivered(t *testing.T, at place) {
	r := open(t, RecorderConfig{Path: at.path})
	want := varied()
	var b Batch
	for _, s := range want {
		b.Sessions = append(b.Sessions, *s)
	}
	commit(t, r, b)
	commit(t, r, b)
	compare(t, want, all(t, openReader(t, at.path), Filter{}))
}

// Many deliver at the same time, and every session is delivered by several.
func TestManyDeliver(t *testing.T) { eachBackend(t, testManyDeliver) }

func testManyDeliver(t *testing.T, at place) {
	const nodes, batches, each, shift = 8, 12, 200, 60
	r := open(t, RecorderConfig{Path: at.path})
	var wg sync.WaitGroup
	for node := range nodes {
		wg.Go(func() {
			for i := range batches {
				var b Batch
				for j := range each {
					s := session(base, node*shift+i*each+j)
					b.Sessions = append(b.Sessions, *running(s), *s)
				}
				if err := r.Commit(context.Background(), b); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	const n = (nodes-1)*shift + batches*each
	reader := openReader(t, at.path)
	got := all(t, reader, Filter{})
	if len(got) != n {
		t.Fatalf("%d sessions, want %d", len(got), n)
	}
	for i := range got {
		if got[i].ID != session(base, i).ID || got[i].Running() {
			t.Fatalf("session %d is %+v", i, got[i])
		}
	}
	if got := totals(t, reader); len(got) != 1 || got[0].Ended != n || got[0].SourceBytes != n*(n-1)/2 {
		t.Errorf("totals %+v, %d sessions", got, n)
	}
	if s := r.Stats(); s.Written != n {
		t.Errorf("stats %+v", s)
	}
}

func TestCommitWaitsOutAFailure(t *testing.T) { eachBackend(t, testCommitWaitsOutAFailure) }

func testCommitWaitsOutAFailure(t *testing.T, at place) {
	r := open(t, RecorderConfig{Path: at.path})
	unlock := at.lock(t)
	done := make(chan error, 1)
	go func() {
		done <- r.Commit(context.Background(), Batch{Sessions: []deception.Session{*session(base, 0)}})
	}()
	eventually(t, "failure is known", func() bool { return !r.Stats().FailingSince.IsZero() })
	select {
	case err := <-done:
		t.Fatalf("commit returned %v while nothing can be written", err)
	default:
	}
	// One whose caller has no time.
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	err := r.Commit(ctx, Batch{Sessions: []deception.Session{*session(base, 1)}})
	if !errors.Is(err, context.DeadlineExceeded) || !at.busy(err) {
		t.Errorf("commit without time: %v", err)
	}
	unlock()
	if err := <-done; err != nil {
		t.Error(err)
	}
	commit(t, r, Batch{Sessions: []deception.Session{*session(base, 1)}})
	compare(t, []*deception.Session{session(base, 0), session(base, 1)}, all(t, openReader(t, at.path), Filter{}))
}

func TestCommitRefusesWhatIsNoRecord(t *testing.T) { eachBackend(t, testCommitRefusesWhatIsNoRecord) }

func testCommitRefusesWhatIsNoRecord(t *testing.T, at place) {
	r := open(t, RecorderConfig{Path: at.path})
	ctx := context.Background()
	for _, b := range []Batch{
		{Sessions: []deception.Session{*session(base, 0), {}}},
		{Sessions: []deception.Session{*session(base, 0)}, Seen: []deception.SourceSeen{{}}},
		{Sessions: []deception.Session{*session(base, 0)}, Events: []deception.Event{{}}},
	} {
		if err := r.Commit(ctx, b); !errors.Is(err, ErrRecord) || !strings.Contains(err.Error(), "no identifier") {
			t.Errorf("commit: %v", err)
		}
	}
	if got := all(t, openReader(t, at.path), Filter{}); len(got) != 0 {
		t.Errorf("of refused batches %+v was recorded", got)
	}
	closeRecorder(t, r)
	if err := r.Commit(ctx, Batch{Sessions: []deception.Session{*session(base, 0)}}); !errors.Is(err, ErrClosed) {
		t.Errorf("commit after close: %v", err)
	}
	if err := r.Lost(ctx, "crm-1", base); !errors.Is(err, ErrClosed) {
		t.Errorf("lost after close: %v", err)
	}
}

// What the database refuses costs those who delivered it, nobody else.
func TestOneBadDelivery(t *testing.T) { eachBackend(t, testOneBadDelivery) }

func testOneBadDelivery(t *testing.T, at place) {
	r := open(t, RecorderConfig{Path: at.path})
	c := at.second(t)
	if at.pg {
		execute(t, c, "ALTER TABLE session ADD CONSTRAINT broken CHECK (source_bytes <> 666)")
	} else {
		execute(t, c, `CREATE TRIGGER broken BEFORE INSERT ON session WHEN new.source_bytes = 666
			BEGIN SELECT RAISE(ABORT, 'broken'); END`)
	}
	unlock := at.lock(t) // so that they meet in one transaction
	r.Ended(session(base, 0))
	bad := session(base, 1)
	bad.SourceBytes = 666
	results := make([]error, 3)
	var wg sync.WaitGroup
	for i, s := range []*deception.Session{session(base, 2), bad, session(base, 3)} {
		wg.Go(func() { results[i] = r.Commit(context.Background(), Batch{Sessions: []deception.Session{*s}}) })
	}
	eventually(t, "failure is known", func() bool { return !r.Stats().FailingSince.IsZero() })
	unlock()
	wg.Wait()
	if results[0] != nil || results[2] != nil || !errors.Is(results[1], ErrRecord) {
		t.Errorf("commits returned %v", results)
	}
	settled(t, r)
	reader := openReader(t, at.path)
	compare(t, []*deception.Session{session(base, 0), session(base, 2), session(base, 3)}, all(t, reader, Filter{}))
	if got := totals(t, reader); len(got) != 1 || got[0].Ended != 3 {
		t.Errorf("totals %+v", got)
	}
	if s := r.Stats(); s.Lost != 0 || s.Written != 3 {
		t.Errorf("stats %+v", s)
	}
}

// A compromised agent may send what it likes.
func TestHostileRecords(t *testing.T) { eachBackend(t, testHostileRecords) }

func testHostileRecords(t *testing.T, at place) {
	r := open(t, RecorderConfig{Path: at.path})
	var b Batch
	for i := range 40 { // 40 times 2^64 bytes
		s := session(base, i)
		s.SourceBytes, s.DestinationBytes = math.MaxUint64, math.MaxInt64
		b.Sessions = append(b.Sessions, *s)
	}
	odd := session(base, 100)
	odd.Node, odd.Decoy, odd.Segment = "crm\x00-1", "\xff\xfe", strings.Repeat("é", 300)
	odd.Service, odd.Path = "'; DROP TABLE session; --", "relay\x00"
	odd.SourceMode, odd.Reason, odd.Transport = 200, 250, 255
	odd.Start, odd.End = time.Unix(math.MinInt64/2, 0), time.Unix(math.MaxInt64/2, 0)
	odd.SourceHead = make([]byte, 100_000)
	odd.Source = netip.AddrPortFrom(netip.MustParseAddr("fe80::1%\x00\xff"), 7)
	backwards := session(base, 101)
	backwards.End = backwards.Start.Add(-time.Hour)
	b.Sessions = append(b.Sessions, *odd, *backwards)
	b.Node = "\x00"
	b.Seen = []deception.SourceSeen{{Session: odd.ID, SourceMode: 99, SourceNAT: netip.AddrPortFrom(netip.MustParseAddr("fe80::1%x"), 1)}}
	event := event(base, 0)
	event.Kind, event.Node, event.Message = "\xff", "\x00", strings.Repeat("\x00x", 10000)
	event.Source = netip.AddrPortFrom(netip.MustParseAddr("fe80::1%lan"), 7)
	event.Time = time.Unix(math.MinInt64/2, 0)
	b.Events = []deception.Event{*event}
	commit(t, r, b)
	commit(t, r, b)
	reader := openReader(t, at.path)
	got := all(t, reader, Filter{})
	if len(got) != len(b.Sessions) {
		t.Fatalf("%d sessions of %d", len(got), len(b.Sessions))
	}
	for _, s := range got {
		_ = s.SourceMode.String() // does not panic
	}
	for _, total := range totals(t, reader) {
		if total.SourceBytes < 0 || total.DestinationBytes < 0 {
			t.Errorf("totals %+v", total)
		}
	}
	if got := events(t, reader, EventFilter{}); len(got) != 1 || len(got[0].Message) > maxMessage {
		t.Errorf("events %+v", got)
	}
	at.tool(t, "SELECT * FROM sessions")
	at.tool(t, "SELECT * FROM events")
	at.intact(t)
}

// The clock of a node is an hour off: its sessions are found by when they ran
// by the clock of who recorded them.
func TestSkewedClocks(t *testing.T) { eachBackend(t, testSkewedClocks) }

func testSkewedClocks(t *testing.T, at place) {
	minute := func(n int) time.Time { return base.Add(time.Duration(n) * time.Minute) }
	late, early, exact := session(minute(-60), 1), session(minute(90), 2), session(minute(30), 3)
	for _, s := range []*deception.Session{late, early} {
		s.Start, s.End = minute(30), minute(31)
	}
	late.Decoy, early.Decoy, exact.Decoy = "late", "early", "exact"
	_, reader := recorded(t, at, late, early, exact)
	yes := true
	for _, c := range []struct {
		name string
		f    Filter
		want string
	}{
		{"all", Filter{}, "late exact early"},
		{"since", Filter{Since: minute(20)}, "late exact early"},
		{"the newest since", Filter{Since: minute(20), Limit: 10}, "late exact early"},
		{"since and until", Filter{Since: minute(20), Until: minute(40)}, "late exact early"},
		{"until", Filter{Until: minute(20)}, ""},
		{"since later", Filter{Since: minute(40)}, ""},
		{"running", Filter{Running: &yes}, ""},
	} {
		if got := names(all(t, reader, c.f)); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// Who waits is not left waiting when the recorder is closed without success.
func TestCloseTurnsAwayWhoWaits(t *testing.T) { eachBackend(t, testCloseTurnsAwayWhoWaits) }

func testCloseTurnsAwayWhoWaits(t *testing.T, at place) {
	r := open(t, RecorderConfig{Path: at.path})
	unlock := at.lock(t)
	defer unlock()
	results := make(chan error, 3)
	for i := range cap(results) {
		go func() {
			results <- r.Commit(context.Background(), Batch{Sessions: []deception.Session{*session(base, i)}})
		}()
	}
	eventually(t, "failure is known", func() bool { return !r.Stats().FailingSince.IsZero() })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := r.Close(ctx); err != nil {
		t.Errorf("close, with nothing of its own to lose: %v", err)
	}
	for range cap(results) {
		select {
		case err := <-results:
			if !errors.Is(err, ErrClosed) {
				t.Errorf("commit: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("a caller still waits")
		}
	}
}
