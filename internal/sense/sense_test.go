package sense

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"decoynet/deception"
)

// world is an aggregator with a clock, and what it has emitted.
type world struct {
	*Aggregator
	now    time.Time
	probes []*deception.Probe
}

func newWorld(c Config) *world {
	w := &world{now: time.Unix(1_800_000_000, 0)}
	c.Node = "n1"
	c.Emit = func(p *deception.Probe) { w.probes = append(w.probes, p) }
	w.Aggregator = New(c)
	return w
}

// pass lets time go by and returns what is emitted meanwhile.
func (w *world) pass(d time.Duration) []*deception.Probe {
	w.probes = nil
	for end := w.now.Add(d); w.now.Before(end); {
		w.now = w.now.Add(250 * time.Millisecond)
		w.Tick(w.now)
	}
	return w.probes
}

func (w *world) contact(source string, kind deception.ContactKind, target string, port uint16) {
	w.Observe([]Contact{w.contactOf(netip.MustParseAddr(source), kind, netip.MustParseAddr(target), port)})
}

func (w *world) contactOf(source netip.Addr, kind deception.ContactKind, target netip.Addr, port uint16) Contact {
	return Contact{Segment: "office", At: w.now.UnixNano(), Source: source, SourceMAC: [6]byte{2, 5: 0x42}, Kind: kind, Target: target, Port: port}
}

// address is the nth address of 10.0.0.0/8.
func address(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
}

