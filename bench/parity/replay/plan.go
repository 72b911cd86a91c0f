// Package replay plays scripts of captures through decoynet's real path: clients
// with the captures' own addresses, the captures' servers as decoys, and one
// service that answers by the script.
package replay

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"decoynet/bench/parity/script"
	"decoynet/deception"
)

// The harness's own addresses are of the block that RFC 2544 set aside for
// benchmarks, so that no capture has them; segment n is 198.18.n.0/24.
var (
	zone4, zone6      = netip.MustParsePrefix("198.18.250.0/24"), netip.MustParsePrefix("fd00:18:250::/64")
	zoneGateway       = "198.18.250.1"
	zoneGateway6      = "fd00:18:250::1"
	service, service6 = "198.18.250.2", "fd00:18:250::2"
	// The link between the ingress gateway and the egress, where there are two.
	linkIngress, linkEgress = "198.18.251.1", "198.18.251.2"
	// Stand-ins by role: clients' and decoys' are in networks of their own, so that
	// nobody is looked for on the link who is behind the gateway.
	standIns4 = [2]netip.Addr{netip.MustParseAddr("198.19.0.0"), netip.MustParseAddr("198.19.1.0")}
	standIns6 = [2]netip.Addr{netip.MustParseAddr("fd00:19::"), netip.MustParseAddr("fd00:19:0:1::")}
)

// target is the service's port, whatever the decoy's is.
const target = 9000

// The machines' names as nodes, and the link between them as the egress sees it.
const (
	ingressNode, EgressNode = "gw", "edge"
	Link                    = "up0"
	EgressPort              = 7445 // where flows come from the ingress gateway
)

// Plan says which addresses the captures' flows have on the wire, and in which
// segment each runs.
type Plan struct {
	segments []segment
	in       map[pair]int // which segment a flow is in
	standIns map[standIn]netip.Addr
}

// pair is the addresses of a flow as they are on the wire.
type pair struct{ client, server netip.Addr }

// segment is a network whose hosts are clients or decoys, none of them both: a
// kernel takes no packet from an address of its own.
type segment struct {
	clients map[netip.Addr]bool
	decoys  map[netip.Addr]map[deception.PortRange]bool
}

// standIn is an address that cannot be on a wire, in one of the two roles.
type standIn struct {
	addr netip.Addr
	side int
}

// NewPlan plans for all playable flows of the captures.
func NewPlan(captures []*script.Capture) *Plan {
	p := &Plan{in: map[pair]int{}, standIns: map[standIn]netip.Addr{}}
	for _, c := range captures {
		for i := range c.Flows {
			if c.Flows[i].Why == "" {
				p.place(&c.Flows[i])
			}
		}
	}
	return p
}

func (p *Plan) place(f *script.Flow) {
	client, server := p.standInFor(f, script.Client), p.standInFor(f, script.Server)
	k := pair{client, server}
	n, ok := p.in[k]
	if !ok {
		n = slices.IndexFunc(p.segments, func(s segment) bool {
			return !s.clients[server] && s.decoys[client] == nil
		})
		if n < 0 {
			n = len(p.segments)
			p.segments = append(p.segments, segment{map[netip.Addr]bool{}, map[netip.Addr]map[deception.PortRange]bool{}})
		}
		p.in[k] = n
	}
	s := p.segments[n]
	s.clients[client] = true
	if s.decoys[server] == nil {
		s.decoys[server] = map[deception.PortRange]bool{}
	}
	s.decoys[server][deception.Port(f.Transport, f.Server.Port())] = true
}

// standInFor returns the address of the flow's side on the wire: its own, unless
// no network has it.
func (p *Plan) standInFor(f *script.Flow, side int) netip.Addr {
	a := [2]netip.Addr{f.Client.Addr(), f.Server.Addr()}[side]
	same := f.Client.Addr() == f.Server.Addr()
	if !same && a.IsGlobalUnicast() {
		return a
	}
	k := standIn{a, side}
	if s, ok := p.standIns[k]; ok {
		return s
	}
	next := standIns4[side]
	if a.Is6() {
		next = standIns6[side]
	}
	for range len(p.standIns) + 1 {
		next = next.Next()
	}
	p.standIns[k] = next
	return next
}

