package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Machine is a host of the lab. Made by InSegment, it is a view of a machine
// that stands in one of the machine's further network namespaces.
type Machine struct {
	lab     *Lab
	name    string
	segment string // name below the machine's /run/netns, "" for the machine itself

	pid    int       // of the process that holds the namespaces
	holder *exec.Cmd // nil where another process started it, or none was started
	gone   chan struct{}
	netns  *os.File
	links  *netlink.Handle // in the machine's network namespace
}

// Machine makes a host: loopback up, no other interface, nothing running.
func (l *Lab) Machine(name string) *Machine {
	m := &Machine{lab: l, name: name}
	if l.attached {
		l.fail(fmt.Errorf("machine %s: an attached lab cannot be built further", name))
	}
	if l.Err() != nil {
		return m
	}
	if err := m.boot(); err != nil {
		if errors.Is(err, unix.EPERM) {
			err = errors.Join(err, ErrPrivilege)
		}
		l.fail(fmt.Errorf("make machine %s: %w", name, err))
	}
	return m
}

func (m *Machine) boot() error {
	if !nameRule.MatchString(m.name) {
		return errors.New("bad name: lower-case letters, digits and hyphens, at most 32")
	}
	if _, ok := m.lab.Lookup(m.name); ok {
		return errors.New("the name is taken")
	}
	if err := os.Mkdir(m.Dir(), 0o755); err != nil {
		return err
	}
	if err := onSpentThread(m.enter); err != nil {
		return err
	}
	m.lab.mu.Lock()
	m.lab.machines = append(m.lab.machines, m) // from here on letGo tidies up
	m.lab.mu.Unlock()
	if err := m.grasp(); err != nil {
		return err
	}
	// Loopback is always the first interface of a namespace.
	lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}}
	if err := m.links.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	return nil
}

// The holder does nothing but wait for the owner's end. What follows the script
// is for Attach and for people who read ps.
const (
	holderScript = `while read _; do :; done`
	holderName   = "decoynet-lab-machine"
)

// enter leaves the calling thread's namespaces for new ones and starts the
// process that holds them.
func (m *Machine) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("unshare namespaces: %w", err)
	}
	if err := unix.Sethostname([]byte(m.name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := furnish(mark(m.lab.name, m.name)); err != nil {
		return err
	}
	cmd := exec.Command("/bin/sh", "-c", holderScript, holderName,
		m.lab.name, m.name, strconv.Itoa(os.Getpid()), m.lab.dir, strconv.Itoa(m.lab.next()))
	cmd.Dir = "/"
	cmd.Stdin = m.lab.reins
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the holder: %w", err)
	}
	m.holder, m.pid, m.gone = cmd, cmd.Process.Pid, make(chan struct{})
	go func() {
		// It ends by our signal or with us; the status says nothing.
		_ = cmd.Wait()
		close(m.gone)
	}()
	return nil
}

// furnish gives a new mount namespace what makes a machine of it.
func furnish(source string) error {
	type mount struct {
		source, target, kind, data string
		flags                      uintptr
	}
	for _, f := range []mount{
		// Nothing that is mounted here may travel to the host, whose root is
		// shared under systemd. What the host unmounts must go here too, or the
		// machine would keep it alive (other people's namespaces in /run/netns).
		{target: "/", flags: unix.MS_REC | unix.MS_SLAVE},
		{source, "/run", "tmpfs", "mode=755,size=256m", unix.MS_NOSUID | unix.MS_NODEV},
		// sysfs shows the network devices of the namespace it is mounted in.
		{"sysfs", "/sys", "sysfs", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"bpf", "/sys/fs/bpf", "bpf", "mode=700", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	} {
		err := unix.Mount(f.source, f.target, f.kind, f.flags, f.data)
		if f.kind == "bpf" && (errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT)) {
			continue // a kernel without eBPF
		}
		if err != nil {
			return fmt.Errorf("mount %s on %s: %w", f.kind, f.target, err)
		}
	}
	// lock is where iptables keeps its lock, sshd where sshd locks itself in.
	for _, dir := range []string{"/run/netns", "/run/lock", "/run/sshd"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("furnish /run: %w", err)
		}
	}
	return nil
}

