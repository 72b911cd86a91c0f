package store

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
)

// child starts the test binary as a process of another kind.
func child(t testing.TB, role, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVar+"="+role, "DECOYNET_STORE_TEST_PATH="+path)
	cmd.Stderr = os.Stderr
	return cmd
}

// writerProcess records at some pace until it is killed. Session n starts n ms
// after the process did; every tenth never ends. It prints the number of
// sessions of which it knows that they are in the file.
func writerProcess() {
	r, err := OpenRecorder(RecorderConfig{Path: os.Getenv("DECOYNET_STORE_TEST_PATH"), Flush: 10 * time.Millisecond})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	base := time.Now()
	for n := 0; ; {
		for range 200 {
			s := session(base, n)
			r.Started(running(s))
			if n%10 != 0 {
				r.Ended(s)
			}
			n++
		}
		for r.Stats().Queued > 0 {
			time.Sleep(time.Millisecond)
		}
		fmt.Println(n)
	}
}

func TestKilledProcess(t *testing.T) { eachBackend(t, testKilledProcess) }

func testKilledProcess(t *testing.T, at place) {
	path := at.path
	cmd := child(t, "writer", path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	written, killed := 0, time.Time{}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if written, err = strconv.Atoi(lines.Text()); err != nil {
			t.Fatal(err)
		}
		if written >= 4000 && killed.IsZero() {
			killed = time.Now()
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil || killed.IsZero() {
		t.Fatalf("the writer ended by itself after %d sessions", written)
	}

	reader := openReader(t, path)
	before := all(t, reader, Filter{})
	if len(before) < written {
		t.Fatalf("%d sessions in the file, %d were written", len(before), written)
	}
	is := true
	if n := len(all(t, reader, Filter{Running: &is})); n < written/10 {
		t.Errorf("%d sessions run, at least %d do", n, written/10)
	}

	r := open(t, RecorderConfig{Path: path})
	lost := 0
	for i, s := range all(t, reader, Filter{}) {
		switch {
		case s.Running():
			t.Fatalf("session %d still runs", i)
		case s.Reason == deception.EndLost:
			lost++
			// The sessions' starts run ahead of the clock here.
			if s.End.Before(s.Start) || s.End.After(killed.Add(time.Second)) && !s.End.Equal(s.Start) {
				t.Errorf("session %d from %v was lost at %v; the process died at %v", i, s.Start, s.End, killed)
			}
		case s.Reason != deception.EndClientClosed:
			t.Errorf("session %d ended with %v", i, s.Reason)
		}
	}
	if lost < written/10 {
		t.Errorf("%d sessions lost, at least %d were", lost, written/10)
	}
	totals, err := reader.Totals(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if len(totals) != 1 || totals[0].Running != 0 || totals[0].Ended != int64(len(before)) {
		t.Errorf("totals %+v, %d sessions", totals, len(before))
	}
	r.Ended(session(time.Now(), 0))
	closeRecorder(t, r)
	at.intact(t)
	if got := at.tool(t, `SELECT count(*) FROM sessions WHERE "decoynet.end_reason" = 'lost'`); got != strconv.Itoa(lost) {
		t.Errorf("the database's tool counts %s lost sessions, we %d", got, lost)
	}
}

// The heartbeat bounds by how much the end of a lost session can be wrong.
func TestHeartbeat(t *testing.T) { eachBackend(t, testHeartbeat) }

func testHeartbeat(t *testing.T, at place) {
	path := at.path
	r := open(t, RecorderConfig{Path: path})
	s := running(session(base, 0))
	r.Started(s)
	closeRecorder(t, r)

	w := testWriter(t, path)
	alive := time.Now().Add(42 * time.Minute)
	if _, err := w.tend(alive, true); err != nil {
		t.Fatal(err)
	}
	w = testWriter(t, path) // another run
	if err := w.endLost(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.tend(alive.Add(time.Hour), true); err != nil { // nothing runs any more
		t.Fatal(err)
	}
	if n, err := w.number("SELECT alive FROM reporter"); err != nil || n > time.Now().Add(43*time.Minute).UnixNano() {
		t.Errorf("alive at %v with no session (%v)", time.Unix(0, n), err)
	}
	got := all(t, openReader(t, path), Filter{})
	if len(got) != 1 || !got[0].End.Equal(alive) || got[0].Reason != deception.EndLost {
		t.Errorf("got %+v, want an end at %v", got, alive)
	}
}

// The whole ten seconds for which a tool may hold the file: no caller waits,
// and afterwards everything is there.
func TestLockedForTenSeconds(t *testing.T) { eachBackend(t, testLockedForTenSeconds) }

func testLockedForTenSeconds(t *testing.T, at place) {
	t.Parallel()
	path := at.path
	r := open(t, RecorderConfig{Path: path})
	unlock := at.lock(t)

	const total = 20000
	slowest := time.Duration(0)
	begun := time.Now()
	for i := range total {
		time.Sleep(time.Until(begun.Add(time.Duration(i/100) * 50 * time.Millisecond)))
		s := session(base, i)
		at := time.Now()
		r.Started(running(s))
		r.Ended(s)
		slowest = max(slowest, time.Since(at))
	}
	s := r.Stats()
	if s.FailingSince.IsZero() || !at.busy(s.LastError) || s.Queued == 0 || s.Written != 0 {
		t.Errorf("while locked: %+v", s)
	}
	if held := time.Since(begun); held < 9900*time.Millisecond {
		t.Fatalf("locked for %v only", held)
	}
	// A scheduler's pause is possible; one busy timeout or retry is not.
	if slowest >= busyTimeout {
		t.Errorf("a caller waited %v", slowest)
	}
	unlock()
	settled(t, r)
	s = r.Stats()
	if !s.FailingSince.IsZero() || s.Lost+s.LostStarts+s.LostHeads != 0 || s.Written != total || s.LastErrorAt.IsZero() {
		t.Errorf("after the lock: %+v", s)
	}
	if n := len(all(t, openReader(t, path), Filter{})); n != total {
		t.Errorf("%d of %d sessions", n, total)
	}
}

func TestLockedBeyondTheQueue(t *testing.T) { eachBackend(t, testLockedBeyondTheQueue) }

func testLockedBeyondTheQueue(t *testing.T, at place) {
	path := at.path
	const limit = 256 << 10
	r := open(t, RecorderConfig{Path: path, QueueBytes: limit})
	unlock := at.lock(t)
	const total = 20000
	for i := range total {
		s := session(base, i)
		r.Started(running(s))
		r.Ended(s)
	}
	eventually(t, "failure is known", func() bool { return !r.Stats().FailingSince.IsZero() })
	s := r.Stats()
	if s.QueuedBytes > limit || s.Lost == 0 || s.Lost+uint64(s.Queued) < total || s.Lost >= total {
		t.Errorf("while locked: %+v", s)
	}
	unlock()
	settled(t, r)
	s = r.Stats()
	if s.Written+s.Lost != total || !s.FailingSince.IsZero() {
		t.Errorf("after the lock: %+v", s)
	}
	if n := len(all(t, openReader(t, path), Filter{})); n != int(s.Written) {
		t.Errorf("%d sessions in the file, %d written", n, s.Written)
	}
	r.Ended(session(base, total))
	settled(t, r)
	if got := r.Stats(); got.Written != s.Written+1 {
		t.Errorf("a later session was not written: %+v", got)
	}
}

func TestCloseIsBoundedByItsContext(t *testing.T) { eachBackend(t, testCloseIsBoundedByItsContext) }

func testCloseIsBoundedByItsContext(t *testing.T, at place) {
	path := at.path
	r := open(t, RecorderConfig{Path: path})
	unlock := at.lock(t)
	for i := range 10 {
		r.Ended(session(base, i))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	begun := time.Now()
	err := r.Close(ctx)
	if err == nil || !strings.Contains(err.Error(), "10 sessions unwritten") {
		t.Errorf("close: %v", err)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("close took %v", took)
	}
	if s := r.Stats(); s.Lost != 10 || s.Queued != 0 {
		t.Errorf("stats %+v", s)
	}
	unlock()
}

// An error that lies in the data costs its batch only; one that lies in the file
// is waited out, with a new connection.
func TestOtherFailures(t *testing.T) { eachBackend(t, testOtherFailures) }

func testOtherFailures(t *testing.T, at place) {
	path := at.path
	r := open(t, RecorderConfig{Path: path})
	r.Ended(session(base, 0))
	settled(t, r)
	c := at.second(t)
	if at.pg {
		execute(t, c, `CREATE FUNCTION break() RETURNS trigger LANGUAGE plpgsql AS
			$$ BEGIN RAISE EXCEPTION 'broken' USING ERRCODE = 'check_violation'; END $$`)
		execute(t, c, "CREATE TRIGGER broken BEFORE INSERT ON session EXECUTE FUNCTION break()")
	} else {
		execute(t, c, `CREATE TRIGGER broken BEFORE INSERT ON session BEGIN SELECT RAISE(ABORT, 'broken'); END`)
	}
	r.Ended(session(base, 1))
	eventually(t, "batch given up", func() bool { return r.Stats().Lost == 1 })
	execute(t, c, at.either("DROP TRIGGER broken", "DROP TRIGGER broken ON session"))
	execute(t, c, "ALTER TABLE session RENAME TO elsewhere")
	r.Ended(session(base, 2))
	eventually(t, "failure is known", func() bool {
		return strings.Contains(fmt.Sprint(r.Stats().LastError), at.either("no such table", "does not exist"))
	})
	execute(t, c, "ALTER TABLE elsewhere RENAME TO session")
	settled(t, r)
	compare(t, []*deception.Session{session(base, 0), session(base, 2)}, all(t, openReader(t, path), Filter{}))
	if s := r.Stats(); s.Written != 2 || s.Lost != 1 || !s.FailingSince.IsZero() {
		t.Errorf("stats %+v", s)
	}
}

// row is a session as sqlite3 prints it from the view.
func row(t testing.TB, path string, id deception.SessionID) map[string]any {
	t.Helper()
	out := run(t, "sqlite3", "-readonly", "-json", path, fmt.Sprintf(`SELECT * FROM sessions WHERE "event.id" = '%s'`, id))
	var rows []map[string]any
	dec := json.NewDecoder(bytes.NewReader([]byte(out)))
	dec.UseNumber()
	if err := dec.Decode(&rows); err != nil || len(rows) != 1 {
		t.Fatalf("sqlite3 says %s (%v)", out, err)
	}
	return rows[0]
}
