package doctor

import (
	"encoding/hex"
	"net"
	"net/netip"
	"testing"

	"decoynet/deception"
	"decoynet/internal/frame"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var (
	testMAC = net.HardwareAddr{2, 1, 2, 3, 4, 5}
	us4     = netip.MustParseAddrPort("198.18.0.1:20000")
	them4   = netip.MustParseAddrPort("10.1.0.2:80")
	us6     = netip.MustParseAddrPort("[2001:2::1]:20000")
	them6   = netip.MustParseAddrPort("[fd00:1::2]:80")
)

func TestARP(t *testing.T) {
	sent := frame.ARPRequest(frame.MAC(testMAC), netip.Addr{}, netip.MustParseAddr("192.0.2.7"))
	want := "ffffffffffff" + "020102030405" + "0806" + "0001080006040001" + "020102030405" + "00000000" + "000000000000" + "c0000207" + "000000000000000000000000000000000000"
	if got := hex.EncodeToString(sent); got != want {
		t.Errorf("probe is\n%s, want\n%s", got, want)
	}
	if a, mac, ok := parseARP(frame.ARPRequest(frame.MAC(testMAC), netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("192.0.2.7"))); !ok || a.String() != "192.0.2.9" || mac.String() != testMAC.String() {
		t.Errorf("parsed %s, %s, %t", a, mac, ok)
	}
	if _, _, ok := parseARP(sent[:20]); ok {
		t.Error("parsed half a frame")
	}
}

func TestAdvertisement(t *testing.T) {
	target := netip.MustParseAddr("2001:db8::7")
	sent := frame.Solicitation(frame.MAC(testMAC), netip.IPv6Unspecified(), target)
	if _, _, ok := parseAdvertisement(sent); ok {
		t.Error("a solicitation was taken for an advertisement")
	}
	if got := sent[:6]; !cmp.Equal(got, []byte{0x33, 0x33, 0xff, 0, 0, 7}) {
		t.Errorf("sent to %x", got)
	}
	sent = frame.Solicitation(frame.MAC(testMAC), linkLocal(testMAC), target)
	sent[etherHeader+40] = 136 // as an answer without the option of an answer
	if a, mac, ok := parseAdvertisement(sent); !ok || a != target || mac.String() != testMAC.String() {
		t.Errorf("parsed %s, %s, %t", a, mac, ok)
	}
	if got := linkLocal(testMAC).String(); got != "fe80::1:2ff:fe03:405" {
		t.Errorf("link-local address %s", got)
	}
}

func TestParsePacket(t *testing.T) {
	for _, c := range []struct{ from, to netip.AddrPort }{{us4, them4}, {us6, them6}} {
		b := packetOf(c.from.Addr(), c.to.Addr(), protoTCP, segment(c.from, c.to, 7, flagSYN))
		want := heard{src: c.from, dst: c.to, flags: flagSYN, sequence: 7}
		if got, ok := parsePacket(b); !ok || got != want {
			t.Errorf("parsed %+v, %t", got, ok)
		}
		// The checksum over all, its own field included, is zero.
		if s := frame.PacketChecksum(c.from.Addr(), c.to.Addr(), protoTCP, segment(c.from, c.to, 7, flagSYN)); s != 0 {
			t.Errorf("checksum is wrong by %x", s)
		}
		// A UDP datagram's ports, quoted in an ICMP error about it.
		udp := []byte{0x4e, 0x20, 0, 80, 0, 8, 0, 0}
		proto, kind := byte(protoICMP), []byte{3, 3, 0, 0, 0, 0, 0, 0}
		if c.from.Addr().Is6() {
			proto, kind = protoICMPv6, []byte{1, 4, 0, 0, 0, 0, 0, 0}
		}
		b = packetOf(c.to.Addr(), c.from.Addr(), proto, append(kind, packetOf(c.from.Addr(), c.to.Addr(), protoUDP, udp)...))
		want = heard{src: c.to, dst: c.from, flags: flagRST}
		if got, ok := parsePacket(b); !ok || got != want {
			t.Errorf("parsed %+v, %t; want %+v", got, ok, want)
		}
		for n := range b {
			parsePacket(b[:n]) // no panic
		}
	}
}

func TestSample(t *testing.T) {
	ranges := []deception.AddrRange{rangeOf(t, "192.0.2.10-192.0.2.19"), rangeOf(t, "2001:db8::1-2001:db8::5")}
	all, total := sample(ranges, 100)
	if total != 15 || len(all) != 15 || all[9].String() != "192.0.2.19" || all[10].String() != "2001:db8::1" || all[14].String() != "2001:db8::5" {
		t.Errorf("%d of %d: %v", len(all), total, all)
	}
	some, total := sample(ranges, 3)
	want := []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("192.0.2.15"), netip.MustParseAddr("2001:db8::1")}
	if diff := cmp.Diff(want, some, cmpopts.EquateComparable(netip.Addr{})); diff != "" || total != 15 {
		t.Errorf("of %d (-want +got):\n%s", total, diff)
	}
	if none, total := sample(nil, 3); none != nil || total != 0 {
		t.Errorf("%v of %d", none, total)
	}
}

func TestSubtract(t *testing.T) {
	for _, c := range []struct{ from, taken, want string }{
		{"192.0.2.1-192.0.2.9", "192.0.2.5", "192.0.2.1-192.0.2.4, 192.0.2.6-192.0.2.9"},
		{"192.0.2.1-192.0.2.9", "192.0.2.1-192.0.2.2", "192.0.2.3-192.0.2.9"},
		{"192.0.2.1-192.0.2.9", "192.0.2.9", "192.0.2.1-192.0.2.8"},
		{"192.0.2.1", "192.0.2.1", ""},
		{"192.0.2.1", "2001:db8::1", "192.0.2.1"},
	} {
		got := joinRanges(subtract(rangeOf(t, c.from), []deception.AddrRange{rangeOf(t, c.taken)}))
		if got != c.want {
			t.Errorf("%s without %s: %q, want %q", c.from, c.taken, got, c.want)
		}
	}
}

func rangeOf(t *testing.T, s string) deception.AddrRange {
	t.Helper()
	r, err := deception.ParseAddrRange(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
