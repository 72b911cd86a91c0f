package steer

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"decoynet/deception"
)

func openFull(t *testing.T, l *lan, lim limits) *Steering {
	t.Helper()
	s, err := open(l.decoys, Config{Mode: deception.SteeringIPTables}, lim)
	if err != nil {
		t.Fatal(err)
	}
	v := serve(t, s)
	t.Cleanup(func() { v.halt(); s.Close() })
	return s
}

// entries asks ipset how many entries a set has.
func (n *namespace) entries(t testing.TB, set string) (count int) {
	t.Helper()
	list := n.in(t, "ipset", "list", "-t", set)
	_, number, _ := strings.Cut(list, "Number of entries: ")
	if _, err := fmt.Sscan(number, &count); err != nil {
		t.Fatalf("read the number of entries: %v, in\n%s", err, list)
	}
	return count
}

// Prefixes times ports may be too much where each alone is not: the group is
// named and closed, the others are applied.
func TestIPTablesProductTooLarge(t *testing.T) {
	l := newLAN(t)
	s := openFull(t, l, limits{prefixes: 100, slots: 100, members: 12})
	st, err := s.Apply(context.Background(), []Group{
		group(1, "198.18.0.0/16 80"), group(2, "198.18.1.1 198.18.1.3 1-5"), group(3, "198.18.2.0/24 22"),
	})
	// The first one is cut into 8 + 10 prefixes around the others.
	if !errors.Is(err, ErrFull) || fmt.Sprint(st.Failed) != "[1]" || !strings.Contains(err.Error(), "steer group 1: ") {
		t.Errorf("status %+v, error %v", st, err)
	}
	refused(t, l.intruder, "tcp", "198.18.0.1:80")
	connect(t, l.intruder, "198.18.1.1:5")
	connect(t, l.intruder, "198.18.2.9:22")
	apply(t, s, group(1, "198.18.0.0/16 80"), group(3, "198.18.2.0/24 22"))
	connect(t, l.intruder, "198.18.0.1:80")
	connect(t, l.intruder, "198.18.2.9:22")
	refused(t, l.intruder, "tcp", "198.18.2.9:80")
}

// Where the kernel itself runs out, the group at fault is named and closed, the
// others are applied, and the next Apply goes on from there.
func TestIPTablesSetFull(t *testing.T) {
	l := newLAN(t)
	s := openFull(t, l, limits{prefixes: 100, slots: 100, members: 5}) // a set of 10 and the placeholders' room
	s.backend.(*ipTables).limit = 1000
	web := group(1, "198.18.0.1 80")
	apply(t, s, web)
	st, err := s.Apply(context.Background(), []Group{web, group(2, "198.18.0.2 1-200"), group(3, "198.18.0.3 22")})
	if !errors.Is(err, ErrFull) || len(st.Failed) == 0 || st.Failed[0] != 2 {
		t.Errorf("status %+v, error %v", st, err)
	}
	connect(t, l.intruder, "198.18.0.1:80")
	refused(t, l.intruder, "tcp", "198.18.0.2:1")
	if st.Writes == 0 || l.decoys.entries(t, "decoynet-steer4") > 3 {
		t.Errorf("what did not fit is still there: %s", l.decoys.in(t, "ipset", "list", "decoynet-steer4"))
	}
	apply(t, s, group(2, "198.18.0.2 1-5"), group(3, "198.18.0.3 22"))
	connect(t, l.intruder, "198.18.0.2:5")
	connect(t, l.intruder, "198.18.0.3:22")
	refused(t, l.intruder, "tcp", "198.18.0.1:80")
}

// A change that broke off half written is made good by the next one.
func TestIPTablesGoesOnAfterBreak(t *testing.T) {
	l := newLAN(t)
	s := openFull(t, l, defaultLimits)
	old, broken := group(1, "198.18.0.0/24 80"), group(1, "198.18.0.0/24 198.18.7.0/24 443 1000-3000")
	apply(t, s, old)
	// As after a lost connection: what the sets hold of it is not known.
	x := s.backend.(*ipTables)
	half, _ := compile([]Group{broken}, defaultLimits)
	x.held = append(x.held, multiply(newState().after(plan(newState(), half))))
	l.decoys.in(t, "ipset", "add", "decoynet-steer4", "198.18.7.0/24,tcp:1000-2000")
	l.decoys.in(t, "ipset", "del", "decoynet-steer4", "198.18.0.0/24,tcp:80")
	apply(t, s, group(1, "198.18.0.0/24 80 81"))
	connect(t, l.intruder, "198.18.0.9:80")
	connect(t, l.intruder, "198.18.0.9:81")
	refused(t, l.intruder, "tcp", "198.18.7.9:1000")
	if again := apply(t, s, group(1, "198.18.0.0/24 80 81")); again.Writes != 0 || len(x.held) != 1 {
		t.Errorf("not settled: %d writes, %d states", again.Writes, len(x.held))
	}
	if n := l.decoys.entries(t, "decoynet-steer4"); n != 3 { // a placeholder among them
		t.Errorf("%d entries: %s", n, l.decoys.in(t, "ipset", "list", "decoynet-steer4"))
	}
}

// A default route of decoys is two halves: no set takes a prefix of length zero.
func TestIPTablesWholeFamily(t *testing.T) {
	l := newLAN(t)
	s := openFull(t, l, defaultLimits)
	all := Group{ID: 1, Ports: group(0, "80").Ports, Prefixes: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}}
	apply(t, s, all, group(2, "192.0.2.100 81"))
	for _, to := range []string{"192.0.2.101:80", "198.18.0.1:80", "[2001:db8::d:1]:80", "192.0.2.100:81"} {
		connect(t, l.intruder, to)
	}
	refused(t, l.intruder, "tcp", "192.0.2.100:80")
}

// Without the program the error says what to install.
func TestIPTablesMissing(t *testing.T) {
	if _, err := lookProgram("decoynet-no-such-program"); !errors.Is(explainIPTables(err), ErrNotSupported) ||
		!strings.Contains(explainIPTables(err).Error(), "package iptables") {
		t.Errorf("missing program: %v", explainIPTables(err))
	}
	// One that fails as iptables does on a kernel without the table.
	dir := t.TempDir()
	for _, name := range []string{"iptables", "ip6tables", "iptables-legacy", "iptables-nft"} {
		script := "#!/bin/sh\n[ \"$1\" = --version ] && { echo 'iptables v1.8.9 (legacy)'; exit; }\necho \"can't initialize iptables table \\`mangle': Table does not exist (do you need to insmod?)\" >&2\nexit 3\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	l := newNamespace(t)
	path := os.Getenv("PATH")
	os.Setenv("PATH", dir)
	_, err := Open(l, Config{Mode: deception.SteeringIPTables})
	os.Setenv("PATH", path)
	var typed *NotSupportedError
	if !errors.As(err, &typed) || !strings.Contains(typed.Needs, "CONFIG_NETFILTER_XT_TARGET_TPROXY") || typed.Mode != deception.SteeringIPTables {
		t.Errorf("a kernel without the table: %v", err)
	}
}
