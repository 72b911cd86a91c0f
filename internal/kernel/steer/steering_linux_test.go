package steer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
)

// bindFreely lets a client take a source port again at once, and a decoy's
// address: an IPv6 one that is only a local route needs IP_FREEBIND or
// IP_TRANSPARENT, and iptables' TPROXY the latter.
func bindFreely(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1)
	})
}

func TestTCP(t *testing.T) {
	eachMode(t, func(t *testing.T, mode deception.Steering) {
		l := newLAN(t)
		s := l.steer(t, Config{Mode: mode})
		serve(t, s)
		st := apply(t, s,
			group(1, "192.0.2.100 2001:db8::d:1 80 8000-8100"),
			group(2, "198.18.0.0/16 2001:db8:1::/64 22 80/udp 65535"))
		if st.Mode != mode || st.Groups != 2 || st.Prefixes != 4 || st.Ports != 105 || st.Failed != nil {
			t.Errorf("status %+v", st)
		}
		for _, to := range []string{
			"192.0.2.100:80", "192.0.2.100:8000", "192.0.2.100:8100", "198.18.0.0:22", "198.18.255.255:65535",
			"[2001:db8::d:1]:80", "[2001:db8::d:1]:8063", "[2001:db8:1::]:22", "[2001:db8:1:0:ffff:ffff:ffff:ffff]:65535",
		} {
			connect(t, l.intruder, to).echo("hello")
		}
		for _, to := range []string{
			"192.0.2.100:81", "192.0.2.100:7999", "192.0.2.100:8101", "192.0.2.100:22", "192.0.2.101:80", "192.0.2.1:80",
			"198.18.0.1:80", "198.19.0.1:22", "[2001:db8::d:1]:22", "[2001:db8::d:2]:80", "[2001:db8:1::1]:80", "[2001:db8:1:1::]:22",
		} {
			refused(t, l.intruder, "tcp", to)
		}
	})
}

func TestUDP(t *testing.T) {
	eachMode(t, func(t *testing.T, mode deception.Steering) {
		l := newLAN(t)
		s := l.steer(t, Config{Mode: mode})
		v := serve(t, s)
		apply(t, s, group(1, "192.0.2.100 198.18.0.0/16 2001:db8::d:1 2001:db8:1::/64 53/udp 5000-5010/udp 80"))
		for _, to := range []string{"192.0.2.100:53", "198.18.3.4:5010", "[2001:db8::d:1]:53", "[2001:db8:1::abcd]:5000"} {
			conn, err := dial(l.intruder, "udp", to)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			// The long one travels in fragments.
			for _, text := range []string{"query", strings.Repeat("long", 2000)} {
				fmt.Fprint(conn, text)
				d := v.datagram(t)
				if d.to.String() != to || d.from.String() != conn.LocalAddr().String() || d.payload != text {
					t.Errorf("sent %d bytes from %s to %s, arrived: %d bytes from %s to %s",
						len(text), conn.LocalAddr(), to, len(d.payload), d.from, d.to)
				}
				if index := pktinfo(d.oob); index == 0 {
					t.Errorf("no PKTINFO with the datagram to %s", to)
				}
			}
		}
		for _, to := range []string{"192.0.2.100:80", "192.0.2.101:53", "[2001:db8::d:1]:80", "[2001:db8::d:2]:53"} {
			refused(t, l.intruder, "udp", to)
		}
	})
}

// pktinfo returns the number of the interface that a datagram came in by.
func pktinfo(oob []byte) uint32 {
	messages, _ := unix.ParseSocketControlMessage(oob)
	for _, m := range messages {
		if m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO {
			return uint32(m.Data[16]) | uint32(m.Data[17])<<8
		}
	}
	return 0
}

