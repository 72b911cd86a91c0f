package main

import (
	"log/slog"
	"testing"
	"time"

	"decoynet/deception"
)

// noRecorder forgets everything.
type noRecorder struct{}

func (noRecorder) Started(*deception.Session)       {}
func (noRecorder) Ended(*deception.Session)         {}
func (noRecorder) Event(*deception.Event)           {}
func (noRecorder) Probe(*deception.Probe)           {}
func (noRecorder) Finding(*deception.Finding)       {}
func (noRecorder) Room() bool                       { return true }
func (noRecorder) SourceSeen(*deception.SourceSeen) {}

// A comparison with the kernel that had to wait for a reload does not bring back
// what was desired before it.
func TestMendDoesNotUndoReload(t *testing.T) {
	n, err := newNode(nodeConfig{
		name: "hq", data: t.TempDir(), recorder: noRecorder{}, log: slog.New(slog.DiscardHandler),
		recording: func() recordingStatus { return recordingStatus{} },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	want := func(revision string) desired {
		return desired{revision: revision, state: deception.State{Node: "hq"}}
	}
	if err := n.apply(t.Context(), want("old")); err != nil {
		t.Fatal(err)
	}
	n.applying.Lock() // a reload is under way
	mended := make(chan struct{})
	go func() {
		defer close(mended)
		n.mend(t.Context(), int(driftEvery/retryEvery))
	}()
	time.Sleep(100 * time.Millisecond) // it waits by now; if not, the test proves less
	err = n.applyLocked(t.Context(), want("new"))
	n.applying.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	<-mended
	if got := n.held(); got != "new" {
		t.Errorf("in force is %q, want what was reloaded", got)
	}
}
