package steer

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"decoynet/deception"
)

func TestProbe(t *testing.T) {
	got := Probe()
	if got.SKLookup != nil || got.TPROXY != nil || got.IPTables != nil || got.Best() != deception.SteeringSKLookup {
		t.Errorf("Probe: %+v, best %q; this kernel has all", got, got.Best())
	}
	s, err := Open(newNamespace(t), Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Mode() != deception.SteeringSKLookup {
		t.Errorf("auto took %s", s.Mode())
	}
	if _, err := Open(newNamespace(t), Config{Mode: "ipvs"}); err == nil {
		t.Error("an unknown mode was accepted")
	}
}

// A kernel booted without IPv6 gets IPv4 sockets.
func TestKernelWithoutIPv6(t *testing.T) {
	eachMode(t, func(t *testing.T, mode deception.Steering) {
		l := newLAN(t)
		s := &Steering{mode: mode, lim: defaultLimits, state: newState()}
		err := l.decoys.Do(func() (err error) {
			s.sockets, err = openFamily(unix.AF_INET, 2, 100)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if s.backend, err = openBackend(mode, s.sockets, s.lim); err != nil {
			t.Fatal(err)
		}
		v := serve(t, s)
		defer func() { v.halt(); s.Close() }()
		apply(t, s, group(1, "192.0.2.100 2001:db8::d:1 80 53/udp"))
		connect(t, l.intruder, "192.0.2.100:80").echo("hello")
		refused(t, l.intruder, "tcp", "[2001:db8::d:1]:80")
		conn, err := dial(l.intruder, "udp", "192.0.2.100:53")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "query")
		if d := v.datagram(t); d.to.String() != "192.0.2.100:53" || d.from.String() != conn.LocalAddr().String() {
			t.Errorf("a datagram from %s to %s", d.from, d.to)
		}
	})
}

// Root of a user namespace may write nftables rules but load no BPF program:
// there sk_lookup really cannot be had, and auto must take TPROXY.
func TestAutoFallsBack(t *testing.T) {
	cmd := execSelf(t)
	cmd.Env = append(os.Environ(), userNamespaceEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// inUserNamespace is the other half of TestAutoFallsBack.
func inUserNamespace() int {
	err := func() error {
		probe := Probe()
		if !errors.Is(probe.SKLookup, unix.EPERM) || errors.Is(probe.SKLookup, ErrNotSupported) {
			return fmt.Errorf("sk_lookup: %v, want: not permitted", probe.SKLookup)
		}
		if probe.TPROXY != nil || probe.Best() != deception.SteeringTPROXY {
			return fmt.Errorf("TPROXY: %v, best %q", probe.TPROXY, probe.Best())
		}
		ns, err := newScratch()
		if err != nil {
			return err
		}
		s, err := Open(ns, Config{Mode: deception.SteeringAuto})
		if err != nil {
			return err
		}
		if s.Mode() != deception.SteeringTPROXY {
			return fmt.Errorf("auto took %s", s.Mode())
		}
		_, err = Open(ns, Config{Mode: deception.SteeringSKLookup})
		if !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("forced sk_lookup: %v", err)
		}
		return s.Close()
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func TestNotSupported(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{
			explainTPROXY(fmt.Errorf("install: %w", unix.ENOENT)),
			"steering by tproxy needs Linux 4.19 with CONFIG_NF_TABLES_INET and CONFIG_NFT_TPROXY: install: no such file or directory",
		},
		{
			explainSKLookup(fmt.Errorf("load: %w", unix.ENOSYS)),
			"steering by sk_lookup needs Linux 5.9 with CONFIG_BPF_SYSCALL and CONFIG_NET_SOCK_MSG: load: function not implemented",
		},
	} {
		var typed *NotSupportedError
		if !errors.Is(c.err, ErrNotSupported) || !errors.As(c.err, &typed) || c.err.Error() != c.want {
			t.Errorf("got  %v\nwant %s", c.err, c.want)
		}
	}
	for _, err := range []error{explainTPROXY(unix.EPERM), explainSKLookup(unix.EPERM)} {
		if errors.Is(err, ErrNotSupported) {
			t.Errorf("%v taken for a missing feature", err)
		}
	}
}