// A flow's own socket, connected, gets the flow's further datagrams; others
// still go to the steered socket.
func TestConnectedUDPWins(t *testing.T) {
	eachMode(t, func(t *testing.T, mode deception.Steering) {
		l := newLAN(t)
		s := l.steer(t, Config{Mode: mode, Sockets: 2})
		v := serve(t, s)
		apply(t, s, group(1, "192.0.2.100 2001:db8::d:1 53/udp"))
		for _, to := range []string{"192.0.2.100:53", "[2001:db8::d:1]:53"} {
			flow, err := dial(l.intruder, "udp", to)
			if err != nil {
				t.Fatal(err)
			}
			defer flow.Close()
			fmt.Fprint(flow, "first")
			d := v.datagram(t)
			own, err := dialFrom(l.decoys, "udp", net.UDPAddrFromAddrPort(d.to), d.from.String())
			if err != nil {
				t.Fatal(err)
			}
			defer own.Close()
			own.SetDeadline(time.Now().Add(patience))
			flow.SetDeadline(time.Now().Add(patience))
			buf := make([]byte, 100)
			for i := range 20 {
				text := fmt.Sprint("more ", i)
				fmt.Fprint(flow, text)
				n, err := own.Read(buf)
				if err != nil || string(buf[:n]) != text {
					t.Fatalf("connected socket got %q, %v; want %q", buf[:n], err, text)
				}
				fmt.Fprint(own, "re: ", text)
				if n, err = flow.Read(buf); err != nil || string(buf[:n]) != "re: "+text {
					t.Fatalf("intruder got %q, %v; want an answer to %q", buf[:n], err, text)
				}
			}
			other, err := dial(l.intruder, "udp", to)
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			fmt.Fprint(other, "another flow")
			if d := v.datagram(t); d.payload != "another flow" || d.from.String() != other.LocalAddr().String() {
				t.Errorf("steered socket got %q from %s", d.payload, d.from)
			}
		}
		if n := len(v.grams); n > 0 {
			t.Errorf("%d datagrams of connected flows went to the steered socket", n)
		}
	})
}

func TestEstablishedSurviveChanges(t *testing.T) {
	eachMode(t, func(t *testing.T, mode deception.Steering) {
		l := newLAN(t)
		s := l.steer(t, Config{Mode: mode})
		v := serve(t, s)
		web := group(1, "192.0.2.100 2001:db8::d:1 80")
		apply(t, s, web)
		var open []*client
		for _, to := range []string{"192.0.2.100:80", "[2001:db8::d:1]:80"} {
			open = append(open, connect(t, l.intruder, to))
		}
		for _, step := range []struct {
			groups       []Group
			open, closed []string
		}{
			{
				[]Group{web, group(2, "192.0.2.101 22")},
				[]string{"192.0.2.101:22", "192.0.2.100:80"},
				[]string{"192.0.2.101:80"},
			},
			{
				[]Group{group(1, "192.0.2.100 2001:db8::d:1 81"), group(2, "192.0.2.101 22")},
				[]string{"192.0.2.100:81", "[2001:db8::d:1]:81", "192.0.2.101:22"},
				[]string{"192.0.2.100:80", "[2001:db8::d:1]:80"},
			},
			{
				[]Group{group(2, "192.0.2.101 192.0.2.100 22 80")},
				[]string{"192.0.2.100:80", "192.0.2.101:80", "192.0.2.100:22"},
				[]string{"192.0.2.100:81", "[2001:db8::d:1]:81"},
			},
			{nil, nil, []string{"192.0.2.100:80", "192.0.2.100:22", "192.0.2.101:22"}},
			{[]Group{web}, []string{"192.0.2.100:80", "[2001:db8::d:1]:80"}, nil},
		} {
			apply(t, s, step.groups...)
			if again := apply(t, s, step.groups...); again.Writes != 0 {
				t.Errorf("applying the same again wrote %d entries", again.Writes)
			}
			for _, to := range step.open {
				connect(t, l.intruder, to)
			}
			for _, to := range step.closed {
				refused(t, l.intruder, "tcp", to)
			}
			for _, c := range open {
				c.echo("still here")
			}
		}
		v.halt()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for _, c := range open {
			c.echo("even now")
		}
	})
}

// The decoy closes first and keeps the TIME_WAIT; the intruder comes back from
// the same source port at once.
func TestTimeWaitReuse(t *testing.T) {
	eachMode(t, func(t *testing.T, mode deception.Steering) {
		l := newLAN(t)
		s := l.steer(t, Config{Mode: mode, Sockets: 2})
		serve(t, s)
		apply(t, s, group(1, "192.0.2.100 2001:db8::d:1 80"))
		for _, flow := range [][2]string{{"192.0.2.2:41000", "192.0.2.100:80"}, {"[2001:db8::2]:41000", "[2001:db8::d:1]:80"}} {
			from, to := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(flow[0])), flow[1]
			for range 5 {
				c := connectFrom(t, l.intruder, from, to)
				fmt.Fprintln(c, "bye")
				c.SetReadDeadline(time.Now().Add(patience))
				if rest, err := io.ReadAll(c.lines); err != nil || len(rest) > 0 {
					t.Fatalf("read to the end: %q, %v", rest, err)
				}
				c.Close()
				waitFor(t, "TIME_WAIT at the decoy", func() bool {
					return strings.Contains(l.decoys.in(t, "ss", "-Htan", "state", "time-wait"), ":41000")
				})
			}
		}
	})
}

