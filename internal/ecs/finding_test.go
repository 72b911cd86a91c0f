package ecs

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
)

// findings are an alert and a request of one session, what a rule said of a known
// scanner, a file of no session that is known, and one whose every free byte tries
// to take over the analyst's terminal.
func findings(t *testing.T) []deception.Finding {
	at := time.Date(2026, 3, 4, 5, 6, 7, 8009, time.UTC)
	ap := netip.MustParseAddrPort
	place := deception.Place{Node: "trunk-1", Segment: "office", Decoy: "office-web", Service: "web"}
	return []deception.Finding{{
		ID: id(t, "019cb7a1-0000-7000-8000-00000000000a"), Session: id(t, "019cb7a1-0000-7000-8000-000000000001"), Time: at,
		Node: "hq", Kind: deception.KindAlert, Application: "http", Transport: deception.TCP, Of: place, FeedLost: 12,
		Source: ap("192.0.2.55:40000"), Destination: ap("198.51.100.7:80"),
		Alert:    &deception.Alert{GID: 1, SID: 2010937, Revision: 3, Signature: "ET SCAN Suspicious inbound to mySQL port 3306", Category: "Potentially Bad Traffic", Severity: 2, ToService: true},
		Document: []byte(`{"event_type":"alert","alert":{"signature_id":2010937},"http":{"http_user_agent":"<sqlmap> & co"}}`),
	}, {
		ID: id(t, "019cb7a1-0001-7000-8000-00000000000b"), Session: id(t, "019cb7a1-0000-7000-8000-000000000001"), Time: at.Add(time.Second),
		Node: "hq", Kind: "http", Application: "http", Transport: deception.TCP, Of: place, FeedLost: 13, Partial: true,
		Source: ap("192.0.2.55:40000"), Destination: ap("198.51.100.7:80"),
		Document: []byte(`{"event_type":"http","http":{"hostname":"intranet","url":"/login?a=1","http_user_agent":"sqlmap/1.7","http_method":"POST","protocol":"HTTP/1.1","status":404}}`),
	}, {
		ID: id(t, "019cb7a1-0002-7000-8000-00000000000c"), Session: id(t, "019cb7a1-0001-7000-8000-000000000002"), Time: at.Add(2 * time.Second),
		Node: "hq", Kind: deception.KindAlert, Application: "failed", Transport: deception.TCP, Of: place, Scanner: "audit",
		Source: ap("[2001:db8::1]:65535"), Destination: ap("[2001:db8::22]:22"),
		Alert: &deception.Alert{GID: 1, SID: 1, Signature: "local", Severity: 255},
	}, {
		ID: id(t, "019cb7a1-0003-7000-8000-00000000000d"), Time: at.Add(3 * time.Second),
		Node: "hq", Kind: deception.KindFile, Transport: deception.TCP, Source: ap("192.0.2.56:1"), Destination: ap("198.51.100.8:445"), Application: "smb",
		Document: []byte(`{"fileinfo":{"filename":"\\evil.exe","size":4096,"state":"CLOSED","sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}}`),
	}, {
		ID: id(t, "019cb7a1-0004-7000-8000-00000000000e"), Time: at.Add(4 * time.Second),
		Node: "hq\x1b[2J", Kind: "x\x1b]0;owned\x07", Application: "\u009b31m", Transport: 132, Scanner: "\u202e",
		Of:       deception.Place{Node: "\x1b[2J", Segment: "\x1b[2J", Decoy: "\u202egnp", Service: "we\nb"},
		Document: []byte("not JSON \x1b[2J"),
	}, {
		ID: id(t, "019cb7a1-0005-7000-8000-00000000000f"), Time: at.Add(5 * time.Second), Node: "hq", Kind: deception.KindAlert,
		Alert:    &deception.Alert{GID: 1, SID: 7, Signature: "\x1b[2J\u202e", Category: "\x1b]0;x\a", Severity: 3},
		Document: []byte(`{"http":{"url":"\u001b[2J\u202e\u009b31m","x":"` + "\u202e\u009b" + `"}}`),
	}}
}

func TestFindingDocuments(t *testing.T) {
	var out bytes.Buffer
	j := NewJSON(&out)
	for _, f := range findings(t) {
		if err := j.WriteFinding(&f); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "findings.json", out.Bytes())
	safeForTerminals(t, out.String())
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var doc map[string]any
	if err := json.Unmarshal([]byte(lines[0]), &doc); err != nil {
		t.Fatal(err)
	}
	for _, key := range strings.Fields(`@timestamp ecs.version event.id event.kind event.category event.type event.action event.module
		event.dataset event.severity rule.id rule.name rule.category rule.version source.ip source.port destination.ip destination.port
		network.transport network.type network.protocol network.community_id decoynet.session decoynet.node decoynet.segment decoynet.decoy
		decoynet.service decoynet.inspect.node decoynet.feed_lost decoynet.partial suricata.eve`) {
		if _, ok := doc[key]; !ok {
			t.Errorf("no %s in %s", key, lines[0])
		}
	}
	if doc["event.kind"] != "alert" || doc["rule.id"] != "2010937" || doc["decoynet.node"] != "trunk-1" {
		t.Error(lines[0])
	}
	if agent := doc["suricata.eve"].(map[string]any)["http"].(map[string]any)["http_user_agent"]; agent != "<sqlmap> & co" {
		t.Errorf("Suricata's event is not as it was: %v", agent)
	}
	for i, kind := range []string{"alert", "event", "event", "event", "event", "alert"} {
		if !strings.Contains(lines[i], `"event.kind":"`+kind+`"`) {
			t.Errorf("not an %s: %s", kind, lines[i])
		}
	}
}

func TestFindingTables(t *testing.T) {
	for file, table := range map[string]func(*bytes.Buffer) *FindingTable{
		"alerts.txt":        func(b *bytes.Buffer) *FindingTable { return NewAlertTable(b, tableOptions(false)) },
		"alerts-wide.txt":   func(b *bytes.Buffer) *FindingTable { return NewAlertTable(b, tableOptions(true)) },
		"findings.txt":      func(b *bytes.Buffer) *FindingTable { return NewFindingTable(b, tableOptions(false)) },
		"findings-wide.txt": func(b *bytes.Buffer) *FindingTable { return NewFindingTable(b, tableOptions(true)) },
	} {
		var out bytes.Buffer
		to := table(&out)
		for _, f := range findings(t) {
			if err := to.Write(&f); err != nil {
				t.Fatal(err)
			}
		}
		if err := to.Flush(); err != nil {
			t.Fatal(err)
		}
		golden(t, file, out.Bytes())
		safeForTerminals(t, out.String())
		if n := strings.Count(out.String(), "\n"); n != len(findings(t))+1 {
			t.Errorf("%s: %d lines", file, n)
		}
	}
}
