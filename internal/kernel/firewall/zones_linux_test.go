package firewall

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"decoynet/deception"
)

// zoneLab is a gateway host with a bridge that two services are plugged into.
type zoneLab struct {
	gw, svc, svc2 *testNS
}

func newZoneLab(t testing.TB) *zoneLab {
	t.Helper()
	l := &zoneLab{gw: newNS(t, "gw"), svc: newNS(t, "svc"), svc2: newNS(t, "svc2")}
	l.gw.exec(`ip link add br-linux type bridge; ip link set br-linux up
		ip addr add 10.1.0.1/24 dev br-linux; ip addr add fd01::1/64 dev br-linux nodad
		ip link add prod type veth peer name prod-far; ip link set prod up; ip link set prod-far up; ip addr add 192.0.2.1/24 dev prod
		ip rule add iif br-linux lookup 14200 pref 14250; ip route add local default dev lo table 14200
		ip -6 rule add iif br-linux lookup 14200 pref 14250; ip -6 route add local default dev lo table 14200
		sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
		# With every destination local, ARP would be answered for the neighbours too.
		sysctl -qw net.ipv4.conf.br-linux.arp_ignore=1`)
	for i, n := range []*testNS{l.svc, l.svc2} {
		port := fmt.Sprintf("port%d", i)
		connect(t, l.gw, port, n, "eth0")
		l.gw.exec("ip link set " + port + " master br-linux")
		n.exec(fmt.Sprintf(`ip addr add 10.1.0.%d/24 dev eth0; ip addr add fd01::%d/64 dev eth0 nodad
			ip route add default via 10.1.0.1; ip -6 route add default via fd01::1`, i+2, i+2))
		l.gw.knows("br-linux", n, "eth0", fmt.Sprintf("10.1.0.%d", i+2), fmt.Sprintf("fd01::%d", i+2))
	}
	// A bridge takes the address of a port.
	for _, n := range []*testNS{l.svc, l.svc2} {
		n.knows("eth0", l.gw, "br-linux", "10.1.0.1", "fd01::1")
	}
	l.svc.knows("eth0", l.svc2, "eth0", "10.1.0.3", "fd01::3")
	l.svc2.knows("eth0", l.svc, "eth0", "10.1.0.2", "fd01::2")
	// A bridge port takes a moment until it forwards.
	for _, n := range []*testNS{l.svc, l.svc2} {
		eventually(t, "the bridge forwards", func() bool {
			_, err := n.try("ping -c1 -W1 10.1.0.1 && ping -c1 -W1 fd01::1")
			return err == nil
		})
	}
	return l
}

var linuxZone = ZoneRules{
	Zone: "linux", Link: "br-linux",
	Allow: []deception.Allow{
		{To: netip.MustParsePrefix("10.1.0.1/32"), Ports: []deception.PortRange{deception.Port(deception.UDP, 53), {Transport: deception.TCP, First: 8000, Last: 8010}}},
		{To: netip.MustParsePrefix("fd01::1/128"), Ports: []deception.PortRange{deception.Port(deception.TCP, 8000)}},
		{To: netip.MustParsePrefix("255.255.255.255/32"), Ports: []deception.PortRange{deception.Port(deception.UDP, 67)}},
		{To: netip.MustParsePrefix("8.8.8.8/32"), Ports: []deception.PortRange{deception.Port(deception.TCP, 22)}},
	},
}

