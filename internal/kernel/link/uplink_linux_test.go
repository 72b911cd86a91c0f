package link

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/netns/netnstest"
)

// zoneLAN is a LAN whose host has a zone with a service behind it, and a segment
// with an uplink that routes towards the zone.
type zoneLAN struct {
	*netnstest.LAN
	seg, service *netns.NS
	status       Status
}

func newZoneLAN(t *testing.T) *zoneLAN {
	t.Helper()
	l := &zoneLAN{LAN: netnstest.NewLAN(t), seg: netnstest.New(t, "seg"), service: netnstest.New(t, "svc")}
	netnstest.IP(t, l.Host, "link add zone0 type veth peer name eth0 netns "+l.service.Name())
	netnstest.IP(t, l.Host, "link set zone0 up")
	netnstest.IP(t, l.Host, "addr add 10.1.0.1/24 dev zone0")
	netnstest.IP(t, l.Host, "addr add fd00:1::1/64 dev zone0 nodad")
	netnstest.IP(t, l.service, "link set eth0 up")
	netnstest.IP(t, l.service, "addr add 10.1.0.2/24 dev eth0")
	netnstest.IP(t, l.service, "addr add fd00:1::2/64 dev eth0 nodad")
	netnstest.IP(t, l.service, "route add default via 10.1.0.1")
	netnstest.IP(t, l.service, "-6 route add default via fd00:1::1")
	// What the zone's own link needs is not the segment's business.
	netnstest.Run(t, l.Host, "sysctl", "-w", "net.ipv4.conf.zone0.forwarding=1", "net.ipv4.conf.zone0.rp_filter=0", "net.ipv6.conf.zone0.force_forwarding=1")

	l.status = mustApply(t, l.Host, l.seg, office(true))
	netnstest.IP(t, l.seg, "addr add 192.0.2.100/24 dev lan0")
	netnstest.IP(t, l.seg, "addr add 2001:db8::100/64 dev lan0 nodad")
	netnstest.IP(t, l.seg, fmt.Sprintf("route add 10.1.0.0/24 via %s dev %s onlink", NextHopHost4, UplinkName))
	netnstest.IP(t, l.seg, fmt.Sprintf("-6 route add fd00:1::/64 via %s dev %s onlink", NextHopHost6, UplinkName))
	// The way back from the zone: by its link into a table of the segment's.
	dev := l.status.Uplink.HostName
	netnstest.IP(t, l.Host, fmt.Sprintf("route add default via %s dev %s onlink table 14301", NextHopSegment4, dev))
	netnstest.IP(t, l.Host, fmt.Sprintf("-6 route add default via %s dev %s onlink table 14301", NextHopSegment6, dev))
	netnstest.IP(t, l.Host, "rule add pref 14200 iif zone0 lookup 14301")
	netnstest.IP(t, l.Host, "-6 rule add pref 14200 iif zone0 lookup 14301")
	netnstest.IP(t, l.Intruder, "route add 10.1.0.0/24 via 192.0.2.100")
	netnstest.IP(t, l.Intruder, "-6 route add fd00:1::/64 via 2001:db8::100")
	ready(t, l.Host, dev, "zone0")
	ready(t, l.seg, LANName, UplinkName)
	ready(t, l.service, "eth0")
	// A router solicits neighbours from its link-local address, for which it first
	// has to see that nobody else has it.
	netnstest.Eventually(t, "zone0 has a link-local address", func() bool {
		out := netnstest.IP(t, l.Host, "-6 addr show dev zone0 scope link")
		return out != "" && !strings.Contains(out, "tentative")
	})
	return l
}

// ready waits until the kernel has seen that the links have a carrier, which
// takes up to a second (linkwatch); IPv6 does not use them before.
func ready(t *testing.T, ns *netns.NS, names ...string) {
	t.Helper()
	for _, name := range names {
		netnstest.Eventually(t, name+" is up", func() bool {
			return strings.Contains(netnstest.IP(t, ns, "link show "+name), "state UP")
		})
	}
}

