package demo

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"decoynet/deception"
)

// branchStory adds to the small true story an intruder in the branch, who visits
// each of the servers at each of the business server's addresses.
func branchStory(t *testing.T) (evidence, outpost) {
	t.Helper()
	e := scenario(t)
	o := outpost{
		Node: "crm-1", Intruder: []netip.Addr{addr("198.51.100.66"), addr("2001:db8:51::66")},
		Strangers: map[netip.Addr]string{addr("192.0.2.20"): "the branch's router", addr("198.51.100.10"): "crm itself"},
	}
	card := newRecord(o.Intruder)
	for i, f := range []flow{
		tcp("198.51.100.66:2001", "198.51.100.10:80"), tcp("[2001:db8:51::66]:2002", "[2001:db8:51::10]:80"),
		tcp("198.51.100.66:2003", "198.51.100.10:6379"), tcp("[2001:db8:51::66]:2004", "[2001:db8:51::10]:6379"),
		udp("198.51.100.66:2005", "198.51.100.10:161"), udp("[2001:db8:51::66]:2006", "[2001:db8:51::10]:161"),
	} {
		at := ap("10.1.200.1:1")
		card.began = append(card.began, f)
		card.stage[f] = established
		e.Sessions = append(e.Sessions, session{
			flow: f, Seen: flow{f.Transport, f.Source, at}, Service: e.Plan.service(f.Transport, f.Destination),
			Node: "crm-1", Segment: deception.HostSegment, Path: "relay", Reason: "client_closed",
		})
		e.Visits = append(e.Visits, visit{flow: f, Tool: "tool"})
		e.Servers[i/2].Contacts = append(e.Servers[i/2].Contacts, contact{f.Source, at})
	}
	// Whoever looks for what is open meets the business server's own service, too.
	own := tcp("198.51.100.66:2007", "198.51.100.10:8080")
	card.began = append(card.began, own)
	card.stage[own] = established
	e.Card = e.Card.with(card)
	return e, o
}

func TestJudgeOutpostTruth(t *testing.T) {
	e, o := branchStory(t)
	peers, sessions, faults := judgeOutpost(e, o)
	if peers != 6 || sessions != 6 || len(faults) > 0 {
		t.Errorf("%d peers, %d sessions, %v", peers, sessions, faults)
	}
	for _, v := range judgeServers(e) {
		if len(v.Faults) > 0 || v.Matched != v.Peers {
			t.Errorf("%s: %d of %d peers, %v", v.Name, v.Matched, v.Peers, v.Faults)
		}
	}
	if n, faults := judgeSessions(e); n != 5+6 || len(faults) > 0 {
		t.Errorf("%d connections, %v", n, faults)
	}
}

// TestJudgeOutpostLies changes one thing in the story; every lie must be told of
// by the outpost's verdict itself.
func TestJudgeOutpostLies(t *testing.T) {
	const first = 5 // the branch's first session
	for name, c := range map[string]struct {
		change func(*evidence)
		want   []string
	}{
		"the router translates": {
			func(e *evidence) { e.Servers[0].Contacts[2].Peer = ap("192.0.2.20:2001") },
			[]string{"nginx saw 192.0.2.20:2001: that is the branch's router", "nginx has not seen 198.51.100.66"},
		},
		"the agent calls in its own name": {
			func(e *evidence) {
				e.Servers[2].Contacts[4].Peer = ap("198.51.100.10:40000")
				e.Sessions[first+4].Seen.Source = ap("198.51.100.10:40000")
			},
			[]string{
				"udp saw 198.51.100.10:40000: that is crm itself", "udp has not seen 198.51.100.66",
				"session 198.51.100.66:2005 -> 198.51.100.10:161 was passed on as from 198.51.100.10:40000",
			},
		},
		"his address at another port": {
			func(e *evidence) { e.Servers[1].Contacts[1].Peer = ap("198.51.100.66:61000") },
			[]string{"redis has not seen 198.51.100.66"},
		},
		"a server without IPv6": {
			func(e *evidence) { e.Servers[0].Contacts = slices.Delete(e.Servers[0].Contacts, 3, 4) },
			[]string{"nginx has not seen 2001:db8:51::66"},
		},
		"recorded at the gateway": {
			func(e *evidence) { e.Sessions[first].Node = "gw" },
			[]string{"session 198.51.100.66:2001 -> 198.51.100.10:80 is recorded at node gw, segment host; not at crm-1, host"},
		},
		"recorded in the office": {
			func(e *evidence) { e.Sessions[first].Segment = "office" },
			[]string{"session 198.51.100.66:2001 -> 198.51.100.10:80 is recorded at node crm-1, segment office; not at crm-1, host"},
		},
		"recorded by both ends of the tunnel": {
			func(e *evidence) { e.Sessions = append(e.Sessions, e.Sessions[first]) },
			[]string{"tool 198.51.100.66:2001 -> 198.51.100.10:80 is recorded 2 times"},
		},
		"recorded by neither": {
			func(e *evidence) { e.Sessions = slices.Delete(e.Sessions, first, first+1) },
			[]string{"tool 198.51.100.66:2001 -> 198.51.100.10:80 is recorded 0 times"},
		},
		"the tunnel taken for an intruder": {
			func(e *evidence) {
				e.Sessions = append(e.Sessions, session{flow: tcp("192.0.2.20:5", "192.0.2.21:80"), Node: "gw", Segment: "office"})
			},
			[]string{"session 192.0.2.20:5 -> 192.0.2.21:80 is recorded of the branch's router"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			e, o := branchStory(t)
			c.change(&e)
			_, _, faults := judgeOutpost(e, o)
			if diff := cmp.Diff(c.want, faults); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
		})
	}
}

