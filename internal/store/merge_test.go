package store

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"decoynet/deception"
)

// report is something that one part of decoynet has to tell of a session.
type report struct {
	session *deception.Session
	seen    *deception.SourceSeen
}

// reports are what can be told of a session with the identifier of s, by name.
func reports(s *deception.Session) map[string]report {
	egress := netip.MustParseAddrPort("172.16.23.9:50123")
	started := *s
	started.End, started.Reason, started.SourceBytes, started.DestinationBytes = time.Time{}, deception.EndNone, 0, 0
	ended := *s
	ended.SourceHead, ended.DestinationHead = []byte("GET /"), []byte("HTTP/1.1")

	// The agent knows neither service nor gateway; its clock is a little off.
	agent := *s
	agent.Start, agent.End = s.Start.Add(-20*time.Millisecond), s.End.Add(time.Second)
	agent.Service, agent.SourceNAT, agent.DestinationNAT = "", netip.AddrPort{}, netip.AddrPort{}
	agent.Reason, agent.SourceBytes, agent.DestinationBytes = deception.EndGateway, 70, 7
	agent.SourceHead = []byte("agent")

	lost := started
	lost.End, lost.Reason = s.Start.Add(10*time.Second), deception.EndLost
	return map[string]report{
		"start": {session: &started},
		"end":   {session: &ended},
		"agent": {session: &agent},
		"lost":  {session: &lost},
		"seen": {seen: &deception.SourceSeen{
			Session: s.ID, SourceNAT: egress, SourceMode: deception.SourceMasquerade,
			DestinationNAT: netip.MustParseAddrPort("10.9.0.2:8443"),
		}},
	}
}

// merged is what has to come of them.
func merged(s *deception.Session, told ...string) *deception.Session {
	r := reports(s)
	has := func(name string) bool { return slices.Contains(told, name) }
	parties, end := r["agent"].session, r["start"].session
	switch {
	case has("end"):
		parties = r["end"].session
	case has("start"), has("lost"):
		parties = r["start"].session
	}
	switch {
	case has("end"):
		end = r["end"].session
	case has("agent"):
		end = r["agent"].session
	case has("lost"):
		end = r["lost"].session
	}
	out := *parties
	out.End, out.Reason = end.End, end.Reason
	out.SourceBytes, out.DestinationBytes = end.SourceBytes, end.DestinationBytes
	out.SourceHead, out.DestinationHead = end.SourceHead, end.DestinationHead
	if has("seen") {
		seen := r["seen"].seen
		out.SourceNAT, out.SourceMode, out.DestinationNAT = seen.SourceNAT, seen.SourceMode, seen.DestinationNAT
	}
	return &out
}

// Whatever is told of a session, in whatever order and how often: one row comes
// of it, the same, and it counts once.
func TestReportsComeInAnyOrder(t *testing.T) { eachBackend(t, testReportsComeInAnyOrder) }

func testReportsComeInAnyOrder(t *testing.T, at place) {
	r := open(t, RecorderConfig{Path: at.path})
	var want []*deception.Session
	var orders [][]report
	longest := 0
	for _, told := range [][]string{
		{"start", "end", "agent", "seen", "lost"},
		{"start", "agent", "seen", "lost"},
		{"start", "agent"},
		{"end", "agent"},
		{"end", "seen"},
		{"agent", "seen"},
		{"agent"},
		{"start", "lost", "end"},
		{"start", "lost"},
		{"start", "seen"},
	} {
		for _, order := range permutations(told) {
			s := session(base, len(want))
			if told[0] != "agent" { // as if the ingress knew
				s.SourceMode = deception.SourceKept
			}
			all := reports(s)
			var steps []report
			for _, name := range order {
				steps = append(steps, all[name])
			}
			orders = append(orders, steps)
			want = append(want, merged(s, told...))
			longest = max(longest, len(steps))
		}
	}
	deliver := func(round int) {
		t.Helper()
		var b Batch
		for _, steps := range orders {
			if round >= len(steps) {
				continue
			}
			if step := steps[round]; step.session != nil {
				b.Sessions = append(b.Sessions, *step.session)
			} else {
				b.Seen = append(b.Seen, *step.seen)
			}
		}
		commit(t, r, b)
	}
	reader := openReader(t, at.path)
	check := func() {
		t.Helper()
		compare(t, want, all(t, reader, Filter{}))
		ended, bytes := int64(0), int64(0)
		for _, s := range want {
			if !s.Running() {
				ended++
			}
			bytes += int64(s.SourceBytes)
		}
		for _, total := range totals(t, reader) {
			ended -= total.Ended
			bytes -= total.SourceBytes
		}
		if ended != 0 || bytes != 0 {
			t.Errorf("the totals miss %d ended sessions and %d bytes: %+v", ended, bytes, totals(t, reader))
		}
	}
	for round := range longest {
		deliver(round)
	}
	check()
	for round := range longest { // the acknowledgements were lost
		deliver(round)
	}
	check()
}

func permutations(names []string) (out [][]string) {
	if len(names) <= 1 {
		return [][]string{slices.Clone(names)}
	}
	for i := range names {
		rest := slices.Delete(slices.Clone(names), i, i+1)
		for _, tail := range permutations(rest) {
			out = append(out, append([]string{names[i]}, tail...))
		}
	}
	return out
}

// All of it in one batch, each twice.
func TestReportsComeAtOnce(t *testing.T) { eachBackend(t, testReportsComeAtOnce) }

