package disguise

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

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
