package claim

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"decoynet/deception"
)

// lan is a segment in which time is a number: nodes with a Claimer each, and
// hosts that answer for their addresses.
type lan struct {
	t     fataler
	now   time.Time
	nodes []*node
	hosts map[netip.Addr]MAC
}

type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

// node is a Claimer with what it has said so far.
type node struct {
	*Claimer
	mac    MAC
	inbox  []Frame
	next   time.Time
	sent   []sent
	events []deception.Event
}

type sent struct {
	at time.Time
	Frame
}

// latency is how long a frame takes from one to another.
const latency = time.Millisecond

var (
	start   = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	nodeMAC = MAC{2, 0xdc, 0, 0, 0, 1}
	hostMAC = MAC{2, 0, 0, 0, 0, 0x10}
)

func newLAN(t fataler) *lan { return &lan{t: t, now: start, hosts: map[netip.Addr]MAC{}} }

// add puts a node into the segment that wants the addresses.
func (l *lan) add(cfg Config, segment deception.Segment, addresses ...string) *node {
	l.t.Helper()
	n := &node{mac: nodeMAC}
	n.mac[5] += byte(len(l.nodes))
	cfg.Node = "n"
	cfg.MAC = func(netip.Addr) MAC { return n.mac }
	if cfg.Ours == nil {
		cfg.Ours = func(m MAC) bool { return m == n.mac }
	}
	if cfg.Random == nil {
		cfg.Random = func() float64 { return 0 }
	}
	n.Claimer = New(cfg)
	n.Want(segment, decoys(l.t, addresses...))
	n.next = l.now
	l.nodes = append(l.nodes, n)
	return n
}

func decoys(t fataler, addresses ...string) []*deception.Decoy {
	t.Helper()
	d := &deception.Decoy{Name: "web"}
	for _, s := range addresses {
		d.Addresses = append(d.Addresses, ranges(t, s)...)
	}
	d.Addresses = deception.SortRanges(d.Addresses)
	return []*deception.Decoy{d}
}

func ranges(t fataler, list ...string) []deception.AddrRange {
	t.Helper()
	var out []deception.AddrRange
	for _, s := range list {
		r, err := deception.ParseAddrRange(s)
		if err != nil {
			t.Fatalf("%v", err)
		}
		out = append(out, r)
	}
	return deception.SortRanges(out)
}

func office(mode deception.Claim) deception.Segment {
	return deception.Segment{Name: "office", Claim: mode, Subnets: []deception.Subnet{
		{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Gateway: netip.MustParseAddr("10.0.0.1")},
		{Prefix: netip.MustParsePrefix("2001:db8::/64"), Gateway: netip.MustParseAddr("2001:db8::ffff")},
	}}
}

// run lets time pass.
func (l *lan) run(d time.Duration) {
	l.t.Helper()
	end := l.now.Add(d)
	for {
		at := time.Time{}
		for _, n := range l.nodes {
			due := n.next
			if len(n.inbox) > 0 {
				due = l.now.Add(latency)
			}
			if !due.IsZero() && (at.IsZero() || due.Before(at)) {
				at = due
			}
		}
		if at.IsZero() || at.After(end) {
			l.now = end
			return
		}
		if at.After(l.now) {
			l.now = at
		}
		l.step()
	}
}

// step has every node whose time has come, or which has mail, do its work.
func (l *lan) step() {
	l.t.Helper()
	type mail struct {
		to *node
		Frame
	}
	var post []mail
	for _, n := range l.nodes {
		if len(n.inbox) == 0 && (n.next.IsZero() || n.next.After(l.now)) {
			continue
		}
		out := n.Step(l.now, n.inbox)
		n.inbox, n.next = nil, out.Next
		n.events = append(n.events, out.Events...)
		if !out.Next.IsZero() && !out.Next.After(l.now) {
			l.t.Fatalf("Next is %v ago", l.now.Sub(out.Next))
		}
		for _, b := range out.Frames {
			f := decode(l.t, b)
			n.sent = append(n.sent, sent{l.now, f})
			if mac, ok := l.hosts[f.Target]; ok && f.Source != f.Target {
				post = append(post, mail{n, answer(f.Target, mac)})
			}
			for _, other := range l.nodes {
				post = append(post, mail{other, f}) // its own echo too
				// Who only asks whether it may have the address is not answered.
				if other != n && f.Source.IsValid() && !f.Source.IsUnspecified() && f.Source != f.Target && other.holds(f.Target) {
					post = append(post, mail{n, answer(f.Target, other.mac)})
				}
			}
		}
	}
	for _, m := range post {
		m.to.inbox = append(m.to.inbox, m.Frame)
	}
}

// hear has every node see frames.
func (l *lan) hear(frames ...Frame) {
	for _, n := range l.nodes {
		n.inbox = append(n.inbox, frames...)
	}
	l.run(0)
	l.run(latency)
}

func answer(a netip.Addr, from MAC) Frame {
	f := Frame{Kind: ARPReply, SourceMAC: from, SenderMAC: from, Source: a, Target: a}
	if a.Is6() {
		f.Kind = Advertisement
	}
	return f
}

func decode(t fataler, b []byte) Frame {
	t.Helper()
	f, ok := parse(b)
	if !ok {
		t.Fatalf("a frame that says nothing: %x", b)
	}
	return f
}

// parse reads what a Claimer sends, and what the machine's kernel hears: the product
// has its own reader, and tshark reads the frames that are sent in package frame.
func parse(b []byte) (f Frame, ok bool) {
	if len(b) < 42 {
		return f, false
	}
	f = Frame{TargetMAC: MAC(b[:6]), SourceMAC: MAC(b[6:12])}
	switch binary.BigEndian.Uint16(b[12:]) {
	case 0x0806:
		f.Kind = map[byte]Kind{1: ARPRequest, 2: ARPReply}[b[21]]
		f.SenderMAC, f.Source, f.Target = MAC(b[22:28]), netip.AddrFrom4([4]byte(b[28:32])), netip.AddrFrom4([4]byte(b[38:42]))
		return f, true
	case 0x86dd:
		if len(b) < 78 || b[20] != 58 || b[54] != 135 && b[54] != 136 {
			return f, false
		}
		f.Kind = map[byte]Kind{135: Solicitation, 136: Advertisement}[b[54]]
		f.Source, f.Target = netip.AddrFrom16([16]byte(b[22:38])), netip.AddrFrom16([16]byte(b[62:78]))
		if len(b) >= 86 && (b[78] == 1 || b[78] == 2) {
			f.SenderMAC = MAC(b[80:86])
		}
		return f, true
	}
	return f, false
}

// probes returns when the node asked for the address.
func (n *node) probes(a netip.Addr) []time.Duration {
	var out []time.Duration
	for _, s := range n.sent {
		if s.Target == a && s.Source.IsUnspecified() {
			out = append(out, s.at.Sub(start))
		}
	}
	return out
}

func (n *node) kinds() []deception.EventKind {
	var out []deception.EventKind
	for _, e := range n.events {
		out = append(out, e.Kind)
	}
	return out
}

func (n *node) mustHold(t *testing.T, list ...string) {
	t.Helper()
	if got, want := n.Held(), ranges(t, list...); !slices.Equal(got, want) {
		t.Errorf("held %v, want %v", got, want)
	}
}
