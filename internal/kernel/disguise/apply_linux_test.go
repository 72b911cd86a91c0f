package disguise

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"decoynet/deception"
	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/netns/netnstest"
)

// The whole of it as an intruder sees it.
func TestEachDecoyHasItsMAC(t *testing.T) {
	t.Parallel()
	l := newDecoyLAN(t)
	l.echo(t)
	if got := l.neighbour(t, "192.0.2.100"); got != l.want.MAC.String() {
		t.Fatalf("before, 192.0.2.100 is at %s, want lan0's %s", got, l.want.MAC)
	}
	p := everything()
	if st := l.apply(t, p); !st.MACs || !st.Promiscuous || st.Prefixes != 3 || len(st.Changes) == 0 {
		t.Errorf("status %+v", st)
	}
	netnstest.IP(t, l.Intruder, "neigh flush dev eth0")
	seen := l.capture(t)
	addrs := []string{"192.0.2.100", "192.0.2.101", "198.18.0.1", "198.18.77.200", "2001:db8::100", "2001:db8::107"}
	for _, addr := range addrs {
		if got := l.neighbour(t, addr); got != mac(p, addr) {
			t.Errorf("%s is at %s, want %s", addr, got, mac(p, addr))
		}
		l.talk(t, "tcp", addr, 1_000_000)
	}
	l.talk(t, "udp", "192.0.2.100", 1000)
	if n := seen.fromDecoys(t, p); n < 10*len(addrs) {
		t.Errorf("only %d frames came from decoys", n)
	}
}

// A repeat changes nothing, a new process finds what stands, and without
// policies nothing is left of us.
func TestApplyIsIdempotent(t *testing.T) {
	t.Parallel()
	l := newDecoyLAN(t)
	show := func() string {
		return fmt.Sprint(
			netnstest.Run(t, l.Host, "tc", "qdisc", "show", "dev", "eth0"),
			netnstest.Run(t, l.Host, "tc", "filter", "show", "dev", "eth0", "ingress"),
			netnstest.Run(t, l.seg, "tc", "qdisc", "show", "dev", "lan0"),
			netnstest.Run(t, l.seg, "tc", "filter", "show", "dev", "lan0", "egress"))
	}
	before := show()
	l.apply(t, everything())
	stands := show()
	if before == stands {
		t.Fatal("tc shows no difference")
	}
	if st := l.apply(t, everything()); len(st.Changes) != 0 {
		t.Errorf("a repeat changed: %v", st.Changes)
	}
	next := Disguise{}
	st, err := next.Apply(t.Context(), l.want)
	if err != nil || len(st.Changes) != 1 { // it listens for itself
		t.Errorf("another process changed: %v, %v", st.Changes, err)
	}
	if diff := cmp.Diff(stands, show()); diff != "" {
		t.Errorf("filters differ (-before +after):\n%s", diff)
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
	l.apply(t)
	if diff := cmp.Diff(before, show()); diff != "" {
		t.Errorf("something is left (-before +after):\n%s", diff)
	}
}

// What others have on the machine's NIC stays, and so does the qdisc that they
// use.
func TestLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	const filter = "filter add dev eth0 ingress protocol ip pref 50 u32 match ip src 203.0.113.9/32 flowid 1:1"
	show := func(l *decoyLAN) string {
		return netnstest.Run(t, l.Host, "tc", "qdisc", "show", "dev", "eth0") +
			netnstest.Run(t, l.Host, "tc", "filter", "show", "dev", "eth0", "ingress")
	}
	tc := func(l *decoyLAN, line string) {
		netnstest.Run(t, l.Host, append([]string{"tc"}, strings.Fields(line)...)...)
	}
	for _, c := range []struct {
		name          string
		before, after []string // that others do before and after us
	}{
		{"their clsact", []string{"qdisc add dev eth0 clsact", filter}, nil},
		{"their ingress", []string{"qdisc add dev eth0 ingress", filter}, nil},
		{"their clsact, empty", []string{"qdisc add dev eth0 clsact"}, nil},
		{"our clsact", nil, []string{filter}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newDecoyLAN(t)
			for _, line := range c.before {
				tc(l, line)
			}
			want := show(l)
			l.apply(t, everything())
			for _, line := range c.after {
				tc(l, line)
			}
			if got := l.neighbour(t, "192.0.2.100"); got != mac(everything(), "192.0.2.100") {
				t.Errorf("192.0.2.100 is at %s", got)
			}
			l.apply(t)
			got := show(l)
			if c.after != nil {
				if !strings.Contains(got, "clsact") || !strings.Contains(got, "match cb007109") || strings.Contains(got, Name) {
					t.Errorf("with another's filter in our qdisc, what is left is\n%s", got)
				}
			} else if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("the NIC differs (-before +after):\n%s", diff)
			}
		})
	}
}

