package store

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"decoynet/deception"

	"github.com/google/go-cmp/cmp"
)

// finding makes the n-th finding after base, one millisecond apart, of a session.
func newTestFinding(s *deception.Session, n int) *deception.Finding {
	f := &deception.Finding{
		Session: s.ID, Time: base.Add(time.Duration(n)*time.Millisecond + 123*time.Nanosecond),
		Node: "gw", Kind: "http", Source: s.Source, Destination: s.Destination, Transport: deception.TCP,
		Application: "http",
		Document:    fmt.Appendf(nil, `{"event_type":"http","http":{"hostname":"intranet","url":"/%d","http_user_agent":"curl/8.%d","http_method":"GET","status":200}}`, n, n),
	}
	f.ID = idAt(f.Time)
	f.ID[6] = 0x70
	binary.BigEndian.PutUint64(f.ID[8:], 1<<63|uint64(n))
	return f
}

// alerting makes an alert of the finding.
func alerting(f *deception.Finding, sid uint32, severity uint8) *deception.Finding {
	out := *f
	out.Kind = deception.KindAlert
	out.Alert = &deception.Alert{
		GID: 1, SID: sid, Revision: 7, Severity: severity, Signature: fmt.Sprint("rule ", sid), Category: "Attempted Information Leak", ToService: true,
	}
	return &out
}

// placed is the finding as it is read, where its session is on record.
func placed(f *deception.Finding, s *deception.Session) *deception.Finding {
	out := *f
	out.Of = deception.Place{Node: s.Node, Segment: s.Segment, Decoy: s.Decoy, Service: s.Service}
	return &out
}

func findings(t testing.TB, r *Reader, f FindingFilter) (out []deception.Finding) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for v, err := range r.Findings(ctx, f) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, v)
	}
	return out
}

func compareFindings(t testing.TB, got []deception.Finding, want ...*deception.Finding) {
	t.Helper()
	plain := make([]deception.Finding, len(want))
	for i, f := range want {
		plain[i] = *f
	}
	if diff := cmp.Diff(plain, got, same); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
}

func TestFindingsComeBackAsTheyWere(t *testing.T) { eachBackend(t, testFindingsComeBackAsTheyWere) }

func testFindingsComeBackAsTheyWere(t *testing.T, place place) {
	r := open(t, RecorderConfig{Path: place.path})
	s := session(base, 1)
	plain, alert := newTestFinding(s, 0), alerting(newTestFinding(s, 1), 2027397, 2)
	six := alerting(newTestFinding(s, 2), 9, 255)
	six.Source, six.Destination = netip.MustParseAddrPort("[2001:db8::1]:4321"), netip.MustParseAddrPort("[2001:db8::2]:443")
	six.Transport, six.Session, six.Scanner, six.Application = deception.UDP, deception.SessionID{}, "audit", ""
	six.FeedLost, six.Partial, six.Alert.ToService = 1<<40, true, false
	six.Document = []byte(`{}`)
	bare := &deception.Finding{ID: six.ID, Time: six.Time, Kind: "stats"}
	bare.ID[15] = 99
	r.Finding(alert)
	settled(t, r)
	r.Started(running(s))
	commit(t, r, Batch{Node: "gw", Findings: []deception.Finding{*plain, *six, *bare, *alert}})
	r.Finding(&deception.Finding{Kind: "http"}) // without an identifier: none
	settled(t, r)
	bare.Document = []byte{}
	compareFindings(t, findings(t, openReader(t, place.path), FindingFilter{}), placed(plain, s), placed(alert, s), six, bare)
	if got, want := place.tool(t, `SELECT "event.id", "event.kind", "event.action", "event.severity", "rule.id", "rule.name", "rule.version", "source.ip",
		"source.port", "destination.ip", "destination.port", "network.transport", "network.protocol", "decoynet.session", "decoynet.node",
		"decoynet.segment", "decoynet.decoy", "decoynet.service", "decoynet.inspect.node", "decoynet.partial" FROM alerts`),
		strings.Join([]string{
			alert.ID.String(), "alert alert 2 2027397 rule 2027397 7 192.0.2.1 1025 198.51.100.1 80 tcp http",
			s.ID.String(), "hq office office-web web gw 0",
		}, " "); got != want {
		t.Errorf("the view alerts says %q, want %q", got, want)
	}
	if got, want := place.tool(t, `SELECT "event.kind", "source.ip", "source.port", "decoynet.scanner", "decoynet.feed_lost", "decoynet.partial",
		"rule.id" FROM findings WHERE "decoynet.session" IS NULL AND "rule.id" IS NOT NULL`),
		"event 2001:db8::1 4321 audit 1099511627776 1 9"; got != want {
		t.Errorf("the view findings says %q, want %q", got, want)
	}
	if n := r.Stats().Findings; n != 4 {
		t.Errorf("%d findings counted, want 4", n)
	}
}