func (l *zoneLAN) ping(t *testing.T, addr string) error {
	t.Helper()
	out, err := netnstest.Try(t, l.Intruder, "ping", "-n", "-c", "1", "-W", "2", addr)
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func TestUplinkCarriesBothFamilies(t *testing.T) {
	t.Parallel()
	l := newZoneLAN(t)
	dev := l.status.Uplink.HostName
	capture := background(t, l.Host, "tcpdump", "-n", "-l", "--immediate-mode", "-i", dev)
	capture.waitFor(t, "listening on")
	for _, addr := range []string{"10.1.0.2", "fd00:1::2"} {
		if err := l.ping(t, addr); err != nil {
			t.Errorf("%s: %v", addr, err)
		}
	}
	capture.waitFor(t, "192.0.2.66 > 10.1.0.2: ICMP echo request")
	capture.waitFor(t, "2001:db8::66 > fd00:1::2: ICMP6, echo request")
	capture.waitFor(t, "fd00:1::2 > 2001:db8::66: ICMP6, echo reply")
	if out := capture.text(); strings.Contains(out, "ARP") || strings.Contains(out, "neighbor") || strings.Contains(out, "169.254") {
		t.Errorf("a next hop was looked for on the wire:\n%s", out)
	}
	for _, end := range []struct {
		ns   *netns.NS
		name string
	}{{l.Host, dev}, {l.seg, UplinkName}} {
		if out := netnstest.IP(t, end.ns, "addr show dev "+end.name); strings.Contains(out, "inet") {
			t.Errorf("%s has an address:\n%s", end.name, out)
		}
	}
}

// A host with strict reverse path filtering, which is not ours to change: the
// reverse lookup heeds the mark that packets from the segment carry.
func TestUplinkPassesStrictReversePathFilter(t *testing.T) {
	t.Parallel()
	l := newZoneLAN(t)
	dev := l.status.Uplink.HostName
	netnstest.Run(t, l.Host, "sysctl", "-w", "net.ipv4.conf.all.rp_filter=1")
	// Replies find back by their connection's mark.
	netnstest.IP(t, l.Host, "rule del pref 14200")
	netnstest.IP(t, l.Host, "rule add pref 14200 iif zone0 fwmark 0x0dec0001 lookup 14301")
	netnstest.Run(t, l.Host, "nft", `table inet t {
		chain c {
			type filter hook prerouting priority mangle
			iifname "`+dev+`" ct mark set 0x0dec0001
			iifname "zone0" meta mark set ct mark
		}
	}`)
	if l.ping(t, "10.1.0.2") == nil {
		t.Fatal("packets pass without a mark; the test proves nothing")
	}
	netnstest.Run(t, l.Host, "nft", `add rule inet t c iifname "`+dev+`" meta mark set ct mark`)
	if err := l.ping(t, "10.1.0.2"); err != nil {
		t.Error(err)
	}
}

// Decoys are hosts, no routers, though their namespace forwards.
func TestAdvertisementsDoNotClaimARouter(t *testing.T) {
	t.Parallel()
	l := newZoneLAN(t)
	capture := background(t, l.Intruder, "tcpdump", "-n", "-l", "-v", "--immediate-mode", "-i", "eth0", "icmp6 and ip6[40] == 136 and src host 2001:db8::100")
	capture.waitFor(t, "listening on")
	netnstest.Run(t, l.Intruder, "ndisc6", "-1", "-r", "3", "2001:db8::100", "eth0")
	capture.waitFor(t, "neighbor advertisement")
	capture.waitFor(t, "Flags [")
	if strings.Contains(capture.text(), "router") {
		t.Errorf("the router flag is set:\n%s", capture.text())
	}
}

func TestHostIsLeftAsItWas(t *testing.T) {
	t.Parallel()
	l := netnstest.NewLAN(t)
	segment := "left-as-it-was"
	seg := netnstest.Named(t, netns.SegmentName(segment))
	netnstest.IP(t, l.Host, "link add theirs type veth peer name srieht")
	netnstest.Eventually(t, "duplicate detection is over", func() bool {
		return netnstest.IP(t, l.Host, "-6 addr show tentative") == ""
	})
	before := shape(t, l.Host)

	d := Desired{Segment: segment, Parent: "eth0", Uplink: true}
	mustApply(t, l.Host, seg, d)
	names, err := Owned(l.Host)
	if diff := cmp.Diff([]string{HostName(segment)}, names); err != nil || diff != "" {
		t.Errorf("Owned (-want +got):\n%s\n%v", diff, err)
	}
	// Nothing that was there may differ while ours is, but that a parent without
	// a filter for unicast addresses turns promiscuous (dev_uc_add).
	during := shape(t, l.Host)
	for _, line := range before {
		promiscuous := strings.Replace(line, "promiscuity 0", "promiscuity 1", 1)
		if !slices.Contains(during, line) && !slices.Contains(during, promiscuous) {
			t.Errorf("with our link there, this is missing: %s", line)
		}
	}
	for range 2 { // the second time there is nothing to remove
		if err := Remove(t.Context(), l.Host, segment); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, shape(t, l.Host)); diff != "" {
			t.Errorf("after Remove the host differs (-before +after):\n%s", diff)
		}
	}
	if out := netnstest.IP(t, seg, "-br link"); strings.Contains(out, LANName) || strings.Contains(out, UplinkName) {
		t.Errorf("links are left in the segment:\n%s", out)
	}
	if names, err := Owned(l.Host); err != nil || len(names) != 0 {
		t.Errorf("Owned after Remove = %v, %v", names, err)
	}

	// A pair whose namespace nobody knows any more.
	mustApply(t, l.Host, seg, d)
	if err := RemoveOwned(t.Context(), l.Host); err != nil {
		t.Fatal(err)
	}
	netnstest.IP(t, seg, "link del lan0")
	if diff := cmp.Diff(before, shape(t, l.Host)); diff != "" {
		t.Errorf("after RemoveOwned the host differs (-before +after):\n%s", diff)
	}
}

