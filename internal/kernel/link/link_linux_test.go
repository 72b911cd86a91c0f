package link

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/netns/netnstest"
)

func office(uplink bool) Desired {
	return Desired{Segment: "office", Parent: "eth0", Uplink: uplink}
}

func mustApply(t *testing.T, host, seg *netns.NS, d Desired) Status {
	t.Helper()
	s, err := Apply(t.Context(), host, seg, d)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Warnings) > 0 {
		t.Errorf("warnings: %v", s.Warnings)
	}
	return s
}

// reopen drops all state of ours about a namespace, as a new process would.
func reopen(t *testing.T, ns *netns.NS) *netns.NS {
	t.Helper()
	again, err := netns.Open(ns.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { again.Close() })
	return again
}

// shape is everything ip(8) and sysctl(8) show of a namespace's configuration,
// without counters and clocks.
func shape(t *testing.T, ns *netns.NS) []string {
	t.Helper()
	var out []string
	for _, line := range []string{"-d link", "addr", "route show table all", "-6 route show table all", "rule", "-6 rule", "neigh show nud permanent", "-6 neigh show nud permanent"} {
		for l := range strings.Lines(netnstest.IP(t, ns, line)) {
			out = append(out, line+": "+strings.TrimSpace(l))
		}
	}
	conf := netnstest.Run(t, ns, "sysctl", "-a", "-r", `^net\.(ipv4|ipv6)\.(conf|neigh|ip_forward)`)
	for l := range strings.Lines(conf) {
		if !strings.Contains(l, "stable_secret") {
			out = append(out, strings.TrimSpace(l))
		}
	}
	return slices.DeleteFunc(out, func(l string) bool {
		// ip(8) also says what it thinks of other namespaces that go meanwhile.
		return strings.Contains(l, "Peer netns reference is invalid") || strings.Contains(l, "valid_lft") || strings.Contains(l, "fe80::") || l == ""
	})
}

func TestApplyMakesTheLAN(t *testing.T) {
	t.Parallel()
	l := netnstest.NewLAN(t)
	seg := netnstest.New(t, "seg")
	netnstest.IP(t, l.Host, "link set eth0 mtu 1400")
	s := mustApply(t, l.Host, seg, office(false))

	shown := netnstest.IP(t, seg, "-d link show lan0")
	for _, want := range []string{"macvlan mode bridge", "alias decoynet", "mtu 1400", "UP", "LOWER_UP", s.MAC.String(), fmt.Sprintf("%d: lan0", s.Index)} {
		if !strings.Contains(shown, want) {
			t.Errorf("ip does not show %q:\n%s", want, shown)
		}
	}
	if !s.Carrier || s.MTU != 1400 || s.Uplink != nil || len(s.Changes) == 0 {
		t.Errorf("status is %+v", s)
	}
	if out := netnstest.IP(t, seg, "link show lo"); !strings.Contains(out, "UP") {
		t.Errorf("lo is not up:\n%s", out)
	}
	for key, want := range map[string]string{
		"net.ipv4.ip_forward": "0", "net.ipv6.conf.all.forwarding": "0",
		"net.ipv4.conf.all.rp_filter": "0", "net.ipv4.conf.lan0.rp_filter": "0",
		"net.ipv4.conf.all.arp_ignore": "0", "net.ipv4.conf.lan0.arp_ignore": "0",
		"net.ipv4.conf.lan0.accept_redirects": "0", "net.ipv4.conf.all.send_redirects": "0",
		"net.ipv4.conf.lan0.send_redirects": "0",
		"net.ipv6.conf.lan0.accept_ra":      "0", "net.ipv6.conf.lan0.autoconf": "0",
		"net.ipv6.conf.lan0.accept_redirects": "0", "net.ipv6.conf.lan0.forwarding": "0",
		"net.core.somaxconn": "65535", "net.ipv4.tcp_max_syn_backlog": "16384", "net.ipv4.tcp_syncookies": "1",
	} {
		if got := strings.TrimSpace(netnstest.Run(t, seg, "sysctl", "-n", key)); got != want {
			t.Errorf("%s = %s, want %s", key, got, want)
		}
	}
	// It is on the network: an address put on it answers.
	netnstest.IP(t, seg, "addr add 192.0.2.100/24 dev lan0")
	netnstest.Run(t, l.Intruder, "ping", "-n", "-c", "1", "-W", "2", "192.0.2.100")
	if out := netnstest.IP(t, l.Intruder, "neigh show 192.0.2.100"); !strings.Contains(out, s.MAC.String()) {
		t.Errorf("the intruder sees %s, want MAC address %s", out, s.MAC)
	}
}

