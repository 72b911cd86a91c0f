// Package trial finds out what the kernel can do by doing it: everything that
// decoynet will ask of it is asked once, by the same code, in network namespaces
// without a name that are gone afterwards. A version number says less: features
// are left out of kernels, and put into older ones.
package trial

// Feature is a part of the kernel that decoynet needs.
type Feature string

// The features, in the order in which Run tries them.
const (
	Namespaces  Feature = "network namespaces"
	Veth        Feature = "veth"
	Macvlan     Feature = "macvlan"
	VLAN        Feature = "802.1Q"              // segments with a VLAN tag
	Containment Feature = "nftables"            // the rules at a zone's link
	KernelPath  Feature = "nftables DNAT"       // translations and connection tracking
	Events      Feature = "connection events"   // sessions of the kernel path
	Rules       Feature = "policy routing"      // delivery to transparent sockets
	Transparent Feature = "transparent sockets" // dialing as the intruder
	SKLookup    Feature = "sk_lookup"           // steering
	TPROXY      Feature = "TPROXY"              // steering
	IPTables    Feature = "iptables and ipset"  // steering
)

// Result is what trying a feature came to.
type Result struct {
	Feature Feature
	Err     error // nil: it is there
}
