package firewall

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// reaches dials from a namespace, once.
func reaches(ns *testNS, address string) bool {
	c, err := ns.dial("tcp", "", address, false, 0)
	if err == nil {
		_ = c.Close()
	}
	return err == nil
}

// Who is on a guarded link reaches no address of the host's other interfaces,
// and nothing behind it; the link's own address, should it get one, at once.
func TestGuard(t *testing.T) {
	host, intruder, beyond := newNS(t, "host"), newNS(t, "intruder"), newNS(t, "beyond")
	host.exec("ip link add trunk type veth peer name eth0 netns " + intruder.name + "; ip link set trunk up; sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.forwarding=1")
	host.exec("ip link add lan type veth peer name eth0 netns " + beyond.name + "; ip link set lan up; ip addr add 10.9.0.1/24 dev lan")
	intruder.exec("ip link set eth0 up; ip addr add 192.0.2.66/24 dev eth0; ip route add default dev eth0")
	beyond.exec("ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0; ip route add default via 10.9.0.1")
	// The way back, as a host with a default route has it.
	host.exec("ip route add 192.0.2.0/24 dev trunk")
	host.listenTCP(":22", false, tellPeer)
	beyond.listenTCP(":80", false, tellPeer)
	intruder.exec("ip neigh add 10.9.0.2 dev eth0 lladdr $(ip netns exec " + host.name + " cat /sys/class/net/trunk/address)")

	for _, address := range []string{"10.9.0.1:22", "10.9.0.2:80"} {
		if !reaches(intruder, address) {
			t.Fatalf("without a guard the intruder does not reach %s: nothing is proved", address)
		}
	}
	if _, err := ApplyGuard(context.Background(), host, []string{"trunk"}); err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{"10.9.0.1:22", "10.9.0.2:80"} {
		if reaches(intruder, address) {
			t.Errorf("the intruder reaches %s", address)
		}
	}
	if !reaches(beyond, "10.9.0.1:22") {
		t.Error("a link that is not guarded is cut off")
	}
	host.exec("ip addr add 192.0.2.1/24 dev trunk")
	if !reaches(intruder, "192.0.2.1:22") {
		t.Error("an address that the link got is out of reach")
	}
	if again, err := ApplyGuard(context.Background(), host, []string{"trunk"}); err != nil || again.Changed {
		t.Errorf("a repeat changes something: %+v, %v", again, err)
	}
	if _, err := ApplyGuard(context.Background(), host, nil); err != nil {
		t.Fatal(err)
	}
	if rules := host.exec("nft list ruleset"); strings.Contains(rules, "guard") {
		t.Errorf("left behind:\n%s", rules)
	}
}

// A flood of ARP requests is answered at the rate, and a burst; afterwards a
// single one is answered again.
func TestARPLimit(t *testing.T) {
	seg, lan := newNS(t, "seg"), newNS(t, "lan")
	seg.exec("ip link add lan0 type veth peer name eth0 netns " + lan.name + "; ip link set lan0 up; ip route add local 192.0.2.0/24 dev lo")
	lan.exec("ip link set eth0 up; ip addr add 198.51.100.66/24 dev eth0")
	const rate = 20
	if _, err := ApplyLimits(context.Background(), seg, Limits{ARP: rate}); err != nil {
		t.Fatal(err)
	}
	if again, err := ApplyLimits(context.Background(), seg, Limits{ARP: rate}); err != nil || again.Changed {
		t.Errorf("a repeat changes something: %+v, %v", again, err)
	}
	began := time.Now()
	out := lan.exec("arping -q -c 400 -W 0.0001 -i eth0 192.0.2.7; cat /sys/class/net/eth0/statistics/rx_packets")
	took := time.Since(began).Seconds()
	limited := counterOf(t, seg, "limit-arp")
	if most := uint64(2*rate + rate*(took+1)); 400-limited > most {
		t.Errorf("%d of 400 requests within %.1f s were answered, want at most %d: %s", 400-limited, took, most, out)
	}
	eventually(t, "an answer after the flood", func() bool {
		return !strings.Contains(lan.exec("arping -c 1 -w 1 -i eth0 192.0.2.7 || true"), " 0 packets received")
	})
	if owned, err := Owned(seg); err != nil || len(owned) != 1 || owned[0] != (Table{"arp", TableName}) {
		t.Errorf("Owned = %v, %v", owned, err)
	}
	if err := Remove(seg); err != nil {
		t.Fatal(err)
	}
	if rules := seg.exec("nft list ruleset"); strings.TrimSpace(rules) != "" {
		t.Errorf("left behind:\n%s", rules)
	}
}

