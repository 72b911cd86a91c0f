package route

import (
	"context"
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"decoynet/deception"
	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/netns/netnstest"
)

func TestKernelAnswersForDecoysOnly(t *testing.T) {
	t.Parallel()
	l := newDecoyLAN(t)
	start := time.Now()
	apply(t, l.seg, office(t), len(office(t).Local4)+16+4, 0)
	t.Run("IPv6 at once", func(t *testing.T) {
		// With duplicate detection an address says nothing for more than a second.
		answered := false
		for !answered && time.Since(start) < 900*time.Millisecond {
			_, err := netnstest.Try(t, l.Intruder, "ndisc6", "-1", "-r", "1", "-w", "50", "2001:db8::100", "eth0")
			answered = err == nil
		}
		t.Logf("Apply to first advertisement: %v", time.Since(start))
		if !answered {
			t.Error("no neighbour advertisement before duplicate detection could have ended")
		}
	})
	for _, c := range []struct {
		addr  string
		decoy bool
	}{
		{"192.0.2.99", false},
		{"192.0.2.100", true},
		{"192.0.2.101", true},
		{"192.0.2.150", true},
		{"192.0.2.151", false},
		{"192.0.2.246", false},
		{"192.0.2.247", true},
		{"192.0.2.1", false}, // the gateway that we name
		{"2001:db8::ff", false},
		{"2001:db8::100", true},
		{"2001:db8::10f", true},
		{"2001:db8::110", false},
		{"2001:db8::1", false},
	} {
		t.Run(c.addr, func(t *testing.T) {
			t.Parallel()
			resolve := l.arping
			if strings.Contains(c.addr, ":") {
				resolve = l.ndisc6
			}
			if got := resolve(t, c.addr); got != c.decoy {
				t.Errorf("ARP or NDP is answered: %v, want %v", got, c.decoy)
			}
			if got := l.ping(t, c.addr); got != c.decoy {
				t.Errorf("ping is answered: %v, want %v", got, c.decoy)
			}
		})
	}
}

func TestUnboundPortsAreRefused(t *testing.T) {
	t.Parallel()
	l := newDecoyLAN(t)
	apply(t, l.seg, office(t), len(office(t).Local4)+16+4, 0)
	// ICMP errors towards one peer are limited to one a second, as on any host
	// (icmp_ratelimit), hence one datagram a family.
	for _, addr := range []string{"192.0.2.150", "2001:db8::10f"} {
		for _, kind := range []string{"tcp", "udp"} {
			if !l.refused(t, kind, addr) {
				t.Errorf("%s to a port of %s that nobody listens on is not refused", kind, addr)
			}
		}
		out, err := netnstest.Try(t, l.Intruder, "nc", "-v", "-n", "-z", "-w", "2", addr, "81")
		if err == nil || !strings.Contains(out, "refused") {
			t.Errorf("nc to %s: %v, %s", addr, err, out)
		}
	}
}

func TestRepeatedApplyChangesNothing(t *testing.T) {
	t.Parallel()
	l := newDecoyLAN(t)
	d := office(t)
	d.Routes = []Route{
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Dev: "lo", Table: TableZone, Type: Local},
		{Dst: netip.MustParsePrefix("::/0"), Dev: "lo", Table: TableZone, Type: Local},
		{Dst: netip.MustParsePrefix("10.1.0.0/24"), Via: link.NextHopHost4, Onlink: true, Metric: 7},
		{Dst: netip.MustParsePrefix("fd00:1::/64"), Via: link.NextHopHost6, Onlink: true},
	}
	d.Rules = []Rule{
		{Priority: PriorityMin, IIF: "lan0", Mark: 0x0dec0000, Mask: 0xffff0000, Table: TableKernelPath(1)},
		{Priority: PriorityMin + 1, From: netip.MustParsePrefix("10.1.0.0/24"), To: netip.MustParsePrefix("10.2.0.0/24"), Table: TableMain},
		{Priority: PriorityMax, IIF: "not-there-yet", Table: TableZone},
	}
	first := apply(t, l.seg, d, len(d.Local4)+16+4+4+5, 0)
	l.settle(t)
	before := snapshot(t, l.seg)
	seen := events(t, l.seg, func() {
		for range 2 {
			s := apply(t, l.seg, d, 0, 0)
			if diff := cmp.Diff(Status{Routes: first.Routes, Addrs: first.Addrs, Rules: first.Rules}, s); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
		}
	})
	if len(seen) != 0 {
		t.Errorf("ip monitor saw:\n%s", strings.Join(seen, "\n"))
	}
	if diff := cmp.Diff(before, snapshot(t, l.seg)); diff != "" {
		t.Errorf("the namespace differs (-before +after):\n%s", diff)
	}
	// The second witness on what stands.
	for line, want := range map[string]string{
		"rule show pref 14200":               "14200:\tfrom all fwmark 0xdec0000/0xffff0000 iif lan0 lookup 14301 proto 142",
		"-6 rule show pref 14200":            "14200:\tfrom all fwmark 0xdec0000/0xffff0000 iif lan0 lookup 14301 proto 142",
		"rule show pref 14201":               "14201:\tfrom 10.1.0.0/24 to 10.2.0.0/24 lookup main proto 142",
		"rule show pref 14299":               "14299:\tfrom all iif not-there-yet [detached] lookup 14200 proto 142",
		"route show table 14200":             "local default dev lo proto 142 scope host",
		"-6 route show table 14200":          "local default dev lo proto 142 metric 1024 pref medium",
		"route show default":                 "default via 192.0.2.1 dev lan0 proto 142 onlink",
		"-6 route show default":              "default via 2001:db8::1 dev lan0 proto 142 metric 1024 onlink pref medium",
		"route show 10.1.0.0/24":             "10.1.0.0/24 via 169.254.77.1 dev lan0 proto 142 metric 7 onlink",
		"route show 192.0.2.0/24":            "192.0.2.0/24 dev lan0 proto 142 scope link",
		"route show table local 192.0.2.247": "local 192.0.2.247 dev lo proto 142 scope host",
	} {
		if got := strings.TrimSpace(netnstest.IP(t, l.seg, line)); strings.Join(strings.Fields(got), " ") != strings.Join(strings.Fields(want), " ") {
			t.Errorf("ip %s\n got: %s\nwant: %s", line, got, want)
		}
	}
}

