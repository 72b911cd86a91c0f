// Package link realises the links of a segment: the macvlan on the parent NIC
// through which the segment's namespace is a host on that layer-2 network, and,
// for the kernel path, the veth pair that joins the namespace to the host.
//
//	host namespace                                     segment namespace
//	eth0 (parent) <------------ macvlan -------------- lan0
//	dnv-1f2e3d4c  <------------- veth ---------------- up0   (only with an uplink)
//
//	host namespace      trunk namespace
//	eth1 (parent) <---- v110-eth1 <---- macvlan ------ lan0  (with a VLAN)
//
// The devices of all VLANs are in one dark namespace, decoynet-_trunk, which has
// no address: in the host namespace the kernel would answer there for every
// address of the host. The host's own device of a VLAN is shared, if it has one.
//
// A macvlan in bridge mode hands a frame to the segment by its MAC address
// alone: the parent stays as it is, nothing is bridged or flooded, and traffic
// of the host itself does not pass through us.
//
// The veth pair has no addresses. Routes across it name next hops that exist
// nowhere but in permanent neighbour entries (NextHopHost4 and the others), so
// no subnet of the host can collide with them and nothing is ever resolved on
// the wire. They must be given as onlink.
//
// Everything made here carries the interface alias Alias, by which Owned and
// Remove find it again without any memory of their own.
package link

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
)

const (
	// Alias is the interface alias (IFLA_IFALIAS) of every link of ours.
	Alias = "decoynet"
	// LANName is the segment's link inside its namespace.
	LANName = "lan0"
	// UplinkName is the namespace's end of the veth pair to the host.
	UplinkName = "up0"

	tempPrefix = "dn-"  // a macvlan that has not yet become lan0
	hostPrefix = "dnv-" // the host's end of a veth pair
)

// Next hops across the veth pair, to be used in onlink routes only: the segment
// reaches the host by NextHopHost4/6 through UplinkName, the host reaches the
// segment by NextHopSegment4/6 through HostName. They are the same for every
// segment; the device tells them apart.
var (
	NextHopHost4    = netip.AddrFrom4([4]byte{169, 254, 77, 1})
	NextHopSegment4 = netip.AddrFrom4([4]byte{169, 254, 77, 2})
	NextHopHost6    = netip.MustParseAddr("fe80::77:1")
	NextHopSegment6 = netip.MustParseAddr("fe80::77:2")
)

// Causes of a refusal, to be tested with errors.Is. A parent that is missing or
// down may come back; Apply may then be tried again.
var (
	// ErrParentMissing says that no interface of that name exists.
	ErrParentMissing = errors.New("does not exist")
	// ErrParentDown says that the interface is administratively down.
	ErrParentDown = errors.New("is down")
	// ErrParentBusy says that the frames of the interface already go to another
	// driver (bridge, bond, ipvlan, ...): a NIC has one receive handler.
	ErrParentBusy = errors.New("is taken")
	// ErrParentUnsuitable says that the interface can never carry a macvlan.
	ErrParentUnsuitable = errors.New("cannot be a segment's parent")
	// ErrNotSupported says that the kernel lacks the kind of link.
	ErrNotSupported = errors.New("not supported by this kernel")
)

// Status is what really stands after Apply.
type Status struct {
	Parent      string
	ParentIndex int
	Index       int // of lan0, in the segment namespace; 0 if there is none
	MAC         net.HardwareAddr
	MTU         int
	Carrier     bool // the parent has a link: frames can flow
	// CarrierChanges grows whenever the parent loses its link or gets it back; 0
	// where the kernel does not tell.
	CarrierChanges uint64
	// Lower is what lan0 stands on: the parent, our device of the VLAN in the
	// trunk namespace (then InTrunk), or the host's own device of the VLAN.
	Lower      string
	LowerIndex int
	InTrunk    bool
	Uplink     *UplinkStatus

	// Changes says in words what this Apply changed; empty if all stood already.
	Changes []string
	// Warnings are conditions outside of what is ours that will hurt.
	Warnings []string
}

// UplinkStatus is the veth pair of the kernel path.
type UplinkStatus struct {
	HostName  string // in the host namespace
	HostIndex int
	Index     int // of up0, in the segment namespace
}

// HostName returns the name of the host's end of a segment's veth pair.
func HostName(segment string) string {
	sum := sha256.Sum256([]byte("uplink\x00" + segment))
	return hostPrefix + hex.EncodeToString(sum[:4])
}

// hardwareAddr derives a MAC address from what it is for. It is locally
// administered and unicast (IEEE 802-2014, section 8.4), and the same after a
// restart, so that neighbour caches and switch port security stay content.
func hardwareAddr(parts ...string) net.HardwareAddr {
	h := sha256.New()
	for _, p := range parts {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	mac := net.HardwareAddr(h.Sum(nil)[:6])
	mac[0] = mac[0]&^0x01 | 0x02
	return mac
}