func waitFor(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no " + what)
		}
	}
}

func TestFlowsSpreadOverSockets(t *testing.T) {
	eachMode(t, func(t *testing.T, mode deception.Steering) {
		l := newLAN(t)
		s := l.steer(t, Config{Mode: mode, Sockets: 2})
		v := serve(t, s)
		apply(t, s, group(1, "192.0.2.100 2001:db8::d:1 80 53/udp"))
		for _, ip := range []string{"192.0.2.100", "[2001:db8::d:1]"} {
			for i := range v.accepted {
				v.accepted[i].Store(0)
			}
			var grams [2]int
			for range 60 {
				connect(t, l.intruder, ip+":80")
				conn, err := dial(l.intruder, "udp", ip+":53")
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprint(conn, "one")
				first := v.datagram(t).socket
				grams[first]++
				fmt.Fprint(conn, "two")
				if second := v.datagram(t).socket; second != first {
					t.Errorf("a flow's datagrams went to sockets %d and %d", first, second)
				}
				conn.Close()
			}
			// By chance one of the two stays below 10 of 60 in 1 of 10^7 runs.
			a, b := v.accepted[0].Load(), v.accepted[1].Load()
			if a+b != 60 || min(a, b) < 10 || min(grams[0], grams[1]) < 10 {
				t.Errorf("%s: connections by listener %d and %d, flows by UDP socket %v", ip, a, b, grams)
			}
		}
	})
}

// Nobody reaches the sockets but by steering.
func TestSocketsAreHidden(t *testing.T) {
	eachMode(t, func(t *testing.T, mode deception.Steering) {
		l := newLAN(t)
		s := l.steer(t, Config{Mode: mode, Sockets: 2})
		serve(t, s)
		apply(t, s, group(1, "192.0.2.100 2001:db8::d:1 80 53/udp"))
		port := s.sockets.port
		if listening := l.decoys.in(t, "ss", "-Hltn"); !strings.Contains(listening, fmt.Sprintf("127.0.0.1]:%d", port)) {
			t.Fatalf("no listener on port %d in %q", port, listening)
		}
		for _, ip := range []string{"192.0.2.100", "192.0.2.1", "198.18.0.1", "[2001:db8::d:1]", "[2001:db8::1]"} {
			refused(t, l.intruder, "tcp", fmt.Sprintf("%s:%d", ip, port))
		}
		for _, ip := range []string{"192.0.2.100", "[2001:db8::d:1]"} {
			refused(t, l.intruder, "udp", fmt.Sprintf("%s:%d", ip, port))
		}
		for _, fd := range append(s.TCP(), s.UDP()...) {
			flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
			if err != nil || flags&unix.O_NONBLOCK == 0 {
				t.Errorf("socket %d blocks: flags %x, %v", fd, flags, err)
			}
			flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
			if err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("socket %d survives exec: flags %x, %v", fd, flags, err)
			}
		}
		for _, fd := range s.UDP() {
			// The kernel doubles what was asked for.
			if n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF); err != nil || n < 2*udpBuffer {
				t.Errorf("receive buffer of %d bytes, %v", n, err)
			}
		}
	})
}

// A decoy's port that happens to be the listener's own works like any other.
func TestListenersPortCanBeBound(t *testing.T) {
	eachMode(t, func(t *testing.T, mode deception.Steering) {
		l := newLAN(t)
		s := l.steer(t, Config{Mode: mode})
		serve(t, s)
		g := group(1, "192.0.2.100 2001:db8::d:1")
		g.Ports = []deception.PortRange{deception.Port(deception.TCP, s.sockets.port)}
		apply(t, s, g)
		connect(t, l.intruder, fmt.Sprintf("192.0.2.100:%d", s.sockets.port)).echo("hello")
		connect(t, l.intruder, fmt.Sprintf("[2001:db8::d:1]:%d", s.sockets.port)).echo("hello")
	})
}

