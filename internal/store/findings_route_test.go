package store

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/pgtest"
)

// Whatever filters are put together, what is found by an index is what the filters
// choose of all findings.
func TestFindingRoutes(t *testing.T) { eachBackend(t, testFindingRoutes) }

func testFindingRoutes(t *testing.T, place place) {
	r := open(t, RecorderConfig{Path: place.path})
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(of ...string) string { return of[random.IntN(len(of))] }
	addresses := []string{"192.0.2.1", "192.0.2.9", "0.0.0.0", "::ffff:192.0.2.1", "2001:db8::1", "2001:db8::11"}
	var b Batch
	for i := range 40 {
		s := session(base, i)
		s.Decoy, s.Segment = pick("crm", "web", "web", "web"), pick("office", "lab")
		b.Sessions = append(b.Sessions, *s)
	}
	for i := range 2 * pageRows {
		f := newTestFinding(&b.Sessions[random.IntN(len(b.Sessions))], i)
		f.Kind, f.Node, f.Scanner = pick("http", "tls", deception.KindFlow), pick("gw", "branch"), pick("", "", "", "nessus", "audit")
		f.Source = netip.AddrPortFrom(netip.MustParseAddr(pick(addresses...)), uint16(random.IntN(3)))
		if random.IntN(4) == 0 {
			f = alerting(f, uint32(random.IntN(3)), uint8(1+random.IntN(3)))
		}
		if random.IntN(8) == 0 {
			f.Session = deception.SessionID{}
		}
		b.Findings = append(b.Findings, *f)
	}
	commit(t, r, b)
	reader := openReader(t, place.path)
	everything := findings(t, reader, FindingFilter{})
	for range 120 {
		f := FindingFilter{
			Kind: pick("", "", "http", "tls", deception.KindFlow, deception.KindAlert, "none"), Node: pick("", "", "branch"),
			Scanner: pick("", "", "", "nessus", "none"), Decoy: pick("", "", "crm", "none"), Segment: pick("", "", "lab"),
			Alerts: random.IntN(4) == 0, Limit: random.IntN(3) * 100,
		}
		if random.IntN(3) == 0 {
			a := netip.MustParseAddr(pick(addresses...))
			f.Source = netip.PrefixFrom(a, a.BitLen()-random.IntN(2)*8).Masked()
		}
		if random.IntN(5) == 0 {
			f.Session = b.Sessions[random.IntN(len(b.Sessions))].ID
		}
		if random.IntN(4) == 0 {
			f.Since = b.Findings[random.IntN(len(b.Findings))].Time
		}
		if random.IntN(4) == 0 {
			f.After = b.Findings[random.IntN(len(b.Findings))].ID
		}
		t.Run(fmt.Sprintf("%+v", f), func(t *testing.T) {
			want := chosen(f, everything)
			if got := findings(t, reader, f); len(got)+len(want) > 0 {
				compareFindings(t, got, want...)
			}
		})
	}
}

// chosen is what the filter says of findings, in words of its own.
func chosen(f FindingFilter, all []deception.Finding) (out []*deception.Finding) {
	for i := range all {
		v := &all[i]
		if (f.Kind == "" || v.Kind == f.Kind) && (f.Node == "" || v.Node == f.Node) && (f.Scanner == "" || v.Scanner == f.Scanner) &&
			(f.Decoy == "" || v.Of.Decoy == f.Decoy) && (f.Segment == "" || v.Of.Segment == f.Segment) && (!f.Alerts || v.Alert != nil) &&
			(!f.Source.IsValid() || f.Source.Contains(v.Source.Addr())) && (f.Session.IsZero() || v.Session == f.Session) &&
			!v.Time.Before(f.Since) && v.ID.String() > f.After.String() {
			out = append(out, v)
		}
	}
	if f.Limit > 0 && len(out) > f.Limit {
		if f.After.IsZero() {
			return out[len(out)-f.Limit:]
		}
		return out[:f.Limit]
	}
	return out
}

// What few findings have is found by the index also by who asks often: the server
// then takes plans for any value for good enough.
func TestPostgresPlansForTheValue(t *testing.T) {
	at := place{path: pgtest.Database(t), pg: true}
	r := open(t, RecorderConfig{Path: at.path})
	s := session(base, 1)
	for part := range 20 {
		b := Batch{Sessions: []deception.Session{*s}}
		for i := range 1000 {
			f := newTestFinding(s, part*1000+i)
			if part == 0 && i%300 == 0 {
				f.Kind = "smb"
			}
			b.Findings = append(b.Findings, *f)
		}
		commit(t, r, b)
	}
	at.tool(t, "ANALYZE")
	scans := func() int {
		n, err := strconv.Atoi(strings.TrimSpace(at.tool(t, "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'finding_kind'")))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := scans()
	reader := openReader(t, at.path)
	const times = 12
	for range times {
		if got := findings(t, reader, FindingFilter{Kind: "smb", Limit: 10}); len(got) != 4 {
			t.Fatalf("%d findings, want 4", len(got))
		}
	}
	if err := reader.db.Close(); err != nil { // a server tells of what was used once it is over
		t.Fatal(err)
	}
	// The word of it comes in a moment.
	for end := time.Now().Add(20 * time.Second); scans()-before < times; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the index was used %d times of %d", scans()-before, times)
		}
	}
}
