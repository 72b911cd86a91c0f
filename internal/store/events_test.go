package store

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"decoynet/deception"

	"github.com/google/go-cmp/cmp"
)

// event makes the n-th event after base, one second apart.
func event(base time.Time, n int) *deception.Event {
	e := &deception.Event{
		Time: base.Add(time.Duration(n) * time.Second), Kind: deception.EventPortInUse,
		Node: "crm-1", Segment: "host", Decoy: "crm", Message: fmt.Sprintf("event %d", n),
	}
	e.ID = idAt(e.Time)
	e.ID[6] = 0x70
	binary.BigEndian.PutUint64(e.ID[8:], 1<<63|uint64(n))
	return e
}

func events(t testing.TB, r *Reader, f EventFilter) (out []deception.Event) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for e, err := range r.Events(ctx, f) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

func TestEventsComeBackAsTheyWere(t *testing.T) { eachBackend(t, testEventsComeBackAsTheyWere) }

func testEventsComeBackAsTheyWere(t *testing.T, at place) {
	r := open(t, RecorderConfig{Path: at.path})
	plain, full, six := event(base, 0), event(base, 1), event(base, 2)
	full.Session = session(base, 0).ID
	full.Source, full.Destination = netip.MustParseAddrPort("192.0.2.1:1024"), netip.MustParseAddrPort("198.51.100.7:445")
	full.Kind, full.Message = deception.EventClaimRefused, "it's \"x\" ✓"
	six.Source, six.Node, six.Segment, six.Decoy = netip.MustParseAddrPort("[2001:db8::1]:65535"), "", "", ""
	r.Event(full)
	settled(t, r)
	commit(t, r, Batch{Events: []deception.Event{*six, *full, *plain}})
	r.Event(plain)
	settled(t, r)
	got := events(t, openReader(t, at.path), EventFilter{})
	if diff := cmp.Diff([]deception.Event{*plain, *full, *six}, got, same); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if got, want := at.tool(t, `SELECT "event.action", "decoynet.node", "source.ip", "source.port",
		"destination.ip", "destination.port", message FROM events ORDER BY "event.id" LIMIT 1 OFFSET 1`),
		`claim-refused crm-1 192.0.2.1 1024 198.51.100.7 445 it's "x" ✓`; got != want {
		t.Errorf("the view says %q, want %q", got, want)
	}
	if got, want := at.tool(t, `SELECT "event.id", "decoynet.session" FROM events WHERE "decoynet.session" IS NOT NULL`),
		full.ID.String()+" "+full.Session.String(); got != want {
		t.Errorf("the view says %q, want %q", got, want)
	}
}

func TestAnEventNeedsNoIdentifier(t *testing.T) {
	path := newPath(t)
	r := open(t, RecorderConfig{Path: path})
	r.Event(&deception.Event{Kind: deception.EventClockOff, Message: "a"})
	r.Event(&deception.Event{Kind: deception.EventClockOff, Message: "b"})
	closeRecorder(t, r)
	r.Event(&deception.Event{Kind: deception.EventClockOff})
	r.SourceSeen(&deception.SourceSeen{})
	if s := r.Stats(); s.LostEvents != 1 || s.LostSeen != 1 {
		t.Errorf("stats %+v", s)
	}
	got := events(t, openReader(t, path), EventFilter{})
	if len(got) != 2 || got[0].Message != "a" || got[1].ID.IsZero() || time.Since(got[0].Time) > time.Minute {
		t.Errorf("got %+v", got)
	}
}

func TestEventFilters(t *testing.T) { eachBackend(t, testEventFilters) }

func testEventFilters(t *testing.T, at place) {
	const n = 2*pageRows + 10
	r := open(t, RecorderConfig{Path: at.path})
	var b Batch
	for i := range n {
		e := event(base, i)
		if i%100 == 7 {
			e.Node, e.Kind = "hq", deception.EventNodeLost
		}
		b.Events = append(b.Events, *e)
	}
	commit(t, r, b)
	reader := openReader(t, at.path)
	for _, c := range []struct {
		name        string
		f           EventFilter
		count       int
		first, last int
	}{
		{"all", EventFilter{}, n, 0, n - 1},
		{"since", EventFilter{Since: b.Events[20].Time}, n - 20, 20, n - 1},
		{"node", EventFilter{Node: "hq"}, 11, 7, 1007},
		{"kind", EventFilter{Kind: deception.EventNodeLost, Since: b.Events[8].Time}, 10, 107, 1007},
		{"newest", EventFilter{Limit: 3}, 3, n - 3, n - 1},
		{"newest, pages", EventFilter{Limit: pageRows + 5}, pageRows + 5, n - pageRows - 5, n - 1},
		{"newest of some", EventFilter{Limit: 2, Node: "hq"}, 2, 907, 1007},
		{"more than there are", EventFilter{Limit: 5000}, n, 0, n - 1},
		{"after", EventFilter{After: b.Events[9].ID, Limit: 2}, 2, 10, 11},
		{"after, pages", EventFilter{After: b.Events[9].ID, Limit: pageRows + 1}, pageRows + 1, 10, pageRows + 10},
		{"none", EventFilter{Node: "nobody"}, 0, 0, 0},
	} {
		got := events(t, reader, c.f)
		if len(got) != c.count {
			t.Errorf("%s: %d events, want %d", c.name, len(got), c.count)
			continue
		}
		if c.count > 0 && (got[0].ID != b.Events[c.first].ID || got[c.count-1].ID != b.Events[c.last].ID) {
			t.Errorf("%s: from %s to %s", c.name, got[0].Message, got[c.count-1].Message)
		}
	}
}

// A watch yields events in the order in which they come, also those that
// happened before others that came earlier.
func TestWatchEvents(t *testing.T) { eachBackend(t, testWatchEvents) }

func testWatchEvents(t *testing.T, at place) {
	r := open(t, RecorderConfig{Path: at.path})
	var old Batch
	for i := range 10 {
		old.Events = append(old.Events, *event(base, 100+i))
	}
	commit(t, r, old)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var got []string
	for e, err := range openReader(t, at.path).WatchEvents(ctx, EventFilter{Limit: 2, Node: "crm-1"}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, strings.TrimPrefix(e.Message, "event "))
		switch len(got) {
		case 2:
			other := event(base, 51)
			other.Node = "hq"
			commit(t, r, Batch{Events: []deception.Event{*event(base, 50), *other}})
		case 3:
			r.Event(event(base, 200))
		case 4:
			commit(t, r, old) // again
			commit(t, r, Batch{Events: []deception.Event{*event(base, 1)}})
		}
		if len(got) == 5 {
			break
		}
	}
	if want := "108 109 50 200 1"; strings.Join(got, " ") != want {
		t.Errorf("watched %v, want %s", got, want)
	}
}

func TestOldEventsAreDeleted(t *testing.T) { eachBackend(t, testOldEventsAreDeleted) }

func testOldEventsAreDeleted(t *testing.T, at place) {
	r := open(t, RecorderConfig{Path: at.path, Retain: 24 * time.Hour})
	var b Batch
	for i := range deleteSlice + 10 {
		b.Events = append(b.Events, *event(time.Now().Add(-48*time.Hour), i))
	}
	young := event(time.Now(), 1)
	b.Events = append(b.Events, *young)
	commit(t, r, b)
	reader := openReader(t, at.path)
	eventually(t, "old events deleted", func() bool { return len(events(t, reader, EventFilter{})) == 1 })
	if got := events(t, reader, EventFilter{}); got[0].ID != young.ID {
		t.Errorf("left: %+v", got)
	}
}
