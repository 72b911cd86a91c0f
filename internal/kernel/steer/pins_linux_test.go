package steer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
)

// allDescriptors counts every descriptor of this process.
func allDescriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// pinNames lists what this process has pinned.
func pinNames(t testing.TB) []string {
	t.Helper()
	if err := pins.hold(); err != nil {
		t.Fatal(err)
	}
	defer pins.drop()
	entries, err := os.ReadDir("/proc/self/fd/" + strconv.Itoa(pins.fd))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".debug") { // the kernel's own, with CONFIG_BPF_PRELOAD
			names = append(names, e.Name())
		}
	}
	return names
}

// Hundreds of segments are steered by two descriptors each.
func TestTwoDescriptorsASegment(t *testing.T) {
	eachMode(t, func(t *testing.T, mode deception.Steering) {
		const segments = 64
		lans := []*lan{newLAN(t), newLAN(t)} // to dial in
		before := allDescriptors(t)
		var steerings []*Steering
		for i := range segments {
			ns := Namespace(nil)
			if i < len(lans) {
				ns = lans[i].decoys
			} else {
				scratch, err := newScratch()
				if err != nil {
					t.Fatal(err)
				}
				ns = scratch
			}
			s, err := Open(ns, Config{Mode: mode})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if i >= len(lans) {
				unix.Close(ns.FD()) // from here on the sockets keep it
			}
			apply(t, s, group(1, "192.0.2.100 2001:db8::d:1 80 53/udp"))
			steerings = append(steerings, s)
		}
		if n := allDescriptors(t) - before; n > 2*segments+1 {
			t.Errorf("%d descriptors for %d segments", n, segments)
		}
		for i, s := range steerings {
			apply(t, s, group(1, "192.0.2.100 2001:db8::d:1 81"), group(2, fmt.Sprintf("198.18.0.%d 22", i)))
		}
		for i, l := range lans {
			for _, to := range []string{"192.0.2.100:81", "[2001:db8::d:1]:81", fmt.Sprintf("198.18.0.%d:22", i)} {
				if !isOpen(t, l.intruder, netip.MustParseAddrPort(to)) {
					t.Errorf("segment %d: %s is refused", i, to)
				}
			}
			refused(t, l.intruder, "tcp", "192.0.2.100:80")
		}
		if n := allDescriptors(t) - before; n > 2*segments+1 {
			t.Errorf("%d descriptors for %d segments after changes", n, segments)
		}
		for i, s := range steerings {
			if names := pinNames(t); mode == deception.SteeringSKLookup && len(names) != 3*(segments-i) {
				t.Fatalf("%d segments, pinned: %v", segments-i, names)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if n := allDescriptors(t) - before; n != 0 {
			t.Errorf("%d descriptors are left", n)
		}
	})
}

// steeredNamespaceEnv makes the test binary the process that
// TestSteeringEndsWithProcess kills.
const steeredNamespaceEnv = "STEER_TEST_STEERED_NAMESPACE"

func steerUntilKilled(path string) int {
	err := func() error {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		s, err := Open(&scratch{fd}, Config{Mode: deception.SteeringSKLookup})
		if err != nil {
			return err
		}
		if _, err := s.Apply(context.Background(), []Group{group(1, "192.0.2.100 2001:db8::d:1 80")}); err != nil {
			return err
		}
		if s.backend.(*skLookup).held != nil {
			return errors.New("nothing is pinned")
		}
		fmt.Println("steered")
		time.Sleep(time.Minute)
		return errors.New("nobody killed this process")
	}()
	fmt.Println(err)
	return 1
}

// What is pinned ends with the process, also where it is killed.
func TestSteeringEndsWithProcess(t *testing.T) {
	l := newLAN(t)
	cmd := execSelf(t)
	cmd.Env = append(os.Environ(), steeredNamespaceEnv+"=/run/netns/"+l.decoys.name)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	to := netip.MustParseAddrPort("192.0.2.100:80")
	ours := l.decoys.linkLine(t)
	if line != "steered\n" || !isOpen(t, l.intruder, to) || !strings.Contains(run(t, "bpftool", "link", "list"), ours) {
		t.Errorf("the process said %q; port open: %v", line, isOpen(t, l.intruder, to))
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	waitFor(t, "end of the BPF link", func() bool { return !strings.Contains(run(t, "bpftool", "link", "list"), ours) })
	refused(t, l.intruder, "tcp", "192.0.2.100:80")
	refused(t, l.intruder, "tcp", "[2001:db8::d:1]:80")
}

// linkLine is how bpftool shows that a link hangs on the namespace.
func (n *namespace) linkLine(t testing.TB) string {
	t.Helper()
	var inode unix.Stat_t
	if err := unix.Fstat(n.fd, &inode); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("netns_ino %d ", inode.Ino)
}

// Where nothing can be pinned, descriptors keep the program.
func TestWithoutPins(t *testing.T) {
	usual := mountPins
	mountPins = func() (int, error) { return -1, unix.ENOSYS }
	defer func() { mountPins = usual }()
	l := newLAN(t)
	s := l.steer(t, Config{Mode: deception.SteeringSKLookup})
	serve(t, s)
	if s.backend.(*skLookup).held == nil {
		t.Fatal("something is pinned")
	}
	apply(t, s, group(1, "192.0.2.100 80"))
	connect(t, l.intruder, "192.0.2.100:80").echo("hello")
	apply(t, s, wideGroups()...)
	connect(t, l.intruder, "198.18.0.2:65535").echo("hello")
	refused(t, l.intruder, "tcp", "192.0.2.100:80")
}

// wideGroups take more of the port table than it has at first.
func wideGroups() []Group {
	var groups []Group
	for i := range uint32(5) {
		groups = append(groups, group(100+i, fmt.Sprintf("198.18.0.%d 1-65535", i)))
	}
	return groups
}

// The port table grows under way: what is open stays so at every moment.
func TestPortTableGrows(t *testing.T) {
	l := newLAN(t)
	s := l.steer(t, Config{Mode: deception.SteeringSKLookup})
	serve(t, s)
	web := group(1, "192.0.2.100 2001:db8::d:1 80")
	apply(t, s, web)
	small := s.backend.(*skLookup).room
	done := make(chan error, 1)
	go func() {
		_, err := s.Apply(context.Background(), append(wideGroups(), web))
		done <- err
	}()
	for applied := false; !applied; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			applied = true
		default:
		}
		if !isOpen(t, l.intruder, netip.MustParseAddrPort("192.0.2.100:80")) {
			t.Error("refused while the table grew")
		}
	}
	if room := s.backend.(*skLookup).room; small != firstRoom || room < 5*128 {
		t.Errorf("room for %d entries at first, then %d", small, room)
	}
	for _, to := range []string{"198.18.0.0:1", "198.18.0.4:65535", "192.0.2.100:80", "[2001:db8::d:1]:80"} {
		connect(t, l.intruder, to)
	}
	apply(t, s, web)
	connect(t, l.intruder, "192.0.2.100:80")
	refused(t, l.intruder, "tcp", "198.18.0.0:1")
	if names := strings.Join(pinNames(t), " "); strings.Count(names, "ports") != 1 {
		t.Errorf("pinned: %s", names)
	}
}

func TestNamespace(t *testing.T) {
	eachMode(t, func(t *testing.T, mode deception.Steering) {
		ns := newNamespace(t)
		s, err := Open(ns, Config{Mode: mode})
		if err != nil {
			t.Fatal(err)
		}
		fd, err := s.Namespace()
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if is, shall := (&namespace{scratch: scratch{fd}}).linkLine(t), ns.linkLine(t); is != shall {
			t.Errorf("the namespace is %s, want %s", is, shall)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Namespace(); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}