func TestDeletingTheNamespaceTakesTheMacvlan(t *testing.T) {
	t.Parallel()
	l := netnstest.NewLAN(t)
	name := netns.SegmentName("deleted")
	seg := netnstest.Named(t, name)
	mustApply(t, l.Host, seg, Desired{Segment: "deleted", Parent: "eth0", Uplink: true})
	// The parent takes a macvlan in passthru mode only if it has no other.
	passthru := func() error {
		out, err := netnstest.Try(t, l.Host, "ip", "link", "add", "witness", "link", "eth0", "type", "macvlan", "mode", "passthru")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	if passthru() == nil {
		t.Fatal("the parent has no macvlan; the test proves nothing")
	}
	seg.Close()
	if err := netns.Delete(name); err != nil {
		t.Fatal(err)
	}
	netnstest.Eventually(t, "the macvlan is gone", func() bool { return passthru() == nil })
	netnstest.Eventually(t, "the uplink is gone", func() bool {
		_, err := netnstest.Try(t, l.Host, "ip", "link", "show", HostName("deleted"))
		return err != nil
	})
}

func TestRemoveStopsWhenCancelled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	l := netnstest.NewLAN(t)
	seg := netnstest.New(t, "seg")
	if err := Remove(ctx, l.Host, "office"); err == nil {
		t.Error("Remove went on")
	}
	if _, err := Apply(ctx, l.Host, seg, office(true)); err == nil {
		t.Error("Apply went on")
	}
	if out := netnstest.IP(t, seg, "-br link"); strings.Contains(out, LANName) {
		t.Errorf("links were made:\n%s", out)
	}
}

// process is a command that runs in the background and whose output is awaited.
type process struct {
	cmd *exec.Cmd
	out *netnstest.Buffer
}

func background(t *testing.T, ns *netns.NS, args ...string) *process {
	t.Helper()
	cmd, cancel := netnstest.Command(t, ns, args...)
	p := &process{cmd: cmd, out: &netnstest.Buffer{}}
	cmd.Stdout, cmd.Stderr = p.out, p.out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); cmd.Wait() })
	return p
}

func (p *process) text() string { return p.out.String() }

func (p *process) waitFor(t *testing.T, text string) {
	t.Helper()
	netnstest.Eventually(t, fmt.Sprintf("%s prints %q", p.cmd.Args[4], text), func() bool {
		return strings.Contains(p.text(), text)
	})
}
