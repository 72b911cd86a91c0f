// Package wire sees what arrives at the links of a network namespace, before
// anything of the namespace does, and sends frames past the kernel's own tables.
//
// A [Tap] is one packet socket with a receive ring (TPACKET_V3). What a
// deception network wants to know of a busy link is little: who asks for which
// address, who opens a connection or sends a datagram to what. A filter picks
// that in the kernel, before anything is copied, so that the other frames cost
// nothing but the filter. A socket bound to no link sees every link of
// its namespace: one descriptor for the VLAN devices of a whole trunk.
package wire

import (
	"fmt"
	"net/netip"

	"decoynet/deception"
)

// Kind is what a frame is.
type Kind uint8

// The kinds of frames that a Tap tells of. Everything else stays in the kernel.
const (
	ARPRequest    Kind = iota + 1
	ARPReply           // solicited or not
	Solicitation       // IPv6 neighbour solicitation, duplicate address detection too
	Advertisement      // IPv6 neighbour advertisement
	Echo               // an ICMP or ICMPv6 echo request
	SYN                // a TCP segment with SYN and without ACK
	Datagram           // UDP
	lastKind      = Datagram
)

var kindNames = [...]string{"", "arp-request", "arp-reply", "solicitation", "advertisement", "echo", "syn", "datagram"}

func (k Kind) String() string {
	if k > 0 && int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// Contact returns what the frame is to somebody who is its target; false for
// answers, which touch nobody.
func (k Kind) Contact() (deception.ContactKind, bool) {
	switch k {
	case ARPRequest, Solicitation:
		return deception.ContactARP, true
	case Echo:
		return deception.ContactPing, true
	case SYN:
		return deception.ContactSYN, true
	case Datagram:
		return deception.ContactDatagram, true
	}
	return 0, false
}

// Kinds is a set of kinds.
type Kinds uint16

// Only is the set of these kinds.
func Only(kinds ...Kind) Kinds {
	var s Kinds
	for _, k := range kinds {
		s |= 1 << k
	}
	return s
}

// AllKinds is the set of all kinds.
const AllKinds Kinds = 1<<(lastKind+1) - 2

// Has tells whether the kind is in the set.
func (s Kinds) Has(k Kind) bool { return s&(1<<k) != 0 }

// Frame is what is to be known of a frame.
//
// The frames are those on the link, whomever they are for: on a link that is
// promiscuous, or where a switch floods, TargetMAC may be somebody else's.
type Frame struct {
	At   int64 // when it arrived, in nanoseconds since 1970
	Link int   // the index of the link that it came in by
	Kind Kind
	// SourceMAC and TargetMAC are those of the Ethernet header. SenderMAC is
	// what the sender says to have: ARP's sender hardware address, the
	// link-layer address option of neighbour discovery; zero where there is none,
	// as in duplicate address detection.
	SourceMAC, TargetMAC, SenderMAC [6]byte
	// Source is the sender's address: ARP's sender protocol address (0.0.0.0 in a
	// probe), the packet's source (:: in duplicate address detection).
	Source netip.Addr
	// Target is the address that is meant: ARP's target protocol address, the
	// target of a neighbour solicitation, the packet's destination. Of an
	// Advertisement it is the address that the sender claims.
	Target           netip.Addr
	SourcePort, Port uint16 // of SYN and Datagram
}

// Namespace is the network namespace whose links are listened to.
type Namespace interface {
	FD() int
	Do(func() error) error
	Name() string
}

// Config says what a Tap listens to.
type Config struct {
	NS Namespace
	// Link is the index of the one link to listen at; 0 is all links of the
	// namespace, those that come later too.
	Link int
	// Handle is given what came, from one goroutine. The slice is valid during the
	// call only. While Handle runs the ring fills; what finds no room is dropped
	// and counted. It must not call Close.
	Handle func([]Frame)
	// Kinds is what to tell of; the zero value is everything.
	Kinds Kinds
	// RingBytes is the size of the ring, rounded up to whole blocks of 128 KiB;
	// 0 is DefaultRing. All of it becomes part of the process's resident memory.
	RingBytes int
}

// DefaultRing holds about 28,000 frames: at 400,000 frames a second the process
// may be kept from its work for 70 ms.
const DefaultRing = 4 << 20
