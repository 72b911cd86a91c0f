package steer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
)

// patience bounds every wait of the tests; none comes near it.
const patience = 5 * time.Second

// eachMode runs a test over all mechanisms.
func eachMode(t *testing.T, test func(t *testing.T, mode deception.Steering)) {
	for _, mode := range Mechanisms {
		t.Run(string(mode), func(t *testing.T) { test(t, mode) })
	}
}

// descriptors counts what this package opens: sockets, BPF objects, namespaces;
// not the files of the test's own profiles.
func descriptors() int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	n := 0
	for _, fd := range list {
		to, _ := os.Readlink("/proc/self/fd/" + fd.Name())
		if !strings.HasPrefix(to, "/") || strings.HasPrefix(to, "/run/netns/") {
			n++
		}
	}
	return n
}

func warmUp() {
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	l.Close()
}

// namespace is a named one, so that ip, ss and nft can look into it.
type namespace struct {
	scratch
	name string
}

func (n *namespace) Name() string { return n.name }

var namespaces atomic.Int32

func newNamespace(t testing.TB) *namespace {
	t.Helper()
	n := &namespace{name: fmt.Sprintf("steertest-%d-%d", os.Getpid(), namespaces.Add(1))}
	run(t, "ip", "netns", "add", n.name)
	t.Cleanup(func() { run(t, "ip", "netns", "del", n.name) })
	fd, err := unix.Open("/run/netns/"+n.name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	n.fd = fd
	return n
}

func run(t testing.TB, command ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
	return string(out)
}

// in runs a command in the namespace.
func (n *namespace) in(t testing.TB, command ...string) string {
	t.Helper()
	return run(t, append([]string{"ip", "netns", "exec", n.name}, command...)...)
}

// lan is an intruder on one end of a wire and decoys on the other. Decoys are in
// the wire's own subnets (192.0.2.64/26, 2001:db8::d:0/112) and behind it
// (198.18.0.0/15, 2001:db8:1::/48).
type lan struct {
	decoys, intruder *namespace
}

func newLAN(t testing.TB) *lan {
	t.Helper()
	l := &lan{newNamespace(t), newNamespace(t)}
	d, i := l.decoys.name, l.intruder.name
	run(t, "ip", "link", "add", "lan0", "netns", d, "type", "veth", "peer", "name", "lan0", "netns", i)
	for host, n := range []string{d, i} {
		// Without duplicate address detection, which would take a second.
		run(t, "ip", "netns", "exec", n, "sysctl", "-qw", "net.ipv6.conf.lan0.accept_dad=0")
		run(t, "ip", "-n", n, "link", "set", "lo", "up")
		run(t, "ip", "-n", n, "address", "add", fmt.Sprintf("192.0.2.%d/24", host+1), "dev", "lan0")
		run(t, "ip", "-n", n, "address", "add", fmt.Sprintf("2001:db8::%d/64", host+1), "dev", "lan0", "nodad")
		run(t, "ip", "-n", n, "link", "set", "lan0", "up")
	}
	for _, p := range []string{"192.0.2.64/26", "198.18.0.0/15", "2001:db8::d:0/112", "2001:db8:1::/48"} {
		run(t, "ip", "-n", d, "route", "add", "local", p, "dev", "lo")
	}
	// The segment answers NDP for its decoys; here nobody does. Neighbours that
	// are known, and decoys behind a route, do without.
	for n, peer := range map[*namespace]*namespace{l.decoys: l.intruder, l.intruder: l.decoys} {
		mac := strings.TrimSpace(peer.in(t, "cat", "/sys/class/net/lan0/address"))
		address := map[*namespace]string{l.decoys: "2001:db8::1", l.intruder: "2001:db8::2"}[peer]
		run(t, "ip", "-n", n.name, "neighbour", "add", address, "lladdr", mac, "dev", "lan0")
	}
	run(t, "ip", "-n", i, "route", "add", "198.18.0.0/15", "via", "192.0.2.1")
	for _, p := range []string{"2001:db8::d:0/112", "2001:db8:1::/48"} {
		run(t, "ip", "-n", i, "route", "add", p, "via", "2001:db8::1")
	}
	return l
}

// steer opens steering in the decoys' namespace.
func (l *lan) steer(t testing.TB, cfg Config) *Steering {
	t.Helper()
	s, err := Open(l.decoys, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func apply(t testing.TB, s *Steering, groups ...Group) Status {
	t.Helper()
	st, err := s.Apply(context.Background(), groups)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// service answers the steered connections. It greets each with the name of the
// socket that accept returned, echoes lines, and closes first upon "bye".
type service struct {
	t        testing.TB
	stop     chan struct{} // ends all
	stopped  sync.WaitGroup
	halt     func()         // ends all but the accepted connections; to be called before Steering.Close
	accepted []atomic.Int32 // by listener
	grams    chan datagram
}

type datagram struct {
	socket   int // which of Steering.UDP
	from, to netip.AddrPort
	payload  string
	oob      []byte
}

func serve(t testing.TB, s *Steering) *service {
	t.Helper()
	v := &service{t: t, stop: make(chan struct{}), accepted: make([]atomic.Int32, len(s.TCP())), grams: make(chan datagram, 4096)}
	halt := make(chan struct{})
	var halted sync.WaitGroup
	v.halt = sync.OnceFunc(func() { close(halt); halted.Wait() })
	for i, fd := range s.TCP() {
		halted.Go(func() { v.loop(halt, fd, func() error { return v.accept(i, fd) }) })
	}
	for i, fd := range s.UDP() {
		halted.Go(func() { v.loop(halt, fd, func() error { return v.receive(i, fd) }) })
	}
	t.Cleanup(func() { v.halt(); close(v.stop); v.stopped.Wait() })
	return v
}

// loop calls step while the descriptor is readable, until it shall halt.
func (v *service) loop(halt chan struct{}, fd int, step func() error) {
	for {
		select {
		case <-halt:
			return
		default:
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20)
		if err != nil && !errors.Is(err, unix.EINTR) {
			v.t.Errorf("poll: %v", err)
			return
		}
		if n > 0 {
			if err := step(); err != nil && !errors.Is(err, unix.EAGAIN) {
				v.t.Errorf("steered socket: %v", err)
				return
			}
		}
	}
}

func (v *service) accept(i, fd int) error {
	child, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if err != nil {
		return err
	}
	v.accepted[i].Add(1)
	f := os.NewFile(uintptr(child), "accepted")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return err
	}
	v.stopped.Go(func() {
		defer conn.Close()
		stop := make(chan struct{})
		defer close(stop)
		v.stopped.Go(func() {
			select {
			case <-v.stop:
				conn.SetDeadline(time.Now())
			case <-stop:
			}
		})
		fmt.Fprintln(conn, conn.LocalAddr())
		for lines := bufio.NewScanner(conn); lines.Scan() && lines.Text() != "bye"; {
			fmt.Fprintln(conn, lines.Text())
		}
	})
	return nil
}

func (v *service) receive(i, fd int) error {
	buf, oob := make([]byte, 65536), make([]byte, OOBSize)
	n, oobn, flags, from, err := unix.Recvmsg(fd, buf, oob, 0)
	if err != nil {
		return err
	}
	to, ok := OriginalDst(oob[:oobn])
	if !ok || flags&unix.MSG_CTRUNC != 0 {
		return fmt.Errorf("no destination in %x, flags %x", oob[:oobn], flags)
	}
	d := datagram{socket: i, to: to, payload: string(buf[:n]), oob: oob[:oobn]}
	switch from := from.(type) {
	case *unix.SockaddrInet6:
		d.from = netip.AddrPortFrom(netip.AddrFrom16(from.Addr).Unmap(), uint16(from.Port))
	case *unix.SockaddrInet4:
		d.from = netip.AddrPortFrom(netip.AddrFrom4(from.Addr), uint16(from.Port))
	}
	v.grams <- d
	return nil
}

// datagram waits for the next one.
func (v *service) datagram(t testing.TB) datagram {
	t.Helper()
	select {
	case d := <-v.grams:
		return d
	case <-time.After(patience):
		t.Fatal("no datagram arrived")
	}
	panic("unreachable")
}

// dial connects from a namespace.
func dial(n *namespace, network, to string) (net.Conn, error) { return dialFrom(n, network, nil, to) }

func dialFrom(n *namespace, network string, from net.Addr, to string) (conn net.Conn, err error) {
	d := net.Dialer{Timeout: patience, LocalAddr: from, Control: bindFreely}
	d.SetMultipathTCP(false)
	err = n.Do(func() error { conn, err = d.Dial(network, to); return err })
	return conn, err
}

// client is a connection to a service, greeting read.
type client struct {
	net.Conn
	t     testing.TB
	lines *bufio.Reader
}

// connect expects the destination to be open and the service to see it rightly.
func connect(t testing.TB, n *namespace, to string) *client {
	t.Helper()
	return connectFrom(t, n, nil, to)
}

func connectFrom(t testing.TB, n *namespace, from net.Addr, to string) *client {
	t.Helper()
	conn, err := dialFrom(n, "tcp", from, to)
	if err != nil {
		t.Fatalf("dial %s: %v", to, err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &client{conn, t, bufio.NewReader(conn)}
	if seen := c.line(); seen != to {
		t.Fatalf("dialled %s, the service was told %s", to, seen)
	}
	return c
}

func (c *client) line() string {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	line, err := c.lines.ReadString('\n')
	if err != nil {
		c.t.Fatalf("read from %s: %v", c.RemoteAddr(), err)
	}
	return strings.TrimSpace(line)
}

// echo proves that the connection works both ways.
func (c *client) echo(text string) {
	c.t.Helper()
	fmt.Fprintln(c, text)
	if got := c.line(); got != text {
		c.t.Fatalf("sent %q to %s, got %q", text, c.RemoteAddr(), got)
	}
}

// refused expects a port to answer RST, or ICMP port unreachable, at once.
func refused(t testing.TB, n *namespace, network, to string) {
	t.Helper()
	begin := time.Now()
	conn, err := dial(n, network, to)
	if err == nil {
		defer conn.Close()
		if network == "udp" {
			conn.SetDeadline(time.Now().Add(patience))
			fmt.Fprint(conn, "anybody?")
			_, err = conn.Read(make([]byte, 10))
		}
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("%s %s: %v, want connection refused", network, to, err)
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("%s %s: refused after %s only", network, to, took)
	}
}

// execSelf returns a command that runs this test binary again.
func execSelf(t testing.TB) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return exec.CommandContext(ctx, "/proc/self/exe")
}
