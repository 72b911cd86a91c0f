package demo

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"decoynet/deception"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// scenario is a small true story: two visits to nginx (one of a port scan's
// connections besides, that sent nothing), one to redis, one over UDP.
func scenario(t *testing.T) evidence {
	t.Helper()
	p, err := readPlan(Document, map[netip.Addr]string{addr("198.51.100.10"): "crm-1", addr("2001:db8:51::10"): "crm-1"})
	if err != nil {
		t.Fatal(err)
	}
	flows := []flow{
		tcp("192.0.2.66:1001", "192.0.2.21:80"),
		tcp("[2001:db8:2::66]:1002", "[2001:db8:2::100]:443"),
		tcp("192.0.2.66:1003", "192.0.2.22:80"),
		tcp("192.0.2.66:1004", "192.0.2.21:6379"),
		udp("192.0.2.66:1005", "192.0.2.21:161"),
	}
	seenAt := []netip.AddrPort{
		ap("10.1.128.0:80"), ap("[fd00:1:0:8000::]:443"), ap("10.1.128.1:80"), ap("10.1.129.0:6379"), ap("10.1.131.0:161"),
	}
	e := evidence{Plan: p, Card: newRecord([]netip.Addr{addr("192.0.2.66"), addr("2001:db8:2::66")})}
	for i, f := range flows {
		e.Card.began = append(e.Card.began, f)
		e.Card.stage[f] = established
		e.Sessions = append(e.Sessions, session{
			flow: f, Seen: flow{f.Transport, f.Source, seenAt[i]}, Service: p.service(f.Transport, f.Destination),
			Path: "relay", Reason: "client_closed", Start: time.Date(2026, 1, 31, 15, 4, 5, i*1e6, time.UTC),
		})
		if i != 2 {
			e.Visits = append(e.Visits, visit{flow: f, Tool: "tool"})
		}
	}
	e.Servers = []server{
		{Name: "nginx", Service: "web", Transport: deception.TCP, Contacts: []contact{
			{flows[0].Source, seenAt[0]}, {flows[1].Source, seenAt[1]},
		}},
		{Name: "redis", Service: "redis", Transport: deception.TCP, Contacts: []contact{{Peer: flows[3].Source}}},
		{Name: "udp", Service: "snmp", Transport: deception.UDP, Checks: []netip.Addr{addr("10.1.0.1")}, Contacts: []contact{
			{ap("10.1.0.1:5000"), ap("10.1.0.5:161")},
			{ap("10.1.0.1:5000"), ap("10.1.0.5:161")},
			{flows[4].Source, seenAt[4]},
			{flows[4].Source, seenAt[4]}, // two datagrams
		}},
	}
	return e
}

func TestJudgeTruth(t *testing.T) {
	e := scenario(t)
	type outcome struct{ Peers, Checks, Matched, Sessions, Rows, Faults int }
	var got []outcome
	for _, v := range judgeServers(e) {
		got = append(got, outcome{v.Peers, v.Checks, v.Matched, v.Sessions, len(v.Rows), len(v.Faults)})
		for _, r := range v.Rows {
			if !r.same() {
				t.Errorf("%s: %+v is not the same", v.Name, r)
			}
		}
	}
	want := []outcome{{2, 0, 2, 3, 2, 0}, {1, 0, 1, 1, 1, 0}, {1, 2, 1, 1, 1, 0}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("servers (-want +got):\n%s", diff)
	}
	if n, faults := judgeSessions(e); n != 5 || len(faults) > 0 {
		t.Errorf("sessions: %d connections, %v", n, faults)
	}
}

