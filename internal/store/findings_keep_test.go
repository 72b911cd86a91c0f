package store

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"decoynet/deception"
)

func TestFindingFilters(t *testing.T) { eachBackend(t, testFindingFilters) }

func testFindingFilters(t *testing.T, place place) {
	const n = 2*pageRows + 10
	r := open(t, RecorderConfig{Path: place.path})
	b := Batch{Sessions: []deception.Session{*session(base, 1), *session(base, 2), *session(base, 3)}}
	b.Sessions[1].Decoy, b.Sessions[2].Scanner = "lab-ssh", "audit"
	for i := range n {
		s := &b.Sessions[0]
		if i%100 == 7 {
			s = &b.Sessions[1]
		}
		f := newTestFinding(s, i)
		f.Source = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 1)
		switch {
		case i%100 == 50:
			f = alerting(f, uint32(i), uint8(1+i/100%4))
		case i%100 == 60:
			f.Scanner = "nessus" // by who told it
			f = alerting(f, 60, 1)
		case i%100 == 70:
			f.Session = b.Sessions[2].ID // by its session only
			f = alerting(f, 70, 1)
		case i%100 == 80:
			f.Kind, f.Node, f.Session = "tls", "branch", deception.SessionID{}
		}
		b.Findings = append(b.Findings, *f)
	}
	commit(t, r, b)
	reader := openReader(t, place.path)
	prefix := netip.MustParsePrefix
	for name, c := range map[string]struct {
		f           FindingFilter
		count       int
		first, last int
	}{
		"all":                  {FindingFilter{}, n, 0, n - 1},
		"since":                {FindingFilter{Since: b.Findings[20].Time}, n - 20, 20, n - 1},
		"kind":                 {FindingFilter{Kind: "tls"}, 10, 80, 980},
		"node":                 {FindingFilter{Node: "branch", Limit: 2}, 2, 880, 980},
		"session":              {FindingFilter{Session: b.Sessions[1].ID}, 11, 7, 1007},
		"newest of session":    {FindingFilter{Session: b.Sessions[1].ID, Limit: 2}, 2, 907, 1007},
		"decoy":                {FindingFilter{Decoy: "lab-ssh", Segment: "office", Service: "web"}, 11, 7, 1007},
		"no such decoy":        {FindingFilter{Decoy: "none"}, 0, 0, 0},
		"alerts":               {FindingFilter{Alerts: true}, 30, 50, 970},
		"of nobody known":      {FindingFilter{Alerts: true, Unknown: true}, 10, 50, 950},
		"newest of these":      {FindingFilter{Alerts: true, Unknown: true, Limit: 3}, 3, 750, 950},
		"severity":             {FindingFilter{Severity: 2, Unknown: true}, 6, 50, 950},
		"rule":                 {FindingFilter{SID: 350}, 1, 350, 350},
		"known scanner":        {FindingFilter{Scanner: "nessus"}, 10, 60, 960},
		"source":               {FindingFilter{Source: prefix("10.0.1.5/32")}, 1, 261, 261},
		"network":              {FindingFilter{Source: prefix("10.0.1.0/24")}, 256, 256, 511},
		"after":                {FindingFilter{After: b.Findings[9].ID, Limit: 2}, 2, 10, 11},
		"after, of no scanner": {FindingFilter{After: b.Findings[60].ID, Alerts: true, Unknown: true, Limit: 2}, 2, 150, 250},
	} {
		got := findings(t, reader, c.f)
		if len(got) != c.count {
			t.Errorf("%s: %d findings, want %d", name, len(got), c.count)
			continue
		}
		if c.count > 0 && (got[0].ID != b.Findings[c.first].ID || got[c.count-1].ID != b.Findings[c.last].ID) {
			t.Errorf("%s: from %s to %s", name, got[0].Document, got[c.count-1].Document)
		}
	}
}

// Who watches alerts has one half a second after it was told, whatever else is told
// meanwhile, and only once.
func TestWatchFindings(t *testing.T) { eachBackend(t, testWatchFindings) }

func testWatchFindings(t *testing.T, place place) {
	r := open(t, RecorderConfig{Path: place.path, Flush: DefaultFlush})
	s := session(base, 1)
	r.Ended(s)
	r.Finding(alerting(newTestFinding(s, 0), 1, 1))
	settled(t, r)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	const times = 7
	var seen []deception.SessionID
	var told time.Time
	var took []time.Duration
	for f, err := range openReader(t, place.path).WatchFindings(ctx, FindingFilter{Alerts: true, Unknown: true}) {
		if err != nil {
			t.Fatal(err)
		}
		if seen = append(seen, f.ID); len(seen) > 1 {
			took = append(took, time.Since(told))
		}
		if f.Of.Decoy != s.Decoy || len(seen) > times {
			break
		}
		time.Sleep(time.Duration(len(seen)) * 37 * time.Millisecond) // another phase of the pauses each time
		known := alerting(newTestFinding(s, 1000+len(seen)), 1, 1)
		known.Scanner = "audit"
		told = time.Now()
		r.Finding(known)
		r.Finding(newTestFinding(s, 2000+len(seen)))
		r.Finding(alerting(newTestFinding(s, len(seen)), 1, 1))
	}
	slices.Sort(took)
	if len(seen) != times+1 || len(took) != times {
		t.Fatalf("%d alerts of %d", len(seen), times+1)
	}
	t.Logf("seen after %v to %v", took[0], took[times-1])
	// Of a flush and a poll; a machine under load makes some of them later.
	if took[times/2] > DefaultFlush+pollEvery+50*time.Millisecond {
		t.Errorf("seen after %v", took)
	}
}

