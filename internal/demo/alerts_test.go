package demo

import (
	"bytes"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"decoynet/deception"
	"decoynet/internal/ecs"
)

// detected is the small true story with its sessions' alerts, of which the visits
// to redis and over UDP have two.
func detected(t *testing.T) evidence {
	t.Helper()
	e := scenario(t)
	says := []alert{
		{Severity: 3, Says: "http: request"},
		{Severity: 3, Says: "tls: handshake"},
		{Severity: 4, Says: "closed without a word"},
		{Severity: 1, Says: "redis: data written"},
		{Severity: 2, Says: "snmp: community tried"},
	}
	for i := range e.Sessions {
		s := &e.Sessions[i]
		s.ID = string(rune('a' + i))
		a := says[i]
		a.flow, a.Service, a.Session, a.Time = s.flow, s.Service, s.ID, s.Start
		e.Alerts = append(e.Alerts, a)
		if i >= 3 {
			a.Severity, a.Says = 4, "contact"
			e.Alerts = append(e.Alerts, a)
		}
	}
	return e
}

// TestJudgeAlerts changes one thing in the true story and tells what must be said
// then.
func TestJudgeAlerts(t *testing.T) {
	if v := judgeAlerts(detected(t), judgeServers(detected(t))); v.Connections != 5 || v.Detected != 5 || len(v.Faults) > 0 {
		t.Errorf("the true story: %+v", v)
	}
	for name, c := range map[string]struct {
		change func(*evidence)
		want   []string
	}{
		"another address": {
			func(e *evidence) { e.Alerts[0].Source = ap("192.0.2.20:1001") },
			[]string{
				`"http: request" is about 192.0.2.20:1001 -> 192.0.2.21:80, which no intruder used`,
				"no alert is about tool 192.0.2.66:1001 -> 192.0.2.21:80",
			},
		},
		"another port": {
			func(e *evidence) { e.Alerts[2].Source = ap("192.0.2.66:61003") },
			[]string{
				`"closed without a word" is about 192.0.2.66:61003 -> 192.0.2.22:80, which no intruder used`,
				"no alert is about any of the 1 connections of the scan of the office",
			},
		},
		"both ends exchanged": {
			func(e *evidence) { e.Alerts[2].flow = e.Alerts[2].reversed() },
			[]string{
				`"closed without a word" is about 192.0.2.22:80 -> 192.0.2.66:1003, which no intruder used`,
				"no alert is about any of the 1 connections of the scan of the office",
			},
		},
		"the service's address": {
			func(e *evidence) { e.Alerts[3].Destination = ap("10.1.129.0:6379") },
			[]string{`"redis: data written" is about 192.0.2.66:1004 -> 10.1.129.0:6379, which no intruder used`},
		},
		"no session":        {func(e *evidence) { e.Alerts[0].Session = "" }, []string{`"http: request" about 192.0.2.66:1001 -> 192.0.2.21:80 belongs to no session`}},
		"a session unknown": {func(e *evidence) { e.Alerts[0].Session = "z" }, []string{`"http: request" about 192.0.2.66:1001 -> 192.0.2.21:80 belongs to no session`}},
		"another's session": {
			func(e *evidence) { e.Alerts[0].Session = "c" },
			[]string{`"http: request" about 192.0.2.66:1001 -> 192.0.2.21:80 belongs to the session 192.0.2.66:1003 -> 192.0.2.22:80`},
		},
		"another service": {
			func(e *evidence) { e.Alerts[0].Service = "redis" },
			[]string{`"http: request" about 192.0.2.66:1001 -> 192.0.2.21:80 names the service "redis"`},
		},
		"whom the server did not see": {
			func(e *evidence) { e.Servers[1].Contacts[0].Peer = ap("10.1.0.1:1004") },
			[]string{`"redis: data written" is about 192.0.2.66:1004, but redis has not logged that peer`}, // once for both alerts
		},
		"a visit missed": {
			func(e *evidence) { e.Alerts = slices.Delete(e.Alerts, 3, 5) },
			[]string{"no alert is about tool 192.0.2.66:1004 -> 192.0.2.21:6379"},
		},
		"a scan missed":   {func(e *evidence) { e.Alerts = slices.Delete(e.Alerts, 2, 3) }, []string{"no alert is about any of the 1 connections of the scan of the office"}},
		"nothing at all":  {func(e *evidence) { e.Alerts, e.Visits = nil, nil }, []string{"no alert is about any of the 5 connections of the scan of the office"}},
		"an alert twice":  {func(e *evidence) { e.Alerts = append(e.Alerts, e.Alerts[0]) }, nil},
		"part of a scan":  {moreOfTheScan, nil},
		"the branch scan": {branchScanMissed, []string{"no alert is about any of the 1 connections of the scan of crm-1"}},
	} {
		t.Run(name, func(t *testing.T) {
			e := detected(t)
			c.change(&e)
			if diff := cmp.Diff(c.want, judgeAlerts(e, judgeServers(e)).Faults); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
		})
	}
}

func moreOfTheScan(e *evidence) { establish(e, tcp("192.0.2.66:1006", "192.0.2.23:80")) }

func branchScanMissed(e *evidence) { establish(e, tcp("198.51.100.66:1006", "198.51.100.10:80")) }

func establish(e *evidence, f flow) {
	e.Card.began = append(e.Card.began, f)
	e.Card.stage[f] = established
}

// TestAlertScreen shows what a person reads of many alerts.
func TestAlertScreen(t *testing.T) {
	var out bytes.Buffer
	s := &screen{w: &out, began: time.Now()}
	e := detected(t)
	branch := tcp("198.51.100.66:40001", "198.51.100.10:6379")
	e.Alerts = append(e.Alerts,
		alert{flow: branch, Severity: 4, Says: "closed without a word", Service: "redis", Time: e.Sessions[0].Start},
		alert{flow: tcp("192.0.2.66:1006", "192.0.2.23:80"), Severity: 4, Says: "closed without a word", Service: "web", Time: e.Sessions[4].Start})
	s.alerts(e)
	s.verdict("suricata", "says", nil)
	s.omitted("suricata", "none on this machine: nothing was detected")
	golden(t, "alerts.txt", out.String())
}

// TestAlertOf reads an alert as `get alerts -o json` writes it.
func TestAlertOf(t *testing.T) {
	at := time.Date(2026, 1, 31, 15, 4, 5, 0, time.UTC)
	finding := deception.Finding{
		ID: deception.NewSessionID(at), Session: deception.NewSessionID(at), Time: at, Kind: deception.KindAlert, Transport: deception.UDP,
		Source: ap("[2001:db8:51::66]:40001"), Destination: ap("[2001:db8:51::10]:161"),
		Alert: &deception.Alert{SID: 14200214, Severity: 2, Signature: "snmp: community tried"},
		Of:    deception.Place{Service: "snmp"},
	}
	text, err := json.Marshal(ecs.NewFindingDocument(&finding))
	if err != nil {
		t.Fatal(err)
	}
	var d ecs.FindingDocument
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	want := alert{
		flow: udp("[2001:db8:51::66]:40001", "[2001:db8:51::10]:161"), Time: at,
		Severity: 2, Says: "snmp: community tried", Service: "snmp", Session: finding.Session.String(),
	}
	if diff := cmp.Diff(want, alertOf(d), cmp.Comparer(func(a, b alert) bool { return a == b })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
