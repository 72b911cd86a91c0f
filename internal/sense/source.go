package sense

import (
	"hash/maphash"
	"net"
	"net/netip"
	"time"

	"decoynet/deception"
)

// What makes a scan of contacts. Five addresses are more than a misconfigured
// client asks for, ten ports more than one that tries all that it knows.
const (
	manyAddresses = 5
	manyPorts     = 10
)

// source is one source in one segment, or those that are not told apart.
type source struct {
	key
	index int // in Aggregator.list

	id          deception.SessionID
	start, last int64
	contacts    [deception.ContactKinds]uint64
	addresses   distinct
	ports       distinct
	asked       few // addresses by ARP and pings
	tried       few // addresses by SYNs and datagrams
	first       netip.AddrPort
	latest      netip.AddrPort
	mac         [6]byte
	mixed       bool // it has sent from several MAC addresses
	standing    standing
	origins     *distinct // the sources of those that are not told apart; nil of a single one
	folded      int64     // when the last one joined those

	told      bool
	toldAt    int64
	toldCount uint64
	toldKind  deception.ScanKind
}

// standing is what is known of a source as a known scanner.
type standing struct {
	name string
	// asked: name is the answer to a contact. ported: to one with a port, which
	// says more than ARP and pings do. stranger: there was another answer; it
	// will not be asked again.
	asked, ported, stranger bool
	transport               deception.Transport // of the last contact that was asked for
	port                    uint16
}

func newSource(k key, c *Contact) *source {
	to := netip.AddrPortFrom(c.Target, c.Port)
	return &source{
		key: k, id: deception.NewSessionID(time.Unix(0, c.At)),
		start: c.At, last: c.At, mac: c.SourceMAC, first: to, latest: to,
	}
}

// add counts a contact.
func (a *Aggregator) add(s *source, c *Contact) {
	s.contacts[c.Kind]++
	s.last = max(s.last, c.At)
	s.latest = netip.AddrPortFrom(c.Target, c.Port)
	if s.mac != c.SourceMAC {
		s.mixed = true
	}
	h := a.hash(c.Target)
	s.addresses.add(h, &a.tables)
	switch c.Kind {
	case deception.ContactSYN, deception.ContactDatagram:
		s.tried.add(h)
		s.ports.add(mix(uint32(c.Port)), &a.tables)
	default:
		s.asked.add(h)
	}
	if a.config.Scanner != nil && !s.standing.stranger && s.origins == nil {
		a.identify(s, c)
	}
}

// identify asks whether the source is a known scanner. It is one if all its
// contacts are a scanner's; but a scanner that is known for some ports is not
// called a stranger for the ARP request before.
func (a *Aggregator) identify(s *source, c *Contact) {
	t := &s.standing
	transport, port := deception.Transport(0), uint16(0)
	switch c.Kind {
	case deception.ContactSYN:
		transport, port = deception.TCP, c.Port
	case deception.ContactDatagram:
		transport, port = deception.UDP, c.Port
	}
	ported := transport != 0
	if t.asked && (t.transport == transport && t.port == port || t.ported && !ported) {
		return
	}
	name := a.config.Scanner(s.address, transport, port, time.Unix(0, c.At))
	if ported {
		t.stranger = name == "" || t.ported && name != t.name
		t.ported = true
	}
	t.asked, t.name, t.transport, t.port = true, name, transport, port
	if t.stranger {
		t.name = ""
	}
}

// recheck asks again, since what is known expires.
func (a *Aggregator) recheck(s *source, now int64) {
	t := &s.standing
	if t.name != "" && a.config.Scanner(s.address, t.transport, t.port, time.Unix(0, now)) != t.name {
		t.name, t.stranger = "", true
	}
}

func (s *source) count() uint64 {
	var n uint64
	for _, c := range s.contacts {
		n += c
	}
	return n
}

// silent tells whether the source has been silent for so long, or the clock was
// set back by as much.
func (s *source) silent(now int64, quiet time.Duration) bool {
	since := time.Duration(now - max(s.last, s.folded))
	return since >= quiet || since <= -quiet
}

func (s *source) settled(now int64) bool {
	since := time.Duration(now - s.start)
	return since >= settle || since < 0
}

// grown tells whether a source that was told is to be told again.
func (s *source) grown(now int64, every time.Duration) bool {
	if s.count() == s.toldCount {
		return false
	}
	since := time.Duration(now - s.toldAt)
	return since >= every || since < 0 || since >= min(change, every) && s.kind() != s.toldKind
}

// kind says what the contacts look like together.
func (s *source) kind() deception.ScanKind {
	ports := s.ports.many(manyPorts)
	asked, tried := s.asked.full(), s.tried.full()
	switch {
	case ports && (asked || tried):
		return deception.ScanNetwork
	case ports:
		return deception.ScanPort
	case tried:
		return deception.ScanHorizontal
	case asked:
		return deception.ScanPingSweep
	}
	return deception.ScanContact
}

// probe is the source as it is now.
func (s *source) probe(node string) *deception.Probe {
	p := &deception.Probe{
		ID: s.id, Node: node, Segment: s.segment.name,
		Start: time.Unix(0, s.start), Last: time.Unix(0, s.last),
		Source: s.address, Sources: 1, Kind: s.kind(), Contacts: s.contacts,
		Addresses: s.addresses.count(), Ports: min(s.ports.count(), 1<<16),
		Approximate: !s.addresses.exact() || !s.ports.exact(),
		First:       s.first, Latest: s.latest, Scanner: s.standing.name,
	}
	if !s.mixed {
		p.SourceMAC = net.HardwareAddr(s.mac[:]).String()
	}
	if s.origins != nil {
		p.Sources = s.origins.count()
		p.Approximate = p.Approximate || !s.origins.exact()
	}
	return p
}

// free gives back what the source's counters hold.
func (s *source) free(b *budget) {
	s.addresses.free(b)
	s.ports.free(b)
	if s.origins != nil {
		s.origins.free(b)
	}
}

// hash is a number for an address; no two IPv4 addresses have the same.
func (a *Aggregator) hash(addr netip.Addr) uint32 {
	if addr.Is4() {
		b := addr.As4()
		return mix(uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3]))
	}
	return uint32(maphash.Comparable(a.seed, addr))
}

// mix spreads numbers over all 32 bits; it is a bijection (MurmurHash3's
// finalizer).
func mix(x uint32) uint32 {
	x ^= x >> 16
	x *= 0x85ebca6b
	x ^= x >> 13
	x *= 0xc2b2ae35
	return x ^ x>>16
}

// few is a set that is full when it has enough.
type few struct {
	n   uint8
	set [manyAddresses]uint32
}

func (f *few) full() bool { return f.n == manyAddresses }

func (f *few) add(h uint32) {
	if f.full() {
		return
	}
	for _, have := range f.set[:f.n] {
		if have == h {
			return
		}
	}
	f.set[f.n] = h
	f.n++
}

func (f *few) each(do func(uint32)) {
	for _, h := range f.set[:f.n] {
		do(h)
	}
}
