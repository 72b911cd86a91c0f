package store

import (
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"decoynet/deception"
)

func TestOldSessionsAreDeleted(t *testing.T) { eachBackend(t, testOldSessionsAreDeleted) }

func testOldSessionsAreDeleted(t *testing.T, at place) {
	path := at.path
	r := open(t, RecorderConfig{Path: path, Retain: 24 * time.Hour})
	now := time.Now()
	const old = 2*deleteSlice + 100
	for i := range old {
		r.Ended(session(now.Add(-48*time.Hour), i))
	}
	long := session(now.Add(-48*time.Hour), old) // began before all, ended today
	long.End = now.Add(-time.Hour)
	still := running(session(now.Add(-48*time.Hour), old+1))
	young := session(now.Add(-23*time.Hour), old+2)
	r.Ended(long)
	r.Started(still)
	r.Ended(young)
	settled(t, r)
	reader := openReader(t, path)
	eventually(t, "old sessions deleted", func() bool { return len(all(t, reader, Filter{})) == 3 })
	compare(t, []*deception.Session{long, still, young}, all(t, reader, Filter{}))
	if s := r.Stats(); s.Written != old+2 || s.LastError != nil {
		t.Errorf("stats %+v", s)
	}
	closeRecorder(t, r)
	at.intact(t)
}

// The file stays near its bound however much is recorded, and shrinks when the
// bound is lowered.
func TestTheFileIsBounded(t *testing.T) {
	t.Parallel()
	const bound = 4 << 20
	path := newPath(t)
	noise := make([]byte, deception.HeadBytes)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	n := 0
	fill := func(r *Recorder, count int) {
		for range count {
			s := session(base, n)
			s.SourceHead, s.DestinationHead = noise, noise
			r.Ended(s)
			if n++; n%500 == 0 {
				settled(t, r)
			}
		}
		settled(t, r)
	}
	r := open(t, RecorderConfig{Path: path, MaxBytes: -1})
	fill(r, 60000)
	closeRecorder(t, r)
	unbounded := fileSize(t, path)
	if unbounded < 6*bound {
		t.Fatalf("the unbounded file has %d bytes only", unbounded)
	}

	r = open(t, RecorderConfig{Path: path, MaxBytes: bound})
	// Some pages stay free for reuse.
	const allowed = bound + (vacuumAbove+vacuumPages)*4096
	fill(r, 1)
	eventually(t, "file shrunk", func() bool { return r.Stats().FileBytes < allowed })
	for range 5 {
		fill(r, 4000)
	}
	eventually(t, "file near its bound", func() bool { return r.Stats().FileBytes < allowed })
	closeRecorder(t, r)
	if size := fileSize(t, path); size > allowed || size >= unbounded {
		t.Errorf("%d bytes of at most %d", size, int64(allowed))
	}
	left := all(t, openReader(t, path), Filter{})
	if len(left) < 1000 {
		t.Fatalf("%d sessions left", len(left))
	}
	for i, s := range left { // the newest, without a gap
		if want := session(base, n-len(left)+i); s.ID != want.ID {
			t.Fatalf("session %d is %v, want %v", i, s.ID, want.ID)
		}
	}
	place{path: path}.intact(t)
}

func fileSize(t testing.TB, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}
