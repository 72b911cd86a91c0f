package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/pgtest"

	"github.com/google/go-cmp/cmp"
	"github.com/pressly/goose/v3"
)

// The server is taken away while sessions are recorded and delivered, and comes
// back: nothing is lost, nothing is there twice.
func TestTheServerIsStartedAnew(t *testing.T) {
	address, down, up := pgtest.Restartable(t)
	r := open(t, RecorderConfig{Path: address})
	record := func(from, to int) {
		for i := from; i < to; i++ {
			s := session(base, i)
			r.Started(running(s))
			r.Ended(s)
		}
	}
	record(0, 500)
	settled(t, r)
	down()
	record(500, 1000)
	done := make(chan error, 1)
	go func() {
		var b Batch
		for i := 900; i < 1500; i++ { // some of them as before
			b.Sessions = append(b.Sessions, *session(base, i))
		}
		done <- r.Commit(context.Background(), b)
	}()
	eventually(t, "failure is known", func() bool { return !r.Stats().FailingSince.IsZero() })
	if _, err := OpenReader(address); err == nil || errors.Is(err, ErrNoStore) {
		t.Errorf("a reader without a server: %v", err)
	}
	up()
	if err := <-done; err != nil {
		t.Error(err)
	}
	settled(t, r)
	if s := r.Stats(); !s.FailingSince.IsZero() || s.Lost != 0 || s.Written != 1500 || s.LastError == nil {
		t.Errorf("stats %+v", s)
	}
	reader := openReader(t, address)
	got := all(t, reader, Filter{})
	if len(got) != 1500 {
		t.Fatalf("%d sessions", len(got))
	}
	down()
	up()
	if again := all(t, reader, Filter{Limit: 10}); len(again) != 10 {
		t.Errorf("the reader finds %d sessions when the server is back", len(again))
	}
	r.Ended(session(base, 2000))
	settled(t, r)
	if got := totals(t, reader); len(got) != 1 || got[0].Ended != 1501 {
		t.Errorf("totals %+v", got)
	}
}

// Two controllers on one database: nodes deliver to either, some things to both,
// and followers see everything once.
func TestTwoRecorders(t *testing.T) {
	const batches, each = 20, 150
	address := pgtest.Database(t)
	recorders := []*Recorder{
		open(t, RecorderConfig{Path: address, Name: "ctl-1"}),
		open(t, RecorderConfig{Path: address, Name: "ctl-2"}),
	}
	reader := openReader(t, address)
	seen := make(map[deception.SessionID]int)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	watched := make(chan error, 1)
	const n = (batches + 1) * each
	go func() {
		defer close(watched)
		for s, err := range reader.Watch(ctx, Filter{}) {
			if err != nil {
				watched <- err
				return
			}
			if !s.Running() {
				if seen[s.ID]++; len(seen) == n {
					return
				}
			}
		}
	}()
	var wg sync.WaitGroup
	for turn, r := range recorders {
		for worker := range 2 {
			wg.Go(func() {
				for i := range batches {
					if turn == 1 { // the other way round
						i = batches - 1 - i
					}
					var b Batch
					for j := range 2 * each { // every session is in two batches of each worker
						s := session(base, i*each+j)
						s.Decoy = fmt.Sprint("decoy-", j%7)
						if worker == 1 {
							s = running(s)
						}
						b.Sessions = append(b.Sessions, *s)
					}
					if err := r.Commit(ctx, b); err != nil {
						t.Error(err)
					}
				}
			})
		}
		r.Started(on("ctl", n+turn)) // each has something that runs
	}
	wg.Wait()
	if err := <-watched; err != nil {
		t.Fatal(err)
	}
	if len(seen) != n {
		t.Errorf("a follower saw %d of %d sessions", len(seen), n)
	}
	for _, r := range recorders {
		settled(t, r)
		if s := r.Stats(); s.Lost != 0 {
			t.Errorf("stats %+v", s)
		}
	}
	written := recorders[0].Stats().Written + recorders[1].Stats().Written
	ended, running := int64(0), int64(0)
	for _, total := range totals(t, reader) {
		ended, running = ended+total.Ended, running+total.Running
	}
	if ended != n || running != 2 || written != n {
		t.Errorf("%d ended and %d running in the totals, %d written; want %d and 2", ended, running, written, n)
	}

	// One is started anew; what the other one recorded goes on.
	closeRecorder(t, recorders[0])
	open(t, RecorderConfig{Path: address, Name: "ctl-1"})
	got := all(t, reader, Filter{Limit: 2})
	if got[0].Reason != deception.EndLost || !got[1].Running() {
		t.Errorf("after a restart of the first: %+v", got)
	}
}

