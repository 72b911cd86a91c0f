package firewall

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/kernel/conntrack"
)

// pathLab is an intruder on a segment's LAN, the segment's namespace, and the
// zone behind the gateway host:
//
//	intruder -- lan0 seg up0 -- dnv-1 gw br-linux -- svc
type pathLab struct {
	*zoneLab
	intruder, seg *testNS
}

const (
	decoy4 = "192.168.32.100"
	decoy6 = "fd32::100"
	user4  = "192.168.32.9"
	user6  = "fd32::9"
)

func newPathLab(t testing.TB) *pathLab {
	t.Helper()
	l := &pathLab{zoneLab: newZoneLab(t), intruder: newNS(t, "int"), seg: newNS(t, "seg")}
	connect(t, l.intruder, "eth0", l.seg, "lan0")
	connect(t, l.gw, "dnv-1", l.seg, "up0")
	l.intruder.exec(`ip addr add 192.168.32.9/24 dev eth0; ip addr add fd32::9/64 dev eth0 nodad
		ip -6 route add fd32::100 via fd32::1; ip -6 route add fd32::101 via fd32::1
		ip -6 route add default via fd32::1; ip route add default via 192.168.32.1`)
	l.seg.exec(`sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
		ip addr add 192.168.32.1/24 dev lan0; ip addr add fd32::1/64 dev lan0 nodad
		ip route add local 192.168.32.100/31 dev lo; ip -6 route add local fd32::100/127 dev lo
		ip addr add 100.64.0.2/30 dev up0; ip addr add fd64::2/64 dev up0 nodad
		ip route add default via 100.64.0.1; ip -6 route add default via fd64::1`)
	// The check of a source asks for the way back as if from the zone's link,
	// where every address is local.
	l.gw.exec(`sysctl -qw net.ipv4.conf.dnv-1.src_valid_mark=1
		ip addr add 100.64.0.1/30 dev dnv-1; ip addr add fd64::1/64 dev dnv-1 nodad
		ip rule add iif br-linux fwmark 0x0dec0001 lookup 14301 pref 14210; ip route add default via 100.64.0.2 dev dnv-1 table 14301
		ip -6 rule add iif br-linux fwmark 0x0dec0001 lookup 14301 pref 14210; ip -6 route add default via fd64::2 dev dnv-1 table 14301
		ip route add 10.9.0.0/16 via 10.1.0.2; ip -6 route add fd09::/64 via fd01::2`)
	l.svc.exec(`ip route add local 10.9.0.0/16 dev lo; ip -6 route add local fd09::/64 dev lo
		sysctl -qw net.ipv6.ip_nonlocal_bind=1`)
	l.intruder.knows("eth0", l.seg, "lan0", "192.168.32.1", decoy4, "fd32::1")
	l.seg.knows("lan0", l.intruder, "eth0", user4, user6)
	l.seg.knows("up0", l.gw, "dnv-1", "100.64.0.1", "fd64::1")
	l.gw.knows("dnv-1", l.seg, "up0", "100.64.0.2", "fd64::2")
	return l
}

func redirectTo(t deception.Transport, decoy, service string) Redirect {
	return Redirect{Transport: t, Decoy: netip.MustParseAddrPort(decoy), Service: netip.MustParseAddrPort(service)}
}

func (l *pathLab) path(reply Reply) KernelPath {
	k := KernelPath{Index: 1, HostLink: "dnv-1", Reply: reply, Idle: time.Minute}
	v4, v6 := "10.1.0.2", "fd01::2"
	if reply == ReplyByAlias {
		k.Aliases = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16"), netip.MustParsePrefix("fd09::/64")}
		v4, v6 = "10.9.0.1", "fd09::1"
	}
	k.Redirects = []Redirect{
		redirectTo(deception.TCP, decoy4+":2080", v4+":80"),
		redirectTo(deception.TCP, "["+decoy6+"]:2080", "["+v6+"]:80"),
		redirectTo(deception.UDP, decoy4+":2161", v4+":161"),
		redirectTo(deception.UDP, "["+decoy6+"]:2161", "["+v6+"]:161"),
		redirectTo(deception.TCP, decoy4+":2009", v4+":9"), // refused by the service
		redirectTo(deception.UDP, decoy4+":2009", v4+":9"),
	}
	return k
}

