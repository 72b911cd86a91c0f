package store

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"decoynet/deception"

	"github.com/google/go-cmp/cmp"
)

// recorded writes the sessions and returns a reader of the file.
func recorded(t testing.TB, at place, sessions ...*deception.Session) (*Recorder, *Reader) {
	t.Helper()
	r := open(t, RecorderConfig{Path: at.path})
	for _, s := range sessions {
		if s.Running() {
			r.Started(s)
		} else {
			r.Ended(s)
		}
	}
	settled(t, r)
	return r, openReader(t, at.path)
}

func TestTheViewSpeaksECS(t *testing.T) {
	path := newPath(t)
	r := open(t, RecorderConfig{Path: path})
	sessions := varied()
	still := running(session(base, 9))
	for _, s := range sessions {
		r.Ended(s)
	}
	r.Started(still)
	closeRecorder(t, r)

	stamp := func(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000000Z") }
	get := func(s *deception.Session) map[string]string {
		out := make(map[string]string)
		for k, v := range row(t, path, s.ID) {
			if v != nil {
				out[k] = fmt.Sprint(v)
			}
		}
		return out
	}
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
		"source.ip": "2001:db8::1", "source.port": "65535", "source.nat.ip": "2001:db8::1", "source.nat.port": "65535",
		"destination.ip": "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "destination.port": "1",
		"destination.nat.ip": "fd00::2", "destination.nat.port": "443", "network.type": "ipv6",
		"network.transport": "udp", "decoynet.path": "kernel", "decoynet.end_reason": "overload",
		"decoynet.segment": "büro ✓", "decoynet.decoy": `it's "x"`,
	} {
		if six[key] != want {
			t.Errorf("IPv6: %s is %q, want %q", key, six[key], want)
		}
	}
	refused := get(sessions[3])
	for _, key := range []string{"source.nat.ip", "source.nat.port", "destination.nat.ip", "destination.nat.port"} {
		if v, ok := refused[key]; ok {
			t.Errorf("refused: %s is %q", key, v)
		}
	}
	runs := get(still)
	if runs["event.action"] != "session-started" || runs["@timestamp"] != stamp(still.Start) || runs["event.end"] != "" ||
		runs["decoynet.end_reason"] != "" || runs["source.nat.ip"] != "192.0.2.1" {
		t.Errorf("running: %v", runs)
	}
	place{path: path}.intact(t)
}

// Every end reason and source mode has its name in the schema.
func TestTheViewKnowsAllNames(t *testing.T) { eachBackend(t, testTheViewKnowsAllNames) }

func testTheViewKnowsAllNames(t *testing.T, at place) {
	path := at.path
	r := open(t, RecorderConfig{Path: path})
	var want []string
	for i := 0; ; i++ {
		reason := deception.EndReason(i)
		if strings.HasPrefix(reason.String(), "reason-") {
			break
		}
		s := session(base, i)
		s.Reason, s.SourceMode = reason, deception.SourceMode(i%3)
		r.Ended(s)
		want = append(want, reason.String()+" "+s.SourceMode.String())
	}
	closeRecorder(t, r)
	got := at.tool(t, `SELECT "decoynet.end_reason", "decoynet.source_mode" FROM sessions ORDER BY "event.id"`)
	if diff := cmp.Diff(strings.Join(want, "\n"), got); diff != "" {
		t.Error(diff)
	}
}

func TestFilters(t *testing.T) { eachBackend(t, testFilters) }