func mustApplyZones(t testing.TB, ns Namespace, zones ...ZoneRules) Status {
	t.Helper()
	s, err := ApplyZones(context.Background(), ns, zones)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (l *zoneLab) denied(t *testing.T) (packets uint64) {
	t.Helper()
	// The second witness of every count; a retransmission may come between.
	eventually(t, "Denied and nft agree", func() bool {
		d, err := Denied(context.Background(), l.gw)
		if err != nil {
			t.Fatal(err)
		}
		packets = d["linux"].Packets
		shown := l.gw.exec("nft list counter inet decoynet zone-linux")
		return strings.Contains(shown, fmt.Sprintf("packets %d bytes %d", packets, d["linux"].Bytes))
	})
	return packets
}

// expectDenied runs f and wants the zone's counter to have moved.
func (l *zoneLab) expectDenied(t *testing.T, what string, f func()) {
	t.Helper()
	before := l.denied(t)
	f()
	if after := l.denied(t); after <= before {
		t.Errorf("%s: the counter stayed at %d", what, after)
	}
}

// holes are ways from a service to a listener of the host that must not lead
// there.
var holes = []string{
	"8.8.8.8:22", "192.0.2.1:22", "10.1.0.1:22", "10.1.0.3:22", "[2001:db8::8]:22", "[fd01::1]:22",
	// To a transparent listener on the wildcard, and on a foreign address.
	"8.8.8.8:9999", "[2001:db8::8]:9999", "203.0.113.9:9998",
}

func TestZoneCannotReachTheHost(t *testing.T) {
	l := newZoneLab(t)
	l.gw.listenTCP(":22", false, tellPeer)
	l.gw.listenTCP(":9999", true, tellPeer)
	l.gw.listenTCP("203.0.113.9:9998", true, tellPeer)
	// 10.1.0.3 is the neighbour's address; a frame to it can be sent to the
	// host all the same.
	l.svc.exec("ip neigh replace 10.1.0.3 dev eth0 lladdr " + strings.TrimSpace(l.gw.exec("cat /sys/class/net/br-linux/address")))
	// The topology is as dangerous as the rules suppose, else the test
	// below proves nothing. Only IPv4 helps by itself: a plain listener
	// cannot answer from an address that is not the host's.
	for _, addr := range holes {
		if addr == "8.8.8.8:22" || addr == "10.1.0.3:22" {
			continue
		}
		if c, err := l.svc.dial("tcp", "", addr, false, 0); err != nil {
			t.Errorf("without rules %s should reach the host: %v", addr, err)
		} else {
			_ = c.Close()
		}
	}
	mustApplyZones(t, l.gw, linuxZone)
	for _, addr := range holes {
		l.expectDenied(t, addr, func() {
			if c, err := l.svc.dial("tcp", "", addr, false, 0); err == nil {
				t.Errorf("%s was reached: %s", addr, firstLine(t, c))
			}
		})
	}
}

func TestZoneCannotReachTheHostOverUDP(t *testing.T) {
	l := newZoneLab(t)
	plain := l.gw.listenUDP(":500", false)
	transparent := l.gw.listenUDP(":501", true)
	bound := l.gw.listenUDP("10.1.0.1:502", true) // as a resolver with ip-transparent
	send := func() {
		for _, addr := range []string{"8.8.8.8:500", "10.1.0.1:500", "[fd01::1]:500", "[2001:db8::8]:501", "8.8.8.8:501", "10.1.0.1:502"} {
			c, err := l.svc.dial("udp", "", addr, false, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write([]byte("0"))
		}
	}
	send()
	eventually(t, "the datagrams have arrived without rules", func() bool {
		return plain.Load() == 3 && transparent.Load() == 2 && bound.Load() == 1
	})
	mustApplyZones(t, l.gw, linuxZone)
	before := l.denied(t)
	send()
	eventually(t, "all six are counted", func() bool { return l.denied(t) == before+6 })
	if plain.Load() != 3 || transparent.Load() != 2 || bound.Load() != 1 {
		t.Errorf("datagrams arrived: %d plain, %d transparent, %d bound", plain.Load(), transparent.Load(), bound.Load())
	}
	l.expectDenied(t, "ping to the world", func() { _, _ = l.svc.try("ping -c1 -W1 8.8.8.8") })
	l.expectDenied(t, "ping6 to the world", func() { _, _ = l.svc.try("ping -c1 -W1 2001:db8::8") })
}

// What is routed on instead of delivered, as if the zone's routing rule were
// missing, does not get out either.
func TestZoneIsNotForwarded(t *testing.T) {
	l := newZoneLab(t)
	world := newNS(t, "world")
	connect(t, l.gw, "up0", world, "eth0")
	l.gw.exec("ip addr add 198.18.0.1/24 dev up0; ip rule del pref 14250; ip route add default via 198.18.0.2")
	world.exec("ip addr add 198.18.0.2/24 dev eth0; ip route add default via 198.18.0.1")
	l.gw.knows("up0", world, "eth0", "198.18.0.2")
	world.knows("eth0", l.gw, "up0", "198.18.0.1")
	world.listenTCP(":22", false, tellPeer)
	if _, err := l.svc.dial("tcp", "", "198.18.0.2:22", false, 0); err != nil {
		t.Fatalf("without rules: %v", err)
	}
	mustApplyZones(t, l.gw, linuxZone)
	l.expectDenied(t, "forwarded SYN", func() {
		if _, err := l.svc.dial("tcp", "", "198.18.0.2:22", false, 0); err == nil {
			t.Error("a service reached the world")
		}
	})
}

func TestTransparentAnswersPass(t *testing.T) {
	l := newZoneLab(t)
	l.svc.listenTCP(":80", false, tellPeer)
	l.svc.listenUDP(":161", false)
	mustApplyZones(t, l.gw, linuxZone)
	for _, tc := range []struct{ network, intruder, service string }{
		{"tcp", "198.51.100.7:4321", "10.1.0.2:80"},
		{"tcp", "[2001:db8:bad::7]:4321", "[fd01::2]:80"},
		{"udp", "198.51.100.7:4321", "10.1.0.2:161"},
		{"udp", "[2001:db8:bad::7]:4321", "[fd01::2]:161"},
	} {
		c, err := l.gw.dial(tc.network, tc.intruder, tc.service, true, 0)
		if err != nil {
			t.Errorf("%s as %s: %v", tc.network, tc.intruder, err)
			continue
		}
		// Larger than the MTU: the datagram comes in fragments.
		peer, err := ask(c, "4000")
		if peer, _, _ = strings.Cut(peer, "\n"); err != nil || peer != tc.intruder {
			t.Errorf("%s: the service saw %q (%v), want %s", tc.network, peer, err, tc.intruder)
		}
	}
	if n := l.denied(t); n != 0 {
		t.Errorf("%d packets of answers were denied", n)
	}
	// A stranger in the zone does not get at the intruder's sockets.
	c, err := l.gw.dial("udp", "198.51.100.8:5000", "10.1.0.2:161", true, 0)
	if err != nil {
		t.Fatal(err)
	}
	l.expectDenied(t, "datagram of another service", func() {
		s, err := l.svc2.dial("udp", "", "198.51.100.8:5000", false, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = s.Write([]byte("spoofed"))
		_, _ = l.svc2.try("ping -c1 -W1 -q 198.51.100.8")
	})
	if answer, err := ask(c, "0"); err != nil || !strings.HasPrefix(answer, "198.51.100.8:5000") {
		t.Errorf("answer %q, %v", answer, err)
	}
}

func TestTransparentSocketsLearnOfErrors(t *testing.T) {
	l := newZoneLab(t)
	mustApplyZones(t, l.gw, linuxZone)
	for _, tc := range []struct{ intruder, service string }{
		{"198.51.100.7:4321", "10.1.0.2:9"}, {"[2001:db8:bad::7]:4321", "[fd01::2]:9"},
	} {
		for _, network := range []string{"tcp", "udp"} {
			c, err := l.gw.dial(network, tc.intruder, tc.service, true, 0)
			if err == nil {
				_, err = ask(c, "anybody there?")
			}
			if !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s to closed port %s: %v, want ECONNREFUSED", network, tc.service, err)
			}
		}
	}
	if n := l.denied(t); n != 0 {
		t.Errorf("%d ICMP errors were denied", n)
	}
}

// What the host itself opens towards a service works, and so does what is
// declared.
func TestHostAndDeclaredTrafficPasses(t *testing.T) {
	l := newZoneLab(t)
	l.svc.listenTCP(":80", false, tellPeer)
	l.svc.listenUDP(":161", false)
	l.gw.listenTCP(":8000", false, tellPeer)
	l.gw.listenTCP(":22", false, tellPeer)
	l.gw.listenUDP("10.1.0.1:53", false)
	dhcp := l.gw.listenUDP("0.0.0.0:67", false)
	mustApplyZones(t, l.gw, linuxZone)
	for _, service := range []string{"10.1.0.2:80", "[fd01::2]:80"} {
		if c, err := l.gw.dial("tcp", "", service, false, 0); err != nil {
			t.Errorf("health check of %s: %v", service, err)
		} else if got := firstLine(t, c); !strings.Contains(got, "1") {
			t.Errorf("health check of %s: %q", service, got)
		}
	}
	for _, service := range []string{"10.1.0.2:161", "[fd01::2]:161"} {
		c, err := l.gw.dial("udp", "", service, false, int(MarkSelf&0x7fffffff))
		if err != nil {
			t.Fatal(err)
		}
		if answer, err := ask(c, "10"); err != nil {
			t.Errorf("health check of %s/udp: %q, %v", service, answer, err)
		}
	}
	l.gw.exec("ping -c1 -W2 10.1.0.2 && ping -c1 -W2 fd01::2")
	l.svc.exec("ping -c1 -W2 10.1.0.1 && ping -c1 -W2 fd01::1")
	for _, addr := range []string{"10.1.0.1:8000", "[fd01::1]:8000"} {
		if _, err := l.svc.dial("tcp", "", addr, false, 0); err != nil {
			t.Errorf("declared %s: %v", addr, err)
		}
	}
	c, err := l.svc.dial("udp", "", "10.1.0.1:53", false, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ask(c, "0"); err != nil {
		t.Errorf("declared 10.1.0.1:53/udp: %v", err)
	}
	l.svc.exec("echo discover | socat - UDP4-DATAGRAM:255.255.255.255:67,broadcast,so-bindtodevice=eth0")
	eventually(t, "the declared broadcast has arrived", func() bool { return dhcp.Load() > 0 })
	// Neighbours of a bridge talk even where br_netfilter shows their frames
	// to the hooks, and the neighbour tables can be filled anew.
	l.gw.exec("sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1; ip -6 neigh flush dev br-linux nud permanent")
	l.svc2.exec("ip -6 neigh flush dev eth0 nud permanent; ping -c1 -W2 10.1.0.2 && ping -c1 -W2 fd01::2 && ping -c1 -W2 fd01::1")
	if c, err := l.svc2.dial("tcp", "", "10.1.0.2:80", false, 0); err != nil {
		t.Errorf("neighbour: %v", err)
	} else if got := firstLine(t, c); !strings.HasPrefix(got, "10.1.0.3:") {
		t.Errorf("neighbour seen as %s", got)
	}
	if n := l.denied(t); n != 0 {
		t.Errorf("%d packets were denied: %s", n, l.gw.exec("nft list table inet decoynet"))
	}
	// An undeclared address in an allow entry opens nothing: 8.8.8.8:22 is
	// listed and would be this host's own port.
	l.expectDenied(t, "8.8.8.8:22", func() {
		if _, err := l.svc.dial("tcp", "", "8.8.8.8:22", false, 0); err == nil {
			t.Error("8.8.8.8:22 led to this host")
		}
	})
}

func TestZoneSpoofedSegmentsAreDenied(t *testing.T) {
	l := newZoneLab(t)
	mustApplyZones(t, l.gw, linuxZone)
	// An ACK in the name of a host of production, as if it belonged to a
	// connection that the gateway has with it.
	l.expectDenied(t, "spoofed ACK", func() {
		l.svc.exec("hping3 -c 1 -q -A -a 192.0.2.77 -p 443 -s 5555 10.1.0.1 >/dev/null 2>&1 || true")
	})
	// A router advertisement would hand the host's default route to the zone.
	l.expectDenied(t, "router advertisement", func() {
		l.svc.do(func() error { return sendICMPv6(134) })
	})
}

func sendICMPv6(kind byte) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifi, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255); err != nil {
		return err
	}
	msg := make([]byte, 16)
	msg[0], msg[4], msg[7] = kind, 64, 30
	to := &unix.SockaddrInet6{ZoneId: uint32(ifi.Index)}
	copy(to.Addr[:], net.ParseIP("ff02::1"))
	return unix.Sendto(fd, msg, 0, to)
}
