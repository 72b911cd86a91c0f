// Package netnstest gives tests of kernel objects a world of their own: the test
// binary runs in fresh mount and network namespaces, so that names below
// /run/netns and interfaces meet nobody else's, and a local network in further
// namespaces, built and looked at with ip(8) only.
package netnstest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"decoynet/internal/kernel/netns"
)

// isolated marks, in the environment, the process that has its own namespaces.
const isolated = "NETNSTEST_ISOLATED"

// Main runs a package's tests in fresh namespaces and fails if they leak
// goroutines, descriptors or named network namespaces. Without root the tests
// that need none still run; the others fail and say why.
func Main(m *testing.M) {
	switch {
	case os.Geteuid() != 0:
		os.Exit(m.Run())
	case os.Getenv(isolated) == "":
		os.Exit(runIsolated())
	}
	if err := ownRun(); err != nil {
		fmt.Fprintln(os.Stderr, "netnstest:", err)
		os.Exit(1)
	}
	before := descriptors()
	code := m.Run()
	if code == 0 {
		if err := leaks(before); err != nil {
			fmt.Fprintln(os.Stderr, "netnstest:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// runIsolated runs this test binary again, as a child with namespaces of its own.
func runIsolated() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), isolated+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
	}
	runtime.LockOSThread() // Pdeathsig is sent when the thread that forked ends
	// The terminal, or `go test` at its time limit, signals the child as well.
	signal.Ignore(os.Interrupt, syscall.SIGQUIT)
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return max(exit.ExitCode(), 1)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "netnstest: start in fresh namespaces:", err)
		return 1
	}
	return 0
}

// ownRun gives the process an empty /run that nobody else sees.
func ownRun() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("none", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount an empty /run: %w", err)
	}
	return nil
}

func leaks(before map[string]string) error {
	var errs []error
	if err := goleak.Find(); err != nil {
		errs = append(errs, err)
	}
	for fd, target := range descriptors() {
		// The runtime's own (epoll, eventfd) may come at any time.
		if _, ok := before[fd]; !ok && !strings.HasPrefix(target, "anon_inode:") {
			errs = append(errs, fmt.Errorf("descriptor %s is left open: %s", fd, target))
		}
	}
	names, err := netns.List("")
	if err != nil {
		errs = append(errs, err)
	}
	for _, name := range names {
		errs = append(errs, fmt.Errorf("network namespace %s is left", name))
	}
	return errors.Join(errs...)
}

func descriptors() map[string]string {
	const dir = "/proc/self/fd"
	out := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return out
	}
	for _, e := range entries {
		if target, err := os.Readlink(dir + "/" + e.Name()); err == nil {
			out[e.Name()] = target
		}
	}
	return out
}

var serial atomic.Int64

// New makes a network namespace for the time of the test.
func New(t testing.TB, label string) *netns.NS {
	t.Helper()
	return Named(t, fmt.Sprintf("t%d-%d-%s", os.Getpid(), serial.Add(1), label))
}

// Named makes a network namespace of that name for the time of the test.
func Named(t testing.TB, name string) *netns.NS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: makes network namespaces")
	}
	ns, _, err := netns.Ensure(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(ns.Close(), netns.Delete(name)); err != nil {
			t.Error(err)
		}
	})
	return ns
}

// Try runs a command inside the namespace, for 20 seconds at most, and returns
// what it printed.
func Try(t testing.TB, ns *netns.NS, args ...string) (string, error) {
	t.Helper()
	cmd, cancel := Command(t, ns, args...)
	defer cancel()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Command prepares a command inside the namespace, killed after 20 seconds.
func Command(t testing.TB, ns *netns.NS, args ...string) (*exec.Cmd, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", ns.Name()}, args...)...)
	cmd.WaitDelay = time.Second
	return cmd, cancel
}

// Run is Try for commands that must succeed.
func Run(t testing.TB, ns *netns.NS, args ...string) string {
	t.Helper()
	out, err := Try(t, ns, args...)
	if err != nil {
		t.Fatalf("%s: %s: %v\n%s", ns, strings.Join(args, " "), err, out)
	}
	return out
}

// IP runs ip(8) with the words of the line inside the namespace.
func IP(t testing.TB, ns *netns.NS, line string) string {
	t.Helper()
	return Run(t, ns, append([]string{"ip"}, strings.Fields(line)...)...)
}

// LAN is a local network: a bridge with two ports, eth0 of a host that decoys
// are to live on and eth0 of an intruder.
type LAN struct {
	Host, Intruder, Wire *netns.NS
}

// Addresses on a LAN.
const (
	HostAddr4     = "192.0.2.10"
	HostAddr6     = "2001:db8::10"
	IntruderAddr4 = "192.0.2.66"
	IntruderAddr6 = "2001:db8::66"
)

// NewLAN builds a LAN with the subnets 192.0.2.0/24 and 2001:db8::/64.
func NewLAN(t testing.TB) *LAN {
	t.Helper()
	l := &LAN{Host: New(t, "host"), Intruder: New(t, "intruder"), Wire: New(t, "wire")}
	IP(t, l.Wire, "link add br0 type bridge mcast_snooping 0")
	IP(t, l.Wire, "link set br0 up")
	for _, end := range []struct {
		ns     *netns.NS
		v4, v6 string
		port   string
	}{
		{l.Host, HostAddr4, HostAddr6, "host"},
		{l.Intruder, IntruderAddr4, IntruderAddr6, "intruder"},
	} {
		IP(t, l.Wire, "link add "+end.port+" type veth peer name eth0 netns "+end.ns.Name())
		IP(t, l.Wire, "link set "+end.port+" up master br0")
		IP(t, end.ns, "link set lo up")
		IP(t, end.ns, "link set eth0 up")
		IP(t, end.ns, "addr add "+end.v4+"/24 dev eth0")
		IP(t, end.ns, "addr add "+end.v6+"/64 dev eth0 nodad")
	}
	// A bridge port forwards once the kernel has seen its carrier, up to a second
	// after the link was made.
	for _, addr := range []string{HostAddr4, HostAddr6} {
		Eventually(t, "the intruder reaches "+addr, func() bool {
			_, err := Try(t, l.Intruder, "ping", "-n", "-c", "1", "-W", "1", addr)
			return err == nil
		})
	}
	return l
}

// Eventually waits until the condition holds, for five seconds at most.
func Eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 5 s: %s", what)
		}
	}
}

// Exists tells whether there is a named namespace.
func Exists(name string) bool {
	_, err := os.Lstat(netns.RunDir + "/" + name)
	return !errors.Is(err, fs.ErrNotExist)
}
