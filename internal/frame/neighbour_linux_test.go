package frame

import (
	"bytes"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
)

// tshark understands the frames, checksums included, as what they are meant to be.
func TestTsharkReadsNeighbours(t *testing.T) {
	mac := MAC{2, 0xdc, 0, 0, 0, 1}
	v4, v6 := netip.MustParseAddr("192.0.2.100"), netip.MustParseAddr("2001:db8::12:3456")
	capture := AppendFileHeader(nil)
	for _, f := range [][]byte{
		ARPRequest(mac, netip.Addr{}, v4), ARPRequest(mac, v4, v4), ARPRequest(mac, netip.MustParseAddr("192.0.2.7"), v4),
		Solicitation(mac, netip.Addr{}, v6), Solicitation(mac, netip.MustParseAddr("fe80::7"), v6), Advertisement(mac, v6),
	} {
		capture = AppendRecord(capture, 0, f)
	}
	cmd := exec.Command("tshark", "-n", "-r", "-", "-T", "fields", "-E", "separator= ",
		"-e", "eth.dst", "-e", "arp.isprobe", "-e", "arp.isannouncement", "-e", "arp.src.hw_mac", "-e", "arp.src.proto_ipv4", "-e", "arp.dst.proto_ipv4",
		"-e", "ipv6.src", "-e", "ipv6.dst", "-e", "ipv6.hlim", "-e", "icmpv6.type", "-e", "icmpv6.checksum.status",
		"-e", "icmpv6.nd.ns.target_address", "-e", "icmpv6.nd.na.target_address", "-e", "icmpv6.nd.na.flag.o", "-e", "icmpv6.opt.linkaddr", "-e", "_ws.expert.message")
	cmd.Stdin = bytes.NewReader(capture)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("run tshark: %v", err)
	}
	want := []string{
		"ff:ff:ff:ff:ff:ff 1 02:dc:00:00:00:01 0.0.0.0 192.0.2.100",
		"ff:ff:ff:ff:ff:ff 1 02:dc:00:00:00:01 192.0.2.100 192.0.2.100",
		"ff:ff:ff:ff:ff:ff 02:dc:00:00:00:01 192.0.2.7 192.0.2.100",
		"33:33:ff:12:34:56 :: ff02::1:ff12:3456 255 135 1 2001:db8::12:3456",
		"33:33:ff:12:34:56 fe80::7 ff02::1:ff12:3456 255 135 1 2001:db8::12:3456 02:dc:00:00:00:01",
		"33:33:00:00:00:01 2001:db8::12:3456 ff02::1 255 136 1 2001:db8::12:3456 1 02:dc:00:00:00:01",
	}
	for i, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		if got := strings.Join(strings.Fields(line), " "); i >= len(want) || !strings.HasPrefix(got, want[i]) {
			t.Errorf("frame %d is read as\n%s\nwant\n%s", i, got, want[i])
		}
	}
}