// grasp opens the namespace of a machine whose holder runs.
func (m *Machine) grasp() error {
	var err error
	if m.netns, err = m.openNetns(); err != nil {
		return err
	}
	m.links, err = netlink.NewHandleAt(netns.NsHandle(m.netns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in %s: %w", m.name, err)
	}
	return nil
}

// letGo ends the holder, where it is ours, and closes what grasp opened.
func (m *Machine) letGo(ctx context.Context) error {
	var errs []error
	if m.links != nil {
		m.links.Close()
	}
	if m.netns != nil {
		errs = append(errs, m.netns.Close())
	}
	if m.holder != nil {
		// The sweep has killed it; this is for the pid not to be a zombie.
		select {
		case <-m.gone:
		case <-ctx.Done():
			errs = append(errs, fmt.Errorf("holder %d of %s did not end", m.pid, m.name))
		}
	}
	return errors.Join(errs...)
}

// usable returns why nothing can be run in the machine, if so.
func (m *Machine) usable() error {
	if err := m.lab.Err(); err != nil {
		return err
	}
	if m.pid == 0 {
		return fmt.Errorf("machine %s was not made", m.name)
	}
	return nil
}

// build runs one building step unless an earlier one failed.
func (m *Machine) build(what string, step func() error) {
	if m.usable() != nil {
		return
	}
	if m.segment != "" {
		m.lab.fail(fmt.Errorf("%s: %s: a segment's interfaces are its maker's", m, what))
		return
	}
	if err := step(); err != nil {
		m.lab.fail(fmt.Errorf("%s: %s: %w", m, what, err))
	}
}

// Name returns the machine's name, which is also its host name.
func (m *Machine) Name() string { return m.name }

// Lab returns the lab that the machine is part of.
func (m *Machine) Lab() *Lab { return m.lab }

// String returns the machine's name, and the segment where it is a view of one.
func (m *Machine) String() string {
	if m.segment != "" {
		return m.name + "/" + m.segment
	}
	return m.name
}

// PID returns the process that holds the machine's namespaces, for
// `nsenter -t PID -n -m` and for moving links by process.
func (m *Machine) PID() int { return m.pid }

// Dir returns the machine's directory on the host, in which its logs are.
func (m *Machine) Dir() string { return filepath.Join(m.lab.dir, m.name) }

// Sysctl sets a kernel parameter in the machine's network namespace. The key is
// written as for sysctl(8), with slashes where a name in it has a dot
// (net/ipv4/conf/eth0.110/rp_filter).
func (m *Machine) Sysctl(key, value string) {
	err := m.Do(func() error { return os.WriteFile(sysctlPath(key), []byte(value), 0) })
	if err != nil {
		m.lab.fail(fmt.Errorf("%s: set sysctl: %w", m, err))
	}
}

func sysctlPath(key string) string {
	if !strings.Contains(key, "/") {
		key = strings.ReplaceAll(key, ".", "/")
	}
	return filepath.Join("/proc/sys", key)
}

// Forward makes a router of the machine, for both families.
func (m *Machine) Forward() {
	m.Sysctl("net.ipv4.ip_forward", "1")
	m.Sysctl("net.ipv6.conf.all.forwarding", "1")
}

// InSegment returns a view of the machine in a network namespace that it has
// made itself and that has a name below its /run/netns: what is run, dialed or
// shown through the view happens there. The namespace is looked up at each use
// and need not exist yet.
func (m *Machine) InSegment(name string) *Machine {
	view := *m
	view.segment = name
	view.holder, view.netns, view.links = nil, nil, nil
	return &view
}

// ShowNetns lets the machine see another's network namespace under a name below
// its /run/netns, as a host sees those of its containers.
func (m *Machine) ShowNetns(name string, other *Machine) {
	m.build("show namespace "+name, func() error {
		if name == "" || strings.ContainsRune(name, '/') {
			return fmt.Errorf("bad namespace name %q", name)
		}
		return m.inside(func() error {
			target := "/run/netns/" + name
			if err := os.WriteFile(target, nil, 0o444); err != nil {
				return err
			}
			return unix.Mount(other.NetnsPath(), target, "", unix.MS_BIND, "")
		})
	})
}

// inside runs fn in all of the machine's namespaces.
func (m *Machine) inside(fn func() error) error {
	return onSpentThread(func() error {
		// The kernel lets only a thread change its mount namespace that does
		// not share its root and working directory with others.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare the file system view: %w", err)
		}
		pidfd, err := unix.PidfdOpen(m.pid, 0)
		if err != nil {
			return fmt.Errorf("open the holder of %s: %w", m.name, err)
		}
		err = unix.Setns(pidfd, unix.CLONE_NEWNS|unix.CLONE_NEWNET|unix.CLONE_NEWUTS)
		if err := errors.Join(err, unix.Close(pidfd)); err != nil {
			return fmt.Errorf("enter %s: %w", m.name, err)
		}
		return fn()
	})
}