// TestJudgeLies changes one thing in the true story, and tells what must be
// said then, by whom.
func TestJudgeLies(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*evidence)
		want   []string // all faults, servers' first
	}{
		"masqueraded": {
			func(e *evidence) { e.Servers[0].Contacts[0].Peer = ap("10.1.0.1:1001") },
			[]string{
				"nginx saw 10.1.0.1:1001, which the intruder never used",
				"tool 192.0.2.66:1001 -> 192.0.2.21:80 got its answer, but nginx has not logged that peer",
			},
		},
		"masqueraded like a check": {
			func(e *evidence) { e.Servers[2].Contacts = []contact{{Peer: ap("10.1.0.1:1005")}} },
			[]string{"tool 192.0.2.66:1005 -> 192.0.2.21:161 got its answer, but udp has not logged that peer"},
		},
		"another port": {
			func(e *evidence) { e.Servers[1].Contacts[0].Peer = ap("192.0.2.66:61004") },
			[]string{
				"redis saw 192.0.2.66:61004, which the intruder never used",
				"tool 192.0.2.66:1004 -> 192.0.2.21:6379 got its answer, but redis has not logged that peer",
			},
		},
		"a port that was used elsewhere": {
			func(e *evidence) {
				e.Servers[1].Contacts[0].Peer = ap("192.0.2.66:1001")
				e.Sessions[3].Seen.Source = ap("192.0.2.66:1001")
			},
			[]string{
				"redis saw 192.0.2.66:1001, the intruder came from 192.0.2.66:1004",
				"tool 192.0.2.66:1004 -> 192.0.2.21:6379 got its answer, but redis has not logged that peer",
			},
		},
		"a session that says what nobody saw": {
			func(e *evidence) { e.Sessions[0].Seen.Source = ap("10.1.0.1:1001") },
			[]string{
				"nginx saw 192.0.2.66:1001, of which no session is recorded",
				"tool 192.0.2.66:1001 -> 192.0.2.21:80 got its answer, but nginx has not logged that peer",
			},
		},
		"a session of another address of the service": {
			func(e *evidence) { e.Servers[0].Contacts[0].Local = ap("10.1.128.7:80") },
			[]string{
				"nginx saw 192.0.2.66:1001, of which no session is recorded",
				"tool 192.0.2.66:1001 -> 192.0.2.21:80 got its answer, but nginx has not logged that peer",
			},
		},
		"logged twice": {
			func(e *evidence) { e.Servers[1].Contacts = append(e.Servers[1].Contacts, e.Servers[1].Contacts[0]) },
			[]string{"redis saw 192.0.2.66:1004, of which no session is recorded"},
		},
		"a session lost": {
			func(e *evidence) { e.Sessions = slices.Delete(e.Sessions, 0, 1) },
			[]string{
				"nginx saw 192.0.2.66:1001, of which no session is recorded",
				"tool 192.0.2.66:1001 -> 192.0.2.21:80 got its answer, but no session is recorded",
				"tcp 192.0.2.66:1001 -> 192.0.2.21:80 was accepted, but no session is recorded",
			},
		},
		"a session of the scan lost": {
			func(e *evidence) { e.Sessions = slices.Delete(e.Sessions, 2, 3) },
			[]string{"tcp 192.0.2.66:1003 -> 192.0.2.22:80 was accepted, but no session is recorded"},
		},
		"a session twice": {
			func(e *evidence) {
				again := e.Sessions[2]
				again.Reason = "lost"
				e.Sessions = append(e.Sessions, again)
			},
			[]string{"tcp 192.0.2.66:1003 -> 192.0.2.22:80 has 2 sessions: 15:04:05.002 client_closed, 15:04:05.002 lost"},
		},
		"a session of nothing": {
			func(e *evidence) {
				e.Sessions = append(e.Sessions, session{flow: tcp("192.0.2.66:9", "192.0.2.23:80"), Service: "web"})
			},
			[]string{"tcp 192.0.2.66:9 -> 192.0.2.23:80 is recorded (00:00:00.000 running), but was never seen on the intruder's card"},
		},
		"a session where nothing is bound": {
			func(e *evidence) {
				f := tcp("192.0.2.66:9", "192.0.2.23:81")
				e.Card.began = append(e.Card.began, f)
				e.Sessions = append(e.Sessions, session{flow: f, Service: "web"})
			},
			[]string{"tcp 192.0.2.66:9 -> 192.0.2.23:81 is recorded (00:00:00.000 running), but nothing is bound there"},
		},
		"broken off within the handshake": {
			func(e *evidence) { // with a session (as the kernel path has it), and without one
				with, without := tcp("192.0.2.66:8", "192.0.2.200:80"), tcp("192.0.2.66:9", "192.0.2.21:80")
				e.Card.began = append(e.Card.began, with, without)
				e.Card.stage[with], e.Card.stage[without] = accepted, accepted
				e.Sessions = append(e.Sessions, session{flow: with, Service: "web", Reason: "client_reset"})
			},
			nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := scenario(t)
			c.change(&e)
			var got []string
			for _, v := range judgeServers(e) {
				got = append(got, v.Faults...)
			}
			_, faults := judgeSessions(e)
			if diff := cmp.Diff(c.want, append(got, faults...)); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
		})
	}
}

func TestJudgeOwners(t *testing.T) {
	decoy, machine, other := mac{2, 0xde}, mac{2, 0x10}, mac{2, 0x66}
	at := func(a ...mac) []mac { return a }
	good := func() owners {
		return owners{
			Decoys: []netip.Addr{addr("192.0.2.20"), addr("2001:db8:2::100")}, Segment: decoy,
			Machines: map[netip.Addr]mac{addr("192.0.2.10"): machine},
			All:      []netip.Addr{addr("192.0.2.10"), addr("192.0.2.20"), addr("2001:db8:2::100"), addr("192.0.2.99")},
			Claims: map[netip.Addr][]mac{
				addr("192.0.2.20"): at(decoy), addr("2001:db8:2::100"): at(decoy), addr("192.0.2.10"): at(machine),
			},
		}
	}
	for name, c := range map[string]struct {
		change func(*owners)
		want   []string
	}{
		"true":           {func(*owners) {}, nil},
		"silent decoy":   {func(o *owners) { delete(o.Claims, addr("192.0.2.20")) }, []string{"nobody answers for 192.0.2.20"}},
		"stolen machine": {func(o *owners) { o.Claims[addr("192.0.2.10")] = at(decoy) }, []string{"192.0.2.10 is at 02:10:00:00:00:00, yet [02:de:00:00:00:00] answers for it"}},
		"two answer": {
			func(o *owners) { o.Claims[addr("192.0.2.10")] = at(machine, decoy) },
			[]string{"192.0.2.10 is at 02:10:00:00:00:00, yet [02:10:00:00:00:00 02:de:00:00:00:00] answers for it"},
		},
		"too much claimed": {func(o *owners) { o.Claims[addr("192.0.2.99")] = at(decoy) }, []string{"192.0.2.99 is nobody's, yet [02:de:00:00:00:00] answers for it"}},
		"decoy elsewhere":  {func(o *owners) { o.Claims[addr("2001:db8:2::100")] = at(other) }, []string{"2001:db8:2::100 is at 02:de:00:00:00:00, yet [02:66:00:00:00:00] answers for it"}},
	} {
		o := good()
		c.change(&o)
		free, faults := judgeOwners(o)
		if diff := cmp.Diff(c.want, faults); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if want := 1 - strings.Count(name, "too much"); free != want {
			t.Errorf("%s: %d free addresses, want %d", name, free, want)
		}
	}
}
