package store

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"decoynet/deception"

	"github.com/pressly/goose/v3"
)

// on makes a running session of a node.
func on(node string, n int) *deception.Session {
	s := running(session(base, n))
	s.Node, s.Decoy = node, node
	return s
}

// lose is what becomes of a running session.
func lose(s *deception.Session, at time.Time) *deception.Session {
	out := *s
	out.End, out.Reason = at, deception.EndLost
	return &out
}

// A run that follows another ends what that one recorded itself, and nothing that
// others delivered.
func TestARestartEndsItsOwnSessionsOnly(t *testing.T) {
	eachBackend(t, testARestartEndsItsOwnSessionsOnly)
}

func testARestartEndsItsOwnSessionsOnly(t *testing.T, at place) {
	r := open(t, RecorderConfig{Path: at.path})
	own, theirs, unknown := on("hq", 1), on("crm-1", 2), on("crm-2", 3)
	r.Started(own)
	settled(t, r)
	commit(t, r, Batch{Node: "gw-2", Sessions: []deception.Session{*theirs}})
	commit(t, r, Batch{Sessions: []deception.Session{*unknown}})
	closeRecorder(t, r)
	r = open(t, RecorderConfig{Path: at.path})
	got := all(t, openReader(t, at.path), Filter{})
	if len(got) != 3 || got[0].Reason != deception.EndLost || !got[1].Running() || !got[2].Running() {
		t.Fatalf("after a restart: %+v", got)
	}
	r.Ended(session(base, 1)) // it was not lost after all
	settled(t, r)
	if got := all(t, openReader(t, at.path), Filter{Limit: 3}); got[0].Reason != deception.EndClientClosed {
		t.Errorf("the true end came later: %+v", got[0])
	}
}

func TestLostNodes(t *testing.T) { eachBackend(t, testLostNodes) }

func testLostNodes(t *testing.T, at place) {
	r := open(t, RecorderConfig{Path: at.path})
	reader := openReader(t, at.path)
	var b, more Batch
	var want []*deception.Session
	boot := base.Add(time.Hour)
	for i := range 2*manyIDs + 10 { // more than one slice
		s := on("crm-1", i)
		b.Sessions = append(b.Sessions, *s)
		want = append(want, lose(s, boot))
	}
	n := len(want)
	byGateway := on("crm-2", n) // an agent's flow, told of by the gateway that is lost
	other := on("crm-2", n+1)
	young := on("crm-1", n+2)
	young.Start = boot.Add(time.Second)
	commit(t, r, Batch{Node: "crm-1", Sessions: []deception.Session{*byGateway}})
	commit(t, r, b)
	commit(t, r, Batch{Node: "gw-2", Sessions: []deception.Session{*other, *young}})
	ended := session(base, n+3)
	ended.Node = "crm-1"
	commit(t, r, Batch{Sessions: []deception.Session{*ended}})

	for range 2 {
		if err := r.Lost(context.Background(), "crm-1", boot); err != nil {
			t.Fatal(err)
		}
	}
	// It was on its way while the node died.
	late := on("crm-1", n+4)
	more.Sessions = []deception.Session{*late}
	commit(t, r, more)
	want = append(want, lose(byGateway, boot), other, young, ended, lose(late, boot))
	compare(t, want, all(t, reader, Filter{}))

	count := int64(0)
	for _, total := range totals(t, reader) {
		count += total.Ended
	}
	if count != int64(len(want)-2) {
		t.Errorf("the totals know of %d ended sessions, %d did", count, len(want)-2)
	}
	// The end of one comes after all, from the spool.
	s := session(base, 5)
	s.Node, s.Decoy = "crm-1", "crm-1"
	commit(t, r, Batch{Sessions: []deception.Session{*s}})
	want[5] = s
	compare(t, want, all(t, reader, Filter{}))
}

// The database of before this version, with sessions that run.
func TestTheFirstSchemaIsBroughtUpToDate(t *testing.T) {
	path := newPath(t)
	makeFirstSchema(t, path)
	if _, err := OpenReader(path); err == nil {
		t.Fatal("a reader took the old schema")
	}
	r := open(t, RecorderConfig{Path: path})
	r.Ended(session(base, 2))
	settled(t, r)
	reader := openReader(t, path)
	got := all(t, reader, Filter{})
	if len(got) != 3 {
		t.Fatalf("%d sessions", len(got))
	}
	compare(t, []*deception.Session{session(base, 0), lose(running(session(base, 1)), base.Add(time.Minute)), session(base, 2)}, got)
	if got := totals(t, reader); len(got) != 1 || got[0].Ended != 3 || got[0].Running != 0 {
		t.Errorf("totals %+v", got)
	}
	place{path: path}.intact(t)
}

// makeFirstSchema makes a file as the first version left it: one session that
// ended, one that runs, and a process that lived a minute after base.
func makeFirstSchema(t *testing.T, path string) {
	t.Helper()
	back := &sqliteBackend{path: path}
	name, err := dsn(path, writeParams(busyTimeout))
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", name)
	if err != nil {
		t.Fatal(err)
	}
	m, err := migrator(goose.DialectSQLite3, db, "migrations", goose.DefaultTablename)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.UpTo(context.Background(), 1); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	c := place{path: path}.second(t)
	execute(t, c, `INSERT INTO binding (id, node, segment, decoy, service, transport, path, ended)
		VALUES (1, 'hq', 'office', 'office-web', 'web', 6, 'relay', 1)`)
	execute(t, c, "UPDATE recorder SET alive = ?", base.Add(time.Minute).UnixNano())
	for _, s := range []*deception.Session{session(base, 0), running(session(base, 1))} {
		var end any
		if !s.Running() {
			end = s.End.UnixNano()
		}
		source := endpoint4(s.Source.Addr(), int64(s.Source.Port()))
		execute(t, c, `INSERT INTO session VALUES (?, ?, ?, 1, ?, 0, ?, ?, ?, ?, 0, ?, NULL, NULL)`,
			back.key(s.ID), s.Start.UnixNano(), end, source,
			endpoint4(s.Destination.Addr(), 80), endpoint4(s.DestinationNAT.Addr(), 8080),
			int64(s.SourceBytes), int64(s.DestinationBytes), int64(s.Reason))
	}
}