// TestOwnServiceIsNoDecoy: a session of the business server's own port would be
// one of its customers'.
func TestOwnServiceIsNoDecoy(t *testing.T) {
	e, _ := branchStory(t)
	e.Sessions = append(e.Sessions, session{flow: tcp("198.51.100.66:2007", "198.51.100.10:8080"), Service: "web"})
	want := []string{"tcp 198.51.100.66:2007 -> 198.51.100.10:8080 is recorded (00:00:00.000 running), but nothing is bound there"}
	if _, faults := judgeSessions(e); !slices.Equal(faults, want) {
		t.Errorf("%v, want %v", faults, want)
	}
}

func TestNodes(t *testing.T) {
	good := func() []nodeState {
		return []nodeState{
			{Name: "gw", Condition: "converged", Wanted: "a", Held: "a"},
			{Name: "crm-1", Condition: "converged", Wanted: "b", Held: "b"},
		}
	}
	if faults := converged(good()); len(faults) > 0 {
		t.Errorf("two good nodes: %v", faults)
	}
	blind := good()
	blind[0].Problems = []string{"inspect: flows are not analysed: suricata is not installed: get it", "inspect: nothing is read of the feed's output fifo"}
	if faults := converged(blind); len(faults) > 0 {
		t.Errorf("a machine without Suricata: %v", faults)
	}
	for name, c := range map[string]struct {
		list []nodeState
		want string
	}{
		"Suricata dies": {
			[]nodeState{{Name: "gw", Condition: "converged", Wanted: "a", Held: "a", Problems: []string{"inspect: flows are not analysed: suricata ended"}}, good()[1]},
			`node gw is converged, with revision "a" of "a": inspect: flows are not analysed: suricata ended`,
		},
		"not only Suricata": {
			[]nodeState{{Name: "gw", Condition: "converged", Wanted: "a", Held: "a", Problems: append([]string{"no NIC"}, blind[0].Problems...)}, good()[1]},
			`node gw is converged, with revision "a" of "a": no NIC`,
		},
		"one only":    {good()[:1], "the controller knows 1 nodes, not 2"},
		"behind":      {[]nodeState{good()[0], {Name: "crm-1", Condition: "converged", Wanted: "b", Held: "a"}}, `node crm-1 is converged, with revision "a" of "b": `},
		"nothing yet": {[]nodeState{good()[0], {Name: "crm-1", Condition: "converged"}}, `node crm-1 is converged, with revision "" of "": `},
		"failed": {
			[]nodeState{good()[0], {Name: "crm-1", Condition: "failed", Wanted: "b", Held: "b", Problems: []string{"no"}}},
			`node crm-1 is failed, with revision "b" of "b": no`,
		},
	} {
		if got := converged(c.list); !slices.Equal(got, []string{c.want}) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	busy := []nodeState{{Name: "crm-1", Condition: "failed", Problems: []string{"port 8443/tcp of decoy crm is in use on every IPv4 address by nginx"}}}
	for name, c := range map[string]struct {
		list []nodeState
		port uint16
		told bool
	}{
		"told":                {busy, 8443, true},
		"of another port":     {busy, 443, false},
		"of another node":     {[]nodeState{{Name: "gw", Condition: "failed", Problems: busy[0].Problems}}, 8443, false},
		"but all is well":     {[]nodeState{{Name: "crm-1", Condition: "converged", Problems: busy[0].Problems}}, 8443, false},
		"nobody says a thing": {good(), 8443, false},
	} {
		if got := len(inUse(c.list, "crm-1", c.port)) == 0; got != c.told {
			t.Errorf("%s: %v, want %v", name, got, c.told)
		}
	}
}