func TestChangeTouchesOnlyWhatDiffers(t *testing.T) {
	t.Parallel()
	l := newDecoyLAN(t)
	d := office(t)
	apply(t, l.seg, d, len(d.Local4)+16+4, 0)
	l.settle(t)
	seen := events(t, l.seg, func() {
		d.Local4 = ranges(t, "192.0.2.100-192.0.2.150", "192.0.2.248")
		d.Addrs6 = addrs6("2001:db8::101", 16)
		apply(t, l.seg, d, 2, 2)
	})
	for _, line := range seen {
		touched := false
		for _, may := range []string{"192.0.2.247", "192.0.2.248", "2001:db8::100", "2001:db8::110", "valid_lft"} {
			touched = touched || strings.Contains(line, may)
		}
		if !touched {
			t.Errorf("ip monitor saw a change of something else: %s", line)
		}
	}
	if len(seen) < 4 {
		t.Errorf("ip monitor saw too little:\n%s", strings.Join(seen, "\n"))
	}
	for addr, want := range map[string]bool{"192.0.2.247": false, "192.0.2.248": true, "192.0.2.100": true} {
		if got := l.arping(t, addr); got != want {
			t.Errorf("%s answers ARP: %v, want %v", addr, got, want)
		}
	}
	for addr, want := range map[string]bool{"2001:db8::100": false, "2001:db8::110": true, "2001:db8::101": true} {
		if got := l.ndisc6(t, addr); got != want {
			t.Errorf("%s answers NDP: %v, want %v", addr, got, want)
		}
	}
}

// Replacing a route in its slot (same destination, table and metric).
func TestReplaceInPlace(t *testing.T) {
	t.Parallel()
	l := newDecoyLAN(t)
	v4, v6 := netip.MustParsePrefix("10.9.0.0/24"), netip.MustParsePrefix("fd09::/64")
	variants := []struct {
		name   string
		routes []Route
	}{
		{"gateway", []Route{
			{Dst: v4, Via: netip.MustParseAddr("192.0.2.1"), Onlink: true},
			{Dst: v6, Via: netip.MustParseAddr("2001:db8::1"), Onlink: true},
		}},
		{"other gateway", []Route{
			{Dst: v4, Via: netip.MustParseAddr("192.0.2.2"), Onlink: true},
			{Dst: v6, Via: netip.MustParseAddr("2001:db8::2"), Onlink: true},
		}},
		{"not onlink", []Route{
			{Dst: v4, Via: netip.MustParseAddr("192.0.2.2")},
			{Dst: v6, Via: netip.MustParseAddr("2001:db8::2")},
		}},
		{"no gateway", []Route{{Dst: v4}, {Dst: v6}}},
		{"other interface", []Route{{Dst: v4, Dev: "lo"}, {Dst: v6, Dev: "lo"}}},
	}
	base := Desired{Link: "lan0", Connected: office(t).Connected}
	shown := func() string {
		return netnstest.IP(t, l.seg, "-4 route show 10.9.0.0/24") + netnstest.IP(t, l.seg, "-6 route show fd09::/64")
	}
	want := map[string]string{}
	for _, v := range variants {
		if err := Flush(t.Context(), l.seg); err != nil {
			t.Fatal(err)
		}
		d := base
		d.Routes = v.routes
		apply(t, l.seg, d, 4, 0)
		want[v.name] = shown()
		if strings.Count(want[v.name], "\n") != 2 {
			t.Fatalf("%s: made\n%s", v.name, want[v.name])
		}
	}
	for _, from := range variants {
		for _, to := range variants {
			d := base
			d.Routes = from.routes
			if _, err := Apply(t.Context(), l.seg, d); err != nil {
				t.Fatalf("%s: %v", from.name, err)
			}
			d.Routes = to.routes
			if _, err := Apply(t.Context(), l.seg, d); err != nil {
				t.Errorf("%s -> %s: %v", from.name, to.name, err)
			}
			if diff := cmp.Diff(want[to.name], shown()); diff != "" {
				t.Errorf("%s -> %s (-fresh +replaced):\n%s", from.name, to.name, diff)
			}
		}
	}
}

