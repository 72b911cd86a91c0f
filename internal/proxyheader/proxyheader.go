// Package proxyheader reads and writes the header that stands before a flow
// between two machines: PROXY protocol, version 2
// (https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt), which other
// tools read, too. What is our own rides in TLVs of the range that the protocol
// leaves to applications, the session identifier in PP2_TYPE_UNIQUE_ID.
//
// Headers come from the network, so reading is strict: what another
// implementation may send and we have no use for is passed over, what
// contradicts itself is refused.
package proxyheader

import (
	"errors"
	"fmt"
	"net/netip"

	"decoynet/deception"
)

// Header says whose flow follows and where it leads.
type Header struct {
	Transport deception.Transport
	// Source is the intruder, Destination the decoy. They are of one family and
	// never IPv4-mapped.
	Source, Destination netip.AddrPort
	Session             deception.SessionID // zero where the sender has none
	Node, Segment       string              // where the flow came in
	Decoy, Service      string              // by the sender's binding table
	// Target is the service's address, or its alias's; zero where the sender
	// leaves it to the receiver.
	Target netip.AddrPort
	// Local says that the connection is the sender's own (command LOCAL), as
	// health checks are: it stands for no flow, so Transport, Source and
	// Destination are zero.
	Local bool
}

// Limits of a header.
const (
	// MaxSize is the most bytes a header may take; a longer one is refused by its
	// length field. Our own take 360 at most, the rest is room for other senders'
	// TLVs.
	MaxSize = 1024
	// MaxName is the most bytes a name in a header may have: a host name's
	// (RFC 1035, section 2.3.4).
	MaxName = 253
)

var (
	// ErrShort is returned by Parse where the bytes are the beginning of a header
	// whose end is still to come.
	ErrShort = errors.New("header is not complete")
	// ErrMalformed is returned by Parse where the bytes are no header and would
	// be none whatever followed them, and by Append for what no header can say.
	ErrMalformed = errors.New("bad PROXY protocol v2 header")
	// ErrSize comes with ErrMalformed where the header claims more than MaxSize.
	ErrSize = errors.New("too long")
)

// signature begins every header of version 2: no request of any protocol does.
const signature = "\r\n\r\n\x00\r\nQUIT\n"

// The fixed part: signature, version and command, family and transport, and
// the length of what follows.
const (
	fixedSize = len(signature) + 4

	commandLocal = 0x20 // version 2 in the upper half
	commandProxy = 0x21

	familyNone = 0x00
	familyTCP4 = 0x11
	familyUDP4 = 0x12
	familyTCP6 = 0x21
	familyUDP6 = 0x22

	addresses4 = 4 + 4 + 2 + 2
	addresses6 = 16 + 16 + 2 + 2
)

// Types of TLVs. Those from 0xE0 to 0xEF are free for applications
// (PP2_TYPE_MIN_CUSTOM).
const (
	typeCRC32C   = 0x03
	typeUniqueID = 0x05 // at most 128 bytes by the protocol; ours has 16
	typeNode     = 0xE0
	typeSegment  = 0xE1
	typeDecoy    = 0xE2
	typeService  = 0xE3
	typeTarget   = 0xE4

	tlvHead  = 3 // type, length of two bytes
	target4  = 4 + 2
	target6  = 16 + 2
	crcBytes = 4
)

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// names returns the header's names with their TLV types, in the order in which
// they are written.
func (h *Header) names() [4]struct {
	kind  byte
	value string
} {
	return [4]struct {
		kind  byte
		value string
	}{{typeNode, h.Node}, {typeSegment, h.Segment}, {typeDecoy, h.Decoy}, {typeService, h.Service}}
}

// whatIs names a TLV type in errors.
func whatIs(kind byte) string {
	switch kind {
	case typeCRC32C:
		return "checksum"
	case typeUniqueID:
		return "session identifier"
	case typeNode:
		return "node"
	case typeSegment:
		return "segment"
	case typeDecoy:
		return "decoy"
	case typeService:
		return "service"
	case typeTarget:
		return "target"
	}
	return fmt.Sprintf("TLV 0x%02x", kind)
}

// printable tells whether c may stand in a name: visible ASCII. Names go into
// logs and tables.
func printable(c byte) bool { return c > ' ' && c <= '~' }