func (l *pathLab) apply(t testing.TB, k KernelPath) Status {
	t.Helper()
	s, err := ApplyKernelPath(context.Background(), l.gw, l.seg, k)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (l *pathLab) serve(t *testing.T) {
	t.Helper()
	l.svc.listenTCP(":80", false, tellPeer)
	// UDP answers from the address that was asked only when bound to it.
	for _, a := range []string{"10.1.0.2:161", "10.9.0.1:161", "[fd01::2]:161", "[fd09::1]:161"} {
		l.svc.listenUDP(a, false)
	}
}

func testReplies(t *testing.T, f func(t *testing.T, reply Reply)) {
	t.Run("mark", func(t *testing.T) { f(t, ReplyByMark) })
	t.Run("alias", func(t *testing.T) { f(t, ReplyByAlias) })
}

func TestKernelPathEndToEnd(t *testing.T) {
	testReplies(t, func(t *testing.T, reply Reply) {
		l := newPathLab(t)
		l.serve(t)
		mustApplyZones(t, l.gw, linuxZone)
		l.apply(t, l.path(reply))
		for _, tc := range []struct{ network, local, decoy string }{
			{"tcp", user4 + ":5001", decoy4 + ":2080"},
			{"tcp", "[" + user6 + "]:5001", "[" + decoy6 + "]:2080"},
			{"udp", user4 + ":5001", decoy4 + ":2161"},
			{"udp", "[" + user6 + "]:5001", "[" + decoy6 + "]:2161"},
		} {
			c, err := l.intruder.dial(tc.network, tc.local, tc.decoy, false, 0)
			if err != nil {
				t.Errorf("%s %s: %v\n%s", tc.network, tc.decoy, err, l.gw.exec("nft list table inet decoynet"))
				continue
			}
			peer, err := ask(c, "3000")
			if peer, _, _ = strings.Cut(peer, "\n"); err != nil || peer != tc.local {
				t.Errorf("%s %s: the service saw %q (%v), want %s", tc.network, tc.decoy, peer, err, tc.local)
			}
		}
		// What is not bound is refused as by a plain host, and what the
		// service refuses too.
		for _, addr := range []string{decoy4 + ":81", decoy4 + ":2009", "[" + decoy6 + "]:81"} {
			for _, network := range []string{"tcp", "udp"} {
				c, err := l.intruder.dial(network, "", addr, false, 0)
				if err == nil {
					_, err = ask(c, "hello")
				}
				if !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("%s %s: %v, want ECONNREFUSED", network, addr, err)
				}
			}
		}
		if n := l.denied(t); n != 0 {
			t.Errorf("%d packets of the kernel path were denied", n)
		}
		host := l.gw.exec("nft list table inet decoynet")
		if tracked := strings.Contains(host, "ct "); tracked != (reply == ReplyByMark) {
			t.Errorf("connection tracking in the host's namespace: %v\n%s", tracked, host)
		}
	})
}

