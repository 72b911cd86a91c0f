// Package disguise lets the decoys of a segment look like hosts of their own,
// though all of them are behind one macvlan and one TCP/IP stack: each decoy
// address gets a MAC address, and the packets of a decoy the marks of an
// operating system.
//
//	wire --> device below --decoynet_in--> macvlan lan0 --> kernel
//	wire <-- device below <--------------- macvlan lan0 <--decoynet_out-- kernel
//
// Two small BPF programs do it, frame by frame, and the kernel goes on to answer
// ARP, NDP, ping and all else by itself. decoynet_out gives what leaves lan0 the
// MAC address of the decoy that it is from: as the source of the frame, in ARP, and
// in neighbour solicitations and advertisements. A macvlan takes frames by MAC
// address, so decoynet_in, on the device below, readdresses those to the MAC
// address of a decoy to lan0; all other frames pass it untouched. That device
// has to receive frames to addresses that are not its own, so it is promiscuous
// while there is such a decoy.
//
// A decoy's MAC address is computed, not looked up: the prefix that its policy
// gives, and a keyed permutation of the last 24 bits of its IP address (see
// Policy.MAC). The programs share one table of prefixes with their policies, so
// that 65,536 decoys cost no more than one, and no two of them collide.
//
// The programs hang on the devices as filters of a clsact qdisc, which hold them
// by themselves: they outlive the process. The filters' names begin with Name and
// say what is in them, by which a later process finds them again.
package disguise

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"

	"decoynet/deception"
	"decoynet/internal/kernel/netns"
)

// Name begins the name of every filter of ours.
const Name = "decoynet"

// Priority is that of our filters. Where the device below is the machine's own
// NIC, filters of others go first: what they decide is not ours to undo.
const Priority = 14200

var (
	// ErrInvalid is matched by the error of a policy that makes no sense.
	ErrInvalid = errors.New("invalid looks of decoys")
	// ErrNotSupported is matched by the error of Apply where the kernel lacks
	// what it needs.
	ErrNotSupported = errors.New("not supported by this kernel")
)

// Policy is how the addresses of some prefixes look. Longer prefixes win over
// shorter ones.
type Policy struct {
	Prefixes []netip.Prefix
	// OUI begins their MAC addresses; zero: they have lan0's.
	OUI deception.MACPrefix
	// Seed makes their MAC addresses this segment's own; see Seed. With one
	// vendor and one seed, no two addresses that differ in their last 24 bits have
	// the same.
	Seed        uint64
	Personality deception.Personality
}

// Desired is how the decoys of one segment are to look.
type Desired struct {
	Segment string // its name

	NS   *netns.NS        // the segment's namespace
	Link int              // the index of lan0 in it
	MAC  net.HardwareAddr // lan0's own

	LowerNS *netns.NS // where the device below lan0 is
	Lower   int       // its index

	Policies []Policy
}

// Status is what stands after Apply.
type Status struct {
	Prefixes    int  // with a policy
	MACs        bool // there are decoys with MAC addresses of their own
	Promiscuous bool // the device below receives all frames on our behalf

	// Changes says in words what this Apply changed; empty if all stood already.
	Changes []string
}

// Seed derives the seed of a segment's MAC addresses from what never changes.
// The machine's identity keeps them from being computed by who knows the names;
// it is not to be seen in them.
func Seed(machine, node, segment string) uint64 {
	h := sha256.New()
	for _, part := range []string{"looks", machine, node, segment} {
		h.Write([]byte(part))
		h.Write([]byte{0})
	}
	return binary.BigEndian.Uint64(h.Sum(nil))
}

// MAC returns the MAC address of an IP address under the policy, or nil where it
// has none of its own. mac_of in disguise.c is the same.
func (p *Policy) MAC(a netip.Addr) net.HardwareAddr {
	if !p.OUI.IsValid() {
		return nil
	}
	raw := a.AsSlice()
	raw = raw[len(raw)-3:]
	low := permute(uint32(raw[0])<<16|uint32(raw[1])<<8|uint32(raw[2]), roundKeys(p.Seed))
	return net.HardwareAddr{p.OUI[0], p.OUI[1], p.OUI[2], byte(low >> 16), byte(low >> 8), byte(low)}
}

// permute maps the numbers of 24 bits onto themselves, each to another one: a
// Feistel network, which is a permutation whatever its round function does.
func permute(x uint32, keys [4]uint32) uint32 {
	left, right := x>>12, x&0xfff
	for _, key := range keys {
		mixed := (right + key) * 0x9e3779b1
		mixed ^= mixed >> 15
		mixed *= 0x85ebca77
		left, right = right, left^mixed>>20
	}
	return left<<12 | right
}

// roundKeys spreads a seed (SplitMix64).
func roundKeys(seed uint64) (keys [4]uint32) {
	for i := range keys {
		seed += 0x9e3779b97f4a7c15
		z := seed
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		keys[i] = uint32((z ^ z>>31) >> 32)
	}
	return keys
}
