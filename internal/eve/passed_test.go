package eve

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"decoynet/deception"
)

// A rotated file may be removed when it was read to its end and that is noted, and
// not before.
func TestPassed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "eve.json")
	s := session(1)
	put := func(name string, n int) {
		t.Helper()
		if err := os.WriteFile(name, []byte(record(&s, "ssh", n, false, "packet", "")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	refuse := make(chan struct{})
	r := New(Config{
		Path: path, Checkpoint: filepath.Join(dir, "checkpoint"), Sessions: roster{s.ID.Key(): s}, Settle: -1,
		Deliver: func(context.Context, []*deception.Finding) error {
			select {
			case <-refuse:
				return nil
			default:
				return context.DeadlineExceeded
			}
		},
	})
	defer r.Close()
	put(path, 1)
	old := path + ".1"
	rename(t, path, old)
	put(path, 2)
	time.Sleep(100 * time.Millisecond)
	if r.Passed(old) {
		t.Error("a file may go whose findings nobody has taken")
	}
	close(refuse)
	for end := time.Now().Add(10 * time.Second); !r.Passed(old); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("a file that was read may not go: %+v", r.Stats())
		}
	}
	if r.Passed(path) || r.Passed(filepath.Join(dir, "none")) {
		t.Error("the present file may go, or one that is not there")
	}
}
