package disguise

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/netns/netnstest"
)

// A thousand addresses are a thousand hosts of one vendor, and the same ones after
// everything was built anew.
func TestThousandHosts(t *testing.T) {
	t.Parallel()
	l := newDecoyLAN(t)
	p := everything()
	sweep := func() map[string]string {
		out := netnstest.Run(t, l.Intruder, "nmap", "-sn", "-n", "--min-rate", "2000", "198.18.0.0/22")
		hosts := map[string]string{}
		for _, m := range regexp.MustCompile(`report for (\S+)\n.*\nMAC Address: (\S+) \(Dell\)`).FindAllStringSubmatch(out, -1) {
			hosts[m[1]] = strings.ToLower(m[2])
		}
		return hosts
	}
	for round := range 2 {
		l.apply(t, p)
		hosts := sweep()
		if len(hosts) != 1024 {
			t.Fatalf("round %d: nmap finds %d hosts by Dell, want 1024", round, len(hosts))
		}
		macs := map[string]bool{}
		for addr, got := range hosts {
			macs[got] = true
			if got != mac(p, addr) {
				t.Errorf("round %d: %s is at %s, want %s", round, addr, got, mac(p, addr))
			}
		}
		if len(macs) != len(hosts) {
			t.Errorf("round %d: %d hosts have %d MAC addresses", round, len(hosts), len(macs))
		}
		netnstest.IP(t, l.seg, "link del lan0")
		st, err := link.Apply(t.Context(), l.Host, l.seg, link.Desired{Segment: "office", Parent: "eth0"})
		if err != nil {
			t.Fatal(err)
		}
		l.want.Link, l.want.MAC = st.Index, st.MAC
		l.claim(t)
	}
}

// packets is a socket for whole frames on a device.
type packets struct {
	t     testing.TB
	fd    int
	index int
}

