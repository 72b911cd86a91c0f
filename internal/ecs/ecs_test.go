package ecs

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"decoynet/deception"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares output with a file below testdata.
func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", file)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

func id(t *testing.T, s string) deception.SessionID {
	t.Helper()
	id, err := deception.ParseSessionID(s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// sessions are one of each kind: ended over IPv4 with a moved port, ended over
// IPv6, running, refused before the service was reached, and one whose every
// free byte tries to take over the analyst's terminal.
func sessions(t *testing.T) []deception.Session {
	start := time.Date(2026, 3, 4, 5, 6, 7, 8009, time.UTC)
	ap := netip.MustParseAddrPort
	return []deception.Session{{
		ID: id(t, "019cb7a1-0000-7000-8000-000000000001"), Start: start, End: start.Add(1234567 * time.Microsecond),
		Node: "hq", Segment: "office", Decoy: "office-web", Service: "web",
		Transport: deception.TCP, Path: deception.PathRelay, SourceMode: deception.SourcePortMoved,
		Source: ap("192.0.2.55:40000"), SourceNAT: ap("192.0.2.55:40001"),
		Destination: ap("198.51.100.7:80"), DestinationNAT: ap("10.1.0.2:8080"),
		SourceBytes: 78, DestinationBytes: 15234,
		SourceHead: []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), DestinationHead: []byte("HTTP/1.1 200 OK\r\n"),
		Reason: deception.EndClientClosed,
		Analysis: &deception.Analysis{
			Findings: 7, Alerts: 2, Severity: 1, Application: "http", UserAgent: "sqlmap/1.7 (https://sqlmap.org)", ServerName: "intranet",
			JA3: "e7d705a3286e19ea42f587b344ee6865", JA4: "t13d1516h2_8daaf6152771_02713d6af862", SSH: "OpenSSH_9.2", HASSH: "ec7378c1a92f5a8dde7e8b7a1ddf33d1", User: "admin",
		},
	}, {
		ID: id(t, "019cb7a1-0001-7000-8000-000000000002"), Start: start.Add(time.Second), End: start.Add(time.Hour + 62*time.Second),
		Node: "hq", Segment: "office", Decoy: "office-ssh", Service: "ssh",
		Transport: deception.TCP, Path: deception.PathKernel, SourceMode: deception.SourceKept,
		Source:      ap("[2001:db8:1111:2222:3333:4444:5555:6666]:65535"),
		SourceNAT:   ap("[2001:db8:1111:2222:3333:4444:5555:6666]:65535"),
		Destination: ap("[2001:db8::22]:22"), DestinationNAT: ap("[fd00:10::3]:22"),
		SourceBytes: 1 << 40, DestinationBytes: 999, Reason: deception.EndServiceReset, Scanner: "audit",
		Analysis: &deception.Analysis{Findings: 1, Application: "failed", Partial: true},
	}, {
		ID: id(t, "019cb7a1-0002-7000-8000-000000000003"), Start: start.Add(2 * time.Second),
		Segment: "office", Decoy: "snmp", Service: "snmp", Transport: deception.UDP, Path: deception.PathRelay,
		Source: ap("192.0.2.55:161"), SourceNAT: ap("192.0.2.55:161"),
		Destination: ap("198.51.100.8:161"), DestinationNAT: ap("10.1.0.9:161"),
	}, {
		ID: id(t, "019cb7a1-0003-7000-8000-000000000004"), Start: start.Add(3 * time.Second), End: start.Add(3*time.Second + 40*time.Microsecond),
		Segment: "office", Decoy: "office-web", Service: "web", Transport: deception.TCP, Path: deception.PathRelay,
		Source: ap("192.0.2.56:1"), Destination: ap("198.51.100.7:443"), Reason: deception.EndRefused,
	}, {
		ID: id(t, "019cb7a1-0004-7000-8000-000000000005"), Start: start.Add(4 * time.Second), End: start.Add(5 * time.Second),
		Segment: "off\x1b[2Jice", Decoy: "\u202egnp\U000e0041.exe", Service: "we\nb\u009b31m", Transport: deception.TCP, Path: deception.PathRelay,
		Source: netip.AddrPortFrom(netip.MustParseAddr("fe80::1").WithZone("lan\x1b]0;pwned\a0"), 7), Destination: ap("[fe80::2]:80"),
		SourceHead:      []byte("\x1b]0;owned\x07\x1b[2J\x9b31m\u009b0m\x00\x7f\\\"'\t\u202eabc\xff" + strings.Repeat("A", 100)),
		DestinationHead: []byte("\r\n\x08\x08\x1bP$q\x1b\\"), Reason: deception.EndIdle, Scanner: "\x1b[2Jaudit",
		Analysis: &deception.Analysis{
			Findings: 1, Alerts: 1, Severity: 255, Application: "ht\x1b[2Jtp", UserAgent: "\x1b]0;owned\x07\u202e", ServerName: "\u009b31m", JA3: "\x1b[2J",
			JA4: "\x1b[2J", SSH: "\x1b[2J", HASSH: "\u202e", User: "\x07",
		},
	}}
}

func TestDocumentsAreWhatTheContractSays(t *testing.T) {
	var out bytes.Buffer
	j := NewJSON(&out)
	for _, s := range sessions(t) {
		if err := j.Write(&s); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "sessions.json", out.Bytes())

	// What the contract lists, for an ended session that has everything.
	var doc map[string]any
	first, _, _ := strings.Cut(out.String(), "\n")
	if err := json.Unmarshal([]byte(first), &doc); err != nil {
		t.Fatal(err)
	}
	for _, key := range strings.Fields(`@timestamp event.id event.start event.end event.duration event.kind
		event.category event.action source.ip source.port source.nat.ip source.nat.port destination.ip
		destination.port destination.nat.ip destination.nat.port network.transport network.community_id
		network.type decoynet.segment decoynet.node decoynet.decoy decoynet.service decoynet.path
		decoynet.source_mode decoynet.end_reason source.bytes destination.bytes decoynet.source_head
		decoynet.destination_head network.protocol user_agent.original tls.client.ja3 decoynet.tls.ja4 decoynet.ssh.client
		decoynet.ssh.hassh destination.domain user.name decoynet.findings decoynet.alerts decoynet.severity decoynet.partial`) {
		if _, ok := doc[key]; !ok {
			t.Errorf("no %s in %s", key, first)
		}
	}
	head, err := base64.StdEncoding.DecodeString(doc["decoynet.source_head"].(string))
	if err != nil || !strings.HasPrefix(string(head), "GET / HTTP/1.1\r\n") {
		t.Errorf("source_head = %q, %v", head, err)
	}
	safeForTerminals(t, out.String())
}

func TestDocumentsCanBeReadBack(t *testing.T) {
	for _, s := range sessions(t)[:4] {
		want := Document(&s)
		text, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got SessionDocument
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatal(err)
		}
		again, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(text), string(again)); diff != "" {
			t.Error(diff)
		}
	}
}

