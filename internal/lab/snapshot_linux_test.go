package lab_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"decoynet/internal/lab"
	"decoynet/internal/lab/labtest"

	"github.com/google/go-cmp/cmp"
)

// changes are what a program might leave in a machine, each with its reversal.
var changes = []struct{ do, undo string }{
	{"ip netns add decoynet-office", "ip netns del decoynet-office"},
	{"ip link add seg0 link eth0 type macvlan", "ip link del seg0"},
	{"ip link set eth0 promisc on", "ip link set eth0 promisc off"},
	{"ip rule add pref 14200 iif br-x lookup 14200", "ip rule del pref 14200"},
	{"ip -6 rule add pref 14200 iif br-x lookup 14200", "ip -6 rule del pref 14200"},
	{"ip route add local default dev lo table 14200 proto 142", "ip route flush table 14200"},
	{"ip address add 192.0.2.7/32 dev lo", "ip address del 192.0.2.7/32 dev lo"},
	{"ip neighbour add proxy 192.0.2.9 dev eth0", "ip neighbour del proxy 192.0.2.9 dev eth0"},
	{"nft add table inet decoynet", "nft delete table inet decoynet"},
	{"iptables -t mangle -A PREROUTING -j ACCEPT", "nft delete table ip mangle"},
	{"ipset create s hash:ip", "ipset destroy s"},
	{"sysctl -qw net.ipv4.conf.eth0.rp_filter=2", "sysctl -qw net.ipv4.conf.eth0.rp_filter=0"},
	{"sysctl -qw net.ipv4.ip_local_port_range='1025 60999'", "sysctl -qw net.ipv4.ip_local_port_range='32768 60999'"},
	{"mkdir /sys/fs/bpf/decoynet", "rmdir /sys/fs/bpf/decoynet"},
	{"mkdir -p /run/decoynet/x", "rm -r /run/decoynet"},
}

func TestSnapshot(t *testing.T) {
	ctx := within(t, 60*time.Second)
	l := labtest.New(t)
	lan := l.Switch("lan")
	a, b := l.Machine("a"), l.Machine("b")
	a.Plug(lan, "eth0", "192.0.2.1/24", "2001:db8:2::1/64")
	b.Plug(lan, "eth0", "192.0.2.2/24", "2001:db8:2::2/64")
	a.Bridge("br-x", "10.1.0.1/24")
	a.Route("default", "192.0.2.2")
	labtest.Built(t, l)
	// State with counters and timers of its own.
	run(t, ctx, a, "nft", "-f", must(rules(t)))
	run(t, ctx, a, "iptables", "-A", "INPUT", "-p", "icmp", "-j", "ACCEPT")

	snapshot := func() string {
		t.Helper()
		text, err := a.Snapshot(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	before := snapshot()
	for _, want := range []string{
		"eth0@", "192.0.2.1/24", "2001:db8:2::1/64", "default via 192.0.2.2", "local 10.1.0.1 dev br-x", "0:	from all lookup local",
		"counter packets _ bytes _", "-A INPUT -p icmp -j ACCEPT", "net/ipv4/ip_forward = 0", "net/ipv4/conf/eth0/rp_filter = 0",
	} {
		if !strings.Contains(before, want) {
			t.Errorf("no %q in the snapshot:\n%s", want, before)
		}
	}
	// Traffic and time change nothing that is shown.
	run(t, ctx, b, "ping", "-c3", "-i0.1", "-W1", "192.0.2.1")
	run(t, ctx, b, "ping", "-c1", "-W1", "2001:db8:2::1")
	run(t, ctx, a, "ping", "-c1", "-W1", "192.0.2.2")
	time.Sleep(1100 * time.Millisecond)
	if diff := cmp.Diff(before, snapshot()); diff != "" {
		t.Errorf("changed by itself:\n%s", diff)
	}
	// Anything that a program leaves does, and its removal brings it back.
	for _, c := range changes {
		run(t, ctx, a, "sh", "-c", c.do)
		if snapshot() == before {
			t.Errorf("does not show %q", c.do)
		}
		run(t, ctx, a, "sh", "-c", c.undo)
		// A namespace and its links go in a work queue.
		err := lab.Eventually(ctx, 3*time.Second, func() error {
			if diff := cmp.Diff(before, snapshot()); diff != "" {
				return errDiff(diff)
			}
			return nil
		})
		if err != nil {
			t.Errorf("after %q: %v", c.undo, err)
			before = snapshot() // for what follows
		}
	}
	listener, err := a.Listen(ctx, "tcp", "192.0.2.1:80")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(snapshot(), "192.0.2.1:80") {
		t.Error("does not show a listener")
	}
	if err := listener.Close(); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(before, snapshot()); diff != "" {
		t.Errorf("after the listener:\n%s", diff)
	}
}

type errDiff string

func (e errDiff) Error() string { return string(e) }

func rules(t *testing.T) (string, error) {
	path := t.TempDir() + "/rules"
	return path, os.WriteFile(path, []byte(`table inet others {
	set s { type ipv4_addr; flags timeout; elements = { 192.0.2.99 timeout 1h } }
	chain input { type filter hook input priority 0; counter; }
}`), 0o644)
}
