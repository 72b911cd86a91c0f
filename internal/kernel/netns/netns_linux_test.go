package netns_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/netns/netnstest"
)

// ip runs ip(8) in the test's own namespace.
func ip(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestEnsureIsWhatIproute2Makes(t *testing.T) {
	name := "ensure-test"
	ns, created, err := netns.Ensure(name)
	if err != nil || !created {
		t.Fatalf("Ensure = created %v, %v", created, err)
	}
	defer netns.Delete(name)
	defer ns.Close()

	if out := ip(t, "netns", "list"); !strings.Contains(out, name) {
		t.Errorf("ip netns list does not show it:\n%s", out)
	}
	if out := ip(t, "netns", "exec", name, "ip", "-br", "link"); len(strings.Fields(out)) == 0 || strings.Fields(out)[0] != "lo" {
		t.Errorf("a fresh namespace holds just lo, got:\n%s", out)
	}
	// A shared mount, or deleted namespaces live on inside `ip netns exec`.
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	shared := slices.ContainsFunc(strings.Split(string(mounts), "\n"), func(line string) bool {
		f := strings.Fields(line)
		return len(f) > 6 && f[4] == netns.RunDir && strings.Contains(line, " shared:")
	})
	if !shared {
		t.Errorf("%s is not a shared mount:\n%s", netns.RunDir, mounts)
	}

	again, created, err := netns.Ensure(name)
	if err != nil || created {
		t.Fatalf("second Ensure = created %v, %v", created, err)
	}
	defer again.Close()
	if same, err := ns.Same(again); err != nil || !same {
		t.Errorf("second Ensure opened another namespace (%v)", err)
	}
}

func TestEnsureConcurrently(t *testing.T) {
	const name = "ensure-race"
	defer netns.Delete(name)
	var wg sync.WaitGroup
	created := make(chan bool, 8)
	for range cap(created) {
		wg.Go(func() {
			ns, c, err := netns.Ensure(name)
			if err != nil {
				t.Error(err)
				return
			}
			ns.Close()
			created <- c
		})
	}
	wg.Wait()
	close(created)
	n := 0
	for c := range created {
		if c {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d callers made the namespace, want 1", n)
	}
	if mounts, _ := os.ReadFile("/proc/self/mounts"); strings.Count(string(mounts), netns.RunDir+"/"+name+" ") != 1 {
		t.Errorf("not mounted exactly once:\n%s", mounts)
	}
}

func TestEnsureReplacesLostMount(t *testing.T) {
	const name = "ensure-stale"
	netnstest.New(t, "first") // makes RunDir
	path := filepath.Join(netns.RunDir, name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	defer netns.Delete(name)
	if _, err := netns.Open(name); !errors.Is(err, netns.ErrNotNamespace) {
		t.Fatalf("Open of a plain file = %v, want ErrNotNamespace", err)
	}
	ns, created, err := netns.Ensure(name)
	if err != nil || !created {
		t.Fatalf("Ensure = created %v, %v", created, err)
	}
	ns.Close()
	ip(t, "netns", "exec", name, "true")
}

func TestOpen(t *testing.T) {
	ip(t, "netns", "add", "foreign")
	defer ip(t, "netns", "delete", "foreign")
	for _, how := range []string{"foreign", "/run/netns/foreign"} {
		ns, err := netns.Open(how)
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		if ns.Name() != how {
			t.Errorf("Name = %q, want %q", ns.Name(), how)
		}
	}
	if _, err := netns.Open("nosuch"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open(nosuch) = %v, want fs.ErrNotExist", err)
	}
	if _, err := netns.Open("/proc/self/ns/mnt"); !errors.Is(err, netns.ErrNotNamespace) {
		t.Errorf("Open of a mount namespace = %v, want ErrNotNamespace", err)
	}
	for _, bad := range []string{"", ".", ".."} {
		if _, err := netns.Open(bad); err == nil {
			t.Errorf("Open(%q) succeeded", bad)
		}
	}
	for _, bad := range []string{"", "..", "a/b", strings.Repeat("x", 256)} {
		if _, _, err := netns.Ensure(bad); err == nil {
			t.Errorf("Ensure(%q) succeeded", bad)
		}
		if err := netns.Delete(bad); err == nil {
			t.Errorf("Delete(%q) succeeded", bad)
		}
	}
}

func TestListAndDelete(t *testing.T) {
	for _, name := range []string{"lst-b", "lst-a", "other-c"} {
		netnstest.Named(t, name)
	}
	got, err := netns.List("lst-")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"lst-a", "lst-b"}, got); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
	for range 2 { // the second time there is nothing to delete
		if err := netns.Delete("lst-a"); err != nil {
			t.Fatal(err)
		}
	}
	if out := ip(t, "netns", "list"); strings.Contains(out, "lst-a") || !strings.Contains(out, "lst-b") {
		t.Errorf("ip netns list after the deletion:\n%s", out)
	}
}

// A namespace that is deleted while a mount of it lies above another.
func TestDeleteStackedMounts(t *testing.T) {
	netnstest.Named(t, "stacked")
	path := filepath.Join(netns.RunDir, "stacked")
	if err := unix.Mount("/proc/self/ns/net", path, "none", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := netns.Delete("stacked"); err != nil {
		t.Fatal(err)
	}
	if netnstest.Exists("stacked") {
		t.Error("the name is still there")
	}
}

func TestDoRunsInsideAndComesBack(t *testing.T) {
	ns := netnstest.New(t, "do")
	home := inode(t, "/proc/self/ns/net")
	want := inode(t, filepath.Join(netns.RunDir, ns.Name()))

	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			err := ns.Do(func() error {
				for range 20 {
					runtime.Gosched()
					if got := inode(t, "/proc/thread-self/ns/net"); got != want {
						t.Errorf("inside: namespace %d, want %d", got, want)
					}
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || len(tasks) == 0 {
		t.Fatalf("no threads: %v", err)
	}
	for _, task := range tasks {
		var st unix.Stat_t
		if err := unix.Stat(task, &st); err == nil && st.Ino != home {
			t.Errorf("%s was left in namespace %d", task, st.Ino)
		}
	}
}

func TestDoPassesErrorsPanicsAndGoexit(t *testing.T) {
	ns := netnstest.New(t, "do")
	if err := ns.Do(func() error { return fs.ErrInvalid }); err != fs.ErrInvalid {
		t.Errorf("error came as %v", err)
	}
	func() {
		defer func() {
			if r := recover(); r != "boom" {
				t.Errorf("panic came as %v", r)
			}
		}()
		ns.Do(func() error { panic("boom") })
	}()
	left := make(chan bool, 1)
	go func() {
		defer func() { left <- true }()
		ns.Do(func() error { runtime.Goexit(); return nil })
		left <- false
	}()
	select {
	case ok := <-left:
		if !ok {
			t.Error("Do returned though fn did not")
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Do hangs when fn calls Goexit")
	}
}

// A thread that cannot be put back must end rather than serve other goroutines.
func TestDoEndsThreadThatCannotReturn(t *testing.T) {
	ns := netnstest.New(t, "do")
	var tid int
	err := ns.Do(func() error {
		tid = unix.Gettid()
		// Without CAP_SYS_ADMIN (a thread's own, by capset) setns fails.
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		return unix.Capset(&hdr, &none[0])
	})
	if err != nil {
		t.Fatal(err)
	}
	if tid == os.Getpid() {
		return // the main thread is parked, not ended
	}
	netnstest.Eventually(t, "the thread ends", func() bool {
		_, err := os.Stat(filepath.Join("/proc/self/task", strconv.Itoa(tid)))
		return errors.Is(err, fs.ErrNotExist)
	})
}

func TestHandleAndSocketBelongToTheNamespace(t *testing.T) {
	ns := netnstest.New(t, "handle")
	netnstest.IP(t, ns, "link add marker type veth peer name rekram")
	h, err := ns.Handle()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.LinkByName("marker"); err != nil {
		t.Errorf("handle does not see the link: %v", err)
	}
	if again, err := ns.Handle(); err != nil || again != h {
		t.Errorf("handle is not cached (%v)", err)
	}
	fd, err := ns.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "marker"); err != nil {
		t.Errorf("socket is not inside: %v", err)
	}
}

func TestCloseLetsTheNamespaceGo(t *testing.T) {
	ns := netnstest.New(t, "close")
	netnstest.IP(t, ns, "link set lo up")
	if _, err := ns.Handle(); err != nil {
		t.Fatal(err)
	}
	// A veth end outside dies with its peer inside, and so tells when.
	ip(t, "link", "add", "canary", "type", "veth", "peer", "name", "c0", "netns", ns.Name())
	if err := errors.Join(ns.Close(), ns.Close()); err != nil {
		t.Fatal(err)
	}
	if ns.FD() != -1 {
		t.Error("FD after Close")
	}
	for what, err := range map[string]error{
		"Do":     ns.Do(func() error { return nil }),
		"Sysctl": ns.Sysctl(map[string]string{"net.ipv4.ip_forward": "1"}),
		"Handle": func() error { _, err := ns.Handle(); return err }(),
	} {
		if !errors.Is(err, netns.ErrClosed) {
			t.Errorf("%s after Close = %v, want ErrClosed", what, err)
		}
	}
	if err := netns.Delete(ns.Name()); err != nil {
		t.Fatal(err)
	}
	netnstest.Eventually(t, "the namespace is destroyed", func() bool {
		return exec.Command("ip", "link", "show", "canary").Run() != nil
	})
}

func TestSysctl(t *testing.T) {
	ns := netnstest.New(t, "sysctl")
	outside, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err != nil {
		t.Fatal(err)
	}
	err = ns.Sysctl(map[string]string{
		"net.ipv4.ip_forward":           "1",
		"net/ipv4/conf/lo/log_martians": "1",
	})
	if err != nil {
		t.Fatal(err)
	}
	if out := netnstest.Run(t, ns, "sysctl", "-n", "net.ipv4.ip_forward", "net.ipv4.conf.lo.log_martians"); out != "1\n1\n" {
		t.Errorf("sysctl(8) shows %q", out)
	}
	if now, _ := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); string(now) != string(outside) {
		t.Errorf("the namespace outside was changed to %q", now)
	}
	if v, err := ns.ReadSysctl("net.ipv4.ip_forward"); err != nil || v != "1" {
		t.Errorf("ReadSysctl = %q, %v", v, err)
	}
}

func TestSysctlErrorsNameTheKeyAndDoTheRest(t *testing.T) {
	ns := netnstest.New(t, "sysctl")
	err := ns.Sysctl(map[string]string{
		"net.ipv4.nosuch":            "1",
		"net.ipv4.ip_forward":        "1",
		"net.ipv4.conf.lo.rp_filter": "words",
		"kernel.hostname":            "x",
		"net/../kernel/hostname":     "x",
	})
	if !errors.Is(err, fs.ErrNotExist) || !errors.Is(err, unix.EINVAL) {
		t.Errorf("errors are %v", err)
	}
	for _, want := range []string{"net.ipv4.nosuch", "net.ipv4.conf.lo.rp_filter", "kernel.hostname", "net/../kernel/hostname", ns.Name()} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error does not name %s:\n%v", want, err)
		}
	}
	if out := netnstest.Run(t, ns, "sysctl", "-n", "net.ipv4.ip_forward"); out != "1\n" {
		t.Errorf("the good key was not set: %q", out)
	}
}