// The vectors are those of the specification's baseline, which Zeek and
// Suricata are tested against.
func TestCommunityID(t *testing.T) {
	for _, v := range []struct {
		transport deception.Transport
		a, b      string
		want      string
	}{
		{deception.TCP, "128.232.110.120:34855", "66.35.250.204:80", "1:LQU9qZlK+B5F3KDmev6m5PMibrg="},
		{deception.UDP, "192.168.1.52:54585", "8.8.8.8:53", "1:d/FP5EW3wiY1vCndhwleRRKHowQ="},
		{132, "192.168.170.8:7", "192.168.170.56:7", "1:MP2EtRCAUIZvTw6MxJHLV7N7JDs="},
		{deception.TCP, "[2001:470:e5bf:dead:4957:2174:e82c:4887]:63943", "[2607:f8b0:400c:c03::1a]:25", "1:/qFaeAR+gFe1KYjMzVDsMv+wgU4="},
	} {
		a, b := netip.MustParseAddrPort(v.a), netip.MustParseAddrPort(v.b)
		if got := CommunityID(v.transport, a, b); got != v.want {
			t.Errorf("%s -> %s: %s, want %s", v.a, v.b, got, v.want)
		}
		if got := CommunityID(v.transport, b, a); got != v.want {
			t.Errorf("%s -> %s: %s, want %s", v.b, v.a, got, v.want)
		}
	}
	if got := CommunityID(deception.TCP, netip.AddrPort{}, netip.MustParseAddrPort("192.0.2.1:1")); got != "" {
		t.Errorf("without a source: %q", got)
	}
	// One address, two ports: the port decides the order.
	a, b := netip.MustParseAddrPort("192.0.2.1:9"), netip.MustParseAddrPort("192.0.2.1:10")
	if x, y := CommunityID(deception.TCP, a, b), CommunityID(deception.TCP, b, a); x != y {
		t.Errorf("%s and %s for the two directions", x, y)
	}
	// A zone names an interface of ours; other tools know nothing of it.
	zoned := netip.AddrPortFrom(netip.MustParseAddr("fe80::1%lan"), 7)
	bare := netip.AddrPortFrom(netip.MustParseAddr("fe80::1"), 7)
	peer := netip.MustParseAddrPort("[fe80::2]:80")
	if x, y := CommunityID(deception.TCP, zoned, peer), CommunityID(deception.TCP, bare, peer); x != y {
		t.Errorf("%s with a zone, %s without", x, y)
	}
}

