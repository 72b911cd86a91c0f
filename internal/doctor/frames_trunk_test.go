package doctor

import (
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"decoynet/deception"
	"decoynet/internal/frame"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func unhex(t testing.TB, parts ...string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.NewReplacer(" ", "", "\n", "").Replace(strings.Join(parts, "")))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Frames as switches send them.
func notices(t testing.TB) map[string][]byte {
	pad := strings.Repeat("00", 8)
	return map[string][]byte{
		"lldp": unhex(t, "0180c200000e 001b54010101 88cc",
			"0207 04 001b54010101", "0408 05 4769312f302f37", "0602 0078", "0a06 636f72652d31", // chassis, port, time, name
			"fe06 0080c2 01 006e", "fe0a 0080c2 03 0078 03 737663", "0000"),
		"lldp by MAC": unhex(t, "0180c200000e 001b54010101 88cc", "0207 04 001b54010101", "0407 03 001b54010107", "0602 0078", "0000"),
		"cdp": unhex(t, "01000ccccccc 001b54010101 002b", "aaaa03 00000c 2000", "02b4 0000",
			"0001 000a 636f72652d31", "0003 000b 4769312f302f37", "000a 0006 006e", pad), // device, port, native VLAN
		"pvst": unhex(t, "01000ccccccd 001b54010101 0032", "aaaa03 00000c 010b", strings.Repeat("00", 36), "0000 0002 006e", pad),
	}
}

func TestNotices(t *testing.T) {
	frames := notices(t)
	for name, want := range map[string]Notice{
		"lldp":        {Protocol: "LLDP", Switch: "core-1", Port: "Gi1/0/7", Native: 110, VLANs: []uint16{120}},
		"lldp by MAC": {Protocol: "LLDP", Port: "00:1b:54:01:01:07"},
		"cdp":         {Protocol: "CDP", Switch: "core-1", Port: "Gi1/0/7", Native: 110},
		"pvst":        {Protocol: "PVST+", Native: 110},
	} {
		got, ok := parseNotice(frames[name])
		if diff := cmp.Diff(want, got); diff != "" || !ok || !isControl(frames[name]) {
			t.Errorf("%s (%t) (-want +got):\n%s", name, ok, diff)
		}
	}
	if _, ok := parseNotice(frame.ARPRequest(frame.MAC(testMAC), netip.Addr{}, netip.MustParseAddr("192.0.2.7"))); ok {
		t.Error("ARP was taken for a switch's notice")
	}
	if got := printable([]byte("core\x1b[31m-1\n\xff")); got != "core[31m-1" {
		t.Errorf("printable: %q", got)
	}
}

// TestNoticesByTshark has Wireshark's dissectors read the same frames.
func TestNoticesByTshark(t *testing.T) {
	for name, c := range map[string]struct{ field, want string }{
		"lldp": {"lldp.ieee.802_1.port_vlan.id", "110"},
		"cdp":  {"cdp.native_vlan", "110"},
		"pvst": {"stp.pvst.origvlan", "110"},
	} {
		frame := notices(t)[name]
		file := filepath.Join(t.TempDir(), "frame.pcap")
		head := []uint32{0xa1b2c3d4, 2 | 4<<16, 0, 0, 65535, 1, 0, 0, uint32(len(frame)), uint32(len(frame))}
		var b []byte
		for _, v := range head {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
		if err := os.WriteFile(file, append(b, frame...), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("tshark", "-r", file, "-T", "fields", "-e", c.field).CombinedOutput()
		if err != nil || !strings.Contains("\n"+string(out), "\n"+c.want+"\n") {
			t.Errorf("%s: %v: tshark reads %q", name, err, out)
		}
	}
}

func TestTags(t *testing.T) {
	plain := frame.ARPRequest(frame.MAC(testMAC), netip.Addr{}, netip.MustParseAddr("192.0.2.7"))
	once := tagged(plain, 110)
	if got := hex.EncodeToString(once[:20]); got != "ffffffffffff"+"020102030405"+"8100006e"+"08060001" || len(once) != len(plain)+4 {
		t.Errorf("tagged: %s", got)
	}
	if id, ok := innerTag(once); !ok || id != 110 {
		t.Errorf("inner tag %d, %t", id, ok)
	}
	if _, ok := innerTag(plain); ok {
		t.Error("a tag was found where none is")
	}
}

func TestEcho(t *testing.T) {
	from, to := netip.MustParseAddr("192.0.2.100"), netip.MustParseAddr("192.0.2.1")
	for _, size := range []int{64, 1500} {
		ping := ethernet(testMAC, net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, echoRequest(from, to, 7, size))
		if len(ping) != etherHeader+size || ping[etherHeader+6]&0x40 == 0 || frame.Checksum(frame.Sum(ping[etherHeader+20:])) != 0 {
			t.Errorf("a ping of %d bytes: %d, %x", size, len(ping), ping[:60])
		}
		if _, ok := parseEchoReply(ping); ok {
			t.Error("a question was taken for an answer")
		}
		ping[etherHeader+20] = 0
		if got, ok := parseEchoReply(ping); !ok || got != (echoReply{id: 7, size: size}) {
			t.Errorf("%+v, %t", got, ok)
		}
		ping[etherHeader+6] = 0x20
		if got, ok := parseEchoReply(ping); !ok || !got.fragment {
			t.Errorf("%+v, %t", got, ok)
		}
		ping[etherHeader+7] = 9 // not the first one
		if _, ok := parseEchoReply(ping); ok {
			t.Error("a later fragment was taken for an answer")
		}
	}
}

func TestCensus(t *testing.T) {
	segments := []*deception.Segment{
		{Name: "a", VLAN: 110, Subnets: []deception.Subnet{{Prefix: netip.MustParsePrefix("192.0.2.0/24")}}},
		{Name: "b", VLAN: 120, Subnets: []deception.Subnet{{Prefix: netip.MustParsePrefix("192.0.2.0/24")}}}, // overlapping, in another VLAN
	}
	c := newCounter(segments)
	arp := frame.ARPRequest(frame.MAC(testMAC), netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("192.0.2.7"))
	c.see(arp, 110)
	c.see(arp, 110)
	c.see(arp, 0)
	c.see(tagged(arp, 120), 300)
	c.see(notices(t)["lldp"], 0)
	c.see(arp[:10], 110)
	want := Census{
		Frames: 5, Control: 1, Untagged: 1, Tags: map[uint16]uint64{110: 2, 300: 1}, Stacks: map[Stack]uint64{{300, 120}: 1},
		Notices: []Notice{{Protocol: "LLDP", Switch: "core-1", Port: "Gi1/0/7", Native: 110, VLANs: []uint16{120}}},
	}
	if diff := cmp.Diff(want, c.census); diff != "" {
		t.Errorf("census (-want +got):\n%s", diff)
	}
	host := netip.MustParseAddr("192.0.2.9")
	wantStrays := map[string][]Stray{"a": {{0, host}}, "b": {{110, host}, {0, host}}}
	if diff := cmp.Diff(wantStrays, c.strays, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("strays (-want +got):\n%s", diff)
	}
}

func TestVLANList(t *testing.T) {
	for want, ids := range map[string][]uint16{"": nil, "7": {7}, "1-3,7,9-10": {9, 10, 1, 2, 3, 7, 7}} {
		if got := vlanList(ids); got != want {
			t.Errorf("%v: %q, want %q", ids, got, want)
		}
	}
}

// FuzzTake feeds what may come in at a trunk to all that reads it.
func FuzzTake(f *testing.F) {
	for _, frame := range notices(f) {
		f.Add(frame, uint16(0))
	}
	f.Add(frame.ARPRequest(frame.MAC(testMAC), netip.Addr{}, netip.MustParseAddr("192.0.2.7")), uint16(110))
	f.Add(tagged(frame.ARPRequest(frame.MAC(testMAC), netip.Addr{}, netip.MustParseAddr("192.0.2.7")), 5), uint16(110))
	segments := []*deception.Segment{{Name: "a", VLAN: 110, Subnets: []deception.Subnet{{Prefix: netip.MustParsePrefix("0.0.0.0/0")}}}}
	f.Fuzz(func(t *testing.T, frame []byte, vlan uint16) {
		c := newCounter(segments)
		c.see(frame, vlan&tagMask)
		for _, n := range c.census.Notices {
			for _, r := range n.Switch + n.Port {
				if r < ' ' || r > '~' {
					t.Errorf("not printable: %q %q", n.Switch, n.Port)
				}
			}
			if n.Native > tagMask || len(n.VLANs) > tagMask {
				t.Errorf("impossible VLANs: %+v", n)
			}
		}
		parseEchoReply(frame)
		parseAdvertisement(frame)
	})
}