// OnWire returns a flow's addresses as they are on the wire.
func (p *Plan) OnWire(f *script.Flow) (client, server netip.AddrPort) {
	return netip.AddrPortFrom(p.standInFor(f, script.Client), f.Client.Port()),
		netip.AddrPortFrom(p.standInFor(f, script.Server), f.Server.Port())
}

// segmentOf returns the number of the segment that a flow runs in.
func (p *Plan) segmentOf(client, server netip.AddrPort) int {
	return p.in[pair{client.Addr(), server.Addr()}]
}

// Document is the document that decoynet runs by on one of the nodes; inspect is
// its section on analysis, "" for none. hop: the zone is behind an egress on a
// machine of its own.
func (p *Plan) Document(node string, hop bool, inspect string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "node: %s\nnodes: [{name: %s}, {name: %s}]\n", node, ingressNode, EgressNode)
	edge := "node: " + ingressNode
	if hop {
		// The controller is there for the gateway's certificate.
		fmt.Fprintf(&b, "controller: {node: %s, listen: \"%[2]s:7443\", urls: [\"https://%[2]s:7443\"]}\n", ingressNode, linkIngress)
		fmt.Fprintf(&b, "gateways:\n  - {name: ingress, node: %s, listen: \"%s:7444\"}\n", ingressNode, linkIngress)
		edge = fmt.Sprintf("egress: {node: %s, listen: \"%s:%d\", from: %s}", EgressNode, linkEgress, EgressPort, linkIngress)
	}
	b.WriteString("segments:\n")
	for n, s := range p.segments {
		fmt.Fprintf(&b, "  - name: lan%d\n    node: %s\n    parent: eth%d\n    claim: unchecked\n    subnets:\n", n, ingressNode, n)
		fmt.Fprintf(&b, "      - {prefix: 198.18.%d.0/24, gateway: 198.18.%d.1}\n", n, n)
		fmt.Fprintf(&b, "      - {prefix: \"fd00:18:%x::/64\", gateway: \"fd00:18:%x::1\"}\n", n, n)
		for _, prefix := range s.subnets() {
			fmt.Fprintf(&b, "      - {prefix: %q}\n", prefix)
		}
	}
	fmt.Fprintf(&b, "zones:\n  - {name: zone, subnet: [%s, %q], link: br-zone, %s}\n", zone4, zone6, edge)
	fmt.Fprintf(&b, "services:\n  - {name: script, zone: zone, address: [%s, %q], ports: [%d, %d/udp]}\n", service, service6, target, target)
	b.WriteString("decoys:\n")
	for n, s := range p.segments {
		for i, a := range slices.SortedFunc(maps.Keys(s.decoys), netip.Addr.Compare) {
			fmt.Fprintf(&b, "  - name: decoy-%d-%d\n    segment: lan%d\n    addresses: [%q]\n    bind:\n", n, i, n, a)
			for port := range s.decoys[a] {
				fmt.Fprintf(&b, "      - {ports: [%s], service: script, target: %d}\n", deception.JoinPorts([]deception.PortRange{port}), target)
			}
		}
	}
	if inspect != "" {
		b.WriteString("inspect:\n" + inspect)
	}
	return b.String()
}

// subnets returns the prefixes that hold the segment's decoys, none of them as
// the network's own or its broadcast address.
func (s segment) subnets() []netip.Prefix {
	seen := map[netip.Prefix]bool{}
	for a := range s.decoys {
		bits := 64
		if a.Is4() {
			bits = 24
			if last := a.As4()[3]; last == 0 || last == 255 {
				bits = 22
			}
		}
		seen[netip.PrefixFrom(a, bits).Masked()] = true
	}
	return slices.SortedFunc(maps.Keys(seen), netip.Prefix.Compare)
}
