package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"decoynet/deception"
)

const diffBase = `
node: hq
segments:
  - {name: office, parent: eth0, subnets: [{prefix: 192.0.2.0/24, gateway: 192.0.2.1}, {prefix: "2001:db8::/64"}], exclude: [192.0.2.2-192.0.2.9]}
zones:
  - {name: linux, subnet: [10.1.0.0/24, "2001:db8:1::/64"], link: br0, allow: [{to: 10.1.0.1, ports: [53/udp, 53]}]}
services:
  - {name: web, zone: linux, address: [10.1.0.2, "2001:db8:1::2"], ports: [80, 443, 8080], aliases: [10.3.0.0/24]}
  - {name: ssh, zone: linux, address: [10.1.0.3], ports: [22]}
decoys:
  - {name: d1, segment: office, addresses: [192.0.2.10-192.0.2.20, 192.0.2.30], bind: [{ports: [80, 443], service: web}, {ports: [2222], service: ssh, target: 22}]}
  - {name: d2, segment: office, addresses: [192.0.2.40], bind: [{ports: [22], service: ssh}]}
scanners:
  - {name: audit, from: [192.0.2.50, 192.0.2.60], ports: [80, 443], until: 2027-01-31}
inspect: {rules: [/a, /b], capture: [{interface: br1, ports: [80, 443]}]}
`

func TestDiff(t *testing.T) {
	tests := []struct {
		name    string
		replace []string // old, new, old, new, ...
		want    []string
	}{
		{"nothing", nil, nil},
		{"orders that mean nothing", []string{
			"[10.1.0.0/24, \"2001:db8:1::/64\"]", "[\"2001:db8:1::/64\", 10.1.0.0/24]",
			"[80, 443, 8080]", "[8080, 443, 80]",
			"[53/udp, 53]", "[53, 53/udp]",
			"[192.0.2.10-192.0.2.20, 192.0.2.30]", "[192.0.2.30, 192.0.2.15-192.0.2.20, 192.0.2.10-192.0.2.14]",
			"{ports: [80, 443], service: web}", "{ports: [443], service: web}, {ports: [80], service: web}",
			"from: [192.0.2.50, 192.0.2.60], ports: [80, 443], until: 2027-01-31",
			"from: [192.0.2.60, 192.0.2.50/32], ports: [443, 80], until: 2027-02-01T01:00:00+01:00",
		}, nil},
		{"defaults written out", []string{"bind: [{ports: [22]", "path: relay, idle: 30m, bind: [{ports: [22]"}, nil},
		{"node", []string{"node: hq", "node: branch"}, []string{"changed node branch: node"}},
		{"segment", []string{
			"parent: eth0", "parent: eth1, steering: tproxy",
			", gateway: 192.0.2.1", "", "192.0.2.2-192.0.2.9", "192.0.2.2-192.0.2.8",
		}, []string{"changed segment office: parent, subnets, exclude, steering"}},
		{"zone", []string{"br0", "br1", "10.1.0.1,", "10.1.0.9,"}, []string{"changed zone linux: link, allow"}},
		{
			"service",
			[]string{"address: [10.1.0.3], ports: [22]", "address: [10.1.0.4], ports: [22, 2022], netns: box, aliases: 10.4.0.0/24"},
			[]string{"changed service ssh: address, ports, aliases, netns"},
		},
		{"decoy", []string{
			"192.0.2.40]", "192.0.2.41]",
			"bind: [{ports: [22]", "path: kernel, idle: 1m, bind: [{ports: [22]",
			"target: 22", "target: 22}, {ports: [8080], service: web",
		}, []string{"changed decoy d1: bind", "changed decoy d2: addresses, path, idle"}},
		{"vlan and claim", []string{"parent: eth0", "parent: eth0, vlan: 7, claim: unchecked"}, []string{"changed segment office: vlan, claim"}},
		{"inspect", []string{"rules: [/a, /b]", "rules: [/b, /a], tap: vtap0, depth: 1MB, pcap: {age: 1d}"}, []string{"changed inspect all: tap, depth, pcap"}},
		{"no inspect", []string{"inspect: {rules: [/a, /b], capture: [{interface: br1, ports: [80, 443]}]}", ""}, []string{"removed inspect all"}},
		{"scanner", []string{"192.0.2.60]", "192.0.2.61]", "[80, 443], until", "[80], until", "2027-01-31", "2027-01-30"}, []string{"changed scanner audit: from, ports, until"}},
		{"scanner for ever", []string{", until: 2027-01-31", ""}, []string{"changed scanner audit: until"}},
		{
			"looks",
			[]string{"name: d1,", "name: d1, mac: 00:14:22,", "name: d2,", "name: d2, personality: linux,"},
			[]string{"changed decoy d1: mac", "changed decoy d2: personality"},
		},
		{"renamed", []string{"name: d2", "name: d3"}, []string{"added decoy d3", "removed decoy d2"}},
	}
	old := &parseOK(t, diffBase).State
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src := replaced(t, diffBase, tt.replace)
			if diff := cmp.Diff(tt.want, changeTexts(Diff(old, &parseOK(t, src).State))); diff != "" {
				t.Errorf("changes (-want +got):\n%s", diff)
			}
		})
	}
}