// Twice the same is once, whoever tells it and in whatever order; so are the sums.
// A finding whose session was not known at first gets it, whichever comes first, and
// counts once.
func TestFindingsGetTheirSession(t *testing.T) { eachBackend(t, testFindingsGetTheirSession) }

func testFindingsGetTheirSession(t *testing.T, place place) {
	r := open(t, RecorderConfig{Path: place.path})
	s := session(base, 1)
	commit(t, r, Batch{Sessions: []deception.Session{*s}})
	var want []*deception.Finding
	for i := range 6 {
		known := alerting(newTestFinding(s, i), uint32(i), 2)
		orphan := *known
		orphan.Session = deception.SessionID{}
		orphan.Source, orphan.Destination = known.Destination, known.Source
		told := []deception.Finding{orphan, *known}
		if i%2 == 1 {
			slices.Reverse(told)
		}
		if i < 4 {
			commit(t, r, Batch{Findings: told}) // both at once
		} else {
			commit(t, r, Batch{Findings: told[:1]})
			commit(t, r, Batch{Findings: told[1:]})
		}
		commit(t, r, Batch{Findings: told})
		want = append(want, placed(known, s))
	}
	settled(t, r)
	reader := openReader(t, place.path)
	compareFindings(t, findings(t, reader, FindingFilter{}), want...)
	if a := all(t, reader, Filter{})[0].Analysis; a == nil || a.Findings != 6 || a.Alerts != 6 {
		t.Errorf("of the session: %+v", a)
	}
}

func TestFindingsMerge(t *testing.T) { eachBackend(t, testFindingsMerge) }

func testFindingsMerge(t *testing.T, place place) {
	const n = 50
	r := open(t, RecorderConfig{Path: place.path})
	sessions := []*deception.Session{session(base, 1), session(base, 2)}
	sessions[1].Scanner = "audit"
	var want, told []*deception.Finding
	for i := range n {
		s := sessions[i%2]
		f := newTestFinding(s, i)
		if i%5 == 0 {
			f = alerting(f, uint32(i), uint8(2+i%3))
		}
		f.Scanner = s.Scanner
		told, want = append(told, f), append(want, placed(f, s))
	}
	told = append(told, told...)
	rand.Shuffle(len(told), func(i, j int) { told[i], told[j] = told[j], told[i] })
	for i, f := range told {
		switch {
		case i == n:
			r.Ended(sessions[0])
			commit(t, r, Batch{Sessions: []deception.Session{*sessions[1]}})
			fallthrough
		case i%3 == 0:
			r.Finding(f)
		default:
			commit(t, r, Batch{Findings: []deception.Finding{*f, *told[i/2], *f}})
		}
	}
	settled(t, r)
	reader := openReader(t, place.path)
	compareFindings(t, findings(t, reader, FindingFilter{}), want...)
	got := all(t, reader, Filter{})
	for i, s := range got {
		a := s.Analysis
		if a == nil {
			t.Fatalf("nothing was found in session %d", i)
		}
		alerts, severity := uint64(5), uint8(2)
		if i == 1 {
			alerts, severity = 0, 0 // a known scanner's are none
		}
		if a.Findings != n/2 || a.Alerts != alerts || a.Severity != severity || a.Application != "http" || a.ServerName != "intranet" || !strings.HasPrefix(a.UserAgent, "curl/8.") {
			t.Errorf("of session %d: %+v", i, *a)
		}
	}
	if got, want := place.tool(t, `SELECT "network.protocol", "destination.domain", "decoynet.findings", "decoynet.alerts", "decoynet.severity"
		FROM sessions WHERE "decoynet.scanner" IS NULL`), "http intranet 25 5 2"; got != want {
		t.Errorf("the view sessions says %q, want %q", got, want)
	}
}