// Under a SYN flood the kernel keeps no trace of a SYN; the acknowledgement that
// brings the cookie back must find the listener too.
func TestSYNCookies(t *testing.T) {
	eachMode(t, func(t *testing.T, mode deception.Steering) {
		l := newLAN(t)
		l.decoys.in(t, "sysctl", "-qw", "net.ipv4.tcp_syncookies=2") // always
		s := l.steer(t, Config{Mode: mode, Sockets: 2})
		serve(t, s)
		apply(t, s, group(1, "192.0.2.100 2001:db8::d:1 80"))
		for range 5 {
			connect(t, l.intruder, "192.0.2.100:80").echo("hello")
			connect(t, l.intruder, "[2001:db8::d:1]:80").echo("hello")
		}
		if stat := l.decoys.in(t, "nstat", "-asz", "TcpExtSyncookiesRecv"); !strings.Contains(stat, "SyncookiesRecv            10 ") {
			t.Errorf("the kernel counts other cookies than ours: %s", stat)
		}
	})
}

// Clean-up is seen by tools that know nothing of us.
func TestCloseLeavesNothing(t *testing.T) {
	eachMode(t, func(t *testing.T, mode deception.Steering) {
		l := newLAN(t)
		before := descriptors()
		s := l.steer(t, Config{Mode: mode, Sockets: 2})
		apply(t, s, group(1, "192.0.2.100 2001:db8::d:1 80 53/udp"))
		ours := l.decoys.linkLine(t)
		linked := strings.Contains(run(t, "bpftool", "link", "list"), ours)
		tabled := strings.Contains(l.decoys.in(t, "nft", "list", "tables"), "table inet decoynet-steer")
		chained := strings.Contains(l.decoys.in(t, "iptables-save"), ":decoynet-steer ") &&
			strings.Contains(l.decoys.in(t, "ip6tables-save"), "-A PREROUTING -j decoynet-steer")
		setted := strings.HasPrefix(l.decoys.in(t, "ipset", "list", "-n"), "decoynet-steer4\ndecoynet-steer6")
		if linked != (mode == deception.SteeringSKLookup) || tabled != (mode == deception.SteeringTPROXY) ||
			chained != (mode == deception.SteeringIPTables) || setted != chained {
			t.Fatalf("while open: BPF link %v, nftables table %v, iptables chain %v, sets %v", linked, tabled, chained, setted)
		}
		for range 2 {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if links := run(t, "bpftool", "link", "list"); strings.Contains(links, ours) {
			t.Errorf("a BPF link is left: %s", links)
		}
		// iptables itself leaves the kernel's chains, empty.
		rules := l.decoys.in(t, "nft", "list", "ruleset")
		if strings.Contains(rules, "decoynet") || strings.Contains(rules, "xt ") || rules != "" && mode != deception.SteeringIPTables {
			t.Errorf("rules are left: %s", rules)
		}
		if sets := l.decoys.in(t, "ipset", "list", "-n"); sets != "" {
			t.Errorf("sets are left: %s", sets)
		}
		if sockets := l.decoys.in(t, "ss", "-Hltnu"); sockets != "" {
			t.Errorf("sockets are left: %s", sockets)
		}
		if after := descriptors(); after != before {
			t.Errorf("%d descriptors before, %d after", before, after)
		}
		if _, err := s.Apply(context.Background(), nil); !errors.Is(err, ErrClosed) {
			t.Errorf("Apply after Close: %v", err)
		}
		if n := len(s.TCP()) + len(s.UDP()); n != 0 {
			t.Errorf("%d sockets after Close", n)
		}
		refused(t, l.intruder, "tcp", "192.0.2.100:80")
	})
}

// A killed process leaves its table; the next one takes over the name.
func TestTPROXYReplacesStaleTable(t *testing.T) {
	l := newLAN(t)
	l.decoys.in(t, "nft", "add table inet decoynet-steer; add chain inet decoynet-steer prerouting { type filter hook prerouting priority 0; policy drop; }; add set inet decoynet-steer ports { type mark; }")
	s := l.steer(t, Config{Mode: deception.SteeringTPROXY})
	serve(t, s)
	apply(t, s, group(1, "192.0.2.100 80"))
	connect(t, l.intruder, "192.0.2.100:80").echo("hello")
	rules := l.decoys.in(t, "nft", "list", "ruleset")
	for _, want := range []string{"192.0.2.100", "tcp . 80", fmt.Sprintf("tproxy ip to 127.0.0.1:%d", s.sockets.port)} {
		if !strings.Contains(rules, want) {
			t.Errorf("nft does not show %q in\n%s", want, rules)
		}
	}
	if strings.Contains(rules, "policy drop") {
		t.Errorf("the stale chain is still there:\n%s", rules)
	}
}

func TestCancelledApplyResumes(t *testing.T) {
	eachMode(t, func(t *testing.T, mode deception.Steering) {
		l := newLAN(t)
		s := l.steer(t, Config{Mode: mode})
		serve(t, s)
		web := group(1, "192.0.2.100 80")
		apply(t, s, web)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		st, err := s.Apply(ctx, []Group{group(2, "192.0.2.100 22")})
		if !errors.Is(err, context.Canceled) || st.Writes != 0 {
			t.Errorf("cancelled: %d writes, %v", st.Writes, err)
		}
		connect(t, l.intruder, "192.0.2.100:80")
		refused(t, l.intruder, "tcp", "192.0.2.100:22")
		apply(t, s, group(2, "192.0.2.100 22"))
		connect(t, l.intruder, "192.0.2.100:22")
		refused(t, l.intruder, "tcp", "192.0.2.100:80")
	})
}

// Its rules would drop what another mechanism steers.
func TestStaleRulesOfIPTablesGo(t *testing.T) {
	eachMode(t, func(t *testing.T, mode deception.Steering) {
		l := newLAN(t)
		dead, err := Open(l.decoys, Config{Mode: deception.SteeringIPTables})
		if err != nil {
			t.Fatal(err)
		}
		apply(t, dead, group(1, "192.0.2.100 2001:db8::d:1 80"))
		if err := dead.sockets.close(); err != nil { // all that the kernel does for a killed process
			t.Fatal(err)
		}
		serve(t, l.steer(t, Config{Mode: mode}))
		refused(t, l.intruder, "tcp", "192.0.2.100:80")
		refused(t, l.intruder, "tcp", "[2001:db8::d:1]:80")
	})
}

// A killed process leaves chains and sets; the next one replaces them.
func TestIPTablesReplacesStaleRules(t *testing.T) {
	l := newLAN(t)
	l.decoys.in(t, "ipset", "create", "decoynet-steer4", "hash:ip,port")
	l.decoys.in(t, "ipset", "create", "decoynet-steer6", "hash:net,port", "family", "inet6")
	l.decoys.in(t, "iptables", "-t", "mangle", "-N", "decoynet-steer")
	for range 2 {
		l.decoys.in(t, "iptables", "-t", "mangle", "-A", "PREROUTING", "-j", "decoynet-steer")
	}
	l.decoys.in(t, "iptables", "-t", "mangle", "-A", "decoynet-steer", "-m", "set", "--match-set", "decoynet-steer4", "dst,dst", "-j", "DROP")
	l.decoys.in(t, "iptables", "-t", "mangle", "-A", "decoynet-steer", "-p", "tcp", "-j", "DROP")
	l.decoys.in(t, "iptables", "-t", "mangle", "-A", "PREROUTING", "-m", "mark", "--mark", "7", "-j", "DROP") // somebody else's
	s := l.steer(t, Config{Mode: deception.SteeringIPTables})
	serve(t, s)
	apply(t, s, group(1, "192.0.2.100 2001:db8::d:1 80"))
	connect(t, l.intruder, "192.0.2.100:80").echo("hello")
	connect(t, l.intruder, "[2001:db8::d:1]:80").echo("hello")
	rules := l.decoys.in(t, "iptables-save", "-t", "mangle")
	for rule, times := range map[string]int{
		"-A PREROUTING -j decoynet-steer\n": 1,
		"-A decoynet-steer":                 2,
		fmt.Sprintf("-A decoynet-steer -p tcp -m set --match-set decoynet-steer4 dst,dst -j TPROXY --on-port %d --on-ip 127.0.0.1", s.sockets.port): 1,
		"-A PREROUTING -m mark --mark 0x7 -j DROP": 1,
	} {
		if n := strings.Count(rules, rule); n != times {
			t.Errorf("%d times %q, want %d, in\n%s", n, rule, times, rules)
		}
	}
	if members := l.decoys.in(t, "ipset", "list", "decoynet-steer4"); !strings.Contains(members, "\n192.0.2.100,tcp:80\n") {
		t.Errorf("ipset does not list the decoy:\n%s", members)
	}
}