// replaced returns the document with each old text replaced by the new one
// behind it, once.
func replaced(t *testing.T, src string, pairs []string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(src, pairs[i]) {
			t.Fatalf("%q is not in the document", pairs[i])
		}
		src = strings.Replace(src, pairs[i], pairs[i+1], 1)
	}
	return src
}

func TestDiffAgainstNothing(t *testing.T) {
	state := &parseOK(t, diffBase).State
	kinds := []string{"segment office", "zone linux", "service web", "service ssh", "decoy d1", "decoy d2", "scanner audit", "inspect all"}
	for action, changes := range map[string][]Change{"added ": Diff(nil, state), "removed ": Diff(state, nil)} {
		var want []string
		for _, k := range kinds {
			want = append(want, action+k)
		}
		if diff := cmp.Diff(want, changeTexts(changes)); diff != "" {
			t.Errorf("changes (-want +got):\n%s", diff)
		}
	}
	if changes := Diff(nil, &deception.State{}); changes != nil {
		t.Errorf("Diff of nothing with nothing: %v", changes)
	}
}

func changeTexts(changes []Change) []string {
	var out []string
	for _, c := range changes {
		out = append(out, c.String())
	}
	return out
}

const diffMachines = `
node: hq
nodes: [{name: hq}, {name: vm1}, {name: branch}, {name: crm-1}, {name: crm-2}]
gateways:
  - {name: gw1, node: hq, listen: 0.0.0.0:7444, addresses: [hq.example:7444]}
  - {name: gw2, node: branch, listen: 0.0.0.0:7444}
segments:
  - {name: office, node: branch, parent: eth0, subnets: [{prefix: 192.0.2.0/24}]}
zones:
  - {name: linux, subnet: 10.1.0.0/24, egress: {node: vm1, listen: 172.16.23.2:7445, from: [172.16.23.1, 192.0.2.1]}}
services:
  - {name: web, zone: linux, address: 10.1.0.2, ports: [80, 443], aliases: 10.3.0.0/24}
decoys:
  - {name: d1, segment: office, addresses: [192.0.2.10-192.0.2.20], bind: [{ports: [80], service: web}]}
  - {name: c1, segment: host, node: crm-1, addresses: [any], bind: [{ports: [8080], service: web, target: 80}]}
  - {name: c2, segment: host, node: crm-2, addresses: [any], bind: [{ports: [80], service: web}]}
`