// The NIC receives all frames only while somebody needs it.
func TestPromiscuous(t *testing.T) {
	t.Parallel()
	l := newDecoyLAN(t)
	count := func() int {
		words := strings.Fields(netnstest.IP(t, l.Host, "-d link show dev eth0"))
		n, err := strconv.Atoi(words[slices.Index(words, "promiscuity")+1])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := count() // a veth already is for the macvlan's own address
	promiscuity := func() int { return count() - before }
	for _, c := range []struct {
		want     int
		policies []Policy
	}{
		{1, []Policy{everything()}},
		{1, []Policy{everything()}},
		{0, []Policy{{Prefixes: prefixes("192.0.2.0/24"), Personality: "linux"}}},
		{1, []Policy{everything()}},
		{0, nil},
	} {
		st := l.apply(t, c.policies...)
		if got := promiscuity(); got != c.want || st.Promiscuous != (got == 1) {
			t.Errorf("with %d policies promiscuity is %d more, want %d; status says %v", len(c.policies), got, c.want, st.Promiscuous)
		}
	}
	l.apply(t, everything())
	if err := l.looks.Close(); err != nil || promiscuity() != 0 {
		t.Errorf("closed, promiscuity is %d more, %v", promiscuity(), err)
	}
}

// Segments share a NIC, and each keeps its own looks when another one goes.
func TestTwoSegmentsOnOneNIC(t *testing.T) {
	t.Parallel()
	l := newDecoyLAN(t)
	q := l.another(t, "plant", "192.0.2.160/28")
	p, r := everything(), Policy{Prefixes: prefixes("192.0.2.160/28"), OUI: deception.MACPrefix{0x00, 0x1b, 0x1b}, Seed: 2}
	q.apply(t, r)
	l.apply(t, p)
	both := func() {
		t.Helper()
		netnstest.IP(t, l.Intruder, "neigh flush dev eth0")
		if got := l.neighbour(t, "192.0.2.100"); got != mac(p, "192.0.2.100") {
			t.Errorf("192.0.2.100 is at %s", got)
		}
		if got := l.neighbour(t, "192.0.2.161"); got != mac(r, "192.0.2.161") {
			t.Errorf("192.0.2.161 is at %s", got)
		}
	}
	both()
	// The one that made the qdisc goes.
	if err := q.looks.Remove("plant"); err != nil {
		t.Fatal(err)
	}
	if out := netnstest.Run(t, l.Host, "tc", "filter", "show", "dev", "eth0", "ingress"); strings.Contains(out, "plant") || !strings.Contains(out, "office") {
		t.Errorf("filters of the NIC are\n%s", out)
	}
	q.apply(t, r)
	both()
	names, err := RemoveOwned(l.Host)
	if err != nil || fmt.Sprint(names) != "[eth0]" {
		t.Errorf("RemoveOwned: %v, %v", names, err)
	}
	if out := netnstest.Run(t, l.Host, "tc", "qdisc", "show", "dev", "eth0"); strings.Contains(out, "clsact") {
		t.Errorf("after all, the NIC has\n%s", out)
	}
	if err := q.looks.Close(); err != nil {
		t.Error(err)
	}
}

// Connections work whatever options the peer has.
func TestPersonalitiesKeepConnectionsRight(t *testing.T) {
	t.Parallel()
	for _, personality := range []deception.Personality{deception.PersonalityLinux, deception.PersonalityWindows} {
		for _, off := range []string{"", "tcp_timestamps", "tcp_window_scaling", "tcp_sack", "tcp_timestamps tcp_window_scaling tcp_sack"} {
			t.Run(fmt.Sprint(personality, " without ", off), func(t *testing.T) {
				t.Parallel()
				l := newDecoyLAN(t)
				p := everything()
				p.Personality = personality
				l.apply(t, p)
				l.echo(t)
				for _, key := range strings.Fields(off) {
					netnstest.Run(t, l.Intruder, "sysctl", "-qw", "net.ipv4."+key+"=0")
				}
				netnstest.Run(t, l.Intruder, "sysctl", "-qw", "net.ipv4.tcp_ecn=1")
				l.talk(t, "tcp", "192.0.2.100", 20_000_000)
				l.talk(t, "tcp", "2001:db8::100", 20_000_000)
				l.talk(t, "udp", "192.0.2.100", 1000)
				for _, addr := range []string{"192.0.2.100", "2001:db8::100"} {
					// In fragments too, whose numbers must stay.
					if out, err := netnstest.Try(t, l.Intruder, "ping", "-n", "-c", "1", "-W", "2", "-s", "4000", addr); err != nil {
						t.Errorf("large ping: %s", out)
					}
				}
				out := netnstest.Run(t, l.Intruder, "ping", "-n", "-c", "1", "-W", "2", "192.0.2.100")
				want := map[deception.Personality]string{deception.PersonalityLinux: "ttl=64", deception.PersonalityWindows: "ttl=128"}[personality]
				if !strings.Contains(out, want) {
					t.Errorf("ping lacks %s:\n%s", want, out)
				}
			})
		}
	}
}

// A namespace that was opened again is the same, and a parent that changes leaves
// nothing on the old one.
func TestParentChanges(t *testing.T) {
	t.Parallel()
	l := newDecoyLAN(t)
	l.apply(t, everything())
	again, err := netns.Open(l.Host.Name())
	if err != nil {
		t.Fatal(err)
	}
	l.want.LowerNS = again
	if st := l.apply(t, everything()); len(st.Changes) != 0 {
		t.Errorf("a namespace opened again changes %v", st.Changes)
	}
	l.want.LowerNS = l.Host
	l.apply(t, everything())
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}

	netnstest.IP(t, l.Host, "link add eth1 type veth peer name eth1p")
	netnstest.IP(t, l.Host, "link set eth1 up")
	netnstest.IP(t, l.Host, "link set eth1p up")
	st, err := link.Apply(t.Context(), l.Host, l.seg, link.Desired{Segment: "office", Parent: "eth1"})
	if err != nil {
		t.Fatal(err)
	}
	l.want.Link, l.want.MAC, l.want.Lower = st.Index, st.MAC, st.ParentIndex
	l.apply(t, everything())
	if out := netnstest.Run(t, l.Host, "tc", "qdisc", "show", "dev", "eth0"); strings.Contains(out, "clsact") {
		t.Errorf("on the old parent is left\n%s", out)
	}
	if out := netnstest.Run(t, l.Host, "tc", "filter", "show", "dev", "eth1", "ingress"); !strings.Contains(out, "decoynet office") {
		t.Errorf("on the new parent is\n%s", out)
	}

	// A macvlan is given no frames but its own.
	netnstest.IP(t, l.Host, "link add mv0 link eth0 type macvlan mode bridge")
	netnstest.IP(t, l.Host, "link set mv0 up")
	if st, err = link.Apply(t.Context(), l.Host, l.seg, link.Desired{Segment: "office", Parent: "mv0"}); err != nil {
		t.Fatal(err)
	}
	l.want.Link, l.want.MAC, l.want.Lower = st.Index, st.MAC, st.ParentIndex
	if _, err := l.looks.Apply(t.Context(), l.want); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "mv0 is a macvlan") {
		t.Errorf("on a macvlan: %v", err)
	}

	// A parent that is gone took all of ours with it.
	netnstest.IP(t, l.Host, "link del eth1")
	l.want.Policies = nil
	if _, err := l.looks.Apply(t.Context(), l.want); err != nil {
		t.Errorf("after the parent went: %v", err)
	}
	l.want.Lower = 4711
	if _, err := l.looks.Apply(t.Context(), l.want); err == nil {
		t.Error("a parent that is not there is no error")
	}
}
