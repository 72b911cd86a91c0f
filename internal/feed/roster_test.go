package feed

import (
	"net/netip"
	"testing"
	"time"

	"decoynet/deception"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestRosterKeepsASessionWhole(t *testing.T) {
	f := New(Config{})
	defer f.Close()
	at := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	want := deception.Session{
		ID: deception.NewSessionID(time.Now()), Start: time.Now(),
		Node: "hq", Segment: "office", Decoy: "crm", Service: "web", Scanner: "nessus", Transport: deception.TCP,
		Path: deception.PathKernel, SourceMode: deception.SourcePortMoved,
		Source: at("192.0.2.7:1"), SourceNAT: at("192.0.2.7:2"), Destination: at("[2001:db8::1]:3"), DestinationNAT: at("10.1.0.2:4"),
		SourceBytes: 5, DestinationBytes: 6,
	}
	for _, end := range []time.Time{{}, time.Now()} {
		want.End, want.SourceBytes = end, want.SourceBytes+1
		if !end.IsZero() {
			want.Reason = deception.EndIdle
		}
		s := want
		s.SourceHead = []byte("a relay's memory")
		f.Know(&s)
		got, partial, ok := f.Find(want.ID.Key())
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" || partial || !ok {
			t.Errorf("known %v, partial %v: %s", ok, partial, diff)
		}
	}
	f.roster.mark(want.ID.Key(), 1)
	f.Know(&want)
	if _, partial, _ := f.Find(want.ID.Key()); !partial {
		t.Error("that it is partial is forgotten")
	}
	if _, _, ok := f.Find(deception.NewSessionID(time.Now()).Key()); ok {
		t.Error("a session is known that was never told of")
	}
}

// TestRosterIsBounded: ended sessions are forgotten when they are too many or too
// old, running ones never.
func TestRosterIsBounded(t *testing.T) {
	r := roster{}
	r.init()
	now := time.Now()
	var running []deception.SessionKey
	know := func(s *deception.Session) deception.SessionKey {
		k := s.ID.Key()
		r.shard(k).know(k, s, now.UnixNano())
		return k
	}
	for i := range 2 * rosterEnded {
		s := &deception.Session{ID: deception.NewSessionID(now), Start: now}
		k := know(s)
		if i%1000 == 0 {
			running = append(running, k)
			continue
		}
		s.End = now
		know(s)
	}
	size := func() (n int) {
		for i := range r.shards {
			n += len(r.shards[i].sessions)
		}
		return n
	}
	// The shards are not filled evenly, to a few in a hundred.
	if n := size(); n > rosterEnded+rosterShards+len(running) || n < rosterEnded*9/10 {
		t.Errorf("%d sessions are known, want %d and %d", n, rosterEnded, len(running))
	}
	now = now.Add(rosterAge + time.Second)
	for range 100 * rosterShards {
		running = append(running, know(&deception.Session{ID: deception.NewSessionID(now), Start: now}))
	}
	if n := size(); n != len(running) {
		t.Errorf("%d sessions are known a quarter of an hour later, want the %d that run", n, len(running))
	}
	for _, k := range running {
		if r.shard(k).sessions[k] == nil {
			t.Fatal("a session that runs is forgotten")
		}
	}
}

// TestDone: a session of which nobody tells the end is forgotten when it shows
// nothing more, and one of which somebody does, later, is known by that.
func TestDone(t *testing.T) {
	f := New(Config{})
	defer f.Close()
	now := time.Now()
	for range 2 * rosterEnded {
		s := &deception.Session{ID: deception.NewSessionID(now), Start: now}
		f.Know(s)
		f.Done(s.ID.Key())
	}
	size := 0
	for i := range f.roster.shards {
		size += len(f.roster.shards[i].sessions)
	}
	if size > rosterEnded+rosterShards {
		t.Errorf("%d sessions are known, want %d at most", size, rosterEnded)
	}
	s := &deception.Session{ID: deception.NewSessionID(now), Start: now}
	f.Know(s)
	f.Done(s.ID.Key())
	s.End, s.Service = now.Add(time.Second), "web"
	f.Know(s)
	if got, _, ok := f.Find(s.ID.Key()); !ok || got.Service != "web" || got.Running() {
		t.Errorf("%v %+v", ok, got)
	}
	f.Done(deception.SessionKey{})
}
