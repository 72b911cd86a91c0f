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
		{"renamed", []string{"name: d2", "name: d3"}, []string{"added decoy d3", "removed decoy d2"}},
	}
	old := &parseOK(t, diffBase).State
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src := diffBase
			for i := 0; i < len(tt.replace); i += 2 {
				if !strings.Contains(src, tt.replace[i]) {
					t.Fatalf("%q is not in the document", tt.replace[i])
				}
				src = strings.Replace(src, tt.replace[i], tt.replace[i+1], 1)
			}
			if diff := cmp.Diff(tt.want, changeTexts(Diff(old, &parseOK(t, src).State))); diff != "" {
				t.Errorf("changes (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDiffAgainstNothing(t *testing.T) {
	state := &parseOK(t, diffBase).State
	kinds := []string{"segment office", "zone linux", "service web", "service ssh", "decoy d1", "decoy d2"}
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