// Only redirected flows get through the segment's namespace, and only to services.
func TestKernelPathLetsNothingElseThrough(t *testing.T) {
	testReplies(t, func(t *testing.T, reply Reply) {
		l := newPathLab(t)
		l.svc.listenTCP(":80", false, tellPeer)
		l.gw.listenTCP(":22", false, tellPeer)
		k := l.path(reply)
		// A redirect to the host itself cannot be declared away from the zone's
		// services: the host's side does not know it.
		rogue := redirectTo(deception.TCP, decoy4+":2222", "10.1.0.1:22")
		reach := func(what string, from *testNS, addr string, want bool) {
			t.Helper()
			_, err := from.dial("tcp", "", addr, false, 0)
			if (err == nil) != want {
				t.Errorf("%s (%s): %v", what, addr, err)
			}
		}
		// The host can route to the intruder's network, the worst case.
		l.gw.exec("ip route add 192.168.32.0/24 via 100.64.0.2")
		reach("without rules, a service past the decoys", l.intruder, "10.1.0.1:22", true)
		mustApplyZones(t, l.gw, linuxZone)
		l.apply(t, k)
		reach("a decoy", l.intruder, decoy4+":2080", true)
		reach("a service past the decoys", l.intruder, "10.1.0.2:80", false)
		reach("the host past the decoys", l.intruder, "10.1.0.1:22", false)
		reach("the host's end of the veth", l.intruder, "100.64.0.1:22", false)
		// The segment's namespace tries by itself.
		before, err := DeniedSegments(context.Background(), l.gw)
		if err != nil {
			t.Fatal(err)
		}
		reach("the host from the segment", l.seg, "100.64.0.1:22", false)
		after, err := DeniedSegments(context.Background(), l.gw)
		if err != nil {
			t.Fatal(err)
		}
		if after["dnv-1"].Packets <= before["dnv-1"].Packets {
			t.Errorf("denied of the segment: %v, then %v", before, after)
		}
		// A service cannot use the way back for flows of its own: not to the
		// intruder's network, and not to the decoys.
		source := map[Reply]string{ReplyByMark: "10.1.0.2", ReplyByAlias: "10.9.0.1"}[reply]
		l.intruder.listenTCP(":7000", false, tellPeer)
		l.seg.listenTCP(":7001", false, tellPeer)
		for _, addr := range []string{user4 + ":7000", decoy4 + ":7001", "192.168.32.1:7001"} {
			if _, err := l.svc.dial("tcp", source+":0", addr, false, 0); err == nil {
				t.Errorf("a service reached %s", addr)
			}
		}
		if reply == ReplyByMark {
			k.Redirects = append(k.Redirects, rogue)
			l.apply(t, k)
			reach("the host through a decoy that was declared to lead there", l.intruder, decoy4+":2222", true)
		} else if _, err := ApplyKernelPath(context.Background(), l.gw, l.seg, KernelPath{
			Index: 1, HostLink: "dnv-1", Reply: reply, Aliases: k.Aliases, Redirects: []Redirect{rogue},
		}); !errors.Is(err, ErrInvalid) {
			t.Errorf("a redirect out of the alias pools: %v, want ErrInvalid", err)
		}
	})
}

func TestRedirectsChangeOneByOne(t *testing.T) {
	testReplies(t, func(t *testing.T, reply Reply) {
		l := newPathLab(t)
		l.serve(t)
		k := l.path(reply)
		l.apply(t, k)
		c, err := l.intruder.dial("tcp", "", decoy4+":2080", false, 0)
		if err != nil {
			t.Fatal(err)
		}
		firstLine(t, c)
		less := k
		less.Redirects = k.Redirects[1:]
		if s := l.apply(t, less); !s.Changed || s.Added != 0 || s.Deleted != 1 {
			t.Errorf("one redirect less: %+v, want one deletion", s)
		}
		if _, err := l.intruder.dial("tcp", "", decoy4+":2080", false, 0); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("a new flow to a withdrawn decoy: %v, want ECONNREFUSED", err)
		}
		if got, err := ask(c, "still there"); err != nil || got != "still there" {
			t.Errorf("the established flow: %q, %v", got, err)
		}
		if s := l.apply(t, k); s.Added != 1 || s.Deleted != 0 {
			t.Errorf("the redirect again: %+v, want one addition", s)
		}
		if _, err := l.intruder.dial("tcp", "", decoy4+":2080", false, 0); err != nil {
			t.Errorf("the decoy again: %v", err)
		}
		// The same decoy led elsewhere.
		moved := k
		moved.Redirects = append([]Redirect{redirectTo(deception.TCP, decoy4+":2080", netip.AddrPortFrom(k.Redirects[0].Service.Addr(), 9).String())}, k.Redirects[1:]...)
		if s := l.apply(t, moved); s.Added != 1 || s.Deleted != 1 {
			t.Errorf("moved redirect: %+v, want one addition and one deletion", s)
		}
		if got, err := ask(c, "and now"); err != nil || got != "and now" {
			t.Errorf("the established flow: %q, %v", got, err)
		}
	})
}

// twin adds a second segment, whose intruder and decoys have the addresses of the first.
func (l *pathLab) twin(t *testing.T) (*pathLab, KernelPath) {
	t.Helper()
	z := *l.zoneLab
	w := &pathLab{zoneLab: &z, intruder: newNS(t, "int2"), seg: newNS(t, "seg2")}
	connect(t, w.intruder, "eth0", w.seg, "lan0")
	connect(t, w.gw, "dnv-2", w.seg, "up0")
	w.intruder.exec(`ip addr add 192.168.32.9/24 dev eth0; ip route add default via 192.168.32.1`)
	w.seg.exec(`sysctl -qw net.ipv4.ip_forward=1
		ip addr add 192.168.32.1/24 dev lan0; ip route add local 192.168.32.100/31 dev lo
		ip addr add 100.64.0.6/30 dev up0; ip route add default via 100.64.0.5`)
	w.gw.exec(`sysctl -qw net.ipv4.conf.dnv-2.src_valid_mark=1; ip addr add 100.64.0.5/30 dev dnv-2
		ip rule add iif br-linux fwmark 0x0dec0002 lookup 14302 pref 14210; ip route add default via 100.64.0.6 dev dnv-2 table 14302`)
	w.intruder.knows("eth0", w.seg, "lan0", "192.168.32.1", decoy4)
	w.seg.knows("lan0", w.intruder, "eth0", user4)
	w.seg.knows("up0", w.gw, "dnv-2", "100.64.0.5")
	w.gw.knows("dnv-2", w.seg, "up0", "100.64.0.6")
	k := w.path(ReplyByMark)
	k.Index, k.HostLink = 2, "dnv-2"
	return w, k
}