func TestDiffNodes(t *testing.T) {
	tests := []struct {
		name    string
		replace []string // old, new, old, new, ...
		want    []string
	}{
		{"nothing", []string{"node: hq\n", "", "[172.16.23.1, 192.0.2.1]", "[192.0.2.1/32, 172.16.23.1]"}, nil},
		// The agent's ports stay as they are: where they lead is the gateways' matter.
		{"target", []string{"target: 80", "target: 443"}, []string{"hq: changed decoy c1: bind", "branch: changed decoy c1: bind"}},
		{"bind", []string{"ports: [8080]", "ports: [8081]"}, []string{
			"hq: changed decoy c1: bind", "branch: changed decoy c1: bind", "crm-1: changed decoy c1: bind",
		}},
		{"egress", []string{"[172.16.23.1, 192.0.2.1]", "172.16.23.1"}, []string{"vm1: changed zone linux: egress"}},
		{"link", []string{"zones:\n  - {name: linux", "zones:\n  - {name: linux, link: br0"}, []string{"vm1: changed zone linux: link"}},
		{"service", []string{"ports: [80, 443]", "ports: [80, 443, 22]"}, []string{
			"hq: changed service web: ports", "vm1: changed service web: ports", "branch: changed service web: ports",
		}},
		{"gateway", []string{"hq.example:7444", "203.0.113.1:7444"}, []string{
			"hq: changed gateway gw1: addresses", "crm-1: changed gateway gw1: addresses", "crm-2: changed gateway gw1: addresses",
		}},
		{"segment", []string{"parent: eth0", "parent: eth1"}, []string{"branch: changed segment office: parent"}},
		// A decoy that takes fewer of the service's aliases moves those after it. What
		// is the branch gateway's own leaves the decoys of agents alone otherwise.
		{"aliases that move", []string{"192.0.2.10-192.0.2.20", "192.0.2.10-192.0.2.19"}, []string{
			"hq: changed decoy c1: aliases", "hq: changed decoy c2: aliases",
			"branch: changed decoy d1: addresses", "branch: changed decoy c1: aliases", "branch: changed decoy c2: aliases",
		}},
		{"node added, its decoy moves there", []string{"{name: crm-2}]", "{name: crm-3}]", "crm-2", "crm-3"}, []string{
			"hq: changed decoy c2: node", "branch: changed decoy c2: node",
			"crm-3: added node crm-3", "crm-3: added gateway gw1", "crm-3: added gateway gw2", "crm-3: added decoy c2",
			"crm-2: removed node crm-2", "crm-2: removed gateway gw1", "crm-2: removed gateway gw2", "crm-2: removed decoy c2",
		}},
	}
	old := &parseOK(t, diffMachines).State
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			new := &parseOK(t, replaced(t, diffMachines, tt.replace)).State
			for range 3 { // in the same order each time
				if diff := cmp.Diff(tt.want, nodeChangeTexts(DiffNodes(old, new))); diff != "" {
					t.Fatalf("changes (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func TestDiffNodesAgainstNothing(t *testing.T) {
	state := &parseOK(t, diffMachines).State
	want := []string{
		"hq: added node hq", "hq: added gateway gw1", "hq: added zone linux", "hq: added service web", "hq: added decoy c1", "hq: added decoy c2",
		"vm1: added node vm1", "vm1: added zone linux", "vm1: added service web",
		"branch: added node branch", "branch: added gateway gw2", "branch: added segment office", "branch: added zone linux",
		"branch: added service web", "branch: added decoy d1", "branch: added decoy c1", "branch: added decoy c2",
		"crm-1: added node crm-1", "crm-1: added gateway gw1", "crm-1: added gateway gw2", "crm-1: added decoy c1",
		"crm-2: added node crm-2", "crm-2: added gateway gw1", "crm-2: added gateway gw2", "crm-2: added decoy c2",
	}
	if diff := cmp.Diff(want, nodeChangeTexts(DiffNodes(nil, state))); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	if got := DiffNodes(state, nil); len(got) != len(want) || got[0].String() != "hq: removed node hq" || got[24].String() != "crm-2: removed decoy c2" {
		t.Errorf("changes towards nothing: %v", got)
	}
	if got := DiffNodes(nil, nil); got != nil {
		t.Errorf("changes of nothing: %v", got)
	}
}

// A document of one machine, and the step from one to several.
func TestDiffNodesOfOneMachine(t *testing.T) {
	one := &parseOK(t, "node: hq\n"+oneMachine).State
	if got := nodeChangeTexts(DiffNodes(one, one)); got != nil {
		t.Errorf("changes of nothing: %v", got)
	}
	wider := &parseOK(t, "node: hq\n"+strings.Replace(oneMachine, "ports: [80]", "ports: [80, 81]", 1)).State
	if diff := cmp.Diff([]string{"hq: changed service web: ports"}, nodeChangeTexts(DiffNodes(one, wider))); diff != "" {
		t.Errorf("changes of one machine (-want +got):\n%s", diff)
	}
	several := &parseOK(t, "node: hq\nnodes: [{name: hq}, {name: crm-1}]\ngateways: [{name: gw1, node: hq, listen: 0.0.0.0:7444}]\n"+
		strings.Replace(oneMachine, "segment: host", "segment: host, node: crm-1", 1)).State
	want := []string{
		"hq: added gateway gw1", "hq: changed zone linux: node", "hq: changed decoy e: node",
		"crm-1: added node crm-1", "crm-1: added gateway gw1", "crm-1: added decoy e",
	}
	if diff := cmp.Diff(want, nodeChangeTexts(DiffNodes(one, several))); diff != "" {
		t.Errorf("changes from one machine to two (-want +got):\n%s", diff)
	}
}

// The whole document's changes name what stands where in it.
func TestDiffOfMachines(t *testing.T) {
	old := &parseOK(t, diffMachines).State
	new := &parseOK(t, replaced(t, diffMachines, []string{
		"{name: crm-2}]", "{name: crm-3}]", "crm-2", "crm-3", "name: gw2, node: branch, listen: 0.0.0.0:7444", "name: gw2, node: branch, listen: 0.0.0.0:7446",
		"172.16.23.2", "172.16.23.3",
	})).State
	want := []string{
		"added node crm-3", "removed node crm-2", "changed gateway gw2: listen", "changed zone linux: egress", "changed decoy c2: node",
	}
	if diff := cmp.Diff(want, changeTexts(Diff(old, new))); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

func nodeChangeTexts(changes []NodeChange) []string {
	var out []string
	for _, c := range changes {
		out = append(out, c.String())
	}
	return out
}
