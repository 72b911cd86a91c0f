package doctor_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"decoynet/internal/doctor"
	"decoynet/internal/lab/labtest"
	"decoynet/internal/relay"
)

func TestDescriptorLimit(t *testing.T) {
	t.Parallel()
	p := newPatient(t, relayed)
	low := "ulimit -n 2048;"
	found := p.must(p.findings(low, "-c", p.file), doctor.Problem, "limits", "descriptors")
	if !strings.Contains(found.What, "room for 512 relayed flows") {
		t.Errorf("found %q", found.What)
	}
	// Where this process may raise its limit again, as root mostly may, the
	// command does it in the same shell; otherwise another shell has to do.
	if _, err := p.try(p.Gateway, low+found.Fix); err == nil {
		low += found.Fix + ";"
	} else {
		low = ""
	}
	p.gone(p.findings(low, "-c", p.file), "limits", "descriptors")
}

// TestLeftovers kills decoynet: what it leaves is found and cleaned up.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	p := newPatient(t, kernel)
	p.up()
	if err := p.process.Kill(); err != nil {
		t.Fatal(err)
	}
	found := p.must(p.findings(""), doctor.Problem, "leftovers", "")
	if !strings.Contains(found.What, "network namespace decoynet-office; link dnv-") {
		t.Errorf("found %q", found.What)
	}
	p.run(p.Gateway, found.Fix)
	list := p.findings("")
	p.gone(list, "leftovers", "")
	p.healthy(list)

	// One of another segment, beside a decoynet that runs.
	p.run(p.Gateway, "ip netns add decoynet-old")
	p.up()
	found = p.must(p.findings(""), doctor.Problem, "leftovers", "")
	p.run(p.Gateway, found.Fix)
	p.gone(p.findings(""), "leftovers", "")
}

func TestAnotherDataDirectory(t *testing.T) {
	t.Parallel()
	p := newPatient(t, relayed)
	p.up()
	running := p.data
	p.data = filepath.Join(t.TempDir(), "other")
	list := p.findings("")
	note := p.must(list, doctor.Note, "running", "")
	p.gone(list, "leftovers", "")
	if want := "decoynet doctor --data " + running; note.Fix != want {
		t.Errorf("fix %q, want %q", note.Fix, want)
	}
}

// TestBrokenDocument edits the document of the decoynet that runs.
func TestBrokenDocument(t *testing.T) {
	t.Parallel()
	p := newPatient(t, relayed)
	p.up()
	p.document(strings.Replace(relayed, "parent", "parrot", 1))
	found := p.must(p.findings(""), doctor.Problem, "document", p.file)
	if _, err := p.try(p.Gateway, found.Fix); err == nil || !strings.Contains(err.Error(), "parent") {
		t.Errorf("%s does not say what is wrong: %v", found.Fix, err)
	}
	p.document(relayed)
	p.healthy(p.findings(""))
}