// A flow whose addresses and ports at the service another one has takes none of its
// answers: neither a flow of another segment nor one of the host's own.
func TestKernelPathLeavesOtherFlowsTheirAnswers(t *testing.T) {
	l := newPathLab(t)
	l.serve(t)
	mustApplyZones(t, l.gw, linuxZone)
	l.apply(t, l.path(ReplyByMark))
	w, k := l.twin(t)
	w.apply(t, k)
	dial := func(from *testNS, network, port, to string, transparent bool) net.Conn {
		t.Helper()
		c, err := from.dial(network, user4+":"+port, to, transparent, 0)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, tc := range []struct {
		what  string
		port  string
		first func(network, service, decoy, port string) net.Conn
	}{
		{"another segment's", "5101", func(network, _, decoy, port string) net.Conn { return dial(l.intruder, network, port, decoy, false) }},
		{"the host's", "5102", func(network, service, _, port string) net.Conn { return dial(l.gw, network, port, service, true) }},
	} {
		for _, at := range []struct{ network, service, decoy string }{
			{"tcp", "10.1.0.2:80", decoy4 + ":2080"}, {"udp", "10.1.0.2:161", decoy4 + ":2161"},
		} {
			first := tc.first(at.network, at.service, at.decoy, tc.port)
			if _, err := ask(first, "hello"); err != nil {
				t.Fatalf("%s flow of %s: %v", tc.what, at.network, err)
			}
			before := w.deniedAt(t, "segment-dnv-2")
			second, err := w.intruder.dial(at.network, user4+":"+tc.port, at.decoy, false, 0)
			if err == nil { // UDP
				_ = second.SetReadDeadline(time.Now().Add(silence))
				_, err = ask(second, "hello")
			}
			if !os.IsTimeout(err) || w.deniedAt(t, "segment-dnv-2") == before {
				t.Errorf("a flow of %s beside %s: %v; denied %d", at.network, tc.what, err, w.deniedAt(t, "segment-dnv-2")-before)
			}
			if _, err := ask(first, "hello again"); err != nil {
				t.Errorf("%s flow of %s, afterwards: %v", tc.what, at.network, err)
			}
		}
	}
	// Other ports go through.
	if got := firstLine(t, dial(w.intruder, "tcp", "5103", decoy4+":2080", false)); got != user4+":5103" {
		t.Errorf("the service sees %s", got)
	}
}

// deniedAt reads a counter of the host's table.
func (l *pathLab) deniedAt(t *testing.T, counter string) int {
	t.Helper()
	var packets int
	out := l.gw.exec("nft list counter inet decoynet " + counter)
	if _, err := fmt.Sscanf(out[strings.Index(out, "packets"):], "packets %d", &packets); err != nil {
		t.Fatalf("read %s: %v", out, err)
	}
	return packets
}

// Segments come and go in the host's table without touching each other.
func TestSegmentsShareTheHostsTable(t *testing.T) {
	l := newPathLab(t)
	ctx := context.Background()
	paths := []KernelPath{l.path(ReplyByMark), l.path(ReplyByAlias), l.path(ReplyByMark)}
	paths[1].Index, paths[1].HostLink = 2, "dnv-2"
	paths[2].Index, paths[2].HostLink = 3, "dnv-3"
	var wg sync.WaitGroup
	for i, k := range paths {
		seg := l.seg
		if i > 0 {
			seg = newNS(t, fmt.Sprintf("seg%d", i))
		}
		wg.Go(func() {
			if _, err := ApplyKernelPath(ctx, l.gw, seg, k); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	list := func() string { return l.gw.exec("nft list table inet decoynet") }
	for _, want := range []string{"dnv-1", "dnv-2", "dnv-3", "segment-aliases4", "ct direction reply"} {
		if got := list(); !strings.Contains(got, want) {
			t.Errorf("%s is missing: %s", want, got)
		}
	}
	remove := func(k KernelPath) {
		if _, err := RemoveKernelPath(ctx, l.gw, nil, k); err != nil {
			t.Fatal(err)
		}
	}
	remove(paths[0])
	if got := list(); strings.Contains(got, "dnv-1") || !strings.Contains(got, "ct direction reply") {
		t.Errorf("one of three removed: %s", got)
	}
	remove(paths[2])
	if got := list(); strings.Contains(got, "ct ") || !strings.Contains(got, "dnv-2") {
		t.Errorf("without a segment that needs it, connection tracking is still on: %s", got)
	}
	// A segment changes how its answers are known.
	paths[1].Reply, paths[1].Aliases = ReplyByMark, nil
	if _, err := ApplyKernelPath(ctx, l.gw, l.seg, paths[1]); err != nil {
		t.Fatal(err)
	}
	if got := list(); strings.Contains(got, "segment-aliases") || !strings.Contains(got, "ct direction reply") {
		t.Errorf("after the change to marks: %s", got)
	}
	remove(paths[1])
	if got := list(); strings.Contains(got, "segment") {
		t.Errorf("all removed: %s", got)
	}
}

// Tens of thousands of decoys are one transaction, and one more is one element.
func TestManyRedirects(t *testing.T) {
	l := newPathLab(t)
	l.serve(t)
	k := l.path(ReplyByAlias)
	decoy, alias := netip.MustParseAddr("192.168.64.0"), netip.MustParseAddr("10.9.16.0")
	for range 30000 {
		k.Redirects = append(k.Redirects, Redirect{deception.TCP, netip.AddrPortFrom(decoy, 80), netip.AddrPortFrom(alias, 80)})
		decoy, alias = decoy.Next(), alias.Next()
	}
	start := time.Now()
	l.apply(t, k)
	first := time.Since(start)
	k.Redirects = append(k.Redirects, redirectTo(deception.TCP, decoy4+":2081", "10.9.0.2:80"))
	start = time.Now()
	if s := l.apply(t, k); s.Added != 1 || s.Deleted != 0 {
		t.Errorf("one more: %+v", s)
	}
	t.Logf("30,000 redirects in %v, one more in %v", first, time.Since(start))
	if _, err := l.intruder.dial("tcp", "", decoy4+":2081", false, 0); err != nil {
		t.Error(err)
	}
	if shown := l.seg.exec("nft list map inet decoynet kernel-path-tcp4 | grep -o '192.168.[0-9.]* . [0-9]* : 10.9' | wc -l"); strings.TrimSpace(shown) != "30003" {
		t.Errorf("nft shows %s elements", shown)
	}
}

func TestKernelPathEvents(t *testing.T) {
	l := newPathLab(t)
	l.serve(t)
	k := l.path(ReplyByMark)
	l.apply(t, k)
	ctx, cancel := context.WithCancel(context.Background())
	events := make(chan conntrack.Event, 100)
	listener, err := conntrack.Listen(ctx, l.seg, func(e conntrack.Event) { events <- e })
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		if err := listener.Wait(); err != nil {
			t.Error(err)
		}
	}()
	// An unbound port tells nothing; a decoy three things.
	_, _ = l.intruder.dial("tcp", "", decoy4+":81", false, 0)
	c, err := l.intruder.dial("tcp", user4+":5005", decoy4+":2080", false, 0)
	if err != nil {
		t.Fatal(err)
	}
	firstLine(t, c)
	_ = c.Close()
	var types []string
	for len(types) < 3 {
		select {
		case e := <-events:
			types = append(types, e.Type.String())
			if e.Orig.Src.String() != user4+":5005" {
				t.Errorf("event of %v", e.Orig)
			}
			if e.Type == conntrack.EventDestroy && e.Mark != conntrack.MarkClientClosed {
				t.Errorf("mark of the last event: %#x", e.Mark)
			}
		case <-time.After(15 * patience):
			t.Fatalf("no event after %v", types)
		}
	}
	if got := strings.Join(types, " "); got != "NEW UPDATE DESTROY" {
		t.Errorf("events %s", got)
	}
}
