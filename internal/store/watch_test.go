package store

import (
	"context"
	"fmt"
	"testing"
	"time"

	"decoynet/deception"
)

// follow collects what a watch yields, one line a session.
func follow(t *testing.T, r *Reader, f Filter) (next func() string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	lines := make(chan string, 100000)
	go func() {
		defer close(lines)
		for s, err := range r.Watch(ctx, f) {
			if err != nil {
				lines <- err.Error()
				return
			}
			state := "running"
			if !s.Running() {
				state = s.Reason.String()
			}
			lines <- fmt.Sprintf("%s %d %s", s.Decoy, s.Source.Port()-1024, state)
		}
	}()
	t.Cleanup(func() {
		cancel()
		for line := range lines {
			t.Errorf("nobody expected %q", line)
		}
	})
	return func() string {
		t.Helper()
		select {
		case line := <-lines:
			return line
		case <-time.After(20 * time.Second):
			t.Fatal("nothing for 20 s")
		}
		return ""
	}
}

func TestWatchSeesStartsAndEnds(t *testing.T) { eachBackend(t, testWatchSeesStartsAndEnds) }

func testWatchSeesStartsAndEnds(t *testing.T, at place) {
	before, open := session(base, 1), running(session(base, 2))
	r, reader := recorded(t, at, before, open)
	next := follow(t, reader, Filter{})
	expect := func(want string) {
		t.Helper()
		if got := next(); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	expect("office-web 1 client_closed")
	expect("office-web 2 running")
	third := session(base, 3)
	r.Started(running(third))
	expect("office-web 3 running")
	r.Ended(session(base, 2))
	expect("office-web 2 client_closed")
	r.Ended(third)
	expect("office-web 3 client_closed")
	r.Ended(session(base, 4))
	expect("office-web 4 client_closed")
}

func TestWatchFilters(t *testing.T) { eachBackend(t, testWatchFilters) }

func testWatchFilters(t *testing.T, at place) {
	r, reader := recorded(t, at, session(base, 1), session(base, 2))
	next := follow(t, reader, Filter{Decoy: "wanted", Limit: 1})
	for i := range 20 { // the decoy is not even known when the watch begins
		s := session(base, 10+i)
		if i%7 == 3 {
			s.Decoy = "wanted"
		}
		r.Ended(s)
		settled(t, r)
	}
	for _, want := range []int{13, 20, 27} {
		if got := next(); got != fmt.Sprintf("wanted %d client_closed", want) {
			t.Fatalf("got %q, want %d", got, want)
		}
	}
}

// The reader is this process, the writer another one.
func TestWatchAcrossProcesses(t *testing.T) { eachBackend(t, testWatchAcrossProcesses) }

func testWatchAcrossProcesses(t *testing.T, at place) {
	path := at.path
	closeRecorder(t, open(t, RecorderConfig{Path: path}))
	reader := openReader(t, path)
	cmd := child(t, "writer", path)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	started := false
	ended, runs := map[deception.SessionID]bool{}, map[deception.SessionID]bool{}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	for s, err := range reader.Watch(ctx, Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		started = true
		state := ended
		if s.Running() {
			state = runs
		}
		if state[s.ID] {
			t.Fatalf("session %v twice, running: %v", s.ID, s.Running())
		}
		state[s.ID] = true
		if len(ended) >= 3000 && len(runs) >= 300 {
			break
		}
	}
	if !started || len(ended) < 3000 {
		t.Errorf("%d ended, %d running", len(ended), len(runs))
	}
}

// A follower that slept while more changed than is kept finds it all the same.
func TestWatchCatchesUp(t *testing.T) { eachBackend(t, testWatchCatchesUp) }

func testWatchCatchesUp(t *testing.T, at place) {
	t.Parallel()
	r, reader := recorded(t, at, session(time.Now().Add(-time.Minute), 0))
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	const n = keptChanges + 200
	now := time.Now()
	seen := map[deception.SessionID]bool{}
	for s, err := range reader.Watch(ctx, Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		if len(seen) == 0 { // the watch stands still meanwhile
			for i := range n {
				r.Ended(session(now, i))
				settled(t, r)
			}
		}
		seen[s.ID] = true
		if len(seen) == n+1 {
			break
		}
	}
	if len(seen) != n+1 {
		t.Errorf("%d sessions seen, %d were recorded", len(seen), n+1)
	}
}
