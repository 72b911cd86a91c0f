package conntrack

import (
	"net/netip"
	"time"

	"decoynet/deception"
)

// EventType says what happened to the connection.
type EventType uint8

// The kernel's event groups.
const (
	EventNew EventType = iota + 1
	EventUpdate
	EventDestroy
)

// String returns the name that conntrack(8) prints.
func (t EventType) String() string {
	switch t {
	case EventNew:
		return "NEW"
	case EventUpdate:
		return "UPDATE"
	case EventDestroy:
		return "DESTROY"
	}
	return "UNKNOWN"
}

// Status is the kernel's enum ip_conntrack_status.
type Status uint32

// The status bits that matter here.
const (
	StatusSeenReply Status = 1 << 1 // packets went both ways
	StatusAssured   Status = 1 << 2 // TCP: the handshake was completed
	StatusConfirmed Status = 1 << 3
	StatusSrcNAT    Status = 1 << 4 // the kernel moved the source (its port)
	StatusDstNAT    Status = 1 << 5 // the destination was redirected
	StatusDying     Status = 1 << 9
)

// TCPState is the kernel's enum tcp_conntrack.
type TCPState uint8

// The states of a tracked TCP connection.
const (
	TCPNone TCPState = iota
	TCPSynSent
	TCPSynRecv
	TCPEstablished
	TCPFinWait
	TCPCloseWait
	TCPLastAck
	TCPTimeWait
	TCPClose
	TCPSynSent2
)

// TCPFlagCloseInit in a direction's flags says that this side sent the first
// FIN (IP_CT_TCP_FLAG_CLOSE_INIT).
const TCPFlagCloseInit = 0x04

// Tuple is one direction of a connection. The zero Tuple is unknown.
type Tuple struct {
	Src, Dst netip.AddrPort
}

// Counters is what went one way, as IP counts it: bytes with all headers.
type Counters struct {
	Packets, Bytes uint64
}

// Event is one connection tracking message. What a message did not hold is zero:
// counters, Start and Stop come with DESTROY and with a dump only, TCP flags with
// UPDATE and a dump.
type Event struct {
	Type EventType
	// At is when the message was read.
	At time.Time
	// ID distinguishes connections that live at the same time.
	ID        uint32
	Transport deception.Transport
	// Orig is the first packet's: the intruder and the decoy. Reply is what
	// the first answer has: the service, and the intruder as the service
	// sees it.
	Orig, Reply           Tuple
	OrigCount, ReplyCount Counters
	Start, Stop           time.Time
	HasTCP                bool
	TCPState              TCPState
	OrigFlags, ReplyFlags uint8
	Status                Status
	Mark                  uint32
}

// Values of the connection mark that the rules of the segment's namespace set on
// the first sign of a connection's end. The kernel itself tells who sent the first
// FIN, but only in the event of that moment, and never who sent a RST; the
// mark comes with every later event, the last included.
const (
	MarkClientClosed  uint32 = 0x0dec0001
	MarkServiceClosed uint32 = 0x0dec0002
	MarkClientReset   uint32 = 0x0dec0003
	MarkServiceReset  uint32 = 0x0dec0004
	MarkUnreachable   uint32 = 0x0dec0005 // ICMP unreachable before any answer
)