func TestApplyAdoptsWhatStands(t *testing.T) {
	t.Parallel()
	for _, uplink := range []bool{false, true} {
		t.Run(fmt.Sprintf("uplink %v", uplink), func(t *testing.T) {
			l := netnstest.NewLAN(t)
			seg := netnstest.New(t, "seg")
			first := mustApply(t, l.Host, seg, office(uplink))
			if uplink {
				ready(t, seg, UplinkName)
				ready(t, l.Host, first.Uplink.HostName)
			}
			before := shape(t, seg)

			seen := monitor(t, seg, func() {
				seen := monitor(t, l.Host, func() {
					again := mustApply(t, reopen(t, l.Host), reopen(t, seg), office(uplink))
					first.Changes = nil
					if diff := cmp.Diff(first, again); diff != "" {
						t.Errorf("status (-first +again):\n%s", diff)
					}
				})
				if seen != "" {
					t.Errorf("events in the host namespace:\n%s", seen)
				}
			})
			if seen != "" {
				t.Errorf("events in the segment namespace:\n%s", seen)
			}
			if diff := cmp.Diff(before, shape(t, seg)); diff != "" {
				t.Errorf("the namespace differs (-before +after):\n%s", diff)
			}
		})
	}
}

// In a container the NIC may be a macvlan already. The kernel then puts ours
// beside it, on the same real device, which may be out of sight.
func TestParentThatIsAMacvlanItself(t *testing.T) {
	t.Parallel()
	l := netnstest.NewLAN(t)
	inner, seg := netnstest.New(t, "inner"), netnstest.New(t, "seg")
	netnstest.IP(t, l.Host, "link add mac0 link eth0 netns "+inner.Name()+" type macvlan mode bridge")
	netnstest.IP(t, inner, "link set mac0 up")
	d := Desired{Segment: "office", Parent: "mac0"}
	first := mustApply(t, inner, seg, d)
	netnstest.IP(t, seg, "addr add 192.0.2.100/24 dev lan0")
	netnstest.Run(t, l.Intruder, "ping", "-n", "-c", "1", "-W", "2", "192.0.2.100")
	again := mustApply(t, reopen(t, inner), reopen(t, seg), d)
	if again.Index != first.Index || len(again.Changes) != 0 {
		t.Errorf("not adopted: %+v", again)
	}
}