// short is what matters of a probe on one line.
func short(probes []*deception.Probe) []string {
	var out []string
	for _, p := range probes {
		s := fmt.Sprintf("%s %s %d contacts", p.Source, p.Kind, p.Count())
		if !p.End.IsZero() {
			s += " over"
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}

// A probe is told within a second, again when it has grown, and when it is over.
func TestLifeOfAProbe(t *testing.T) {
	w := newWorld(Config{})
	began := w.now
	w.contact("192.0.2.66", deception.ContactARP, "192.0.2.10", 0)
	w.contact("192.0.2.66", deception.ContactSYN, "192.0.2.10", 22)
	first := w.pass(time.Second)
	if diff := cmp.Diff([]string{"192.0.2.66 contact 2 contacts"}, short(first)); diff != "" {
		t.Fatalf("within a second (-want +got):\n%s", diff)
	}
	want := &deception.Probe{
		ID: first[0].ID, Node: "n1", Segment: "office", Start: began, Last: began, Source: netip.MustParseAddr("192.0.2.66"),
		SourceMAC: "02:00:00:00:00:42", Sources: 1, Contacts: [deception.ContactKinds]uint64{1, 0, 1, 0}, Addresses: 1, Ports: 1,
		First: netip.MustParseAddrPort("192.0.2.10:0"), Latest: netip.MustParseAddrPort("192.0.2.10:22"),
	}
	if diff := cmp.Diff(want, first[0], cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("first told as (-want +got):\n%s", diff)
	}
	if more := w.pass(20 * time.Second); len(more) > 0 {
		t.Errorf("a probe that has not grown is told again: %q", short(more))
	}
	w.contact("192.0.2.66", deception.ContactSYN, "192.0.2.10", 23)
	again := w.pass(time.Second)
	if diff := cmp.Diff([]string{"192.0.2.66 contact 3 contacts"}, short(again)); diff != "" {
		t.Fatalf("after it has grown (-want +got):\n%s", diff)
	}
	w.contact("192.0.2.66", deception.ContactSYN, "192.0.2.10", 24)
	if early := w.pass(9 * time.Second); len(early) > 0 {
		t.Errorf("told again before its time: %q", short(early))
	}
	// A scan is told as one as soon as it is.
	for port := range uint16(10) {
		w.contact("192.0.2.66", deception.ContactSYN, "192.0.2.10", 100+port)
	}
	last := w.now
	if diff := cmp.Diff([]string{"192.0.2.66 port_scan 14 contacts"}, short(w.pass(2*time.Second))); diff != "" {
		t.Errorf("when it became a scan (-want +got):\n%s", diff)
	}
	over := w.pass(30 * time.Second)
	if diff := cmp.Diff([]string{"192.0.2.66 port_scan 14 contacts over"}, short(over)); diff != "" {
		t.Fatalf("after 30 s of silence (-want +got):\n%s", diff)
	}
	if over[0].ID != first[0].ID || again[0].ID != first[0].ID || !over[0].End.Equal(last) {
		t.Errorf("the last one is %+v, the first was %+v", over[0], first[0])
	}
	if w.pass(time.Minute); len(w.probes) > 0 || len(w.list) > 0 || len(w.sources) > 0 || len(w.segments) > 0 {
		t.Errorf("something is left: %q", short(w.probes))
	}
	w.contact("192.0.2.66", deception.ContactSYN, "192.0.2.10", 22)
	if next := w.pass(time.Second); len(next) != 1 || next[0].ID == first[0].ID {
		t.Errorf("after its end a source is %q, with the old identifier", short(next))
	}
	w.probes = nil
	w.Flush(w.now)
	if diff := cmp.Diff([]string{"192.0.2.66 contact 1 contacts over"}, short(w.probes)); diff != "" {
		t.Errorf("flushed (-want +got):\n%s", diff)
	}
}

func TestKinds(t *testing.T) {
	for _, c := range []struct {
		name                     string
		arp, ping, syn, datagram int // addresses
		ports                    int // of each address that is tried
		want                     deception.ScanKind
	}{
		{"a neighbour's questions", 4, 0, 0, 0, 0, deception.ScanContact},
		{"an ARP sweep", 5, 0, 0, 0, 0, deception.ScanPingSweep},
		{"a ping sweep with its ARP requests", 254, 254, 0, 0, 0, deception.ScanPingSweep},
		{"a client that tries what it knows", 1, 0, 1, 0, 9, deception.ScanContact},
		{"a port scan", 1, 1, 1, 0, 10, deception.ScanPort},
		{"a port scan by datagrams", 1, 0, 0, 1, 1000, deception.ScanPort},
		{"a port scan of four", 4, 4, 4, 0, 100, deception.ScanPort},
		{"few addresses and ports", 4, 0, 4, 4, 1, deception.ScanContact},
		{"a horizontal scan", 254, 0, 254, 0, 2, deception.ScanHorizontal},
		{"a sweep, and the web server it found", 254, 254, 1, 0, 2, deception.ScanPingSweep},
		{"a sweep, and a port scan of what it found", 254, 0, 1, 0, 100, deception.ScanNetwork},
		{"everything", 0, 0, 20, 20, 100, deception.ScanNetwork},
	} {
		w := newWorld(Config{})
		for kind, n := range []int{c.arp, c.ping, c.syn, c.datagram} {
			ports := 1
			if kind >= int(deception.ContactSYN) {
				ports = c.ports
			}
			for i := range n {
				for port := range ports {
					w.contact("192.0.2.66", deception.ContactKind(kind), address(i).String(), uint16(port))
				}
			}
		}
		if got := w.pass(time.Second); len(got) != 1 || got[0].Kind != c.want {
			t.Errorf("%s: %q, want %s", c.name, short(got), c.want)
		}
	}
}

// Sources are told apart by segment and address; those without an address by
// their MAC address. Where one address has several MAC addresses none is told.
func TestSourcesApart(t *testing.T) {
	w := newWorld(Config{})
	target := netip.MustParseAddr("192.0.2.10")
	for _, c := range []struct {
		segment, source string
		mac             byte
	}{
		{"office", "192.0.2.66", 1},
		{"dmz", "192.0.2.66", 1},
		{"office", "192.0.2.67", 1},
		{"office", "192.0.2.67", 2},
		{"office", "192.0.2.66", 1},
		{"office", "0.0.0.0", 1},
		{"office", "0.0.0.0", 2},
		{"office", "0.0.0.0", 1},
		{"office", "::", 1},
		{"office", "fe80::1", 1},
	} {
		contact := w.contactOf(netip.MustParseAddr(c.source), deception.ContactARP, target, 0)
		contact.Segment, contact.SourceMAC = c.segment, [6]byte{5: c.mac}
		w.Observe([]Contact{contact})
	}
	var got []string
	for _, p := range w.pass(time.Second) {
		got = append(got, fmt.Sprintf("%s %s %q %d", p.Segment, p.Source, p.SourceMAC, p.Count()))
	}
	slices.Sort(got)
	if diff := cmp.Diff([]string{
		`dmz 192.0.2.66 "00:00:00:00:00:01" 1`,
		`office 0.0.0.0 "00:00:00:00:00:01" 2`,
		`office 0.0.0.0 "00:00:00:00:00:02" 1`,
		`office 192.0.2.66 "00:00:00:00:00:01" 2`,
		`office 192.0.2.67 "" 2`,
		`office :: "00:00:00:00:00:01" 1`,
		`office fe80::1 "00:00:00:00:00:01" 1`,
	}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// A source is a known scanner if everything it does is a scanner's.
func TestScanners(t *testing.T) {
	w := newWorld(Config{Scanner: func(source netip.Addr, transport deception.Transport, port uint16, at time.Time) string {
		switch {
		case source == address(1) && at.Before(time.Unix(1_800_000_015, 0)): // all of it, for a while
			return "nessus"
		case source == address(2) && transport == deception.TCP && port >= 80 && port < 90:
			return "web-monitor"
		}
		return ""
	}})
	scan := func(n int, kind deception.ContactKind, ports ...uint16) {
		for _, port := range ports {
			w.contact(address(n).String(), kind, "192.0.2.10", port)
		}
	}
	names := func(d time.Duration) map[string]string {
		out := map[string]string{}
		for _, p := range w.pass(d) {
			out[p.Source.String()] = p.Scanner
		}
		return out
	}
	scan(1, deception.ContactARP, 0)
	scan(1, deception.ContactDatagram, 161)
	scan(2, deception.ContactARP, 0)
	scan(2, deception.ContactPing, 0)
	scan(2, deception.ContactSYN, 80, 81, 80)
	scan(2, deception.ContactPing, 0)
	scan(3, deception.ContactSYN, 80)
	if diff := cmp.Diff(map[string]string{"10.0.0.1": "nessus", "10.0.0.2": "web-monitor", "10.0.0.3": ""}, names(time.Second)); diff != "" {
		t.Errorf("known (-want +got):\n%s", diff)
	}
	scan(2, deception.ContactSYN, 22, 80) // what it is not known for
	scan(1, deception.ContactSYN, 22)
	w.pass(15 * time.Second)
	scan(1, deception.ContactSYN, 23) // after its time
	if diff := cmp.Diff(map[string]string{"10.0.0.1": "", "10.0.0.2": "", "10.0.0.3": ""}, names(time.Minute)); diff != "" {
		t.Errorf("not known any more (-want +got):\n%s", diff)
	}
}

// A clock that is set back by an hour does not keep probes for an hour.
func TestClockSetBack(t *testing.T) {
	w := newWorld(Config{})
	w.contact("192.0.2.66", deception.ContactSYN, "192.0.2.10", 22)
	w.pass(time.Second)
	w.now = w.now.Add(-time.Hour)
	if got := w.pass(time.Second); len(got) != 1 || got[0].End.IsZero() {
		t.Errorf("told: %q", short(got))
	}
	w.contact("192.0.2.67", deception.ContactSYN, "192.0.2.10", 22)
	if got := w.pass(time.Second); len(got) != 1 {
		t.Errorf("told: %q", short(got))
	}
}

func TestKnownSourceCostsNoAllocation(t *testing.T) {
	w := newWorld(Config{})
	batch := make([]Contact, 512)
	for i := range batch {
		batch[i] = w.contactOf(address(i%8), deception.ContactSYN, address(i), uint16(i))
	}
	w.Observe(batch)
	if n := testing.AllocsPerRun(100, func() { w.Observe(batch) }); n > 0 {
		t.Errorf("a batch from known sources allocates %v times", n)
	}
}