// Findings go with their session, and by age where there is none; what was found in
// one that goes on stays.
func TestOldFindingsAreDeleted(t *testing.T) { eachBackend(t, testOldFindingsAreDeleted) }

func testOldFindingsAreDeleted(t *testing.T, place place) {
	r := open(t, RecorderConfig{Path: place.path, Retain: 24 * time.Hour})
	ago := time.Now().Add(-48 * time.Hour)
	old, young := session(ago, 1), session(time.Now(), 2)
	alone := *session(ago, 3) // never recorded
	var b Batch
	for i := range 2*deleteSlice + 50 {
		f := newTestFinding(old, i)
		f.Time = ago.Add(time.Duration(i) * time.Millisecond)
		f.ID = idAt(f.Time)
		f.ID[6], f.ID[8], f.ID[14], f.ID[15] = 0x70, 0x80, byte(i>>8), byte(i)
		b.Findings = append(b.Findings, *f)
	}
	late := newTestFinding(old, 1) // told by Suricata long after
	late.Time = time.Now().Add(-time.Minute)
	late.ID = idAt(late.Time)
	late.ID[6] = 0x70
	kept, orphan, lost := newTestFinding(young, 2), newTestFinding(young, 3), newTestFinding(&alone, 4)
	orphan.Session = deception.SessionID{}
	lost.Time = ago
	lost.ID = idAt(lost.Time.Add(-time.Hour))
	lost.ID[6] = 0x70
	b.Findings = append(b.Findings, *late, *kept, *orphan, *lost)
	b.Sessions = []deception.Session{*old, *young}
	commit(t, r, b)
	reader := openReader(t, place.path)
	eventually(t, "old findings deleted", func() bool { return len(findings(t, reader, FindingFilter{})) == 2 })
	compareFindings(t, findings(t, reader, FindingFilter{}), placed(kept, young), orphan)
	eventually(t, "sums deleted", func() bool { return place.tool(t, "SELECT count(*) FROM analysis") == "1" })
	if got := all(t, reader, Filter{}); len(got) != 1 || got[0].Analysis == nil || got[0].Analysis.Findings != 1 {
		t.Errorf("sessions left: %+v", got)
	}
}

// Where the file is too large the oldest go, and no session before its findings.
func TestFindingsAreBounded(t *testing.T) {
	path := newPath(t)
	r := open(t, RecorderConfig{Path: path, MaxBytes: 3 << 20})
	base := base.Add(-24 * time.Hour)
	for i := range 20 {
		s := session(base, 1000*i)
		b := Batch{Sessions: []deception.Session{*s}}
		for k := range 1000 {
			f := newTestFinding(s, 0)
			f.Time = s.Start.Add(time.Duration(k) * time.Millisecond)
			f.ID = idAt(f.Time)
			f.ID[6], f.ID[8], f.ID[15] = 0x70, 0x80, byte(i)
			f.Document = fmt.Appendf(nil, `{"x":"%0300d"}`, k)
			f.Document = append(f.Document, []byte(noise(300))...)
			b.Findings = append(b.Findings, *f)
		}
		commit(t, r, b)
	}
	reader := openReader(t, path)
	var left []deception.Finding
	eventually(t, "oldest findings deleted, and sessions after theirs", func() bool {
		left = findings(t, reader, FindingFilter{})
		// Where it belongs is read a moment after a finding: it may have gone in between.
		return len(left) > 0 && len(left) < 10000 && !slices.ContainsFunc(left, func(f deception.Finding) bool { return f.Of.Decoy == "" })
	})
	sessions := all(t, reader, Filter{})
	if left[len(left)-1].Session != session(base, 19000).ID || len(sessions) == 20 {
		t.Errorf("%d findings and %d sessions are left", len(left), len(sessions))
	}
	place{path: path}.intact(t)
}

// noise is what does not pack.
func noise(n int) string {
	b := make([]byte, n)
	x := uint32(2463534242)
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = 'a' + byte(x%26)
	}
	return string(b)
}

// Who asks for room first loses nothing while the database is locked; who does not
// loses what does not fit, and it is counted. Sessions keep the other half.
func TestFindingsWait(t *testing.T) { eachBackend(t, testFindingsWait) }

func testFindingsWait(t *testing.T, place place) {
	r := open(t, RecorderConfig{Path: place.path, QueueBytes: 1 << 20})
	s := session(base, 1)
	unlock := place.lock(t)
	told := 0
	for ; r.Room(); told++ {
		r.Finding(newTestFinding(s, told))
	}
	if stats := r.Stats(); stats.LostFindings != 0 || told < 100 || stats.QueuedBytes > 1<<19 {
		t.Errorf("told %d: %+v", told, stats)
	}
	more := 0
	for ; r.Stats().LostFindings < 10; more++ {
		r.Finding(newTestFinding(s, told+more))
	}
	r.Ended(s)
	if stats := r.Stats(); stats.QueuedBytes > 1<<20 || stats.Lost != 0 {
		t.Errorf("%+v", stats)
	}
	unlock()
	settled(t, r)
	if stats := r.Stats(); stats.Findings != uint64(told+more-10) || !r.Room() {
		t.Errorf("told %d and %d: %+v", told, more, stats)
	}
	if n := len(findings(t, openReader(t, place.path), FindingFilter{})); n != told+more-10 {
		t.Errorf("%d findings of %d", n, told+more-10)
	}
	if got := all(t, openReader(t, place.path), Filter{}); len(got) != 1 || got[0].Analysis.Findings != uint64(told+more-10) {
		t.Errorf("%+v", got)
	}
}