// monitor returns what ip(8) saw change while fn ran.
func monitor(t *testing.T, ns *netns.NS, fn func()) string {
	t.Helper()
	netnstest.Eventually(t, "duplicate detection is over", func() bool {
		return netnstest.IP(t, ns, "-6 addr show tentative") == ""
	})
	log := filepath.Join(t.TempDir(), "monitor")
	file, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd, cancel := netnstest.Command(t, ns, "ip", "monitor", "link", "address", "route", "rule", "neigh", "netconf")
	defer cancel()
	cmd.Stdout = file
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	content := func() string {
		data, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	// Sentinels around fn: it listens, it has seen all.
	netnstest.Eventually(t, "ip monitor listens", func() bool {
		netnstest.IP(t, ns, "rule add pref 1 lookup 1")
		netnstest.IP(t, ns, "rule del pref 1 lookup 1")
		return strings.Contains(content(), "lookup 1\n")
	})
	fn()
	netnstest.IP(t, ns, "rule add pref 2 lookup 2")
	netnstest.IP(t, ns, "rule del pref 2 lookup 2")
	netnstest.Eventually(t, "ip monitor has seen all", func() bool {
		return strings.Contains(content(), "Deleted 2:")
	})
	var kept []string
	for line := range strings.Lines(content()) {
		volatile := strings.Contains(line, "lookup 1\n") || strings.Contains(line, "lookup 2\n") ||
			strings.Contains(line, "REACHABLE") || strings.Contains(line, "STALE") || strings.Contains(line, "DELAY") || strings.Contains(line, "PROBE")
		if !volatile && strings.TrimSpace(line) != "" {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

func TestMACIsTheSegmentsOwn(t *testing.T) {
	t.Parallel()
	l := netnstest.NewLAN(t)
	name := netns.SegmentName("again")
	d := Desired{Segment: "again", Parent: "eth0"}
	first := netnstest.Named(t, name)
	a := mustApply(t, l.Host, first, d)

	// Another node on the same machine has the same machine identity.
	other := d
	other.Node = "other"
	if b := mustApply(t, l.Host, netnstest.New(t, "seg"), other); b.MAC.String() == a.MAC.String() {
		t.Error("two nodes have one MAC address")
	}
	other = d
	other.Segment = "dmz"
	if b := mustApply(t, l.Host, netnstest.New(t, "seg"), other); b.MAC.String() == a.MAC.String() {
		t.Error("two segments have one MAC address")
	}
	// While one process holds the segment another one cannot take it.
	_, err := Apply(t.Context(), l.Host, netnstest.New(t, "seg"), d)
	if !errors.Is(err, ErrParentBusy) || !strings.Contains(err.Error(), a.MAC.String()) {
		t.Errorf("the same segment twice: %v", err)
	}
	// The kernel destroys a namespace, and the macvlan with its MAC address, some
	// time after its name is gone: Apply must wait for that.
	first.Close()
	if err := netns.Delete(name); err != nil {
		t.Fatal(err)
	}
	if b := mustApply(t, l.Host, netnstest.Named(t, name), d); b.MAC.String() != a.MAC.String() {
		t.Errorf("MAC address was %s, and is %s in a new namespace", a.MAC, b.MAC)
	}
}

func TestApplyMendsWhatDiffers(t *testing.T) {
	t.Parallel()
	l := netnstest.NewLAN(t)
	seg := netnstest.New(t, "seg")
	netnstest.IP(t, l.Wire, "link add second type veth peer name eth1 netns "+l.Host.Name())
	netnstest.IP(t, l.Host, "link set eth1 up")
	s := mustApply(t, l.Host, seg, office(true))

	t.Run("down, MTU, settings, neighbours", func(t *testing.T) {
		netnstest.IP(t, l.Host, "link set eth0 mtu 1300")
		netnstest.IP(t, seg, "link set lan0 down")
		netnstest.IP(t, seg, "link set up0 down")
		netnstest.IP(t, l.Host, "neigh del 169.254.77.2 dev "+s.Uplink.HostName)
		netnstest.Run(t, seg, "sysctl", "-w", "net.ipv4.conf.lan0.rp_filter=1", "net.ipv4.ip_forward=0")
		again := mustApply(t, l.Host, seg, office(true))
		if again.Index != s.Index || again.MTU != 1300 {
			t.Errorf("status is %+v", again)
		}
		for line, want := range map[string]string{
			"link show lan0": "mtu 1300", "link show up0": "UP,LOWER_UP",
			"neigh show dev up0": "169.254.77.1 lladdr", "-6 neigh show dev up0": "fe80::77:1 lladdr",
		} {
			if out := netnstest.IP(t, seg, line); !strings.Contains(out, want) {
				t.Errorf("ip %s: no %q in\n%s", line, want, out)
			}
		}
		if out := netnstest.IP(t, l.Host, "neigh show dev "+s.Uplink.HostName); !strings.Contains(out, "169.254.77.2") || !strings.Contains(out, "PERMANENT") {
			t.Errorf("neighbours in the host namespace:\n%s", out)
		}
		for key, want := range map[string]string{"net.ipv4.conf.lan0.rp_filter": "0", "net.ipv4.ip_forward": "1", "net.ipv4.conf.lan0.accept_redirects": "0"} {
			if got := strings.TrimSpace(netnstest.Run(t, seg, "sysctl", "-n", key)); got != want {
				t.Errorf("%s = %s, want %s", key, got, want)
			}
		}
	})
	t.Run("another parent", func(t *testing.T) {
		d := office(true)
		d.Parent = "eth1"
		moved := mustApply(t, l.Host, seg, d)
		if moved.Index == s.Index || !slices.Contains(moved.Changes, "lan0 removed: it stands on another parent") {
			t.Errorf("status is %+v", moved)
		}
		if moved.Uplink.Index != s.Uplink.Index {
			t.Error("the uplink was made anew")
		}
		if out := netnstest.IP(t, seg, "-d link show lan0"); !strings.Contains(out, fmt.Sprintf("lan0@if%d:", moved.ParentIndex)) {
			t.Errorf("lan0 does not stand on eth1:\n%s", out)
		}
	})
	t.Run("left over by an interrupted run", func(t *testing.T) {
		netnstest.IP(t, l.Host, "link add dn-00c0ffee link eth0 netns "+seg.Name()+" type macvlan mode bridge")
		mustApply(t, l.Host, seg, office(true))
		if out := netnstest.IP(t, seg, "-br link"); strings.Contains(out, "dn-00c0ffee") {
			t.Errorf("still there:\n%s", out)
		}
	})
	t.Run("without uplink", func(t *testing.T) {
		d := office(false)
		off := mustApply(t, l.Host, seg, d)
		if off.Uplink != nil {
			t.Errorf("status is %+v", off)
		}
		if out := netnstest.IP(t, seg, "-br link") + netnstest.IP(t, l.Host, "-br link"); strings.Contains(out, "up0") || strings.Contains(out, s.Uplink.HostName) {
			t.Errorf("the uplink is still there:\n%s", out)
		}
		if got := strings.TrimSpace(netnstest.Run(t, seg, "sysctl", "-n", "net.ipv4.ip_forward")); got != "0" {
			t.Error("the namespace still forwards")
		}
	})
}

func TestParentFlapIsSurvivedWithoutApply(t *testing.T) {
	t.Parallel()
	l := netnstest.NewLAN(t)
	seg := netnstest.New(t, "seg")
	mustApply(t, l.Host, seg, office(false))
	netnstest.IP(t, seg, "addr add 192.0.2.100/24 dev lan0")
	netnstest.IP(t, seg, "-6 addr add 2001:db8::100/128 dev lan0 nodad noprefixroute")
	netnstest.IP(t, seg, "-6 route add 2001:db8::/64 dev lan0")
	netnstest.IP(t, l.Host, "link set eth0 down")
	if _, err := Apply(t.Context(), l.Host, seg, office(false)); !errors.Is(err, ErrParentDown) {
		t.Errorf("with the parent down: %v", err)
	}
	netnstest.IP(t, l.Host, "link set eth0 up")
	for _, addr := range []string{"192.0.2.100", "2001:db8::100"} {
		netnstest.Eventually(t, addr+" answers again", func() bool {
			_, err := netnstest.Try(t, l.Intruder, "ping", "-n", "-c", "1", "-W", "1", addr)
			return err == nil
		})
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	l := netnstest.NewLAN(t)
	seg := netnstest.New(t, "seg")
	host := netnstest.New(t, "host")
	netnstest.IP(t, host, "link add br0 type bridge")
	netnstest.IP(t, host, "link add eth1 type veth peer name far1")
	netnstest.IP(t, host, "link set eth1 master br0")
	for _, name := range []string{"eth1", "far1", "br0"} {
		netnstest.IP(t, host, "link set "+name+" up")
	}
	netnstest.IP(t, host, "link add pass link far1 type macvlan mode passthru")
	netnstest.IP(t, host, "link add eth2 type veth peer name far2")

	apply := func(parent string) error {
		_, err := Apply(t.Context(), host, seg, Desired{Segment: "office", Parent: parent})
		return err
	}
	for _, tt := range []struct {
		parent string
		cause  error
		says   string
	}{
		{"eth7", ErrParentMissing, "segment office: parent eth7 does not exist; interfaces here: br0, eth1, eth2, far1, far2, pass"},
		{"eth1", ErrParentBusy, "segment office: parent eth1 is taken; it is a port of bridge br0; write parent: br0"},
		{"eth2", ErrParentDown, "segment office: parent eth2 is down; ip link set eth2 up"},
		{"lo", ErrParentUnsuitable, "not an Ethernet interface"},
		{"far1", nil, "pass (macvlan passthru) stands on it"},
	} {
		err := apply(tt.parent)
		if tt.cause != nil && !errors.Is(err, tt.cause) || err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("parent %s:\n got: %v\nwant: %s", tt.parent, err, tt.says)
		}
	}
	if out := netnstest.IP(t, seg, "-br link"); strings.Count(out, "\n") > 1 {
		t.Errorf("refusals left something:\n%s", out)
	}
	if err := apply("br0"); err != nil {
		t.Errorf("the bridge itself: %v", err)
	}
	if _, err := Apply(t.Context(), l.Host, l.Host, office(false)); err == nil {
		t.Error("the host's own namespace was taken for a segment's")
	}
	t.Run("somebody else's links", func(t *testing.T) {
		theirs := netnstest.New(t, "seg")
		netnstest.IP(t, theirs, "link add lan0 type veth peer name x")
		if _, err := Apply(t.Context(), l.Host, theirs, office(false)); err == nil {
			t.Error("their lan0 was replaced")
		}
		netnstest.IP(t, l.Host, "link add "+HostName("dmz")+" type veth peer name y")
		if _, err := Apply(t.Context(), l.Host, netnstest.New(t, "seg"), Desired{Segment: "dmz", Parent: "eth0", Uplink: true}); err == nil {
			t.Error("their link in the host namespace was replaced")
		}
		if err := RemoveOwned(t.Context(), l.Host); err != nil {
			t.Error(err)
		}
		netnstest.IP(t, l.Host, "link show "+HostName("dmz"))
	})
}

func TestExplainCreate(t *testing.T) {
	parent := nic{Index: 2, Name: "eth0"}
	links := []nic{parent, {Index: 3, Name: "ipv0", Kind: "ipvlan", Lower: 2, LowerNS: -1}}
	for _, tt := range []struct {
		in, is error
		says   string
	}{
		{unix.EOPNOTSUPP, ErrNotSupported, "make a macvlan: not supported by this kernel (modprobe macvlan)"},
		{unix.EBUSY, ErrParentBusy, "parent eth0 is taken; ipv0 (ipvlan) stands on it"},
		{unix.EPERM, unix.EPERM, "CAP_NET_ADMIN"},
		{unix.ENOMEM, unix.ENOMEM, "make a macvlan on eth0"},
	} {
		got := explainCreate(tt.in, parent, links)
		if !errors.Is(got, tt.is) || !strings.Contains(got.Error(), tt.says) {
			t.Errorf("%v:\n got: %v\nwant: %s", tt.in, got, tt.says)
		}
	}
}

func TestMachineID(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	none, fresh, good := filepath.Join(dir, "none"), file("fresh", "uninitialized\n"), file("good", "abc\n")
	for _, tt := range []struct {
		files []string
		want  string
	}{
		{[]string{good}, "abc"},
		{[]string{none, good}, "abc"},
		{[]string{fresh, good}, "abc"},
		{[]string{file("empty", ""), none}, ""},
	} {
		if got, err := machineID(tt.files...); err != nil || got != tt.want {
			t.Errorf("machineID(%v) = %q, %v; want %q", tt.files, got, err, tt.want)
		}
	}
	if _, err := machineID(dir); err == nil {
		t.Error("an identity that cannot be read is no error")
	}
}
