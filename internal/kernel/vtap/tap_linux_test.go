package vtap

import (
	"errors"
	"net"
	"strings"
	"testing"

	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/netns/netnstest"
)

func apply(t *testing.T, ns *netns.NS, name string) *Tap {
	t.Helper()
	tap := New(ns, name)
	t.Cleanup(func() {
		if err := tap.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := tap.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	return tap
}

func write(t *testing.T, tap *Tap, frames ...[]byte) {
	t.Helper()
	for _, f := range frames {
		if err := tap.Frame(0, f); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDeviceHasNoPartInTheNetwork(t *testing.T) {
	ns := netnstest.New(t, "tap")
	tap := apply(t, ns, "vtap0")
	out := netnstest.IP(t, ns, "-d link show vtap0")
	for _, want := range []string{"UP", "NOARP", "mtu 1500", "alias decoynet", "tun type tap", "persist on", macAddress} {
		if !strings.Contains(out, want) {
			t.Errorf("ip link does not say %q:\n%s", want, out)
		}
	}
	if out := netnstest.IP(t, ns, "addr show dev vtap0"); strings.Contains(out, "inet") {
		t.Errorf("it has an address:\n%s", out)
	}
	if out := netnstest.IP(t, ns, "route show table all dev vtap0"); out != "" {
		t.Errorf("it has routes:\n%s", out)
	}
	if changes, err := tap.Apply(t.Context()); err != nil || len(changes) > 0 {
		t.Errorf("a repeat changed %v, %v", changes, err)
	}
}

// Frames arrive as they were written, tags included, at a reader that was there
// before the first, and on a kernel that may have no VLAN devices.
func TestFramesArriveWithTheirTags(t *testing.T) {
	ns := netnstest.New(t, "tap")
	tap := apply(t, ns, "vtap0")
	c := listen(t, ns, "vtap0")
	for i, tags := range [][]uint16{nil, {7}, {4094}, {7, 5}} {
		p := packet{to: decoyMAC, from: intruderMAC, tags: tags, src: "198.51.100.7", dst: "192.0.2.10", proto: 1, payload: echo(byte(i))}
		write(t, tap, p.frame(t))
	}
	p := packet{to: intruderMAC, from: decoyMAC, tags: []uint16{7, 5}, src: "192.0.2.10", dst: "198.51.100.7", proto: 17, payload: make([]byte, 1480)}
	write(t, tap, p.frame(t))
	for _, want := range []string{
		intruderMAC + " > " + decoyMAC + ", ethertype IPv4 (0x0800), length 46: 198.51.100.7 > 192.0.2.10: ICMP echo request, id 30583, seq 0",
		"ethertype 802.1Q (0x8100), length 50: vlan 7, p 0, ethertype IPv4 (0x0800), 198.51.100.7 > 192.0.2.10: ICMP echo request, id 30583, seq 1",
		"vlan 4094, p 0, ethertype IPv4 (0x0800), 198.51.100.7 > 192.0.2.10: ICMP echo request, id 30583, seq 2",
		"length 54: vlan 7, p 0, ethertype 802.1Q (0x8100), vlan 5, p 0, ethertype IPv4 (0x0800), 198.51.100.7 > 192.0.2.10: ICMP echo request, id 30583, seq 3",
		decoyMAC + " > " + intruderMAC + ", ethertype 802.1Q (0x8100), length 1522",
	} {
		netnstest.Eventually(t, want, func() bool { return c.has(want) })
	}
	if s := tap.Stats(); s.Frames != 5 || s.Bytes != 46+50+50+54+1522 || s.Failed+s.Refused != 0 || !s.Open {
		t.Errorf("stats %+v", s)
	}
	if out := netnstest.IP(t, ns, "-s link show vtap0"); !strings.Contains(out, " 5 ") {
		t.Errorf("the kernel does not count 5 frames:\n%s", out)
	}
}

// The machine answers no frame for its own addresses, and forwards none, though it
// is a router that checks no sources.
func TestStackTakesNoFrame(t *testing.T) {
	l := netnstest.NewLAN(t)
	for _, key := range []string{"net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0", "net.ipv6.conf.all.forwarding=1"} {
		netnstest.Run(t, l.Host, "sysctl", "-q", "-w", key)
	}
	tap := apply(t, l.Host, "vtap0")
	netnstest.IP(t, l.Host, "route add default via "+netnstest.IntruderAddr4)
	for _, a := range []string{"all.rp_filter", "eth0.rp_filter", "vtap0.rp_filter"} {
		netnstest.Run(t, l.Host, "sysctl", "-q", "-w", "net.ipv4.conf."+a+"=0")
	}
	wire, heard := listen(t, l.Intruder, "eth0", "host", "198.51.100.7"), listen(t, l.Host, "vtap0")
	ping := packet{to: decoyMAC, from: intruderMAC, src: "198.51.100.7", dst: netnstest.HostAddr4, proto: 1, payload: echo(1)}
	through := packet{to: decoyMAC, from: intruderMAC, src: "198.51.100.7", dst: netnstest.IntruderAddr4, proto: 17, payload: datagram(1001)}
	closed := packet{to: decoyMAC, from: intruderMAC, src: "198.51.100.7", dst: netnstest.HostAddr4, proto: 17, payload: datagram(1002)}
	for _, tags := range [][]uint16{nil, {9}, {9, 9}} {
		for _, p := range []packet{ping, through, closed} {
			p.tags = tags
			write(t, tap, p.frame(t))
		}
	}
	netnstest.Eventually(t, "the reader of the device has all", func() bool { return strings.Count(heard.String(), "\n") == 8 })

	// The control: what is for the device's own address is answered and forwarded,
	// and comes behind whatever came of the frames above.
	ping.to, through.to = macAddress, macAddress
	ping.payload, through.payload = echo(99), datagram(1099)
	for _, p := range []packet{ping, through} {
		if err := tap.Frame(0, p.frame(t)); !errors.Is(err, ErrRefused) {
			t.Errorf("a frame for the device itself: %v", err)
		}
		if err := tap.write(p.frame(t)); err != nil {
			t.Fatal(err)
		}
	}
	netnstest.Eventually(t, "the answer to the control", func() bool { return wire.has("echo reply, id 30583, seq 99") })
	netnstest.Eventually(t, "the control is forwarded", func() bool { return wire.has(".1099: ") })
	if got := wire.String(); strings.Count(got, "\n") != 1 {
		t.Errorf("on the wire:\n%s", got)
	}
	for _, to := range []string{"ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "00:1b:21:01:02:03"} {
		p := packet{to: to, from: intruderMAC, src: "198.51.100.7", dst: netnstest.HostAddr4, proto: 1, payload: echo(2)}
		if err := tap.Frame(0, p.frame(t)); !errors.Is(err, ErrRefused) {
			t.Errorf("a frame for %s: %v", to, err)
		}
	}
	if s := tap.Stats(); s.Refused != 5 {
		t.Errorf("stats %+v", s)
	}
}

func TestForeignLinksAreLeft(t *testing.T) {
	ns := netnstest.New(t, "tap")
	netnstest.IP(t, ns, "link add vtap0 type veth peer name other")
	netnstest.IP(t, ns, "tuntap add dev vtap1 mode tap")
	netnstest.IP(t, ns, "link add vtap2 type veth peer name third")
	netnstest.IP(t, ns, "link set vtap2 alias decoynet")
	before := netnstest.IP(t, ns, "-d link")
	for _, name := range []string{"vtap0", "vtap1", "vtap2"} {
		if _, err := New(ns, name).Apply(t.Context()); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"", "a-name-too-long!", "vtap%d", "a/b"} {
		if _, err := New(ns, name).Apply(t.Context()); err == nil {
			t.Errorf("name %q was taken", name)
		}
	}
	// One that somebody makes between the look and the making is not joined either.
	if fd, err := openTap(ns, "vtap1", true); !errors.Is(err, ErrBusy) {
		t.Errorf("attached to somebody's device: %d, %v", fd, err)
	}
	if removed, err := Remove(t.Context(), ns); err != nil || len(removed) > 0 {
		t.Errorf("removed %v, %v", removed, err)
	}
	if after := netnstest.IP(t, ns, "-d link"); after != before {
		t.Errorf("links differ:\n%s\nwere:\n%s", after, before)
	}
}

// What a process leaves is adopted by the next, with those who listen to it.
func TestAdoption(t *testing.T) {
	ns := netnstest.New(t, "tap")
	first := apply(t, ns, "vtap0")
	c := listen(t, ns, "vtap0")
	if _, err := New(ns, "vtap0").Apply(t.Context()); !errors.Is(err, ErrBusy) {
		t.Errorf("a second writer: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	p := packet{to: decoyMAC, from: intruderMAC, src: "198.51.100.7", dst: "192.0.2.10", proto: 1, payload: echo(5)}
	if err := first.Frame(0, p.frame(t)); !errors.Is(err, ErrClosed) {
		t.Errorf("write to a closed one: %v", err)
	}
	second := New(ns, "vtap0")
	defer second.Close()
	if changes, err := second.Apply(t.Context()); err != nil || len(changes) > 0 {
		t.Errorf("adoption changed %v, %v", changes, err)
	}
	write(t, second, p.frame(t))
	netnstest.Eventually(t, "the frame arrives", func() bool { return c.has("seq 5") })
}

// What others change about it is mended, and each failure has its words.
func TestMended(t *testing.T) {
	ns := netnstest.New(t, "tap")
	tap := apply(t, ns, "vtap0")
	p := packet{to: decoyMAC, from: intruderMAC, src: "198.51.100.7", dst: "192.0.2.10", proto: 1, payload: echo(5)}
	fails := func(says string) {
		t.Helper()
		if err := tap.Frame(0, p.frame(t)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("error %v; want %s", err, says)
		}
	}
	mends := func() {
		t.Helper()
		if changes, err := tap.Apply(t.Context()); err != nil || len(changes) == 0 {
			t.Errorf("mended %v, %v", changes, err)
		}
		write(t, tap, p.frame(t))
	}
	netnstest.IP(t, ns, "link set vtap0 down")
	fails("is down")
	mends()
	netnstest.IP(t, ns, "link del vtap0")
	fails("was deleted")
	mends()
	netnstest.IP(t, ns, "addr add 192.0.2.10/24 dev vtap0")
	netnstest.IP(t, ns, "link set vtap0 arp on mtu 900 address "+net.HardwareAddr{2, 0, 0, 0, 0, 9}.String())
	mends()
	if out := netnstest.IP(t, ns, "addr show dev vtap0"); strings.Contains(out, "inet") || !strings.Contains(out, "NOARP") || !strings.Contains(out, macAddress) {
		t.Errorf("not mended:\n%s", out)
	}
	if s := tap.Stats(); s.Frames != 3 || s.Failed != 2 || s.Err != nil {
		t.Errorf("stats %+v", s)
	}
}

// A dead process's device is found by its mark, also by the clean-up of all links.
func TestRemove(t *testing.T) {
	ns := netnstest.New(t, "tap")
	for _, name := range []string{"vtap0", "vtap7"} {
		if err := apply(t, ns, name).Close(); err != nil {
			t.Fatal(err)
		}
	}
	removed, err := Remove(t.Context(), ns, "vtap7")
	if err != nil || len(removed) != 1 || removed[0] != "vtap0" {
		t.Errorf("removed %v, %v", removed, err)
	}
	netnstest.IP(t, ns, "link show vtap7")
	if err := link.RemoveOwned(t.Context(), ns); err != nil {
		t.Error(err)
	}
	if out := netnstest.IP(t, ns, "-br link"); strings.Contains(out, "vtap") {
		t.Errorf("left:\n%s", out)
	}
}

func BenchmarkFrame(b *testing.B) {
	ns := netnstest.New(b, "tap")
	tap := New(ns, "vtap0")
	defer tap.Close()
	if _, err := tap.Apply(b.Context()); err != nil {
		b.Fatal(err)
	}
	frame := make([]byte, 1500)
	frame[0], frame[6], frame[12] = 6, 2, 8
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	for b.Loop() {
		if err := tap.Frame(0, frame); err != nil {
			b.Fatal(err)
		}
	}
}