func tableOptions(wide bool) TableOptions {
	return TableOptions{Wide: wide, Location: time.UTC, Now: func() time.Time {
		return time.Date(2026, 3, 4, 5, 6, 19, 0, time.UTC)
	}}
}

func TestTables(t *testing.T) {
	for file, isWide := range map[string]bool{"table.txt": false, "wide.txt": true} {
		var out bytes.Buffer
		table := NewTable(&out, tableOptions(isWide))
		for _, s := range sessions(t) {
			if err := table.Write(&s); err != nil {
				t.Fatal(err)
			}
		}
		if err := table.Flush(); err != nil {
			t.Fatal(err)
		}
		golden(t, file, out.Bytes())
		safeForTerminals(t, out.String())
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if len(lines) != len(sessions(t))+1 {
			t.Errorf("%s: %d lines", file, len(lines))
		}
		for _, title := range []string{"SOURCE", "DECOY", "SERVICE", "STATE"} {
			at := strings.Index(lines[0], title)
			for _, line := range lines[1:] {
				cols := []rune(line)
				if cols[at-1] != ' ' || cols[at] == ' ' {
					t.Errorf("%s: column %s does not begin at %d in %q", file, title, at, line)
				}
			}
		}
	}
}

// safeForTerminals fails for anything but printable text in lines.
func safeForTerminals(t *testing.T, s string) {
	t.Helper()
	for i, r := range s {
		if r != '\n' && !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			t.Fatalf("%U at %d, behind %q", r, i, s[max(0, i-40):i])
		}
	}
}

func TestATableThatGrowsHasOneHeader(t *testing.T) {
	var out bytes.Buffer
	table := NewTable(&out, tableOptions(false))
	if err := table.Flush(); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out.String(), "TIME ") {
		t.Fatalf("no header before the first session: %q", out.String())
	}
	all := sessions(t)
	for _, i := range []int{0, 2, 1, 0} { // the third is wider than what came before
		if err := table.Write(&all[i]); err != nil {
			t.Fatal(err)
		}
		if err := table.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(out.String(), "SOURCE"); n != 1 {
		t.Errorf("%d headers:\n%s", n, out.String())
	}
	lines := strings.Split(out.String(), "\n")
	if a, b := strings.Index(lines[0], "DECOY"), strings.Index(lines[1], "198.51.100.7"); a != b {
		t.Errorf("DECOY at %d, its first cell at %d:\n%s", a, b, out.String())
	}
	if a, b := strings.Index(lines[3], "[2001:db8::22]"), strings.Index(lines[4], "198.51.100.7"); a != b {
		t.Errorf("a wider row does not move the rows behind it (%d, %d):\n%s", a, b, out.String())
	}
}

func TestPrintable(t *testing.T) {
	for _, v := range []struct {
		in    string
		limit int
		want  string
	}{
		{"", 10, ""},
		{"plain text", 10, "plain text"},
		{"plain text!", 10, "plain t..."},
		{"\x1b[31m", 20, `\x1b[31m`},
		{"\x9b31m", 20, `\x9b31m`},
		{"\u009b", 20, `\xc2\x9b`},
		{"a\\b\r\n\t\x00\x7f", 40, `a\\b\r\n\t\x00\x7f`},
		{"é", 20, `\xc3\xa9`},
		{"abc\x00", 7, `abc\x00`},
		{"abc\x00d", 7, `abc...`},
	} {
		if got := Printable([]byte(v.in), v.limit); got != v.want {
			t.Errorf("Printable(%q, %d) = %q, want %q", v.in, v.limit, got, v.want)
		}
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add([]byte("\x1b]0;x\a"), 12)
	f.Fuzz(func(t *testing.T, b []byte, limit int) {
		limit = 3 + limit&0xff
		got := Printable(b, limit)
		if len(got) > limit {
			t.Errorf("%d columns, %d allowed", len(got), limit)
		}
		for _, c := range []byte(got) {
			if c < ' ' || c > '~' {
				t.Errorf("byte %#x in %q", c, got)
			}
		}
	})
}

func TestSizesAndSpansFitTheirColumns(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0", 999: "999", 1000: "1.0k", 9949: "9.9k", 9951: "10k", 999_499: "999k",
		999_500: "1.0M", 1 << 40: "1.1T", 1<<64 - 1: "18E",
	} {
		if got := size(n); got != want || len(got) > 4 {
			t.Errorf("size(%d) = %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		-1: "0s", 40 * time.Microsecond: "40us", 1500 * time.Microsecond: "1.5ms", 250 * time.Millisecond: "250ms",
		9990 * time.Millisecond: "9.9s", 70 * time.Second: "1m10s", time.Hour: "1h00m", 26 * time.Hour: "1d02h",
	} {
		if got := span(d); got != want || len(got) > 8 {
			t.Errorf("span(%v) = %s, want %s", d, got, want)
		}
	}
}
