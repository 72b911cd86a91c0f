package config

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"decoynet/deception"
)

func TestDesignMachines(t *testing.T) {
	doc, err := Load("testdata/right/design-machines.yaml")
	if err != nil {
		t.Fatal(err)
	}
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	want := deception.State{
		Node: doc.Options.Node,
		// vm1 stands in the egress only, which makes it a node.
		Nodes:    []deception.Node{{Name: "hq"}, {Name: "trunk-1"}, {Name: "crm-1"}, {Name: "vm1"}},
		Gateways: []deception.Gateway{{Name: "gw1", Node: "hq", Listen: netip.MustParseAddrPort("0.0.0.0:7444")}},
		Segments: []deception.Segment{{
			Name: "dmz", Node: "trunk-1", Parent: "eth1", VLAN: 110, Steering: deception.SteeringAuto, Claim: deception.ClaimProbe,
			Subnets: []deception.Subnet{{Prefix: prefix("192.0.2.0/24")}},
		}},
		Zones: []deception.Zone{{
			Name: "linux", Node: "vm1", Subnets: []netip.Prefix{prefix("10.1.0.0/24")}, Link: deception.LinkAuto,
			Egress: &deception.Egress{Node: "vm1", Listen: netip.MustParseAddrPort("172.16.23.2:7445")},
		}},
		Services: []deception.Service{{
			Name: "win", Zone: "linux", Addr4: addr("10.1.0.2"),
			Ports: []deception.PortRange{deception.Port(deception.TCP, 445), deception.Port(deception.TCP, 3389)},
		}},
		Decoys: []deception.Decoy{{
			Name: "crm", Segment: deception.HostSegment, Node: "crm-1", Any: true, Path: deception.PathRelay, Idle: 30 * time.Minute,
			Bind: []deception.Binding{{
				Ports: []deception.PortRange{deception.Port(deception.TCP, 445), deception.Port(deception.TCP, 3389)}, Service: "win",
			}},
		}},
	}
	if diff := cmp.Diff(want, doc.State, opts); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
}

func TestEveryKeyOfMachines(t *testing.T) {
	doc, err := Load("testdata/right/machines.yaml")
	if err != nil {
		t.Fatal(err)
	}
	listen := netip.MustParseAddrPort
	if diff := cmp.Diff(&Controller{
		Node: "hq", Listen: listen("[::]:7443"),
		URLs: []string{"https://hq.example.com:7443", "https://192.0.2.10", "https://[2001:db8::10]:7443"},
	}, doc.Options.Controller, opts); diff != "" {
		t.Errorf("controller (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]deception.Gateway{
		{Name: "gw1", Node: "hq", Listen: listen("0.0.0.0:7444"), Addresses: []string{"hq.example.com:7444", "203.0.113.10:443", "[2001:db8::10]:7444"}},
		{Name: "gw2", Node: "branch.example.com", Listen: listen("192.168.40.2:7444"), Addresses: []string{"branch.example.com:7444"}},
	}, doc.State.Gateways, opts); diff != "" {
		t.Errorf("gateways (-want +got):\n%s", diff)
	}
	prefix := netip.MustParsePrefix
	if diff := cmp.Diff([]deception.Zone{
		{
			Name: "linux", Node: "vm1", Subnets: []netip.Prefix{prefix("10.1.0.0/24")}, Link: deception.LinkAuto,
			Egress: &deception.Egress{
				Node: "vm1", Listen: listen("172.16.23.2:7445"),
				From: []netip.Prefix{prefix("172.16.23.1/32"), prefix("192.168.40.0/24"), prefix("2001:db8::/64")},
			},
		},
		{
			Name: "win", Node: "hq", Subnets: []netip.Prefix{prefix("10.2.0.0/24")}, Link: "br-win",
			Egress: &deception.Egress{Node: "hq", Listen: listen("172.16.23.1:7445"), From: []netip.Prefix{prefix("192.168.40.2/32")}},
		},
	}, doc.State.Zones, opts); diff != "" {
		t.Errorf("zones (-want +got):\n%s", diff)
	}
	var got []string
	for _, d := range doc.State.Decoys {
		got = append(got, d.Name+" "+deception.SegmentKey(d.Node, d.Segment)+" on "+d.Node)
	}
	want := []string{
		"intranet office on branch.example.com", "lab-files lab on hq", "crm host@crm-1 on crm-1",
		"crm-web host@crm-1 on crm-1", "vms-web vms on vm1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("decoys (-want +got):\n%s", diff)
	}
}

const (
	oneNode = `
nodes: [{name: hq}]
gateways: [{name: gw1, listen: 192.0.2.1:7444}]
controller: {listen: 192.0.2.1:7443}
segments: [{name: office, parent: eth0, subnets: [{prefix: 192.0.2.0/24}]}]
zones: [{name: linux, subnet: 10.1.0.0/24, link: br0}]
services: [{name: web, zone: linux, address: 10.1.0.2, ports: [80]}]
decoys:
  - {name: d, segment: office, addresses: [192.0.2.9], bind: [{ports: [80], service: web}], path: kernel}
  - {name: e, segment: host, addresses: [192.0.2.1, 127.0.0.1], bind: [{ports: [80], service: web}]}
`
	twoNodes = `
nodes: [{name: hq}, {name: crm-1}]
gateways: [{name: gw1, node: hq, listen: 0.0.0.0:7444}]
zones: [{name: linux, subnet: 10.1.0.0/24, link: br0}]
services: [{name: web, zone: linux, address: 10.1.0.2, ports: [80]}]
decoys: [{name: e, segment: host, node: crm-1, addresses: [any], bind: [{ports: [80], service: web}]}]
`
)

