package deception

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// ScannerTable is an immutable snapshot of the known scanners, made once for a
// state and asked for every session and every new source of probes. A nil table
// knows none.
type ScannerTable struct {
	networks map[netip.Prefix][]*Scanner // in the order of the document
	// lengths are the lengths of the prefixes in networks, longest first, by
	// whether they are of IPv4.
	lengths map[bool][]int
}

// NewScannerTable builds the table of a validated state's scanners, which must
// not change afterwards.
func NewScannerTable(scanners []Scanner) *ScannerTable {
	t := &ScannerTable{networks: map[netip.Prefix][]*Scanner{}, lengths: map[bool][]int{}}
	for i := range scanners {
		s := &scanners[i]
		for _, from := range s.From {
			key := from.Masked()
			t.networks[key] = append(t.networks[key], s)
			if four := key.Addr().Is4(); !slices.Contains(t.lengths[four], key.Bits()) {
				t.lengths[four] = append(t.lengths[four], key.Bits())
			}
		}
	}
	for _, lengths := range t.lengths {
		slices.SortFunc(lengths, func(a, b int) int { return cmp.Compare(b, a) })
	}
	return t
}

// Match returns the name of the scanner that a contact of this moment comes
// from, or "": of those that are known at the time and may touch the port, the one
// with the narrowest network; of two with the same network the one further up in
// the document. Port 0 stands for a contact that has none, as a ping: the ports
// that a scanner is known by do not matter then, since an ARP request comes before
// whatever is allowed.
func (t *ScannerTable) Match(source netip.Addr, transport Transport, port uint16, at time.Time) string {
	return t.first(source, at, func(s *Scanner) bool { return port == 0 || s.scans(transport, port) })
}

// MatchProbe returns the name of the scanner that all of the probe comes from, at
// the time of its last contact, or "". Where several ports were tried it knows too
// little of them for scanners that are known by their ports.
func (t *ScannerTable) MatchProbe(p *Probe) string {
	syns, datagrams := p.Contacts[ContactSYN], p.Contacts[ContactDatagram]
	transport, port := TCP, max(p.First.Port(), p.Latest.Port())
	if syns == 0 {
		transport = UDP
	}
	one := p.Ports == 1 && port != 0 && (syns == 0 || datagrams == 0)
	return t.first(p.Source, p.Last, func(s *Scanner) bool {
		return syns+datagrams == 0 || len(s.Ports) == 0 || one && s.scans(transport, port)
	})
}

// first returns the name of the first scanner at the source that fits.
func (t *ScannerTable) first(source netip.Addr, at time.Time, fits func(*Scanner) bool) string {
	if t == nil || len(t.networks) == 0 || !source.IsValid() {
		return ""
	}
	source = source.Unmap().WithZone("")
	for _, bits := range t.lengths[source.Is4()] {
		network, err := source.Prefix(bits)
		if err != nil {
			continue // cannot be: lengths are those of the family
		}
		for _, s := range t.networks[network] {
			if s.KnownAt(at) && fits(s) {
				return s.Name
			}
		}
	}
	return ""
}

// KnownAt tells whether the scanner's time is not over.
func (s *Scanner) KnownAt(at time.Time) bool { return s.Until.IsZero() || at.Before(s.Until) }

func (s *Scanner) scans(transport Transport, port uint16) bool {
	return len(s.Ports) == 0 || slices.ContainsFunc(s.Ports, func(r PortRange) bool { return r.Contains(transport, port) })
}
