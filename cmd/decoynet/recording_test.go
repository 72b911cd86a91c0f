package main

import (
	"bytes"
	"context"
	"encoding/json"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/rpc"
	"decoynet/internal/spool"

	"github.com/google/go-cmp/cmp"
)

// What a node's spool gives up is told by kind, as JSON and for a person.
func TestSpoolStatusTellsKinds(t *testing.T) {
	q, err := spool.Open(spool.Config{Dir: spoolPath(t.TempDir()), Kind: rpc.KindOf})
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	r := rpc.NewRecorder(q) // takes nothing any more
	s := deception.Session{ID: deception.NewSessionID(time.Now()), Start: time.Now()}
	r.Started(&s)
	for range 2 {
		r.Ended(&s)
	}
	for range 3 {
		r.Event(&deception.Event{Kind: deception.EventPortInUse})
	}
	r.SourceSeen(&deception.SourceSeen{Session: s.ID})
	for range 4 {
		r.Probe(&deception.Probe{ID: s.ID})
	}
	for range 5 {
		r.Finding(&deception.Finding{ID: s.ID, Kind: "http"})
	}
	q.Put([]byte("what is this"))
	status := spoolStatus(q)()
	text, err := json.Marshal(status)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"lost": 17., "lost_sessions": 2., "lost_starts": 1., "lost_seen": 1., "lost_events": 3., "lost_probes": 4., "lost_findings": 5., "lost_unknown": 1.,
		"lost_heads": 0., "queued": 0., "written": 0., "findings": 0., "file_bytes": 0.,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var shown bytes.Buffer
	status.print(&shown, true)
	if got, want := shown.String(), "records written 0, waiting for the disk 0, for the controller 0, LOST 17 (2 sessions, 1 starts of sessions, "+
		"1 reports of what services saw, 3 events, 4 reports of probes, 5 findings, 1 of unknown kind)\n"; got != want {
		t.Errorf("shown is %q, want %q", got, want)
	}
}