// Recorders that start at the same moment on an empty database.
func TestRecordersStartTogether(t *testing.T) {
	address := pgtest.Database(t)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			r, err := OpenRecorder(RecorderConfig{Path: address, Name: fmt.Sprint("ctl-", i)})
			if err != nil {
				t.Error(err)
				return
			}
			r.Ended(session(base, i))
			closeRecorder(t, r)
		})
	}
	wg.Wait()
	if got := all(t, openReader(t, address), Filter{}); len(got) != 4 {
		t.Errorf("%d sessions", len(got))
	}
}

// A recorder whose machine vanished in the middle of a transaction holds the lock
// until the server gives it up.
func TestAHungRecorderDoesNotStopTheOthers(t *testing.T) {
	t.Parallel()
	at := place{path: pgtest.Database(t), pg: true}
	r := open(t, RecorderConfig{Path: at.path})
	hung := at.second(t)
	execute(t, hung, begin)
	begun := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	if err := r.Commit(ctx, Batch{Sessions: []deception.Session{*session(base, 0)}}); err != nil {
		t.Fatal(err)
	}
	if waited := time.Since(begun); waited < time.Second {
		t.Errorf("the lock held up nobody: %v", waited)
	}
}

func TestOpeningADatabaseThatIsNotThere(t *testing.T) {
	address := pgtest.Database(t)
	if _, err := OpenReader(address); !errors.Is(err, ErrNoStore) {
		t.Errorf("empty database: %v", err)
	}
	const secret = "hunter2%21x"
	parsed, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	query := parsed.Query()
	query.Del("user")
	query.Set("sslmode", "disable")
	query.Set("connect_timeout", "2")
	for _, bad := range []string{
		"postgres://decoynet:" + secret + "@127.0.0.1:1/none?connect_timeout=2",
		"postgresql://decoynet:" + secret + "@/none?" + query.Encode(),
		"postgres://decoynet@127.0.0.1:1/none?connect_timeout=2&password=" + secret,
		"postgres://decoynet:" + secret + "@127.0.0.1:port/none",
		"postgres://decoynet:" + secret + "@127.0.0.1:1/none?sslmode=nonsense",
		"postgres://decoynet:" + secret + "%zz@127.0.0.1/none",
	} {
		_, readerErr := OpenReader(bad)
		_, recorderErr := OpenRecorder(RecorderConfig{Path: bad})
		for _, err := range []error{readerErr, recorderErr} {
			if err == nil {
				t.Errorf("%s can be opened", bad)
				continue
			}
			for e := err; e != nil; e = errors.Unwrap(e) {
				if text := fmt.Sprintf("%v %+v", e, e); strings.Contains(text, "hunter2") {
					t.Errorf("the password is in %q", text)
				}
			}
		}
	}
	for path, want := range map[string]string{
		"/data/decoynet.db":                             "/data/decoynet.db",
		"postgres://u:p@h:5432/d?sslmode=require":       "postgres://u@h:5432/d",
		"postgresql://h/d?password=p":                   "postgresql://h/d",
		"postgres://u:p%zz@h/d":                         "postgres://...",
		"postgres://u:p@h1:5432,h2:5433/d?password=pp":  "postgres://u@h1:5432,h2:5433/d",
		"postgres:///d?host=/run/postgresql&password=p": "postgres:///d",
	} {
		if got := Redact(path); got != want {
			t.Errorf("Redact(%q) = %q, want %q", path, got, want)
		}
	}
}