func TestForeignObjectsAreLeft(t *testing.T) {
	t.Parallel()
	l := newDecoyLAN(t)
	for _, line := range []string{
		"route add 198.51.100.0/24 dev lan0",
		"route add local 192.0.2.200 dev lo table local",
		"route add blackhole 10.0.0.0/8 table 14200",
		"-6 route add fd00::/48 dev lan0",
		"-6 route add unreachable fd01::/48 table 14301 proto 141",
		"rule add pref 14250 from 10.0.0.0/8 lookup 99",
		"-6 rule add pref 14250 fwmark 1 lookup 99",
		"rule add pref 14251 iif lan0 lookup 14200", // ours will be the same but for the origin
		"-6 addr add 2001:db8::77/128 dev lan0 nodad noprefixroute",
		"addr add 192.0.2.77/32 dev lan0",
	} {
		netnstest.IP(t, l.seg, line)
	}
	l.settle(t)
	before := snapshot(t, l.seg)
	d := office(t)
	d.Rules = []Rule{
		{Priority: 14250, IIF: "lan0", Table: TableZone},
		{Priority: 14251, IIF: "lan0", Table: TableZone, Family: IPv4},
	}
	d.Routes = []Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Table: TableZone, Type: Local}}
	n := len(d.Local4) + 16 + 4 + 3 + 1
	apply(t, l.seg, d, n, 0)

	owned, err := Owned(l.seg)
	if err != nil {
		t.Fatal(err)
	}
	if len(owned) != n {
		t.Errorf("Owned lists %d objects, want %d:\n%s", len(owned), n, strings.Join(owned, "\n"))
	}
	for _, want := range []string{
		"IPv4 rule 14250: from all iif lan0 lookup 14200",
		"local 0.0.0.0/0 dev lo table 14200",
		"0.0.0.0/0 via 192.0.2.1 dev lan0 table main onlink",
		"local 192.0.2.247/32 dev lo table local",
		"address 2001:db8::10f/128 dev lan0",
	} {
		if !strings.Contains(strings.Join(owned, "\n")+"\n", want+"\n") {
			t.Errorf("Owned does not list %q:\n%s", want, strings.Join(owned, "\n"))
		}
	}
	if err := Flush(t.Context(), l.seg); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, snapshot(t, l.seg)); diff != "" {
		t.Errorf("what was there before differs (-before +after):\n%s", diff)
	}
	if owned, err := Owned(l.seg); err != nil || len(owned) != 0 {
		t.Errorf("Owned after Flush = %v, %v", owned, err)
	}
}

func TestOneBadObjectDoesNotStopTheOthers(t *testing.T) {
	t.Parallel()
	l := newDecoyLAN(t)
	netnstest.IP(t, l.seg, "route add local 192.0.2.120 dev lo table local")
	netnstest.IP(t, l.seg, "-6 addr add 2001:db8::103/128 dev lan0 nodad")
	d := Desired{
		Link:   "lan0",
		Local4: ranges(t, "192.0.2.119", "192.0.2.120", "192.0.2.121"),
		Addrs6: addrs6("2001:db8::102", 3),
		Routes: []Route{{Dst: netip.MustParsePrefix("10.0.0.0/8"), Dev: "eth7"}},
		Rules: []Rule{
			{Family: IPv6, Table: TableZone},
			{Family: IPv4, Priority: 14211, IIF: "lan0", Table: TableZone},
		},
	}
	s, err := Apply(t.Context(), l.seg, d)
	if !errors.Is(err, ErrForeign) {
		t.Errorf("error is %v", err)
	}
	var failed []string
	for _, f := range s.Failed {
		failed = append(failed, f.Object)
	}
	want := []string{
		"10.0.0.0/8 dev eth7 table main",
		"IPv6 rule 0: from all lookup 14200",
		"address 2001:db8::103/128 dev lan0",
		"local 192.0.2.120/32 dev lo table local",
	}
	if diff := cmp.Diff(want, failed); diff != "" {
		t.Errorf("failed objects (-want +got):\n%s", diff)
	}
	if err != nil && !strings.Contains(err.Error(), "interface eth7 does not exist") {
		t.Errorf("error does not name the missing interface: %v", err)
	}
	if s.Added != 5 || s.Routes != 2 || s.Addrs != 2 || s.Rules != 1 {
		t.Errorf("status is %+v", s)
	}
	for _, addr := range []string{"192.0.2.119", "192.0.2.121"} {
		if !l.arping(t, addr) {
			t.Errorf("%s does not answer", addr)
		}
	}
}

