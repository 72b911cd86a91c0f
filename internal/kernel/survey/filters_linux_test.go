package survey

import (
	"slices"
	"testing"

	"decoynet/internal/kernel/netns/netnstest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// TestFilters writes rules with the tools that people use, and reads them.
func TestFilters(t *testing.T) {
	ns := netnstest.New(t, "filters")
	for _, command := range [][]string{
		{"iptables", "-P", "FORWARD", "DROP"},
		{"iptables", "-N", "DOCKER-USER"},
		{"iptables", "-A", "FORWARD", "-j", "DOCKER-USER"},
		{"iptables", "-A", "FORWARD", "-o", "docker+", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-m", "comment", "--comment", "x", "-j", "ACCEPT"},
		{"iptables", "-A", "FORWARD", "!", "-i", "eth0", "-p", "tcp", "-j", "REJECT"},
		{"iptables", "-A", "FORWARD", "-d", "192.0.2.1", "-j", "ACCEPT"},
		{"ip6tables-legacy", "-A", "FORWARD", "!", "-i", "eth+", "-o", "br0", "-m", "state", "--state", "NEW", "-j", "DROP"},
		{"ip6tables-legacy", "-A", "FORWARD", "-s", "2001:db8::1", "-m", "comment", "--comment", "a \"b\" -j DROP", "-j", "ACCEPT"},
		{"nft", `table inet host {
			chain through { type filter hook forward priority 10; policy accept;
				ct state vmap { established : accept, invalid : drop }
				iifname { "a", "b" } oif lo meta nfproto ipv6 counter drop
				tcp dport 22 accept
				ip protocol udp goto other
			}
			chain other { log; reject; }
			chain nat { type nat hook prerouting priority dstnat; }
		}`},
		{"nft", "table inet decoynet { chain mine { type filter hook forward priority 0; policy drop; }; }"},
	} {
		netnstest.Run(t, ns, command...)
	}
	got, err := Filters(ns)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Chain{
		"ip filter FORWARD": {Family: "ip", Table: "filter", Name: "FORWARD", Hook: "forward", Drop: true, Rules: []Rule{
			{Verdict: Jump, Target: "DOCKER-USER"},
			{Conditions: []Condition{{OutputLink, false, []string{"docker*"}}, {State, false, []string{"established", "related"}}}, Verdict: Accept},
			{Conditions: []Condition{{InputLink, true, []string{"eth0"}}, {Transport, false, []string{"tcp"}}}, Verdict: Drop},
			{Opaque: true, Verdict: Accept},
		}},
		"ip filter DOCKER-USER": {Family: "ip", Table: "filter", Name: "DOCKER-USER"},
		"ip6 filter FORWARD legacy": {Family: "ip6", Table: "filter", Name: "FORWARD", Hook: "forward", Legacy: true, Rules: []Rule{
			{Conditions: []Condition{{InputLink, true, []string{"eth*"}}, {OutputLink, false, []string{"br0"}}, {State, false, []string{"new"}}}, Verdict: Drop},
			{Opaque: true, Verdict: Accept},
		}},
		"ip6 filter INPUT legacy":  {Family: "ip6", Table: "filter", Name: "INPUT", Hook: "input", Legacy: true},
		"ip6 filter OUTPUT legacy": {Family: "ip6", Table: "filter", Name: "OUTPUT", Legacy: true},
		"inet host through": {Family: "inet", Table: "host", Name: "through", Hook: "forward", Priority: 10, Rules: []Rule{
			{Conditions: []Condition{{State, false, []string{"established"}}}, Verdict: Accept},
			{Conditions: []Condition{{State, false, []string{"invalid"}}}, Verdict: Drop},
			{Conditions: []Condition{
				{InputLink, false, []string{"a", "b"}}, {OutputLink, false, []string{"lo"}}, {Family, false, []string{"ipv6"}},
			}, Verdict: Drop},
			{Conditions: []Condition{{Transport, false, []string{"tcp"}}}, Opaque: true, Verdict: Accept},
			{Conditions: []Condition{{Family, false, []string{"ipv4"}}, {Transport, false, []string{"udp"}}}, Verdict: Goto, Target: "other"},
		}},
		"inet host other": {Family: "inet", Table: "host", Name: "other", Rules: []Rule{{}, {Verdict: Drop}}},
	}
	found := map[string]Chain{}
	for _, c := range got {
		name := c.Family + " " + c.Table + " " + c.Name
		if c.Legacy {
			name += " legacy"
		}
		found[name] = c
	}
	if diff := cmp.Diff(want, found, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("chains (-want +got):\n%s", diff)
	}
}

// TestLinks reads links of several kinds, as ip(8) has made them.
func TestLinks(t *testing.T) {
	ns := netnstest.New(t, "links")
	for _, line := range []string{
		"link add br0 type bridge", "link add p0 type veth peer name p1", "link set p0 master br0", "link set p0 up", "link set p1 up", "link set br0 up",
		"address add 192.0.2.1/24 dev br0", "-6 address add 2001:db8::1/64 dev br0 nodad", "link set p1 alias decoynet",
		"neighbour add 192.0.2.9 lladdr 02:00:00:00:00:09 dev br0 nud reachable",
	} {
		netnstest.IP(t, ns, line)
	}
	links, err := Links(ns)
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]Link{}
	for _, l := range links {
		byName[l.Name] = l
	}
	if a := byName["p0"]; a.Master != "br0" || a.MasterKind != "bridge" || a.Kind != "veth" || !a.Up || !a.Ethernet || a.Loopback {
		t.Errorf("p0: %+v", a)
	}
	if b := byName["p1"]; b.Alias != "decoynet" || b.Master != "" {
		t.Errorf("p1: %+v", b)
	}
	br := byName["br0"]
	if br.Kind != "bridge" || len(br.Addrs) < 2 || br.Addrs[0].String() != "192.0.2.1/24" {
		t.Errorf("br0: %+v", br)
	}
	if lo := byName["lo"]; !lo.Loopback || lo.Up {
		t.Errorf("lo: %+v", lo)
	}
	neighbours, err := Neighbours(ns, br.Index)
	if err != nil {
		t.Fatal(err)
	}
	neighbours = slices.DeleteFunc(neighbours, func(n Neighbour) bool { return n.Addr.IsMulticast() })
	if len(neighbours) != 1 || neighbours[0].Addr.String() != "192.0.2.9" || neighbours[0].State != "REACHABLE" {
		t.Errorf("neighbours: %+v", neighbours)
	}
}