func counterOf(t *testing.T, ns *testNS, name string) uint64 {
	t.Helper()
	for line := range strings.SplitSeq(ns.exec("nft list counter arp "+TableName+" "+name), "\n") {
		var packets, bytes uint64
		if n, _ := fmt.Sscanf(strings.TrimSpace(line), "packets %d bytes %d", &packets, &bytes); n == 2 {
			return packets
		}
	}
	t.Fatalf("no counter %s", name)
	return 0
}

// A machine that asks whether it may take an address is not told that it is
// taken, and comes up with it; everybody else is answered.
func TestYield(t *testing.T) {
	seg, lan := newNS(t, "seg"), newNS(t, "lan")
	seg.exec("ip link add lan0 type veth peer name eth0 netns " + lan.name + "; ip link set lan0 up; ip route add local 192.0.2.0/28 dev lo; ip route add 192.0.2.0/24 dev lan0; ip addr add 2001:db8::7/128 dev lan0 nodad; ip addr add 2001:db8::8/128 dev lan0 nodad; ip addr add 2001:db8::1/64 dev lan0 nodad")
	lan.exec("ip link set eth0 up; ip addr add 192.0.2.66/24 dev eth0; ip addr add 2001:db8::66/64 dev eth0 nodad; sysctl -qw net.ipv6.conf.eth0.accept_dad=1 net.ipv6.conf.eth0.dad_transmits=1")
	detects := func(address string) bool {
		lan.exec("ip addr add " + address + "/64 dev eth0")
		failed := false
		eventually(t, "the end of duplicate address detection", func() bool {
			shown := lan.exec("ip -6 -o addr show dev eth0 to " + address)
			failed = strings.Contains(shown, "dadfailed")
			return failed || !strings.Contains(shown, "tentative")
		})
		return failed
	}
	answered := func(how string) bool {
		return strings.Contains(lan.exec("arping "+how+" -c 1 -w 1 -i eth0 192.0.2.7 || true"), " 1 packets received")
	}
	if !answered("-0") || !detects("2001:db8::7") {
		t.Fatal("without the rule nobody is told that an address is taken: nothing is proved")
	}
	if _, err := ApplyLimits(context.Background(), seg, Limits{ARP: 1000, Yield: true, IPv6: true}); err != nil {
		t.Fatal(err)
	}
	if again, err := ApplyLimits(context.Background(), seg, Limits{ARP: 1000, Yield: true, IPv6: true}); err != nil || again.Changed {
		t.Errorf("a repeat changes something: %+v, %v", again, err)
	}
	if answered("-0") {
		t.Error("an ARP probe is answered")
	}
	if detects("2001:db8::8") {
		t.Error("duplicate address detection is answered")
	}
	if !answered("") {
		t.Error("an ordinary request is not answered")
	}
	lan.exec("ip addr flush dev eth0; ip addr add 2001:db8::66/64 dev eth0 nodad; ip addr add 192.0.2.66/24 dev eth0; ping -6 -c 1 -W 2 2001:db8::1")
	if _, err := ApplyLimits(context.Background(), seg, Limits{ARP: 1000, IPv6: true}); err != nil {
		t.Fatal(err)
	}
	if !answered("-0") {
		t.Error("the rule stays")
	}
}