func TestDataDirectory(t *testing.T) {
	t.Parallel()
	p := newPatient(t, relayed)
	p.run(p.Gateway, "mkdir -p "+p.data+" && mount -t tmpfs -o ro none "+p.data)
	found := p.must(p.findings("", "-c", p.file), doctor.Problem, "data", p.data)
	if !strings.Contains(found.What, "read-only") {
		t.Errorf("found %q", found.What)
	}
	p.run(p.Gateway, found.Fix)
	list := p.findings("", "-c", p.file)
	p.healthy(list)
	p.must(list, doctor.Note, "data", p.data) // in memory

	p.run(p.Gateway, "mount -o remount,size=16m "+p.data)
	p.must(p.findings("", "-c", p.file), doctor.Problem, "data", p.data)
	p.run(p.Gateway, "umount "+p.data)

	check(t, os.WriteFile(filepath.Join(p.data, "decoynet.db"), []byte(strings.Repeat("no database ", 1000)), 0o600))
	found = p.must(p.findings("", "-c", p.file), doctor.Problem, "data", p.data)
	p.run(p.Gateway, found.Fix)
	list = p.findings("", "-c", p.file)
	p.gone(list, "data", p.data)
	p.healthy(list)
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestWildcardTakesPort shows on this kernel what the note about source ports
// says: a listener on all addresses takes its port from the relay at every
// address, one bound to an address of the host does not.
func TestWildcardTakesPort(t *testing.T) {
	t.Parallel()
	l := labtest.New(t)
	a := l.Machine("a")
	labtest.Built(t, l)
	intruder := netip.MustParseAddr("198.18.0.1")
	service := netip.MustParseAddrPort("127.0.0.1:9")
	for address, want := range map[string]error{"0.0.0.0:4444": unix.EADDRINUSE, "[::]:4445": unix.EADDRINUSE, "127.0.0.1:4446": nil} {
		listener, err := a.Listen(t.Context(), "tcp", address)
		check(t, err)
		defer listener.Close()
		source := netip.AddrPortFrom(intruder, netip.MustParseAddrPort(address).Port())
		err = a.Do(func() error {
			fd, err := relay.Dial(unix.SOCK_STREAM, source, service)
			if err == nil {
				unix.Close(fd)
			}
			return err
		})
		if !errors.Is(err, want) {
			t.Errorf("listener at %s: dial from %s: %v, want %v", address, source, err, want)
		}
	}
	packets, err := a.ListenPacket(t.Context(), "udp", "0.0.0.0:4447")
	check(t, err)
	defer packets.Close()
	err = a.Do(func() error {
		fd, err := relay.Dial(unix.SOCK_DGRAM, netip.AddrPortFrom(intruder, 4447), service)
		if err == nil {
			unix.Close(fd)
		}
		return err
	})
	if !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("UDP socket at 0.0.0.0:4447: dial from %s: %v", intruder, err)
	}
}

// TestWildcardListeners has the doctor name such ports.
func TestWildcardListeners(t *testing.T) {
	t.Parallel()
	p := newPatient(t, relayed)
	for _, at := range []string{"0.0.0.0:4444", "10.1.0.1:4445"} {
		listener, err := p.Gateway.Listen(t.Context(), "tcp", at)
		check(t, err)
		defer listener.Close()
	}
	packets, err := p.Gateway.ListenPacket(t.Context(), "udp", "0.0.0.0:4446")
	check(t, err)
	defer packets.Close()
	note := p.must(p.findings("", "-c", p.file), doctor.Note, "source ports", "")
	if want := "taken on all addresses by servers of this host: 4444,4446/udp"; note.What != want {
		t.Errorf("found %q, want %q", note.What, want)
	}
}

// TestKernelOnly runs it where there is nothing but a kernel.
func TestKernelOnly(t *testing.T) {
	t.Parallel()
	l := labtest.New(t)
	a := l.Machine("a")
	labtest.Built(t, l)
	p := &patient{t: t, data: filepath.Join(t.TempDir(), "data")}
	p.Gateway = a
	list := p.findings("")
	p.healthy(list)
	if !wellDone(list, "kernel") {
		t.Errorf("the kernel was not found well:\n%s", text(list))
	}
	// Without the capabilities it says so, and not much else.
	list = p.findings("setpriv --bounding-set=-net_admin,-sys_admin --inh-caps=-all ")
	if found := p.must(list, doctor.Problem, "capabilities", ""); found.What != "missing CAP_NET_ADMIN, CAP_SYS_ADMIN" {
		t.Errorf("found %q", found.What)
	}
	if n := doctor.Problems(list); n != 1 {
		t.Errorf("%d problems:\n%s", n, text(list))
	}
}

// TestWrongDocument is refused as `decoynet check` does.
func TestWrongDocument(t *testing.T) {
	t.Parallel()
	p := newPatient(t, "segments: 7\n")
	_, err := p.try(p.Gateway, "decoynet doctor -c "+p.file+"; echo $?")
	if err != nil {
		t.Fatal(err)
	}
	out, _ := p.try(p.Gateway, fmt.Sprintf("decoynet doctor -c %s 2>&1; echo $?", p.file))
	if !strings.HasSuffix(strings.TrimSpace(out), "\n2") || !strings.Contains(out, p.file+":1:") {
		t.Errorf("it said %q", out)
	}
}
