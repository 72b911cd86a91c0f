//go:build unix

package store

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/pgtest"
)

// BenchmarkFilters measures how long a person waits for what the command line asks:
// a page of a month in which there were a million sessions, every fourth of which
// had four findings. "Rare" is what a handful of them have, the last ones long ago.
// RECORDS=N takes another number of sessions, STORE=PATH leaves the store there and
// takes it from there.
func BenchmarkFilters(b *testing.B) {
	b.Run("sqlite", func(b *testing.B) {
		at := place{path: newPath(b)}
		if path := os.Getenv("STORE"); path != "" {
			at.path = path
		}
		benchmarkFilters(b, at)
	})
	b.Run("postgres", func(b *testing.B) { benchmarkFilters(b, place{path: pgtest.Database(b), pg: true}) })
}

// rareEvery is how far what is rare lies apart; none of it is in the newer half.
const rareEvery = 25_000

// month makes the sessions of the benchmark.
type month struct {
	records int
	begin   time.Time
	step    time.Duration
	traffic *traffic
}

func newMonth(records int) *month {
	const length = 30 * 24 * time.Hour
	return &month{records: records, begin: time.Now().Add(-length), step: length / time.Duration(records), traffic: newTraffic(false, 0)}
}

func (m *month) rare(i int) bool { return i%rareEvery == 1000 && i < m.records/2 }

// session makes the i-th session.
func (m *month) session(i int, s *deception.Session) {
	*s = m.traffic.pool[i%len(m.traffic.pool)]
	s.Start = m.begin.Add(time.Duration(i) * m.step)
	s.End = s.Start.Add(900 * time.Microsecond)
	s.Source = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i % 200)}), s.Source.Port())
	s.SourceNAT = s.Source
	s.ID = idAt(s.Start)
	s.ID[6] = 0x70
	binary.BigEndian.PutUint64(s.ID[8:], uint64(i)*0x9e3779b97f4a7c15>>2|1<<63)
	if m.rare(i) {
		s.Source = netip.AddrPortFrom(netip.MustParseAddr("203.0.113.9"), s.Source.Port())
		s.SourceNAT, s.Decoy, s.Node, s.Scanner = s.Source, "crm", "branch", "nessus"
	}
}

// finding makes the n-th of four findings of the i-th session.
func (m *month) finding(i, n int, s *deception.Session) deception.Finding {
	kinds := [...]string{"http", deception.KindAlert, deception.KindFile, deception.KindFlow}
	f := deception.Finding{
		ID: s.ID, Session: s.ID, Time: s.End.Add(time.Duration(n) * time.Millisecond), Node: s.Node, Kind: kinds[n], Transport: deception.TCP,
		Source: s.Source, Destination: s.Destination, Application: "http", Document: []byte(alertDocument), Scanner: s.Scanner,
	}
	f.ID[15] ^= byte(n + 1)
	if n == 0 && m.rare(i) {
		f.Kind = "smb"
	}
	if n == 1 {
		sid := 2027000 + i%500
		if m.rare(i) {
			sid = 14200001
		}
		f.Alert = &deception.Alert{GID: 1, SID: uint32(sid), Signature: fmt.Sprint("a rule ", sid), Severity: uint8(2 + i%2)}
		if m.rare(i) {
			f.Alert.Severity = 1
		}
	}
	return f
}

// fill writes them all.
func (m *month) fill(b *testing.B, path string) {
	r, err := OpenRecorder(RecorderConfig{Path: path, MaxBytes: -1, Retain: -1})
	if err != nil {
		b.Fatal(err)
	}
	var s deception.Session
	for i := range m.records {
		m.session(i, &s)
		for i%64 == 0 && !r.Room() {
			time.Sleep(time.Millisecond)
		}
		r.Ended(&s)
		for n := range 4 * bit(i%4 == 0) {
			f := m.finding(i, int(n), &s)
			r.Finding(&f)
		}
	}
	if err := r.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
	if s := r.Stats(); s.Lost+s.LostFindings != 0 {
		b.Fatalf("lost %d sessions, %d findings", s.Lost, s.LostFindings)
	}
}

func benchmarkFilters(b *testing.B, at place) {
	records := 1_000_000
	if text := os.Getenv("RECORDS"); text != "" {
		var err error
		if records, err = strconv.Atoi(text); err != nil {
			b.Fatal(err)
		}
	}
	m := newMonth(records)
	if _, err := os.Stat(at.path); !at.pg && err == nil {
		m.records = 0 // it is there already, perhaps with an older schema
	}
	m.fill(b, at.path)
	if at.pg {
		execute(b, at.second(b), "ANALYZE")
	}
	r := openReader(b, at.path)
	var rare deception.SessionID
	for s, err := range r.Sessions(b.Context(), Filter{Scanner: "nessus", Limit: 1}) {
		if err != nil {
			b.Fatal(err)
		}
		rare = s.ID
	}
	network := netip.MustParsePrefix("203.0.113.9/32")
	for name, f := range map[string]FindingFilter{
		"all": {}, "kind=http": {Kind: "http"}, "kind=smb": {Kind: "smb"}, "kind=none": {Kind: "ikev2"},
		"session": {Session: rare}, "node=branch": {Node: "branch"}, "source": {Source: network}, "network": {Source: netip.MustParsePrefix("203.0.113.0/24")},
		"network=all": {Source: netip.MustParsePrefix("192.0.2.0/24")}, "scanner": {Scanner: "nessus"}, "unknown": {Unknown: true},
		"decoy=crm": {Decoy: "crm"}, "decoy=none": {Decoy: "none"}, "alerts": {Alerts: true, Unknown: true}, "alerts+sid": {Alerts: true, SID: 14200001}, "alerts+sid=none": {Alerts: true, SID: 1},
		"alerts+severity": {Alerts: true, Severity: 1}, "alerts+source": {Alerts: true, Source: network}, "alerts+decoy": {Alerts: true, Decoy: "crm"},
		"alerts+node": {Alerts: true, Node: "branch"}, "alerts+scanner": {Alerts: true, Scanner: "nessus"},
		"since": {Since: time.Now().Add(-time.Hour)},
	} {
		f.Limit = 1000
		b.Run("findings/"+name, func(b *testing.B) {
			n := 0
			for b.Loop() {
				n = 0
				for _, err := range r.Findings(b.Context(), f) {
					if err != nil {
						b.Fatal(err)
					}
					n++
				}
			}
			b.ReportMetric(float64(n), "findings")
		})
	}
	yes := true
	for name, f := range map[string]Filter{
		"all": {}, "id": {ID: rare}, "source": {Source: network}, "network": {Source: netip.MustParsePrefix("203.0.113.0/24")},
		"network=all": {Source: netip.MustParsePrefix("192.0.2.0/24")}, "scanner": {Scanner: "nessus"}, "unknown": {Unknown: true},
		"decoy=crm": {Decoy: "crm"}, "decoy=none": {Decoy: "none"}, "running": {Running: &yes}, "since": {Since: time.Now().Add(-time.Hour)},
		"since+source": {Since: time.Now().Add(-24 * time.Hour), Source: network},
	} {
		f.Limit = 1000
		b.Run("sessions/"+name, func(b *testing.B) {
			n := 0
			for b.Loop() {
				n = 0
				for _, err := range r.Sessions(b.Context(), f) {
					if err != nil {
						b.Fatal(err)
					}
					n++
				}
			}
			b.ReportMetric(float64(n), "sessions")
		})
	}
}
