package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"decoynet/deception"
)

func previewed(t *testing.T) *preview {
	t.Helper()
	ranges := func(list ...string) (out []deception.AddrRange) {
		for _, s := range list {
			r, err := deception.ParseAddrRange(s)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, r)
		}
		return out
	}
	var many []string
	for i := range 20 {
		many = append(many, fmt.Sprintf("10.9.0.%d", 10+2*i))
	}
	web := []deception.Binding{{Ports: []deception.PortRange{deception.Port(deception.TCP, 80), deception.Port(deception.UDP, 161)}, Service: "web"}}
	whole := deception.State{
		Nodes: []deception.Node{{Name: "trunk-1"}, {Name: "other"}},
		Segments: []deception.Segment{
			{
				Name: "dmz", Node: "trunk-1", Parent: "eth1", VLAN: 110, Claim: deception.ClaimRFC5227, Steering: deception.SteeringTPROXY,
				Subnets: []deception.Subnet{{Prefix: netip.MustParsePrefix("192.0.2.0/24")}}, Exclude: ranges("192.0.2.2-192.0.2.9"),
			},
			{Name: "lab", Node: "trunk-1", Parent: "eth1", VLAN: 120, Claim: deception.ClaimUnchecked, Subnets: []deception.Subnet{{Prefix: netip.MustParsePrefix("10.9.0.0/16")}}},
			{Name: "elsewhere", Node: "other", Parent: "eth0"},
		},
		Decoys: []deception.Decoy{
			{Name: "front", Segment: "dmz", Node: "trunk-1", Addresses: ranges("192.0.2.100-192.0.2.150", "2001:db8::1"), Bind: web, Path: deception.PathKernel},
			{Name: "many", Segment: "lab", Node: "trunk-1", Addresses: ranges(many...), Bind: web},
			{Name: "own", Segment: deception.HostSegment, Node: "trunk-1", Any: true, Bind: web},
			{Name: "foreign", Segment: "elsewhere", Node: "other", Addresses: ranges("198.51.100.7"), Bind: web},
		},
	}
	part := whole.Part("trunk-1")
	p := previewOf(&part)
	return &p
}

func TestPreviewTable(t *testing.T) {
	var out bytes.Buffer
	if err := previewed(t).write(&out, "table"); err != nil {
		t.Fatal(err)
	}
	want := strings.TrimLeft(`
SEGMENT  PARENT  VLAN  CLAIM      STEERING  DECOY  COUNT  ADDRESSES                                                              PORTS
dmz      eth1    110   rfc5227    tproxy    front  52     192.0.2.100-192.0.2.150,2001:db8::1                                    80,161/udp
lab      eth1    120   unchecked  auto      many   20     10.9.0.10,10.9.0.12,10.9.0.14,10.9.0.16,10.9.0.18,10.9.0.20,and 14 more  80,161/udp
host     -       -     none       listen    own    0      any                                                                    80,161/udp

node trunk-1 would claim 72 addresses in 2 segments, all of them after about 4.1s; nothing was changed
`, "\n")
	squeeze := func(s string) string { // the columns' widths are tabwriter's
		var lines []string
		for line := range strings.Lines(s) {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
		return strings.Join(lines, "\n")
	}
	if diff := cmp.Diff(squeeze(want), squeeze(out.String())); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestPreviewJSON(t *testing.T) {
	var out bytes.Buffer
	if err := previewed(t).write(&out, "json"); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	segments := got["segments"].([]any)
	if len(segments) != 2 || got["node"] != "trunk-1" {
		t.Fatalf("segments %v of %v", segments, got["node"])
	}
	want := map[string]any{
		"name": "dmz", "parent": "eth1", "vlan": 110.0, "subnets": []any{"192.0.2.0/24"}, "exclude": []any{"192.0.2.2-192.0.2.9"},
		"claim": "rfc5227", "steering": "tproxy", "addresses": 52.0, "takes_s": 4.1,
		"decoys": []any{map[string]any{
			"name": "front", "addresses": []any{"192.0.2.100-192.0.2.150", "2001:db8::1"}, "count": 52.0, "ports": []any{"80", "161/udp"}, "path": "kernel",
		}},
	}
	if diff := cmp.Diff(want, segments[0]); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if n := len(segments[1].(map[string]any)["decoys"].([]any)[0].(map[string]any)["addresses"].([]any)); n != 20 {
		t.Errorf("%d addresses of the second, want all 20", n)
	}
}