func testFilters(t *testing.T, at place) {
	minute := func(n int) time.Time { return base.Add(time.Duration(n) * time.Minute) }
	make := func(name string, from, to int, change func(*deception.Session)) *deception.Session {
		s := session(minute(from), len(name))
		s.Decoy = name
		s.End = time.Time{}
		if to > 0 {
			s.End = minute(to)
		}
		if change != nil {
			change(s)
		}
		return s
	}
	six := func(a string) func(*deception.Session) {
		return func(s *deception.Session) {
			s.Source = netip.AddrPortFrom(netip.MustParseAddr(a), 9)
			s.SourceNAT = s.Source
		}
	}
	sessions := []*deception.Session{
		make("old", 0, 1, nil),
		make("lasting", 1, 40, nil),
		make("still", 2, 0, nil),
		make("other-service", 20, 21, func(s *deception.Session) { s.Service, s.Segment = "ssh", "dmz" }),
		make("six", 30, 31, six("2001:db8:1::1")),
		make("six-too", 31, 32, six("2001:db8:2::1")),
		make("four", 32, 33, six("192.0.3.1")),
		make("new", 41, 0, nil),
	}
	_, r := recorded(t, at, sessions...)
	yes, no := true, false
	for _, c := range []struct {
		name string
		f    Filter
		want string
	}{
		{"all", Filter{}, "old lasting still other-service six six-too four new"},
		{"since", Filter{Since: minute(25)}, "lasting still six six-too four new"},
		{"since the end of the last", Filter{Since: minute(50)}, "still new"},
		{"until", Filter{Until: minute(2)}, "old lasting"},
		{"an interval", Filter{Since: minute(10), Until: minute(15)}, "lasting still"},
		{"running", Filter{Running: &yes}, "still new"},
		{"running since", Filter{Running: &yes, Since: minute(45)}, "still new"},
		{"ended", Filter{Running: &no, Since: minute(25)}, "lasting six six-too four"},
		{"segment", Filter{Segment: "dmz"}, "other-service"},
		{"service", Filter{Service: "ssh", Segment: "dmz"}, "other-service"},
		{"names that do not go together", Filter{Service: "ssh", Segment: "office"}, ""},
		{"decoy", Filter{Decoy: "four"}, "four"},
		{"no such decoy", Filter{Decoy: "none"}, ""},
		{"IPv4 network", Filter{Source: netip.MustParsePrefix("192.0.2.0/24")}, "old lasting still other-service new"},
		{"IPv4 address", Filter{Source: netip.MustParsePrefix("192.0.3.1/32")}, "four"},
		{"all IPv4", Filter{Source: netip.MustParsePrefix("0.0.0.0/0"), Since: minute(42)}, "still new"},
		{"IPv6 network", Filter{Source: netip.MustParsePrefix("2001:db8::/32")}, "six six-too"},
		{"IPv6 address", Filter{Source: netip.MustParsePrefix("2001:db8:2::1/128")}, "six-too"},
		{"the newest", Filter{Limit: 2}, "four new"},
		{"the newest of some", Filter{Limit: 2, Source: netip.MustParsePrefix("2001:db8:1::/48")}, "six"},
		{"the newest since", Filter{Limit: 7, Since: minute(31)}, "lasting still six six-too four new"},
		{"the newest reaching back", Filter{Limit: 5, Since: minute(31)}, "still six six-too four new"},
		{"after", Filter{After: sessions[4].ID}, "six-too four new"},
		{"after, the oldest", Filter{After: sessions[4].ID, Limit: 2}, "six-too four"},
		{"after and since", Filter{After: sessions[1].ID, Since: minute(35)}, "still new"},
		{"by identifier", Filter{ID: sessions[3].ID}, "other-service"},
		{"by identifier, newest", Filter{ID: sessions[3].ID, Limit: 1}, "other-service"},
		{"by identifier, not it", Filter{ID: sessions[3].ID, Running: &yes}, ""},
		{"no such identifier", Filter{ID: deception.SessionID{1}}, ""},
	} {
		if got := names(all(t, r, c.f)); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// More than one page in every way of reading.
func TestPages(t *testing.T) { eachBackend(t, testPages) }

func testPages(t *testing.T, at place) {
	const n = 3*pageRows + 17
	var sessions []*deception.Session
	for i := range n {
		s := session(base, i)
		if i%2 == 0 { // half of them reach far beyond their start
			s.End = s.Start.Add(10 * time.Minute)
		}
		sessions = append(sessions, s)
	}
	_, r := recorded(t, at, sessions...)
	expect := func(name string, f Filter, want []*deception.Session) {
		t.Helper()
		got := all(t, r, f)
		if len(got) != len(want) {
			t.Fatalf("%s: %d sessions, want %d", name, len(got), len(want))
		}
		for i := range got {
			if got[i].ID != want[i].ID {
				t.Fatalf("%s: session %d is %v, want %v", name, i, got[i].ID, want[i].ID)
			}
		}
	}
	var long []*deception.Session
	for i := 0; i < n; i += 2 {
		long = append(long, sessions[i])
	}
	expect("all", Filter{}, sessions)
	expect("newest", Filter{Limit: 2*pageRows + 3}, sessions[n-2*pageRows-3:])
	expect("long ones", Filter{Since: base.Add(5 * time.Minute)}, long)
	expect("newest long ones", Filter{Since: base.Add(5 * time.Minute), Limit: pageRows + 1}, long[len(long)-pageRows-1:])
	var paged []*deception.Session
	f := Filter{Limit: 100}
	f.After[15] = 1 // before all
	for {
		page := all(t, r, f)
		if len(page) == 0 {
			break
		}
		for _, s := range page {
			paged = append(paged, &s)
		}
		f.After = page[len(page)-1].ID
	}
	expect("page by page", Filter{}, paged)
}

// A listing that waits, in a pager, does not keep the log from being reused.
func TestAReaderThatWaitsCostsNoDisk(t *testing.T) {
	var sessions []*deception.Session
	for i := range 2 * pageRows {
		sessions = append(sessions, session(base, i))
	}
	r, reader := recorded(t, place{path: newPath(t)}, sessions...)
	seen := 0
	for _, err := range reader.Sessions(context.Background(), Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		if seen++; seen == pageRows/2 {
			for i := range 60000 {
				r.Ended(session(base, 10000+i))
				if i%5000 == 0 {
					settled(t, r)
				}
			}
			settled(t, r)
			log, err := os.Stat(r.cfg.Path + "-wal")
			if err != nil {
				t.Fatal(err)
			}
			if log.Size() > 8<<20 {
				t.Errorf("the log has %d bytes while a reader waits", log.Size())
			}
			break
		}
	}
}

func TestReadingWhileWriting(t *testing.T) { eachBackend(t, testReadingWhileWriting) }

func testReadingWhileWriting(t *testing.T, at place) {
	t.Parallel()
	r, reader := recorded(t, at)
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		for i := range 20000 {
			s := session(base, i)
			r.Started(running(s))
			r.Ended(s)
			if i%500 == 0 {
				time.Sleep(5 * time.Millisecond)
			}
		}
	}()
	last, rounds := 0, 0
	for done := false; !done; rounds++ {
		select {
		case <-stop:
			settled(t, r)
			done = true
		default:
		}
		got := all(t, reader, Filter{})
		if len(got) < last {
			t.Fatalf("%d sessions after %d", len(got), last)
		}
		last = len(got)
		for i, s := range got {
			if !done && i == last-1 && s.Running() && s.ID == session(base, i).ID {
				continue // what is queued was written between its start and its end
			}
			if want := session(base, i); s.ID != want.ID || s.Decoy != want.Decoy || s.Running() || s.SourceBytes != uint64(i) {
				t.Fatalf("session %d of %d is %+v", i, last, s)
			}
		}
	}
	if last != 20000 {
		t.Errorf("%d sessions after %d rounds", last, rounds)
	}
}

func TestReadingEndsWithItsContext(t *testing.T) { eachBackend(t, testReadingEndsWithItsContext) }

func testReadingEndsWithItsContext(t *testing.T, at place) {
	var sessions []*deception.Session
	for i := range 3 * pageRows {
		sessions = append(sessions, session(base, i))
	}
	_, reader := recorded(t, at, sessions...)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	n := 0
	var failure error
	for _, err := range reader.Sessions(ctx, Filter{}) {
		if failure = err; err == nil {
			n++
			cancel()
		}
	}
	if failure == nil || n > pageRows {
		t.Errorf("%d sessions, then %v", n, failure)
	}
}
