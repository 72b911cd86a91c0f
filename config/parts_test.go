package config

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"decoynet/deception"
)

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{
		{"", "", 0},
		{"", "abc", 3},
		{"web", "web", 0},
		{"wbe", "web", 1},
		{"adresses", "addresses", 1},
		{"kernal", "kernel", 1},
		{"segmnets", "segments", 1},
		{"office", "home", 5},
	} {
		if got := distance(tt.a, tt.b); got != tt.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
		if got := distance(tt.b, tt.a); got != tt.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tt.b, tt.a, got, tt.want)
		}
	}
}

func TestSuggest(t *testing.T) {
	many := make([]string, 20)
	for i := range many {
		many[i] = fmt.Sprintf("office-%02d", i)
	}
	for _, tt := range []struct {
		name  string
		known []string
		want  string
	}{
		{"wbe", []string{"ssh", "web"}, `did you mean "web"`},
		{"WEB", []string{"ssh", "web"}, `did you mean "web"`},
		{"snmp", []string{"ssh", "web"}, "known services: ssh, web"},
		{"snmp", nil, "the document has no services, add one of that name"},
		{"x", many, "known services: office-00, office-01, office-02, office-03, office-04, office-05, office-06, office-07, office-08, office-09, office-10, office-11 and 8 others"},
	} {
		if got := suggest(tt.name, "services", tt.known); got != tt.want {
			t.Errorf("suggest(%q) = %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestParseDuration(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"90d": 90 * 24 * time.Hour, "720h": 720 * time.Hour, "1d12h": 36 * time.Hour,
		"1h30m": 90 * time.Minute, "1s": time.Second, "0d1s": time.Second,
	} {
		if got, err := parseDuration(s); err != nil || got != want {
			t.Errorf("parseDuration(%q) = %v, %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "d", "30", "-1d", "1d-1h", "1d2d", "1.5d", "99999d", "1w", "h"} {
		if got, err := parseDuration(s); err == nil {
			t.Errorf("parseDuration(%q) = %v, want an error", s, got)
		}
	}
}

// TestClashes compares the sweep with the plain comparison of every pair.
func TestClashes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 2000 {
		spans := randomSpans(rng)
		got := map[pos]clash[int]{}
		for _, c := range clashes(spans, cmp.Compare[int]) {
			if _, twice := got[c.at]; twice {
				t.Fatalf("round %d: %v reported twice in %v", round, c.at, spans)
			}
			got[c.at] = c
		}
		for i, s := range spans {
			var earlier, all int
			for j, o := range spans {
				if i != j && s.from <= o.to && o.from <= s.to {
					all++
					if j < i {
						earlier++
					}
				}
			}
			c, reported := got[s.at]
			if reported != (earlier > 0) {
				t.Fatalf("round %d: span %d of %v reported: %v, meets %d before it", round, i, spans, reported, earlier)
			}
			if reported && (c.others != all-1 || c.first.at.compare(c.at) >= 0 || c.first.from > c.to || c.from > c.first.to) {
				t.Fatalf("round %d: span %d of %v: clash %+v, meets %d", round, i, spans, c, all)
			}
		}
	}
}

// randomSpans makes spans of different owners in document order.
func randomSpans(rng *rand.Rand) []span[int] {
	spans := make([]span[int], rng.IntN(12))
	for i := range spans {
		from := rng.IntN(40)
		spans[i] = span[int]{from: from, to: from + rng.IntN(8), at: pos{i + 1, 1}, owner: i}
	}
	return spans
}

func TestClashesWithinOneOwner(t *testing.T) {
	at := func(line int) pos { return pos{line, 1} }
	spans := []span[int]{
		{from: 1, to: 5, at: at(1), owner: 1},
		{from: 4, to: 9, at: at(2), owner: 1}, // meets its own only
		{from: 9, to: 9, at: at(3), owner: 2},
		{from: 10, to: 12, at: at(4), owner: 2},
		{from: 12, to: 12, at: at(4), owner: 3}, // one place, by a YAML alias
	}
	got := clashes(spans, cmp.Compare[int])
	if len(got) != 2 || got[0].at != at(3) || got[0].first.at != at(1) || got[1].owner != 3 || got[1].first.owner != 2 {
		t.Errorf("clashes = %+v", got)
	}
}

func TestSubtract(t *testing.T) {
	r := func(s string) deception.AddrRange {
		out, err := deception.ParseAddrRange(s)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, tt := range []struct {
		from string
		cuts []string
		want string
	}{
		{"192.0.2.0/24", []string{"192.0.2.255", "192.0.2.0", "192.0.2.1"}, "[192.0.2.2-192.0.2.254]"},
		{"192.0.2.0/24", []string{"192.0.0.0/16"}, "[]"},
		{"192.0.2.5", []string{"192.0.2.6"}, "[192.0.2.5]"},
		{"255.255.255.250-255.255.255.255", []string{"255.255.255.255"}, "[255.255.255.250-255.255.255.254]"},
		{"192.0.2.10-192.0.2.20", []string{"192.0.2.0-192.0.2.10", "192.0.2.14-192.0.2.15", "192.0.2.20-192.0.2.30"}, "[192.0.2.11-192.0.2.13 192.0.2.16-192.0.2.19]"},
	} {
		var cuts []deception.AddrRange
		for _, c := range tt.cuts {
			cuts = append(cuts, r(c))
		}
		if got := fmt.Sprint(subtract(r(tt.from), cuts)); got != tt.want {
			t.Errorf("subtract(%s, %v) = %s, want %s", tt.from, tt.cuts, got, tt.want)
		}
	}
}

func TestServiceMissing(t *testing.T) {
	tcp := func(first, last uint16) deception.PortRange {
		return deception.PortRange{Transport: deception.TCP, First: first, Last: last}
	}
	s := &serviceDraft{sorted: []deception.PortRange{tcp(80, 80), tcp(81, 90), tcp(92, 92), tcp(65000, 65535)}}
	for _, tt := range []struct {
		want  deception.PortRange
		port  uint16
		lacks bool
	}{
		{tcp(80, 90), 0, false},
		{tcp(85, 92), 91, true},
		{tcp(79, 80), 79, true},
		{tcp(65000, 65535), 0, false},
		{deception.Port(deception.UDP, 80), 80, true},
	} {
		if port, lacks := s.missing(tt.want); lacks != tt.lacks || lacks && port != tt.port {
			t.Errorf("missing(%s) = %d, %v, want %d, %v", tt.want, port, lacks, tt.port, tt.lacks)
		}
	}
}

func TestHostAddresses(t *testing.T) {
	for s, ok := range map[string]bool{
		"192.0.2.1": true, "2001:db8::1": true, "10.0.0.0": true,
		"127.0.0.1": false, "0.0.0.0": false, "224.0.0.1": false, "255.255.255.255": false,
		"::": false, "::1": false, "fe80::1": false, "ff02::1": false, "::ffff:192.0.2.1": false,
	} {
		if _, err := parseHostAddr(s); (err == nil) != ok {
			t.Errorf("parseHostAddr(%s): %v", s, err)
		}
	}
	if a, err := parseGateway("fe80::1"); err != nil || a != netip.MustParseAddr("fe80::1") {
		t.Errorf("parseGateway(fe80::1) = %v, %v", a, err)
	}
}
