package doctor

import (
	"net"
	"net/netip"
	"time"
)

// TrunkFacts is what was heard at a NIC that VLAN segments have as their parent.
type TrunkFacts struct {
	Parent   string
	Listened time.Duration // 0: it was not listened there
	Heard    Census
}

// Census counts the frames that came in at a NIC.
type Census struct {
	Frames   uint64            // that were looked at: all to groups, a sample of the others
	Missed   uint64            // came faster than they were looked at
	Control  uint64            // of protocols between switches, which carry no tag anywhere
	Untagged uint64            // others without a tag
	Tags     map[uint16]uint64 // by their tag, the outer one of several
	Stacks   map[Stack]uint64  // frames with two tags
	Notices  []Notice
}

// Stack is the pair of tags of a frame that carries two (IEEE 802.1ad, "QinQ").
type Stack struct{ Outer, Inner uint16 }

// Notice is what a switch says of the port at the other end of the cable. It
// holds printable characters only.
type Notice struct {
	Protocol     string // LLDP, CDP or PVST+
	Switch, Port string
	Native       uint16   // the VLAN of frames without a tag; 0 where it is not said
	VLANs        []uint16 // that the port carries, where all are said
}

// VLANFacts is what was found out about the VLAN of one segment.
type VLANFacts struct {
	ID     uint16
	Frames uint64  // seen with its tag
	Strays []Stray // hosts of its subnets that were heard under other tags
	Peers  []Peer  // who was asked
}

// Stray is a host of a segment's subnet that was heard in another VLAN; 0 stands
// for frames without a tag.
type Stray struct {
	VLAN uint16
	Addr netip.Addr
}

// Peer is what came of asking a host of a VLAN for its MAC address, under the
// NIC's own MAC address and under the segment's.
type Peer struct {
	Addr    netip.Addr
	MAC     net.HardwareAddr // nil: it answered nobody
	Gateway bool
	NIC     bool       // it answered the NIC's own MAC address
	Second  bool       // it answered the segment's, which asked from nobody's address
	Decoy   netip.Addr // the decoy address that was asked under then; zero where none was free
	AsDecoy bool       // and whether that was answered
	// Where the segment's MAC address got no answer, each way was tried alone:
	// questions from it with the NIC's as the one to answer, and the reverse.
	Apart     bool
	Out, Back bool
	Echo      Echo
}

// answered tells whether the peer said anything at all.
func (p *Peer) answered() bool { return p.NIC || p.passes() || p.Out || p.Back }

// passes tells whether frames pass between the peer and the segment's MAC address.
func (p *Peer) passes() bool { return p.Second || p.AsDecoy }

// Echo is what came of pings that may not be fragmented.
type Echo struct {
	Sent     bool
	Full     int // size of an IP packet that fills the NIC's MTU
	Largest  int // of those that were answered; 0 for none
	Fragment int // size of the answer's first fragment, where it came in several
}
