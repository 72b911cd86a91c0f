// Package deception is the domain of decoynet: the things a security team and
// a network engineer talk about (segments, decoys, bindings, zones, services,
// sessions), without a word about how the kernel realises them.
//
// It imports the standard library only and is imported by everything else.
package deception

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// HostSegment is the reserved segment name for decoys that listen on the
// machine's own addresses (listen mode).
const HostSegment = "host"

// Transport is the layer-4 protocol of a port. Its values are the IANA protocol
// numbers, so that they can be handed to the kernel as they are.
type Transport uint8

// The transports a port can be bound on.
const (
	TCP Transport = 6
	UDP Transport = 17
)

// String returns the lower-case name that ECS uses in network.transport.
func (t Transport) String() string {
	switch t {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return "proto-" + strconv.Itoa(int(t))
}

// PortRange is one or more consecutive ports of one transport; First <= Last,
// both from 1 to 65535.
type PortRange struct {
	Transport   Transport
	First, Last uint16
}

// Port returns the range that holds just one port.
func Port(t Transport, number uint16) PortRange {
	return PortRange{Transport: t, First: number, Last: number}
}

// Contains tells whether the port lies in the range.
func (r PortRange) Contains(t Transport, number uint16) bool {
	return r.Transport == t && r.First <= number && number <= r.Last
}

// Overlaps tells whether the two ranges share a port.
func (r PortRange) Overlaps(o PortRange) bool {
	return r.Transport == o.Transport && r.First <= o.Last && o.First <= r.Last
}

// String writes the range as the document does: 80, 8000-8100, 161/udp.
func (r PortRange) String() string {
	s := strconv.Itoa(int(r.First))
	if r.Last != r.First {
		s += "-" + strconv.Itoa(int(r.Last))
	}
	if r.Transport != TCP {
		s += "/" + r.Transport.String()
	}
	return s
}

// Subnet is a network that a segment holds. Gateway is the zero Addr where the
// segment has no way out of it.
type Subnet struct {
	Prefix  netip.Prefix
	Gateway netip.Addr
}

// Steering names the kernel mechanism that hands bound ports to the relay.
type Steering string

// The steering mechanisms. SteeringAuto takes the best that the kernel has.
const (
	SteeringAuto     Steering = "auto"
	SteeringSKLookup Steering = "sk_lookup"
	SteeringTPROXY   Steering = "tproxy"
	SteeringIPTables Steering = "iptables"
)

// Node is a machine that runs decoynet and is told what to do by a controller.
type Node struct {
	Name string
}

// Gateway is an ingress gateway: agents on other nodes bring their flows to it.
type Gateway struct {
	Name   string
	Node   string         // the machine that it runs on
	Listen netip.AddrPort // where it waits for agents
	// Addresses are where agents reach it, each host:port, best first. Empty
	// where that is Listen itself.
	Addresses []string
}

// Egress is the place of a zone's edge on another machine than the ingress
// gateway's: flows come there with a PROXY v2 header.
type Egress struct {
	Node   string         // the machine that it runs on
	Listen netip.AddrPort // where it waits for ingress gateways
	// From are the networks that ingress gateways connect from. Nobody else is
	// served. Empty where the document means the network that Listen's address
	// is in, which the machine knows (see State.OnMachine).
	From []netip.Prefix
}

// Segment is a layer-2 network that decoys live in.
type Segment struct {
	Name     string
	Node     string // the machine that it is on; empty in a document of one machine
	Parent   string // name of the NIC that the segment's frames come by
	VLAN     uint16 // IEEE 802.1Q identifier of its frames on Parent, 1 to 4094; 0: they are not tagged
	Subnets  []Subnet
	Exclude  []AddrRange // addresses that no decoy may ever take
	Steering Steering
	Claim    Claim // how carefully an address is taken
}

// Claim says how carefully a segment's addresses are taken. While they are held,
// a real host that shows up wins in every case but ClaimUnchecked.
type Claim string

// The ways of claiming. RFC 5227 fixes its waits for links of any kind, seven
// seconds in all; ClaimProbe does the same steps with the waits of a wired LAN.
const (
	ClaimProbe     Claim = "probe"     // asked for in ARP and NDP before it is taken, within about a second
	ClaimRFC5227   Claim = "rfc5227"   // likewise, with the waits of RFC 5227
	ClaimUnchecked Claim = "unchecked" // taken at once: nobody else can be in the segment
)

// LinkAuto stands for the interface that holds the zone's subnet.
const LinkAuto = "auto"

// Zone is an isolated network of services, reached through Link.
type Zone struct {
	Name    string
	Node    string         // the machine of its edge; empty in a document of one machine
	Subnets []netip.Prefix // one IPv4, one IPv6, or both
	// Link is the interface of Node behind which the services are; LinkAuto
	// where the document leaves it to the machine (see State.OnMachine). It is
	// empty in another node's part of a document (see State.Part).
	Link string
	// Egress is where flows come in for a zone whose edge is no ingress
	// gateway's machine; nil where it is.
	Egress *Egress
	// Allow lists what a service may open towards addresses of the gateway
	// host itself (a resolver on the bridge, DHCP). Nothing else gets out.
	Allow []Allow
}

// Allow is one declared exception to a zone's containment.
type Allow struct {
	To    netip.Prefix
	Ports []PortRange
}

// Service is a real server in a zone.
type Service struct {
	Name  string
	Zone  string
	Addr4 netip.Addr // zero where the service has no IPv4 address
	Addr6 netip.Addr // zero where the service has no IPv6 address
	Ports []PortRange
	// Aliases are further addresses at which the service answers, one of which
	// stands for one decoy address, so that an intruder's source port is free
	// for every decoy. They are routed through the service's address.
	Aliases []netip.Prefix
	// Netns is the network namespace of the service (a name below /run/netns or
	// an absolute path), where the alias prefixes become local routes. Empty
	// where the service's machine holds those routes by itself.
	Netns string
}

// Addr returns the service's address of the same family as a, or the zero Addr.
func (s *Service) Addr(a netip.Addr) netip.Addr {
	if a.Is4() {
		return s.Addr4
	}
	return s.Addr6
}

// AliasPrefix returns the alias pool of the same family as a, if there is one.
func (s *Service) AliasPrefix(a netip.Addr) (netip.Prefix, bool) {
	for _, p := range s.Aliases {
		if p.Addr().Is4() == a.Is4() {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// Path says who carries the bytes of a decoy's connections.
type Path string

// The two paths of a connection.
const (
	PathRelay  Path = "relay"  // the gateway process relays; everything is recorded
	PathKernel Path = "kernel" // DNAT in the segment's namespace; no user-space copy
)

// Binding leads ports of a decoy to a service. Target is the service's port, or
// 0 where it is the same as the decoy's; it is only set for single ports.
type Binding struct {
	Ports   []PortRange
	Service string
	Target  uint16
}

// TargetPort returns the service's port for a decoy's port.
func (b *Binding) TargetPort(decoyPort uint16) uint16 {
	if b.Target != 0 {
		return b.Target
	}
	return decoyPort
}

// Decoy is a set of addresses in a segment whose ports are bound to services.
type Decoy struct {
	Name      string
	Segment   string
	Node      string      // the machine of its segment; in a document of one machine set for HostSegment only
	Addresses []AddrRange // disjoint and sorted
	Any       bool        // addresses: [any], in the host segment only
	Bind      []Binding
	Path      Path
	Idle      time.Duration // a session without a byte for this long is ended
	// Aliases is where the numbering of alias addresses stands before this
	// decoy. It is set in a part of a document (see State.Part), in which the
	// decoys before it may be missing.
	Aliases []AliasStart

	MAC         MACPrefix   // begins the MAC addresses of its addresses, each its own; zero: they have the node's
	Personality Personality // whose TCP/IP it shows; empty: the node's own
}

// AliasStart says how many addresses of one of a service's alias pools stand for
// decoys further up in the document.
type AliasStart struct {
	Service string
	Pool    netip.Prefix
	Used    uint64
}

// Lookup returns the binding that holds the port, or nil.
func (d *Decoy) Lookup(t Transport, port uint16) *Binding {
	for i := range d.Bind {
		for _, r := range d.Bind[i].Ports {
			if r.Contains(t, port) {
				return &d.Bind[i]
			}
		}
	}
	return nil
}

// State is everything one node is to realise: a validated document, resolved.
// Names are unique per kind and every reference in it resolves.
type State struct {
	Node     string
	Nodes    []Node // empty where one machine is all there is
	Gateways []Gateway
	Segments []Segment
	Zones    []Zone
	Services []Service
	Decoys   []Decoy
	// Scanners are absent from the JSON of a state without any, which nodes of
	// versions that know none read as well.
	Scanners []Scanner `json:",omitempty"`
	// Inspect is absent likewise where nothing is analysed.
	Inspect *Inspect `json:",omitempty"`
}

// Segment returns the segment of that name, or nil. Likewise the others.
func (s *State) Segment(name string) *Segment { return find(s.Segments, name, segmentName) }

// Zone returns the zone of that name, or nil.
func (s *State) Zone(name string) *Zone { return find(s.Zones, name, zoneName) }

// Service returns the service of that name, or nil.
func (s *State) Service(name string) *Service { return find(s.Services, name, serviceName) }

// Decoy returns the decoy of that name, or nil.
func (s *State) Decoy(name string) *Decoy { return find(s.Decoys, name, decoyName) }

// DecoysOf returns the decoys that live in the segment, in document order; of
// HostSegment those of the state's own node.
func (s *State) DecoysOf(segment string) []*Decoy {
	var out []*Decoy
	for i := range s.Decoys {
		d := &s.Decoys[i]
		if d.Segment == segment && (segment != HostSegment || d.Node == s.Node) {
			out = append(out, d)
		}
	}
	return out
}

func segmentName(s *Segment) string { return s.Name }
func zoneName(z *Zone) string       { return z.Name }
func serviceName(s *Service) string { return s.Name }
func decoyName(d *Decoy) string     { return d.Name }

func find[T any](list []T, name string, of func(*T) string) *T {
	i := slices.IndexFunc(list, func(v T) bool { return of(&v) == name })
	if i < 0 {
		return nil
	}
	return &list[i]
}

// JoinPorts writes port ranges as a comma-separated list.
func JoinPorts(ranges []PortRange) string {
	parts := make([]string, len(ranges))
	for i, r := range ranges {
		parts[i] = r.String()
	}
	return strings.Join(parts, ",")
}

// ParsePortRange reads 80, 8000-8100, 161/udp and 10000-10100/udp.
// Its errors say what is wrong and what would be right.
func ParsePortRange(s string) (PortRange, error) {
	r := PortRange{Transport: TCP}
	text := s
	if number, proto, ok := strings.Cut(s, "/"); ok {
		switch proto {
		case "tcp":
		case "udp":
			r.Transport = UDP
		default:
			return PortRange{}, fmt.Errorf("unknown transport %q in port %q; tcp or udp", proto, s)
		}
		text = number
	}
	first, last, isRange := strings.Cut(text, "-")
	if !isRange {
		last = first
	}
	var err error
	if r.First, err = parsePort(first, s); err != nil {
		return PortRange{}, err
	}
	if r.Last, err = parsePort(last, s); err != nil {
		return PortRange{}, err
	}
	if r.First > r.Last {
		return PortRange{}, fmt.Errorf("port range %q runs backwards; write %d-%d", s, r.Last, r.First)
	}
	return r, nil
}

func parsePort(s, whole string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("bad port %q; a number from 1 to 65535, a range as 8000-8100, with /udp for UDP", whole)
	}
	return uint16(n), nil
}