// What can be on one machine only need not be said to be there.
func TestNodeDefaults(t *testing.T) {
	s := parseOK(t, oneNode)
	placed := []string{
		s.Options.Node, s.State.Node, s.Options.Controller.Node, s.State.Gateways[0].Node,
		s.State.Segments[0].Node, s.State.Zones[0].Node, s.State.Decoys[0].Node, s.State.Decoys[1].Node,
	}
	for i, node := range placed {
		if node != "hq" {
			t.Errorf("with one node: thing %d is on %q", i, node)
		}
	}
	if z := parseOK(t, twoNodes).State.Zones[0]; z.Node != "hq" {
		t.Errorf("with one gateway, the zone is on %q", z.Node)
	}
	alone := parseOK(t, strings.Replace(twoNodes, "gateways:", "controller: {listen: 0.0.0.0:7444}\ngateways:", 1))
	if c := alone.Options.Controller; c == nil || c.Node != "" {
		t.Errorf("controller that runs by itself: %+v", c)
	}
	none := parseOK(t, "node: box\ncontroller: {listen: 127.0.0.1:7443}\n"+oneMachine)
	if c := none.Options.Controller; c == nil || c.Node != "box" {
		t.Errorf("controller of a document of one machine: %+v", c)
	}
	d := none.State.Decoys[0]
	if len(none.State.Nodes) > 0 || none.State.Zones[0].Node != "" || d.Node != "box" || !d.Any {
		t.Errorf("document of one machine: %+v", none.State)
	}
	table := deception.NewTable(&none.State)
	if _, ok := table.Lookup(deception.SegmentKey("box", deception.HostSegment), deception.TCP, netip.MustParseAddrPort("192.0.2.1:80")); !ok {
		t.Error("the decoy of the machine itself is not found under its name")
	}
}

const oneMachine = `
zones: [{name: linux, subnet: 10.1.0.0/24, link: br0}]
services: [{name: web, zone: linux, address: 10.1.0.2, ports: [80]}]
decoys: [{name: e, segment: host, addresses: [any], bind: [{ports: [80], service: web}]}]
`

func TestPartOfThisMachine(t *testing.T) {
	part, err := parseOK(t, "node: crm-1\n"+twoNodes).Part()
	if err != nil || part.Node != "crm-1" || len(part.Decoys) != 1 || len(part.Services) != 0 || !part.Tunnels() {
		t.Errorf("part of crm-1: %+v, %v", part, err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	_, err = parseOK(t, twoNodes).Part()
	want := "this machine is none of the document's nodes: its name is " + host + ", the nodes are hq, crm-1; say which one it is, as node: "
	if !errors.Is(err, ErrNotANode) || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("part of a machine that is no node: %v, want %s", err, want)
	}
	if part, err := parseOK(t, "node: box\n"+oneMachine).Part(); err != nil || len(part.Services) != 1 {
		t.Errorf("part of the only machine: %+v, %v", part, err)
	}
}

// What is apart on one machine may be alike on two.
func TestMachinesApart(t *testing.T) {
	parseOK(t, `
nodes: [{name: hq}, {name: branch}]
controller: {node: hq, listen: 0.0.0.0:7443}
gateways:
  - {name: gw1, node: hq, listen: "0.0.0.0:7444"}
  - {name: gw2, node: branch, listen: 192.168.1.1:7443}
segments:
  - {name: a, node: hq, parent: eth0, subnets: [{prefix: 192.168.1.0/24}]}
  - {name: b, node: branch, parent: eth0, subnets: [{prefix: 192.168.1.0/24}]}
zones:
  - {name: y, node: hq, subnet: 10.1.0.0/24, link: br0, egress: {node: hq, listen: "[2001:db8::1]:7444"}}
  - {name: z, node: branch, subnet: 10.2.0.0/24, link: br0, egress: {node: branch, listen: "[2001:db8::2]:7444"}}
  - {name: z2, node: branch, subnet: 10.3.0.0/24, link: br1, egress: {node: branch, listen: "[2001:db8::2]:7444"}}
services:
  - {name: s, zone: y, address: 10.1.0.2, ports: [80, 53, 53/udp]}
decoys:
  - {name: d1, segment: a, addresses: [192.168.1.9], bind: [{ports: [80], service: s}]}
  - {name: d2, segment: b, addresses: [192.168.1.9], bind: [{ports: [80], service: s}]}
  - {name: h1, segment: host, node: hq, addresses: [any], bind: [{ports: [80], service: s}]}
  - {name: h2, segment: host, node: branch, addresses: [any], bind: [{ports: [80], service: s}]}
  - {name: h3, segment: host, node: hq, addresses: [any], bind: [{ports: [53/udp], service: s}]}
  - {name: h4, segment: host, node: hq, addresses: [192.168.1.1], bind: [{ports: [53], service: s}]}
  - {name: h5, segment: host, node: branch, addresses: [192.168.1.1], bind: [{ports: [53/udp], service: s}, {ports: [7443/udp], service: s, target: 53}]}
  - {name: h6, segment: host, node: branch, addresses: [192.168.1.0/30], bind: [{ports: [53], service: s}]}
`)
}
