package lab_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"decoynet/internal/lab"
	"decoynet/internal/lab/labtest"

	"github.com/google/go-cmp/cmp"
)

// within bounds everything that a test waits for.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func run(t *testing.T, ctx context.Context, m *lab.Machine, name string, args ...string) string {
	t.Helper()
	out, err := m.Run(ctx, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestTwoMachines(t *testing.T) {
	ctx := within(t, 20*time.Second)
	began := time.Now()
	l := labtest.New(t)
	lan := l.Switch("lan")
	a, b := l.Machine("a"), l.Machine("b")
	a.Plug(lan, "eth0", "192.0.2.1/24", "2001:db8:2::1/64")
	b.Plug(lan, "eth0", "192.0.2.2/24", "2001:db8:2::2/64")
	labtest.Built(t, l)
	t.Logf("built in %v", time.Since(began))

	// The first packet gets through at once: no ARP retry, no tentative address.
	run(t, ctx, a, "ping", "-c1", "-W1", "192.0.2.2")
	run(t, ctx, a, "ping", "-c1", "-W1", "2001:db8:2::2")

	began = time.Now()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	t.Logf("closed in %v", time.Since(began))
	if _, err := a.Run(ctx, "true"); !errors.Is(err, lab.ErrClosed) {
		t.Errorf("run in a closed lab: %v", err)
	}
	if _, err := os.Stat(l.Dir()); !os.IsNotExist(err) {
		t.Errorf("the lab's directory is left: %v", err)
	}
}

func TestRoutedZone(t *testing.T) {
	ctx := within(t, 20*time.Second)
	l := labtest.New(t)
	lan := l.Switch("lan")
	intruder, gw, zone := l.Machine("intruder"), l.Machine("gw"), l.Machine("zone")
	intruder.Plug(lan, "eth0", "192.0.2.66/24", "2001:db8:2::66/64")
	intruder.Route("10.1.0.0/24", "192.0.2.5")
	intruder.Route("default", "2001:db8:2::5")
	gw.Plug(lan, "eth0", "192.0.2.5/24", "2001:db8:2::5/64")
	zone.Plug(gw.Bridge("br-linux", "10.1.0.1/24", "fd00:1::1/64"), "eth0", "10.1.0.2/24", "fd00:1::2/64")
	zone.Route("default", "10.1.0.1")
	zone.Route("default", "fd00:1::1")
	labtest.Built(t, l)

	// Not a router yet: this also shows that there is no other way.
	if _, err := intruder.Run(ctx, "ping", "-c1", "-W1", "10.1.0.2"); err == nil {
		t.Error("reached the zone through a host that does not forward")
	}
	gw.Forward()
	labtest.Built(t, l)
	for _, at := range []string{"10.1.0.2", "fd00:1::2"} {
		if out := run(t, ctx, intruder, "ping", "-c1", "-W2", at); !strings.Contains(out, "ttl=63") {
			t.Errorf("not through one router: %s", out)
		}
	}
}

func TestMachineIsItsOwn(t *testing.T) {
	ctx := within(t, 20*time.Second)
	l := labtest.New(t)
	lan := l.Switch("lan")
	a, b := l.Machine("a"), l.Machine("b")
	a.Plug(lan, "eth0")
	labtest.Built(t, l)

	run(t, ctx, a, "ip", "netns", "add", "decoynet-office")
	run(t, ctx, a, "sh", "-c", "mkdir /sys/fs/bpf/decoynet && echo secret > /run/secret")
	for _, path := range []string{"/run/netns/decoynet-office", "/sys/fs/bpf/decoynet", "/run/secret"} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("the host sees %s: %v", path, err)
		}
		if _, err := b.Run(ctx, "test", "-e", path); err == nil {
			t.Errorf("another machine sees %s", path)
		}
	}
	if text, err := os.ReadFile(a.Path("/run/secret")); string(text) != "secret\n" {
		t.Errorf("read through Path: %q, %v", text, err)
	}
	for _, c := range []struct{ what, want string }{
		{"hostname", "a\n"},
		{"ls /sys/class/net", "eth0\nlo\n"},
		{"pwd", must(os.Getwd()) + "\n"},
		{"echo $DECOYNET_LAB/$DECOYNET_LAB_MACHINE", l.Name() + "/a\n"},
	} {
		if got := run(t, ctx, a, "sh", "-c", c.what); got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
	host := must(os.Hostname())
	if host == "a" {
		t.Error("the host's name has changed")
	}
	b.ShowNetns("office-of-a", a)
	labtest.Built(t, l)
	if out := run(t, ctx, b, "ip", "netns", "exec", "office-of-a", "ls", "/sys/class/net"); out != "eth0\nlo\n" {
		t.Errorf("in the namespace shown: %q", out)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestSegmentOfAMachine(t *testing.T) {
	ctx := within(t, 20*time.Second)
	l := labtest.New(t)
	lan := l.Switch("lan")
	host, client := l.Machine("host"), l.Machine("client")
	host.Plug(lan, "eth0", "192.0.2.5/24")
	client.Plug(lan, "eth0", "192.0.2.66/24")
	labtest.Built(t, l)

	office := host.InSegment("decoynet-office")
	if _, err := office.Run(ctx, "true"); err == nil {
		t.Error("ran something in a segment that is not there")
	}
	if err := office.Do(func() error { return nil }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("entered a segment that is not there: %v", err)
	}
	// As decoynet builds a segment: a macvlan on the card, in a named namespace.
	run(t, ctx, host, "sh", "-ec", `ip netns add decoynet-office
		ip link add link eth0 name seg0 netns decoynet-office type macvlan mode bridge
		ip -n decoynet-office link set lo up
		ip -n decoynet-office link set seg0 up
		ip -n decoynet-office route add local 192.0.2.128/25 dev lo
		ip -n decoynet-office route add 192.0.2.0/24 dev seg0`)
	if got := run(t, ctx, office, "ls", "/sys/class/net"); got != "lo\nseg0\n" {
		t.Errorf("in the segment: %q", got)
	}
	listener, err := office.Listen(ctx, "tcp4", "0.0.0.0:80")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	local := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 66), Port: 4711}
	conn, err := client.DialFrom(ctx, "tcp", local, "192.0.2.200:80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	served, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer served.Close()
	if got := served.RemoteAddr().String(); got != "192.0.2.66:4711" {
		t.Errorf("peer %s", got)
	}
	host.InSegment("x").Plug(lan, "eth0")
	if l.Err() == nil {
		t.Error("plugged a card into a segment view")
	}
	wantCloseError(t, l)
}

// wantCloseError closes a lab in which a building call has failed on purpose.
func wantCloseError(t *testing.T, l *lab.Lab) {
	t.Helper()
	failure := l.Err()
	if err := l.Close(); failure == nil || err == nil || err.Error() != failure.Error() {
		t.Errorf("close: %v, want just %v", err, failure)
	}
}

func TestFirstFailureIsKept(t *testing.T) {
	ctx := within(t, 20*time.Second)
	for name, c := range map[string]struct {
		build func(l *lab.Lab, m *lab.Machine)
		want  string
	}{
		"twice":    {func(l *lab.Lab, _ *lab.Machine) { l.Machine("m") }, "make machine m: the name is taken"},
		"name":     {func(l *lab.Lab, _ *lab.Machine) { l.Machine("M x") }, "make machine M x: bad name"},
		"address":  {func(_ *lab.Lab, m *lab.Machine) { m.Bridge("br0", "192.0.2.1") }, `m: make bridge br0: bad address "192.0.2.1"`},
		"next hop": {func(_ *lab.Lab, m *lab.Machine) { m.Route("default", "192.0.2.1") }, "m: route default via 192.0.2.1: network is unreachable"},
		"card":     {func(_ *lab.Lab, m *lab.Machine) { m.Route("default", "eth9") }, "find eth9: Link not found"},
		"sysctl":   {func(_ *lab.Lab, m *lab.Machine) { m.Sysctl("net.ipv4.no_such", "1") }, "no such file or directory"},
	} {
		t.Run(name, func(t *testing.T) {
			l := must(lab.New(""))
			m := l.Machine("m")
			labtest.Built(t, l)
			c.build(l, m)
			if err := l.Err(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("failed with %v, want %s", err, c.want)
			}
			late := l.Machine("late")
			late.Plug(l.Switch("lan"), "eth0", "192.0.2.1/24")
			for _, m := range []*lab.Machine{m, late} {
				if _, err := m.Run(ctx, "true"); err == nil || err.Error() == "" || !strings.Contains(err.Error(), c.want) {
					t.Errorf("run after a failure: %v", err)
				}
			}
			wantCloseError(t, l)
		})
	}
}

func TestNames(t *testing.T) {
	if _, err := lab.New("no/such"); err == nil {
		t.Error("took a bad name")
	}
	name := fmt.Sprintf("named-%d", os.Getpid())
	l := must(lab.New(name))
	if _, err := lab.New(name); !errors.Is(err, lab.ErrExists) {
		t.Errorf("a second lab of one name: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	l, err := lab.New(name)
	if err != nil {
		t.Fatalf("open again: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

func TestWithoutPrivilege(t *testing.T) {
	cmd := other(t, "nobody")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if want := lab.ErrPrivilege.Error() + "\n"; err == nil || string(out) != want {
		t.Errorf("said %q (%v), want %q", out, err, want)
	}
}

func TestParallelLabs(t *testing.T) {
	for i := range 4 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			ctx := within(t, 30*time.Second)
			l := labtest.New(t)
			lan := l.Switch("lan")
			a, b := l.Machine("a"), l.Machine("b")
			a.Plug(lan, "eth0", "192.0.2.1/24")
			b.Plug(lan, "eth0", "192.0.2.2/24")
			labtest.Built(t, l)
			peer, err := lab.TCPPeer(ctx, b, lab.Listen{})
			if err != nil {
				t.Fatal(err)
			}
			// The same four-tuple in every lab, each with its own end.
			local := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 4711}
			conn, err := a.DialFrom(ctx, "tcp", local, "192.0.2.2:7")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			want := "peer 192.0.2.1 4711\n"
			got := make([]byte, len(want))
			if _, err := io.ReadFull(conn, got); string(got) != want {
				t.Errorf("read %q, %v", got, err)
			}
			if peers, err := peer.Peers(); len(peers) != 1 {
				t.Errorf("peers %v, %v", peers, err)
			}
		})
	}
}

func TestProcess(t *testing.T) {
	ctx := within(t, 30*time.Second)
	l := labtest.New(t)
	m := l.Machine("m")
	labtest.Built(t, l)

	p := must(m.Start("sh", "-c", "echo out; echo err >&2; exit 3"))
	var exit *exec.ExitError
	if err := p.Wait(ctx); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("waited: %v", err)
	}
	if diff := cmp.Diff("out\nerr\n", p.Log()); diff != "" {
		t.Error(diff)
	}
	if err := p.Stop(ctx); err == nil {
		t.Error("stopped a program that had failed, without a word")
	}

	p = must(m.Start("sleep", "3600"))
	if err := p.Stop(ctx); err != nil {
		t.Errorf("stop: %v", err)
	}

	// The program is the process itself, not a child of nsenter, but its own
	// children are not: Kill has to reach them.
	p = must(m.Start("sh", "-c", `trap "" TERM; sleep 3600 & echo $! $$; wait; sleep 3600`))
	var child int
	err := lab.Eventually(ctx, 5*time.Second, func() error {
		var self int
		if _, err := fmt.Sscan(p.Log(), &child, &self); err != nil {
			return err
		}
		if self != p.PID() {
			t.Errorf("process %d, by its own word %d", p.PID(), self)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if err := p.Stop(short); err == nil || !strings.Contains(err.Error(), "did not end on SIGTERM") {
		t.Errorf("stop what ignores it: %v", err)
	}
	err = lab.Eventually(ctx, 2*time.Second, func() error {
		if alive(child) {
			return errors.New("a child outlives Kill")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}

	if _, err := m.Start("no-such-program"); err != nil {
		t.Errorf("start: %v", err)
	}
	if _, err := m.Run(ctx, "sh", "-c", "echo why >&2; exit 1"); err == nil || !strings.HasSuffix(err.Error(), ": why") {
		t.Errorf("the error does not say why: %v", err)
	}
	brief, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := m.Run(brief, "sleep", "60"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("run past the deadline: %v", err)
	}
	cmd := m.Command(ctx, "cat")
	cmd.Stdin = strings.NewReader("through")
	if out, err := cmd.Output(); string(out) != "through" || err != nil {
		t.Errorf("command: %q, %v", out, err)
	}
}

// alive tells whether the process runs; a zombie does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := bytes.Cut(stat, []byte(") "))
	return !bytes.HasPrefix(rest, []byte("Z"))
}

func TestEventually(t *testing.T) {
	calls := 0
	err := lab.Eventually(t.Context(), time.Second, func() error {
		if calls++; calls < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	if err != nil || calls != 3 {
		t.Errorf("%d calls: %v", calls, err)
	}
	never := errors.New("never")
	began := time.Now()
	if err := lab.Eventually(t.Context(), 20*time.Millisecond, func() error { return never }); !errors.Is(err, never) {
		t.Errorf("gave up with %v", err)
	}
	if d := time.Since(began); d < 20*time.Millisecond || d > 2*time.Second {
		t.Errorf("gave up after %v", d)
	}
}
