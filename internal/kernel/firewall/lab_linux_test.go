package firewall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds every wait for something that is to happen, silence every
// wait for something that is not.
const (
	patience = 5 * time.Second
	silence  = 400 * time.Millisecond
)

// testNS is a namespace made with ip(8).
type testNS struct {
	t    testing.TB
	name string
	file *os.File
}

var nsCounter atomic.Int64

func newNS(t testing.TB, what string) *testNS {
	t.Helper()
	name := fmt.Sprintf("fw%d-%d-%s", os.Getpid(), nsCounter.Add(1), what)
	run(t, "ip", "netns", "add", name)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	f, err := os.Open("/run/netns/" + name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	n := &testNS{t: t, name: name, file: f}
	n.exec("ip link set lo up; sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv6.conf.default.accept_dad=0 net.ipv4.ip_local_port_range='20000 60000'")
	return n
}

func (n *testNS) FD() int      { return int(n.file.Fd()) }
func (n *testNS) Name() string { return n.name }

// Do runs f on a thread of the namespace that is given up afterwards.
func (n *testNS) Do(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			result <- err
			return
		}
		result <- f()
	}()
	return <-result
}

func (n *testNS) do(f func() error) {
	n.t.Helper()
	if err := n.Do(f); err != nil {
		n.t.Fatal(err)
	}
}

func (n *testNS) exec(script string) string {
	n.t.Helper()
	return run(n.t, "ip", "netns", "exec", n.name, "sh", "-ec", script)
}

// try is exec that may fail.
func (n *testNS) try(script string) (string, error) {
	out, err := exec.Command("ip", "netns", "exec", n.name, "sh", "-ec", script).CombinedOutput()
	return string(out), err
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// connect joins two namespaces by a veth pair.
func connect(t testing.TB, a *testNS, aName string, b *testNS, bName string) {
	t.Helper()
	run(t, "ip", "link", "add", aName, "netns", a.name, "type", "veth", "peer", "name", bName, "netns", b.name)
	a.exec("ip link set " + aName + " up")
	b.exec("ip link set " + bName + " up")
}

// knows gives n the link-layer address of its neighbour for addresses. The
// neighbour tables are the whole machine's, and another test may have filled them;
// permanent entries always find room.
func (n *testNS) knows(dev string, peer *testNS, peerDev string, addrs ...string) {
	n.t.Helper()
	mac := strings.TrimSpace(peer.exec("cat /sys/class/net/" + peerDev + "/address"))
	for _, a := range addrs {
		n.exec("ip neigh replace " + a + " dev " + dev + " lladdr " + mac + " nud permanent")
	}
}

// listenTCP serves what each accepted connection is handed to.
func (n *testNS) listenTCP(addr string, transparent bool, serve func(net.Conn)) {
	n.t.Helper()
	var l net.Listener
	n.do(func() (err error) {
		lc := net.ListenConfig{Control: sockopts(transparent, 0)}
		lc.SetMultipathTCP(false)
		l, err = lc.Listen(context.Background(), "tcp", addr)
		return err
	})
	// A client may have vanished behind a rule, so the connections are closed too.
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				defer context.AfterFunc(ctx, func() { _ = c.Close() })()
				_ = c.SetDeadline(time.Now().Add(2 * patience))
				serve(c)
			})
		}
	})
	n.t.Cleanup(func() {
		_ = l.Close()
		cancel()
		serving.Wait()
	})
}

// tellPeer is a service that says whom it sees and echoes a line.
func tellPeer(c net.Conn) {
	fmt.Fprintf(c, "%s\n", c.RemoteAddr())
	buf := make([]byte, 256)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

// listenUDP answers each datagram with the peer's address and, behind a
// newline, as many bytes as the datagram's text asks for.
func (n *testNS) listenUDP(addr string, transparent bool) (received *atomic.Int64) {
	n.t.Helper()
	received = new(atomic.Int64)
	var pc net.PacketConn
	n.do(func() (err error) {
		lc := net.ListenConfig{Control: sockopts(transparent, 0)}
		pc, err = lc.ListenPacket(context.Background(), "udp", addr)
		return err
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			k, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			received.Add(1)
			var size int
			_, _ = fmt.Sscan(string(buf[:k]), &size)
			_, _ = pc.WriteTo(append([]byte(from.String()+"\n"), bytes.Repeat([]byte("x"), size)...), from)
		}
	}()
	n.t.Cleanup(func() {
		_ = pc.Close()
		<-done
	})
	return received
}

// dial connects from the namespace; local may be empty.
func (n *testNS) dial(network, local, remote string, transparent bool, mark int) (net.Conn, error) {
	d := net.Dialer{Timeout: silence, Control: sockopts(transparent, mark)}
	d.SetMultipathTCP(false)
	if local != "" {
		a := netip.MustParseAddrPort(local)
		if network == "udp" {
			d.LocalAddr = net.UDPAddrFromAddrPort(a)
		} else {
			d.LocalAddr = net.TCPAddrFromAddrPort(a)
		}
	}
	var c net.Conn
	err := n.Do(func() (err error) {
		c, err = d.Dial(network, remote)
		return err
	})
	if err == nil {
		n.t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(patience))
	}
	return c, err
}

func sockopts(transparent bool, mark int) func(network, address string, c syscall.RawConn) error {
	return func(network, _ string, c syscall.RawConn) error {
		var errs []error
		err := c.Control(func(fd uintptr) {
			errs = append(errs, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
			if transparent && strings.HasSuffix(network, "4") {
				errs = append(errs, unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1))
			} else if transparent {
				errs = append(errs, unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1))
			}
			if mark != 0 {
				errs = append(errs, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark))
			}
		})
		return errors.Join(append(errs, err)...)
	}
}

// ask sends a line and returns what comes back first.
func ask(c net.Conn, text string) (string, error) {
	if _, err := c.Write([]byte(text)); err != nil {
		return "", err
	}
	buf := make([]byte, 65536)
	k, err := c.Read(buf)
	return string(buf[:k]), err
}

// firstLine reads what a service that speaks first says.
func firstLine(t testing.TB, c net.Conn) string {
	t.Helper()
	buf := make([]byte, 256)
	k, err := c.Read(buf)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	return strings.TrimSpace(string(buf[:k]))
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("timed out waiting until %s", what)
}