func openPackets(t testing.TB, ns *netns.NS, device string) *packets {
	t.Helper()
	var index int
	err := ns.Do(func() error {
		i, err := net.InterfaceByName(device)
		if err == nil {
			index = i.Index
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	fd, err := ns.Socket(unix.AF_PACKET, unix.SOCK_RAW, int(htons(unix.ETH_P_ALL)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: index}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 300_000}); err != nil {
		t.Fatal(err)
	}
	return &packets{t, fd, index}
}

func (p *packets) send(frame []byte) {
	p.t.Helper()
	if err := unix.Sendto(p.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: p.index}); err != nil {
		p.t.Fatal(err)
	}
}

// receive returns the first frame that the device received and that is the wanted
// one, or nil if there is none within 300 ms of silence.
func (p *packets) receive(wanted func([]byte) bool) []byte {
	for buf := make([]byte, 1<<16); ; {
		n, from, err := unix.Recvfrom(p.fd, buf, 0)
		if err != nil {
			return nil
		}
		if ll := from.(*unix.SockaddrLinklayer); ll.Pkttype != unix.PACKET_OUTGOING && wanted(buf[:n]) {
			return append([]byte{}, buf[:n]...)
		}
	}
}

const (
	request = 1
	reply   = 2
)

// arpFrame is an Ethernet frame with ARP.
func arpFrame(op byte, dst, src, sender net.HardwareAddr, from, to string) []byte {
	f := append(append(append([]byte{}, dst...), src...), 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, op)
	f = append(append(f, sender...), netip.MustParseAddr(from).AsSlice()...)
	return append(append(f, make([]byte, 6)...), netip.MustParseAddr(to).AsSlice()...)
}

func isARP(op byte, from string) func([]byte) bool {
	return func(f []byte) bool {
		return f[12] == 8 && f[13] == 6 && f[21] == op && netip.AddrFrom4([4]byte(f[28:32])).String() == from
	}
}

var (
	broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	stranger  = net.HardwareAddr{0x02, 0, 0, 0, 0, 0x66}
)

// ARP in all its forms.
func TestARP(t *testing.T) {
	t.Parallel()
	l := newDecoyLAN(t)
	p := everything()
	l.apply(t, p)
	const decoy, other = "192.0.2.100", "192.0.2.101"
	own := p.MAC(netip.MustParseAddr(decoy))
	wire, lan := openPackets(t, l.Intruder, "eth0"), openPackets(t, l.seg, "lan0")

	for _, c := range []struct {
		name    string
		to      net.HardwareAddr
		answers bool
	}{
		{"to all", broadcast, true},
		{"to the decoy", own, true},
		{"to another decoy", p.MAC(netip.MustParseAddr(other)), false},
		{"to nobody", net.HardwareAddr{0x00, 0x14, 0x22, 1, 2, 3}, false},
	} {
		wire.send(arpFrame(request, c.to, stranger, stranger, netnstest.IntruderAddr4, decoy))
		got := wire.receive(isARP(reply, decoy))
		if (got != nil) != c.answers {
			t.Errorf("request %s is answered: %v, want %v", c.name, got != nil, c.answers)
		}
		if got != nil && (net.HardwareAddr(got[6:12]).String() != own.String() || net.HardwareAddr(got[22:28]).String() != own.String()) {
			t.Errorf("request %s is answered by %x", c.name, got)
		}
	}

	// A tagged frame is another network's, whatever it says.
	tagged := arpFrame(request, own, stranger, stranger, "192.0.2.77", decoy)
	tagged = append(append(append([]byte{}, tagged[:12]...), 0x81, 0, 0, 110), tagged[12:]...)
	wire.send(tagged)
	if lan.receive(isARP(request, "192.0.2.77")) != nil {
		t.Error("a frame with a VLAN tag comes to a segment that has none")
	}

	// Before an address is taken it is asked for, from nobody (RFC 5227).
	lan.send(arpFrame(request, broadcast, l.want.MAC, l.want.MAC, "0.0.0.0", decoy))
	got := wire.receive(isARP(request, "0.0.0.0"))
	if got == nil || net.HardwareAddr(got[6:12]).String() != own.String() || net.HardwareAddr(got[22:28]).String() != own.String() {
		t.Errorf("a probe for %s shows %x, want %s", decoy, got, own)
	}
	// Who has it says so to nobody's address and the decoy's MAC address.
	wire.send(arpFrame(reply, own, stranger, stranger, decoy, "0.0.0.0"))
	if lan.receive(isARP(reply, decoy)) == nil {
		t.Error("the answer to a probe does not arrive")
	}
	// An announcement has the decoy as both.
	lan.send(arpFrame(request, broadcast, l.want.MAC, l.want.MAC, decoy, decoy))
	got = wire.receive(isARP(request, decoy))
	if got == nil || net.HardwareAddr(got[6:12]).String() != own.String() || net.HardwareAddr(got[22:28]).String() != own.String() {
		t.Errorf("an announcement of %s shows %x, want %s", decoy, got, own)
	}
	// The host's own address is nobody's disguise.
	wire.send(arpFrame(request, broadcast, stranger, stranger, netnstest.IntruderAddr4, netnstest.HostAddr4))
	host := strings.TrimSpace(netnstest.Run(t, l.Host, "cat", "/sys/class/net/eth0/address"))
	if got := wire.receive(isARP(reply, netnstest.HostAddr4)); got == nil || net.HardwareAddr(got[22:28]).String() != host {
		t.Errorf("the host answers %x, want %s", got, host)
	}
}

// IPv6 has no broadcast, and checks what it is told by a checksum.
func TestNDP(t *testing.T) {
	t.Parallel()
	l := newDecoyLAN(t)
	p := everything()
	l.apply(t, p)
	const decoy = "2001:db8::100"
	own := mac(p, decoy)
	seen := l.capture(t)
	out := netnstest.Run(t, l.Intruder, "ndisc6", "-q", "-1", "-n", "-r", "3", "-w", "1000", decoy, "eth0")
	if got := strings.ToLower(strings.TrimSpace(out)); got != own {
		t.Errorf("ndisc6 is told %q, want %s", got, own)
	}
	// Duplicate detection has no source; the one who will have the address asks.
	netnstest.IP(t, l.seg, "addr add 2001:db8::1ff/64 dev lan0")
	// The decoy asks for an intruder that it has forgotten.
	l.neighbour(t, decoy)
	netnstest.IP(t, l.seg, "neigh flush dev lan0")
	l.neighbour(t, decoy)
	var solicits, detects int
	defer func() { t.Logf("%d solicitations, %d for duplicate detection", solicits, detects) }()
	netnstest.Eventually(t, "solicitations of the decoys", func() bool {
		solicits, detects = 0, 0
		for _, f := range seen.all() {
			if f.ether != unix.ETH_P_IPV6 || f.raw[20] != unix.IPPROTO_ICMPV6 || f.raw[54] != 135 {
				continue
			}
			target := netip.AddrFrom16([16]byte(f.raw[62:78]))
			switch {
			case f.from.IsUnspecified() && target.String() == "2001:db8::1ff":
				detects++
				if f.src != mac(p, "2001:db8::1ff") {
					t.Fatalf("duplicate detection comes from %s, want %s", f.src, mac(p, "2001:db8::1ff"))
				}
			case f.from.String() == decoy:
				solicits++
				if option := net.HardwareAddr(f.raw[80:86]).String(); f.src != own || option != own {
					t.Fatalf("a solicitation of %s comes from %s and says %s, want %s", decoy, f.src, option, own)
				}
			}
		}
		return solicits > 0 && detects > 0
	})
	for _, f := range seen.all() {
		if err := checksums(f.raw); err != nil {
			t.Errorf("frame from %s: %v", f.from, err)
		}
	}
}

// On a VLAN the device below is one of ours, and the tagged frames that pass the
// NIC itself are none of another segment's.
func TestBelowVLAN(t *testing.T) {
	t.Parallel()
	l := newDecoyLAN(t)
	if out, err := netnstest.Try(t, l.Host, "ip", "link", "add", "link", "eth0", "name", "eth0.110", "type", "vlan", "id", "110"); err != nil {
		if strings.Contains(out, "Unknown device type") || strings.Contains(out, "not supported") {
			t.Skip("this kernel has no 802.1Q")
		}
		t.Fatal(out)
	}
	netnstest.IP(t, l.Host, "link set eth0.110 up alias decoynet")
	netnstest.IP(t, l.Intruder, "link add link eth0 name eth0.110 type vlan id 110")
	netnstest.IP(t, l.Intruder, "link set eth0.110 up")
	netnstest.IP(t, l.Intruder, "addr flush dev eth0")
	netnstest.IP(t, l.Intruder, "addr add 192.0.2.66/24 dev eth0.110")
	st, err := link.Apply(t.Context(), l.Host, l.seg, link.Desired{Segment: "office", Parent: "eth0.110"})
	if err != nil {
		t.Fatal(err)
	}
	l.want.Link, l.want.MAC, l.want.Lower = st.Index, st.MAC, st.ParentIndex
	l.claim(t)
	p := everything()
	l.apply(t, p)
	l.echo(t)
	if flags := netnstest.IP(t, l.Host, "link show dev eth0.110"); !strings.Contains(flags, "PROMISC") {
		t.Errorf("our own device is not promiscuous:\n%s", flags)
	}
	l.talk(t, "tcp", "192.0.2.100", 1_000_000)
	words := fmt.Sprint(strings.Fields(netnstest.IP(t, l.Intruder, "neigh show to 192.0.2.100")))
	if !strings.Contains(words, mac(p, "192.0.2.100")) {
		t.Errorf("192.0.2.100 is %s, want %s", words, mac(p, "192.0.2.100"))
	}
	l.apply(t)
	if flags := netnstest.IP(t, l.Host, "link show dev eth0.110"); strings.Contains(flags, "PROMISC") {
		t.Errorf("our own device stays promiscuous:\n%s", flags)
	}
}
