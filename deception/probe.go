package deception

import (
	"fmt"
	"net/netip"
	"time"
)

// ContactKind is one way to touch an address without reaching a service.
type ContactKind uint8

// The contacts that are sensed.
const (
	ContactARP      ContactKind = iota // an ARP request or IPv6 neighbour solicitation for the address
	ContactPing                        // an ICMP or ICMPv6 echo request
	ContactSYN                         // a TCP SYN to a port that is not bound
	ContactDatagram                    // a UDP datagram to a port that is not bound
	ContactKinds    = iota             // how many kinds there are
)

var contactKinds = [ContactKinds]string{"arp", "ping", "syn", "datagram"}

// String returns the kind as it stands in decoynet.probe.contacts.
func (k ContactKind) String() string {
	if int(k) < len(contactKinds) {
		return contactKinds[k]
	}
	return fmt.Sprintf("contact-%d", uint8(k))
}

// ScanKind says what the contacts of one source look like together; the value of
// decoynet.probe.kind.
type ScanKind uint8

// The kinds of scans. A ping sweep asks many addresses whether they are there
// (by ARP, NDP or echo requests); a port scan tries many ports of few addresses,
// a horizontal scan few ports of many addresses; what is both is a network scan.
// A contact is too little to be called a scan.
const (
	ScanContact ScanKind = iota
	ScanPingSweep
	ScanPort
	ScanHorizontal
	ScanNetwork
)

var scanKinds = [...]string{"contact", "ping_sweep", "port_scan", "horizontal_scan", "network_scan"}

// String returns the value of decoynet.probe.kind.
func (k ScanKind) String() string {
	if int(k) < len(scanKinds) {
		return scanKinds[k]
	}
	return fmt.Sprintf("scan-%d", uint8(k))
}

// ParseScanKind is the inverse of String; unknown names give ScanContact and false.
func ParseScanKind(s string) (ScanKind, bool) {
	for i, name := range scanKinds {
		if name == s {
			return ScanKind(i), true
		}
	}
	return ScanContact, false
}

// Probe is what one source did in one segment without reaching a service, taken
// together. While the source goes on, the same probe is told again with higher
// numbers; End is zero until it has been silent for a while.
type Probe struct {
	ID            SessionID // a UUIDv7 as a session's
	Start, End    time.Time // the first contact; the last one, once it is over
	Last          time.Time // the last contact so far
	Node, Segment string
	// Source is the zero Addr where further sources than can be told apart are
	// counted together (forged ones, mostly); Sources is then how many, about.
	Source    netip.Addr
	SourceMAC string // the frames' source address; empty where they differ
	Sources   uint64 // 1 unless Source is zero
	Kind      ScanKind
	Contacts  [ContactKinds]uint64 // by ContactKind
	// Addresses and Ports are how many different ones were tried. Approximate says
	// that they are estimates, within a few per cent.
	Addresses, Ports uint64
	Approximate      bool
	First            netip.AddrPort // of the destinations; port 0 for ARP and pings
	Latest           netip.AddrPort
	Scanner          string // the known scanner that it is, see Scanner; empty otherwise
}

// Count returns how many contacts the probe holds.
func (p *Probe) Count() uint64 {
	var n uint64
	for _, c := range p.Contacts {
		n += c
	}
	return n
}

// Scanner is a known source of contacts (a vulnerability scanner, monitoring):
// it is relayed and sensed like everybody, but marked, and no alert is raised.
type Scanner struct {
	Name  string
	From  []netip.Prefix
	Ports []PortRange // of decoys; empty: every port. Pings and ARP requests have none, and are its own in any case
	Until time.Time   // zero: for ever
}