// With the link down every route through it fails, in one short error.
func TestManyFailuresMakeOneShortError(t *testing.T) {
	t.Parallel()
	l := newDecoyLAN(t)
	netnstest.IP(t, l.seg, "link set lan0 down")
	d := Desired{Link: "lan0"}
	for i := range 600 {
		d.Routes = append(d.Routes, Route{Dst: netip.PrefixFrom(deception.Nth(netip.MustParseAddr("10.0.0.0"), uint64(2*i)), 32)})
	}
	s, err := Apply(t.Context(), l.seg, d)
	if len(s.Failed) != 600 || s.Added != 0 {
		t.Errorf("%d failed, %d added", len(s.Failed), s.Added)
	}
	if err == nil || !strings.Contains(err.Error(), "and 592 more") || len(err.Error()) > 1000 {
		t.Errorf("error is %v", err)
	}
}

// What the kernel forgets when a link goes down, the next Apply puts back.
func TestApplyMendsWhatALinkFlapTook(t *testing.T) {
	t.Parallel()
	l := newDecoyLAN(t)
	d := office(t)
	apply(t, l.seg, d, len(d.Local4)+16+4, 0)
	l.settle(t)
	before := snapshot(t, l.seg)
	netnstest.IP(t, l.seg, "link set lan0 down")
	netnstest.IP(t, l.seg, "link set lan0 up")
	if _, err := Apply(t.Context(), l.seg, d); err != nil {
		t.Fatal(err)
	}
	if !l.arping(t, "192.0.2.100") || !l.ndisc6(t, "2001:db8::100") {
		t.Error("decoys do not answer after the link came back")
	}
	l.settle(t)
	if diff := cmp.Diff(sortedLines(before), sortedLines(snapshot(t, l.seg))); diff != "" {
		t.Errorf("the namespace differs (-before +after):\n%s", diff)
	}
}

func TestLoadsThousandsOfIPv6Addresses(t *testing.T) {
	l := newDecoyLAN(t)
	d := Desired{Link: "lan0", Addrs6: addrs6("2001:db8::1:0", 4096), Connected: office(t).Connected}
	start := time.Now()
	apply(t, l.seg, d, 4096+2, 0)
	took := time.Since(start)
	t.Logf("load: %v", took)
	if took > 5*time.Second {
		t.Errorf("loading took %v", took)
	}
	for _, addr := range []string{"2001:db8::1:0", "2001:db8::1:fff"} {
		if !l.ndisc6(t, addr) {
			t.Errorf("%s does not answer NDP", addr)
		}
		if !l.ping(t, addr) {
			t.Errorf("%s does not answer ping", addr)
		}
	}
	out := netnstest.IP(t, l.seg, "-6 addr show dev lan0 scope global")
	if n := strings.Count(out, "/128 scope global nodad noprefixroute proto 142"); n != 4096 &&
		strings.Count(out, "/128 scope global nodad noprefixroute") != 4096 {
		t.Errorf("ip shows %d of them", n)
	}
	start = time.Now()
	apply(t, l.seg, d, 0, 0)
	t.Logf("nothing to do: %v", time.Since(start))
	start = time.Now()
	apply(t, l.seg, Desired{}, 0, 4096+2)
	t.Logf("unload: %v", time.Since(start))
}

func TestApplyStopsWhenCancelled(t *testing.T) {
	ns := netnstest.New(t, "cancel")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Apply(ctx, ns, Desired{Local4: scattered(10)}); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	if out, _ := exec.Command("ip", "netns", "exec", ns.Name(), "ip", "route", "show", "table", "all", "proto", "142").Output(); len(out) != 0 {
		t.Errorf("routes were made:\n%s", out)
	}
}
