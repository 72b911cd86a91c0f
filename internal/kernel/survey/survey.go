// Package survey reads what stands in a network namespace, whoever made it, and
// changes nothing: links, the way to an address, neighbours, and the packet
// filters of others. It is for telling a person why something does not work;
// what is ours alone is listed by the packages that make it.
package survey

import (
	"net"
	"net/netip"
)

// Link is an interface.
type Link struct {
	Index      int
	Name       string
	Kind       string // device, bridge, veth, macvlan, ...
	Alias      string // IFLA_IFALIAS
	MAC        net.HardwareAddr
	MTU        int
	Up         bool // administratively
	Carrier    bool
	Ethernet   bool
	Wireless   bool
	Loopback   bool
	Master     string // bridge, bond, ... that it is a port of
	MasterKind string
	VLAN       uint16 // the tag of a VLAN device; 0 for any other link
	Parent     int    // index of the link below it, where that is in this namespace
	Addrs      []netip.Prefix
}

// Route is how packets leave for an address.
type Route struct {
	Dev   string
	Via   netip.Addr
	Local bool // the address is this host's own
}

// Neighbour is an entry of the neighbour table.
type Neighbour struct {
	Addr  netip.Addr
	MAC   net.HardwareAddr // nil where it did not answer
	State string           // as ip(8) writes it
}

// Chain is a packet filter chain, of nftables or of iptables.
type Chain struct {
	Family   string // ip, ip6 or inet
	Table    string
	Name     string
	Hook     string // input or forward; empty for a chain that is only jumped to
	Priority int
	Drop     bool // the policy of a base chain
	Legacy   bool // of iptables-legacy, which nft(8) does not show
	Rules    []Rule
}

// Rule is what could be understood of a rule.
type Rule struct {
	Conditions []Condition
	// Opaque is set where the rule has further conditions: whether it matches
	// is then not known unless one of Conditions says that it does not.
	Opaque  bool
	Verdict Verdict
	Target  string // the chain of Jump and Goto
}

// Condition holds where the packet's Key has one of Values, or, with Not, none
// of them. A value that ends in an asterisk stands for all names that begin so.
type Condition struct {
	Key    Key
	Not    bool
	Values []string
}

// Key is a property of a packet.
type Key string

// The properties that are understood.
const (
	InputLink  Key = "iif"
	OutputLink Key = "oif"
	Family     Key = "family"    // ipv4, ipv6
	Transport  Key = "transport" // tcp, udp, or the protocol's number
	State      Key = "state"     // new, established, related, invalid, untracked
)

// Verdict is what a rule does with a packet.
type Verdict string

// The verdicts. Continue is that of a rule that only counts, logs or marks;
// Unknown that of one which is not understood.
const (
	Continue Verdict = ""
	Accept   Verdict = "accept"
	Drop     Verdict = "drop" // or reject
	Return   Verdict = "return"
	Jump     Verdict = "jump"
	Goto     Verdict = "goto"
	Unknown  Verdict = "unknown"
)
