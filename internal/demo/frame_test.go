package demo

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"decoynet/deception"
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func tcp(source, destination string) flow {
	return flow{deception.TCP, ap(source), ap(destination)}
}

func udp(source, destination string) flow {
	return flow{deception.UDP, ap(source), ap(destination)}
}

// Frames as tcpdump -xx shows them, in parts: Ethernet, IP, the rest.
const (
	ether4, ether6, etherA = "ffffffffffff 020000000066 0800", "ffffffffffff 020000000066 86dd", "020000000066 0200000000de 0806"

	ip4TCP = "4500003c00004000 40060000 c0000242 c0000214"
	ip4UDP = "4500002000004000 40110000 c0000242 c0000214"
	ip6TCP = "60000000 0028 06 40 20010db8000200000000000000000066 20010db8000200000000000000000100"
	ip6NA  = "60000000 0020 3a ff 20010db8000200000000000000000100 20010db8000200000000000000000066"

	syn    = "126f 0050 00000001 00000000 a0 02 faf0 0000 0000"
	synAck = "126f 0050 00000001 00000002 a0 12 faf0 0000 0000"
	ack    = "126f 0050 00000002 00000002 80 10 faf0 0000 0000"
	rst    = "126f 0050 00000002 00000002 50 14 faf0 0000 0000"
)

func TestParseFrame(t *testing.T) {
	flow4 := tcp("192.0.2.66:4719", "192.0.2.20:80")
	for name, c := range map[string]struct {
		frame string
		want  frame
		ok    bool
	}{
		"SYN":                 {ether4 + ip4TCP + syn, frame{flow: flow4, syn: true}, true},
		"SYN-ACK":             {ether4 + ip4TCP + synAck, frame{flow: flow4, syn: true, ack: true}, true},
		"ACK":                 {ether4 + ip4TCP + ack, frame{flow: flow4, ack: true}, true},
		"RST":                 {ether4 + ip4TCP + rst, frame{flow: flow4, ack: true, rst: true}, true},
		"IPv4 with options":   {ether4 + "46" + ip4TCP[2:] + "01010101" + syn, frame{flow: flow4, syn: true}, true},
		"a later fragment":    {ether4 + strings.Replace(ip4TCP, "4000", "0010", 1) + syn, frame{}, false},
		"a first fragment":    {ether4 + strings.Replace(ip4TCP, "4000", "2000", 1) + syn, frame{flow: flow4, syn: true}, true},
		"IPv6":                {ether6 + ip6TCP + syn, frame{flow: tcp("[2001:db8:2::66]:4719", "[2001:db8:2::100]:80"), syn: true}, true},
		"UDP":                 {ether4 + ip4UDP + "126f 00a1 000c 0000 30260201", frame{flow: udp("192.0.2.66:4719", "192.0.2.20:161")}, true},
		"ICMP":                {ether4 + strings.Replace(ip4TCP, "4006", "4001", 1) + syn, frame{}, false},
		"ARP reply":           {etherA + "0001080006040002 0200000000de c0000214 020000000066 c0000242", frame{owner: addr("192.0.2.20"), at: mac{2, 0, 0, 0, 0, 0xde}}, true},
		"ARP request":         {etherA + "0001080006040001 0200000000de c0000214 000000000000 c0000242", frame{}, false},
		"NDP advertisement":   {ether6 + ip6NA + "88000000 60000000 20010db8000200000000000000000100 0201 0200000000de", frame{owner: addr("2001:db8:2::100"), at: mac{2, 0, 0, 0, 0, 0xde}}, true},
		"NDP, another option": {ether6 + ip6NA + "88000000 60000000 20010db8000200000000000000000100 0e01000000000000 0201 0200000000de", frame{owner: addr("2001:db8:2::100"), at: mac{2, 0, 0, 0, 0, 0xde}}, true},
		"NDP, broken option":  {ether6 + ip6NA + "88000000 60000000 20010db8000200000000000000000100 0e00000000000000", frame{}, false},
		"NDP solicitation":    {ether6 + ip6NA + "87000000 00000000 20010db8000200000000000000000100 0101 020000000066", frame{}, false},
		"spanning tree":       {"0180c2000000 020000000066 0026 424203", frame{}, false},
	} {
		b, err := hex.DecodeString(strings.ReplaceAll(c.frame, " ", ""))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, ok := parseFrame(b)
		if ok != c.ok || ok && got != c.want {
			t.Errorf("%s: %+v, %v; want %+v, %v", name, got, ok, c.want, c.ok)
		}
		for n := range b { // cut short it is never read beyond its end
			parseFrame(b[:n:n])
		}
	}
}

func FuzzParseFrame(f *testing.F) {
	for _, s := range []string{ether4 + ip4TCP + syn, ether6 + ip6TCP + syn, etherA + "0001080006040002", ether6 + ip6NA + "88000000"} {
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, ok := parseFrame(b); ok && got.Transport == 0 && !got.owner.IsValid() {
			t.Errorf("says nothing: %+v", got)
		}
	})
}

// TestRecord follows connections through their handshakes.
func TestRecord(t *testing.T) {
	own := []netip.Addr{addr("192.0.2.66"), addr("2001:db8:2::66")}
	f, dns := tcp("192.0.2.66:4719", "192.0.2.20:80"), udp("192.0.2.66:4719", "192.0.2.20:161")
	out := func(f frame) frame { return f }
	in := func(f frame) frame {
		f.flow = f.reversed()
		return f
	}
	theirs := frame{flow: tcp("192.0.2.5:1000", "192.0.2.66:22"), syn: true}
	for name, c := range map[string]struct {
		frames []frame
		flow   flow
		want   reach
	}{
		"SYN":              {[]frame{out(frame{flow: f, syn: true})}, f, begun},
		"SYN twice":        {[]frame{out(frame{flow: f, syn: true}), out(frame{flow: f, syn: true})}, f, begun},
		"refused":          {[]frame{out(frame{flow: f, syn: true}), in(frame{flow: f, ack: true, rst: true})}, f, begun},
		"half open":        {[]frame{out(frame{flow: f, syn: true}), in(frame{flow: f, syn: true, ack: true})}, f, accepted},
		"half open, reset": {[]frame{out(frame{flow: f, syn: true}), in(frame{flow: f, syn: true, ack: true}), out(frame{flow: f, rst: true})}, f, accepted},
		"full": {[]frame{
			out(frame{flow: f, syn: true}), in(frame{flow: f, syn: true, ack: true}), out(frame{flow: f, ack: true}), out(frame{flow: f, ack: true, rst: true}),
		}, f, established},
		"datagram":          {[]frame{out(frame{flow: dns})}, dns, begun},
		"datagram answered": {[]frame{out(frame{flow: dns}), in(frame{flow: dns})}, dns, established},
		"another's":         {[]frame{theirs}, theirs.flow, 0},
	} {
		r := newRecord(own)
		for _, one := range c.frames {
			r.note(one)
		}
		if got := r.stage[c.flow]; got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
		if n := len(r.began); n > 1 {
			t.Errorf("%s: %d flows", name, n)
		}
	}
}
