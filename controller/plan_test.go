package controller

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"decoynet/config"
	"decoynet/deception"
	"decoynet/internal/registry"
	"decoynet/internal/rpc"
	"decoynet/internal/rpc/decoynetv1"

	"github.com/google/go-cmp/cmp"
)

func document(t testing.TB, text string) *config.Document {
	t.Helper()
	d, err := parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func planOf(t testing.TB, f facts, previous *plan) *plan {
	t.Helper()
	p, err := makePlan(f, previous)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func stateOf(t testing.TB, s *decoynetv1.Snapshot) *deception.State {
	t.Helper()
	state, err := rpc.DecodeState(s, "test")
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// everybody is the office's nodes as they are after having reported.
func everybody() []registry.Node {
	return []registry.Node{
		{Name: "crm-1", Generation: 1},
		{Name: "crm-2", Generation: 4, Revoked: time.Unix(1, 0)},
		{
			Name: "hq", Generation: 2, Reach: []string{"hq.example", "192.0.2.7"},
			Addresses: []string{"172.16.23.1", "10.1.0.1", "fe80::1", "2001:db8::7"},
		},
		{Name: "vm1", Generation: 1, Reach: []string{"172.16.23.2"}},
	}
}

func TestSnapshots(t *testing.T) {
	p := planOf(t, facts{document: document(t, office), enrolled: everybody(), urls: []string{"https://hq.example:7443"}, version: "7"}, nil)

	agent := stateOf(t, p.nodes["crm-1"].snapshot)
	if len(agent.Services)+len(agent.Zones)+len(agent.Segments) != 0 || len(agent.Decoys) != 1 || agent.Decoys[0].Name != "crm" {
		t.Errorf("the agent's part: %+v", agent)
	}
	if got := fmt.Sprint(agent.Gateways[0].Addresses); got != "[hq.example:7444 192.0.2.7:7444 172.16.23.1:7444]" {
		t.Errorf("the agent reaches the gateway at %s", got)
	}
	if s := p.nodes["crm-1"].snapshot; len(s.Peers) != 0 || s.Version != "7" || !s.Heads || fmt.Sprint(s.Controllers) != "[https://hq.example:7443]" {
		t.Errorf("the agent's snapshot: %v", s)
	}

	var peers []string
	for _, v := range p.nodes["hq"].snapshot.Peers {
		peers = append(peers, fmt.Sprint(v.Node, " ", v.Generation))
	}
	if diff := cmp.Diff([]string{"crm-1 1", "hq 2", "vm1 1"}, peers); diff != "" {
		t.Errorf("the gateway's peers (-want +got):\n%s", diff)
	}
	gateway := stateOf(t, p.nodes["hq"].snapshot)
	if len(gateway.Gateways[0].Addresses) != 0 || len(gateway.Decoys) != 2 || len(gateway.Services) != 2 {
		t.Errorf("the gateway's part: %+v", gateway)
	}

	egress := stateOf(t, p.nodes["vm1"].snapshot)
	if got := fmt.Sprint(egress.Zones[0].Egress.From); got != "[10.1.0.1/32 172.16.23.1/32 192.0.2.7/32]" {
		t.Errorf("the egress serves %s", got)
	}
	if from := p.document.State.Zone("far").Egress.From; len(from) != 0 {
		t.Errorf("the document itself was changed: %v", from)
	}
}

// What the document says is not touched.
func TestGivenAddressesStay(t *testing.T) {
	text := strings.Replace(office, "listen: 0.0.0.0:7444}", "listen: 0.0.0.0:7444, addresses: [branch.example:9000]}", 1)
	text = strings.Replace(text, "listen: 172.16.23.2:7445}", "listen: 172.16.23.2:7445, from: [172.16.23.0/24]}", 1)
	p := planOf(t, facts{document: document(t, text), enrolled: everybody()}, nil)
	if got := fmt.Sprint(stateOf(t, p.nodes["crm-1"].snapshot).Gateways[0].Addresses); got != "[branch.example:9000]" {
		t.Errorf("the agent reaches the gateway at %s", got)
	}
	if got := fmt.Sprint(stateOf(t, p.nodes["vm1"].snapshot).Zones[0].Egress.From); got != "[172.16.23.0/24]" {
		t.Errorf("the egress serves %s", got)
	}
	text = strings.Replace(office, "listen: 0.0.0.0:7444}", "listen: 192.0.2.7:7444}", 1)
	p = planOf(t, facts{document: document(t, text), enrolled: everybody()}, nil)
	if got := stateOf(t, p.nodes["crm-1"].snapshot).Gateways[0]; len(got.Addresses) != 0 || got.Listen.String() != "192.0.2.7:7444" {
		t.Errorf("the gateway that listens at an address: %+v", got)
	}
}

func TestGatewayAddresses(t *testing.T) {
	for want, c := range map[string]struct {
		listen           string
		reach, addresses []string
	}{
		"[]":                             {"0.0.0.0:1", nil, nil},
		"[127.0.0.1:1]":                  {"0.0.0.0:1", []string{"127.0.0.1"}, nil},
		"[192.0.2.1:1]":                  {"0.0.0.0:1", []string{"127.0.0.1"}, []string{"192.0.2.1", "192.0.2.1"}},
		"[[2001:db8::1]:1 192.0.2.1:1]":  {"[::]:1", []string{"2001:db8::1"}, []string{"192.0.2.1", "fe80::1"}},
		"[hq:1 192.0.2.1:1 192.0.2.9:1]": {"0.0.0.0:1", []string{"hq"}, []string{"192.0.2.9", "10.1.0.3", "192.0.2.1", "2001:db8::1"}},
		"[192.0.2.10:1 192.0.2.11:1 192.0.2.12:1 192.0.2.13:1 192.0.2.14:1 192.0.2.15:1 192.0.2.16:1 192.0.2.17:1]": {
			"0.0.0.0:1", nil, strings.Fields("192.0.2.10 192.0.2.11 192.0.2.12 192.0.2.13 192.0.2.14 192.0.2.15 192.0.2.16 192.0.2.17 192.0.2.18"),
		},
	} {
		g := &deception.Gateway{Listen: addrPort(c.listen)}
		zones := document(t, office).State.Zones
		if got := fmt.Sprint(gatewayAddresses(g, &registry.Node{Reach: c.reach, Addresses: c.addresses}, zones)); got != want {
			t.Errorf("%v: %s, want %s", c, got, want)
		}
	}
}

// A revision is of what a node is told, so a change elsewhere leaves it alone.
func TestRevisionsArePerNode(t *testing.T) {
	f := facts{revision: "1", document: document(t, office), enrolled: everybody()}
	before := planOf(t, f, nil)
	revisions := func(p *plan) map[string]string {
		out := map[string]string{}
		for name, n := range p.nodes {
			out[name] = n.wanted()
		}
		return out
	}
	differing := func(f facts) (out []string) {
		t.Helper()
		after := planOf(t, f, before)
		for name, r := range revisions(after) {
			if r != before.nodes[name].wanted() {
				out = append(out, name)
			} else if after.nodes[name].snapshot != before.nodes[name].snapshot {
				t.Errorf("%s has another snapshot of the same revision", name)
			}
		}
		slices.Sort(out)
		return out
	}
	for what, c := range map[string]struct {
		change func(*facts)
		want   string
	}{
		"nothing":              {func(*facts) {}, "[]"},
		"the program":          {func(f *facts) { f.version = "8" }, "[]"},
		"a decoy of an agent":  {func(f *facts) { f.document = document(t, strings.Replace(office, "[8080]", "[8081]", 1)) }, "[crm-2 hq]"},
		"a service far away":   {func(f *facts) { f.document = document(t, strings.Replace(office, "10.2.0.2,", "10.2.0.3,", 1)) }, "[hq vm1]"},
		"a node's enrolment":   {func(f *facts) { f.enrolled[0].Generation++ }, "[hq]"},
		"the gateway's place":  {func(f *facts) { f.enrolled[2].Reach = []string{"192.0.2.8"} }, "[crm-1 crm-2 vm1]"},
		"another controller":   {func(f *facts) { f.urls = []string{"https://x:1"} }, "[crm-1 crm-2 hq vm1]"},
		"first bytes not kept": {func(f *facts) { f.document = document(t, office+"recording: {heads: false}\n") }, "[crm-1 crm-2 hq vm1]"},
	} {
		f := f
		f.enrolled = everybody()
		c.change(&f)
		if got := fmt.Sprint(differing(f)); got != c.want {
			t.Errorf("%s changes %s, want %s", what, got, c.want)
		}
	}
}

// A document of one machine is for that machine; whoever else is enrolled has nothing
// to do.
func TestOneMachine(t *testing.T) {
	text := `
node: hq
segments: [{name: office, parent: eth0, subnets: [{prefix: 192.168.32.0/24}]}]
zones: [{name: linux, subnet: 10.1.0.0/24, link: br-linux}]
services: [{name: web, zone: linux, address: 10.1.0.2, ports: [80]}]
decoys: [{name: office-web, segment: office, addresses: [192.168.32.100], bind: [{ports: [80], service: web}]}]
`
	p := planOf(t, facts{document: document(t, text), enrolled: []registry.Node{{Name: "hq"}, {Name: "crm-1"}}}, nil)
	if s := stateOf(t, p.nodes["hq"].snapshot); len(s.Decoys) != 1 || s.Node != "hq" {
		t.Errorf("the machine's own part: %+v", s)
	}
	if s := stateOf(t, p.nodes["crm-1"].snapshot); len(s.Decoys)+len(s.Zones)+len(s.Segments)+len(s.Services) != 0 || s.Node != "crm-1" {
		t.Errorf("another machine's part: %+v", s)
	}
	empty := planOf(t, facts{enrolled: []registry.Node{{Name: "crm-1"}}}, nil)
	if s := stateOf(t, empty.nodes["crm-1"].snapshot); len(s.Decoys) != 0 || s.Node != "crm-1" {
		t.Errorf("without a document: %+v", s)
	}
}

// Who was a gateway may still have records of others.
func TestRelaysAreRemembered(t *testing.T) {
	f := facts{document: document(t, office), enrolled: everybody()}
	p := planOf(t, f, nil)
	moved := strings.Replace(office, "name: gw1, node: hq", "name: gw1, node: vm1", 1)
	moved = strings.ReplaceAll(moved, "egress: {node: vm1", "egress: {node: hq")
	moved = strings.Replace(moved, "name: linux, node: hq", "name: linux, node: vm1", 1)
	f.document = document(t, moved)
	p = planOf(t, f, p)
	got := map[string]bool{}
	for name, n := range p.nodes {
		got[name] = n.relays
	}
	if diff := cmp.Diff(map[string]bool{"hq": true, "vm1": true, "crm-1": false, "crm-2": false}, got); diff != "" {
		t.Errorf("relays (-want +got):\n%s", diff)
	}
}

func TestChanges(t *testing.T) {
	text := strings.Replace(office, "[8080]", "[8081]", 1)
	text = strings.Replace(text, "  - {name: crm, segment: host, node: crm-1, addresses: [any], bind: [{ports: [445], service: win}]}\n", "", 1)
	var got []string
	for _, c := range changes(document(t, office), document(t, text)) {
		got = append(got, c.GetNode()+" "+c.GetText())
	}
	for _, want := range []string{"crm-1 - decoy crm", "crm-2 ~ decoy crm2: bind", "hq - decoy crm", "hq ~ decoy crm2: bind"} {
		if !slices.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
	if got := changes(document(t, office), document(t, office)); len(got) != 0 {
		t.Errorf("nothing is %v", got)
	}
	if got := changes(nil, document(t, office)); len(got) == 0 || got[0].GetText() != "+ node hq" {
		t.Errorf("all is %v", got)
	}
}

func BenchmarkPlan(b *testing.B) {
	f := facts{document: document(b, manyNodes(500, 80)), urls: []string{"https://hq:7443"}}
	for i := range 500 {
		f.enrolled = append(f.enrolled, registry.Node{Name: fmt.Sprintf("n%d", i), Generation: 1})
	}
	b.Run("document", func(b *testing.B) {
		for b.Loop() {
			planOf(b, f, nil)
		}
	})
	b.Run("enrolment", func(b *testing.B) {
		p := planOf(b, f, nil)
		for b.Loop() {
			f.enrolled[7].Generation++
			p = planOf(b, f, p)
		}
	})
}

// manyNodes is a document of a gateway and n agents, whose decoy takes the port.
func manyNodes(n, port int) string {
	var b strings.Builder
	b.WriteString("nodes:\n  - {name: hq}\n")
	for i := range n {
		fmt.Fprintf(&b, "  - {name: n%d}\n", i)
	}
	b.WriteString(`gateways: [{name: gw1, node: hq, listen: 0.0.0.0:7444}]
zones: [{name: linux, node: hq, subnet: 10.1.0.0/24, link: br-linux}]
services: [{name: web, zone: linux, address: 10.1.0.2, ports: [80]}]
decoys:
`)
	for i := range n {
		fmt.Fprintf(&b, "  - {name: d%d, segment: host, node: n%d, addresses: [any], bind: [{ports: [%d], service: web, target: 80}]}\n", i, i, port)
	}
	return b.String()
}