func TestThePostgresViewSpeaksECS(t *testing.T) {
	at := place{path: pgtest.Database(t), pg: true}
	r := open(t, RecorderConfig{Path: at.path})
	sessions := varied()
	still := running(session(base, 9))
	for _, s := range sessions {
		r.Ended(s)
	}
	r.Started(still)
	closeRecorder(t, r)
	get := func(s *deception.Session) map[string]string {
		var row map[string]any
		text := at.tool(t, fmt.Sprintf(`SELECT row_to_json(s) FROM sessions AS s WHERE "event.id" = '%s'`, s.ID))
		dec := json.NewDecoder(strings.NewReader(text))
		dec.UseNumber()
		if err := dec.Decode(&row); err != nil {
			t.Fatalf("psql says %s (%v)", text, err)
		}
		out := make(map[string]string)
		for k, v := range row {
			if v != nil {
				out[k] = fmt.Sprint(v)
			}
		}
		for _, k := range []string{"@timestamp", "event.start", "event.end"} {
			if out[k] == "" {
				continue
			}
			at, err := time.Parse(time.RFC3339Nano, out[k])
			if err != nil {
				t.Fatal(err)
			}
			out[k] = at.UTC().Format(time.RFC3339Nano)
		}
		return out
	}
	stamp := func(t time.Time) string { return t.UTC().Truncate(time.Microsecond).Format(time.RFC3339Nano) }
	moved := sessions[1]
	if diff := cmp.Diff(map[string]string{
		"@timestamp": stamp(moved.End), "event.id": moved.ID.String(), "event.start": stamp(moved.Start),
		"event.end": stamp(moved.End), "event.duration": "5000000", "event.action": "session-ended",
		"source.ip": "192.0.2.1", "source.port": "1025", "source.nat.ip": "192.0.2.1", "source.nat.port": "7",
		"destination.ip": "198.51.100.1", "destination.port": "80",
		"destination.nat.ip": "10.1.0.2", "destination.nat.port": "8080",
		"network.transport": "tcp", "network.type": "ipv4",
		"decoynet.segment": "office", "decoynet.node": "hq", "decoynet.decoy": "office-web",
		"decoynet.service": "web", "decoynet.path": "relay", "decoynet.source_mode": "port_moved",
		"decoynet.end_reason": "client_closed", "source.bytes": "1", "destination.bytes": "2",
		"decoynet.source_head.hex": "00FF1B5B324A", "decoynet.destination_head.hex": "5353482D322E302D4F70656E5353480D0A",
	}, get(moved)); diff != "" {
		t.Errorf("IPv4 with a moved port (-want +got):\n%s", diff)
	}
	six := get(sessions[2])
	for key, want := range map[string]string{
		"source.ip": "2001:db8::1", "source.port": "65535", "network.type": "ipv6", "network.transport": "udp",
		"destination.ip":   "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
		"decoynet.segment": "büro ✓", "decoynet.decoy": `it's "x"`,
	} {
		if six[key] != want {
			t.Errorf("IPv6: %s is %q, want %q", key, six[key], want)
		}
	}
	runs := get(still)
	if runs["event.action"] != "session-started" || runs["@timestamp"] != stamp(still.Start) || runs["event.end"] != "" ||
		runs["decoynet.end_reason"] != "" {
		t.Errorf("running: %v", runs)
	}
	// What a person would ask.
	if got := at.tool(t, `SELECT count(*) FROM sessions WHERE "source.ip" <<= '192.0.2.0/24'
		AND "@timestamp" > now() - interval '1 day'`); got != "4" {
		t.Errorf("psql finds %s sessions from the network today", got)
	}
}

// The database of before probes and known scanners, with a session in it.
func TestTheFirstDatabaseIsBroughtUpToDate(t *testing.T) {
	at := place{path: pgtest.Database(t), pg: true}
	back, err := newPostgres(at.path)
	if err != nil {
		t.Fatal(err)
	}
	db := back.db()
	m, err := migrator(goose.DialectPostgres, db, "migrations/postgres", postgresTable)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.UpTo(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	old, known := session(base, 0), session(base, 1)
	known.Scanner = "audit"
	c := at.second(t)
	execute(t, c, `INSERT INTO binding (node, segment, decoy, service, transport, path, ended)
		VALUES ('hq', 'office', 'office-web', 'web', 6, 'relay', 1)`)
	execute(t, c, `INSERT INTO session VALUES ($1, $2, $3, (SELECT id FROM binding), '192.0.2.1', 1024, '192.0.2.1', 1024,
		'198.51.100.0', 80, '10.1.0.2', 8080, 0, 0, 0, $4, NULL, NULL, 0, NULL)`,
		old.ID.String(), old.Start.UnixNano(), old.End.UnixNano(), int(old.Reason))
	if _, err := OpenReader(at.path); err == nil {
		t.Fatal("a reader took the old schema")
	}
	r := open(t, RecorderConfig{Path: at.path})
	r.Ended(known)
	r.Probe(probe(base, 1, 1))
	r.Finding(newTestFinding(old, 1))
	settled(t, r)
	reader := openReader(t, at.path)
	sessions := all(t, reader, Filter{})
	if a := sessions[0].Analysis; a == nil || a.Findings != 1 {
		t.Errorf("of the old session: %+v", a)
	}
	sessions[0].Analysis = nil
	compare(t, []*deception.Session{old, known}, sessions)
	compareProbes(t, probes(t, reader, ProbeFilter{}), probe(base, 1, 1))
	compareFindings(t, findings(t, reader, FindingFilter{}), placed(newTestFinding(old, 1), old))
	if got := totals(t, reader); len(got) != 1 || got[0].Ended != 2 {
		t.Errorf("totals %+v", got)
	}
}