func testReportsComeAtOnce(t *testing.T, at place) {
	r := open(t, RecorderConfig{Path: at.path})
	var b Batch
	var want []*deception.Session
	for i, order := range permutations([]string{"start", "end", "agent", "seen"}) {
		s := session(base, i)
		want = append(want, merged(s, order...))
		for _, name := range slices.Repeat(order, 2) {
			if step := reports(s)[name]; step.session != nil {
				b.Sessions = append(b.Sessions, *step.session)
			} else {
				b.Seen = append(b.Seen, *step.seen)
			}
		}
	}
	commit(t, r, b)
	reader := openReader(t, at.path)
	compare(t, want, all(t, reader, Filter{}))
	if got := totals(t, reader); len(got) != 1 || got[0].Ended != int64(len(want)) || got[0].Running != 0 {
		t.Errorf("totals %+v, %d sessions", got, len(want))
	}
	if s := r.Stats(); s.Written != uint64(len(want)) || s.WrittenStarts != 0 {
		t.Errorf("stats %+v", s)
	}
}

// Of two ends that are equally well known the first one stays, and is the one
// that counts.
func TestTheFirstOfTwoEndsStays(t *testing.T) { eachBackend(t, testTheFirstOfTwoEndsStays) }

func testTheFirstOfTwoEndsStays(t *testing.T, at place) {
	r := open(t, RecorderConfig{Path: at.path})
	first, second := session(base, 10), session(base, 10)
	second.Reason, second.SourceBytes, second.End = deception.EndIdle, 99, second.End.Add(time.Hour)
	commit(t, r, Batch{Sessions: []deception.Session{*first}})
	commit(t, r, Batch{Sessions: []deception.Session{*second}})
	reader := openReader(t, at.path)
	compare(t, []*deception.Session{first}, all(t, reader, Filter{}))
	if got := totals(t, reader); len(got) != 1 || got[0].Ended != 1 || got[0].SourceBytes != 10 {
		t.Errorf("totals %+v", got)
	}
}

// What the recorder saw itself and what is delivered meet in one row too.
func TestOwnAndDeliveredReportsMeet(t *testing.T) { eachBackend(t, testOwnAndDeliveredReportsMeet) }

func testOwnAndDeliveredReportsMeet(t *testing.T, at place) {
	r := open(t, RecorderConfig{Path: at.path})
	reader := openReader(t, at.path)
	a, b, c := session(base, 1), session(base, 2), session(base, 3)
	ra, rb, rc := reports(a), reports(b), reports(c)

	// The egress was faster than everybody.
	commit(t, r, Batch{Seen: []deception.SourceSeen{*ra["seen"].seen}})
	r.Started(ra["start"].session)
	// The agent was faster than the ingress.
	commit(t, r, Batch{Sessions: []deception.Session{*rb["agent"].session}})
	// The egress speaks to us directly.
	r.SourceSeen(rc["seen"].seen)
	settled(t, r)
	compare(t, []*deception.Session{merged(a, "start", "seen"), merged(b, "agent")}, all(t, reader, Filter{}))

	r.Ended(ra["end"].session)
	r.Ended(rb["end"].session)
	r.Ended(rc["end"].session)
	settled(t, r)
	commit(t, r, Batch{Sessions: []deception.Session{*ra["agent"].session}})
	want := []*deception.Session{merged(a, "start", "end", "agent", "seen"), merged(b, "agent", "end"), merged(c, "end", "seen")}
	compare(t, want, all(t, reader, Filter{}))
	if got := totals(t, reader); len(got) != 1 || got[0].Ended != 3 || got[0].SourceBytes != 1+2+3 || got[0].Running != 0 {
		t.Errorf("totals %+v", got)
	}
	if got := at.tool(t, "SELECT count(*) FROM seen"); got != "0" {
		t.Errorf("%s reports of egresses are kept although their sessions came", got)
	}
	if s := r.Stats(); s.Written != 3 {
		t.Errorf("stats %+v", s)
	}
}

// What an egress saw is kept for a while, not for ever.
func TestWhatWasSeenOfNobodyIsForgotten(t *testing.T) {
	eachBackend(t, testWhatWasSeenOfNobodyIsForgotten)
}

func testWhatWasSeenOfNobodyIsForgotten(t *testing.T, at place) {
	r := open(t, RecorderConfig{Path: at.path})
	old, young := session(base, 1), session(base, 2)
	commit(t, r, Batch{Seen: []deception.SourceSeen{*reports(old)["seen"].seen, *reports(young)["seen"].seen}})
	closeRecorder(t, r)
	c := at.second(t)
	execute(t, c, "UPDATE seen SET at = at - $1 WHERE session = (SELECT session FROM seen ORDER BY session LIMIT 1)", int64(keepSeen))
	w := testWriter(t, at.path)
	if _, err := w.tend(time.Now(), true); err != nil {
		t.Fatal(err)
	}
	if got := at.tool(t, "SELECT count(*) FROM seen"); got != "1" {
		t.Errorf("%s are kept, want the younger one", got)
	}
	r = open(t, RecorderConfig{Path: at.path})
	commit(t, r, Batch{Sessions: []deception.Session{*old, *young}})
	compare(t, []*deception.Session{old, func() *deception.Session {
		s := *young
		seen := reports(young)["seen"].seen
		s.SourceNAT, s.SourceMode, s.DestinationNAT = seen.SourceNAT, seen.SourceMode, seen.DestinationNAT
		return &s
	}()}, all(t, openReader(t, at.path), Filter{}))
}
