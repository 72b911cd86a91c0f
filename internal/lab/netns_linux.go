package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// onSpentThread runs fn on a thread of its own that ends with it: for changes
// that a thread cannot take back, such as leaving the mount namespace. The
// runtime starts no other thread from one that is locked, so nothing leaks.
func onSpentThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread is what /proc/PID shows of the process: with it
			// in a machine's mount namespace we would look like one of the
			// machine's processes. While it is locked here, the goroutine that
			// does the work runs elsewhere.
			defer runtime.UnlockOSThread()
			result <- onSpentThread(fn)
			return
		}
		result <- fn()
	}()
	return <-result
}

// inNetns runs fn on the calling goroutine with its thread in the network
// namespace, and brings the thread back.
func inNetns(ns *os.File, fn func() error) (err error) {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return errors.Join(fmt.Errorf("enter network namespace: %w", err), home.Close())
	}
	defer func() {
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
			// The thread stays locked and so ends with the goroutine: nobody
			// else must run in a namespace that he did not ask for.
			err = errors.Join(err, fmt.Errorf("leave network namespace: %w", back))
		} else {
			runtime.UnlockOSThread()
		}
		err = errors.Join(err, home.Close())
	}()
	return fn()
}

// Do runs fn in the machine's network namespace. Sockets made by fn itself (not
// by goroutines it starts) belong to the machine and stay so afterwards. Only
// the network is the machine's: files below /run and /sys are the host's.
func (m *Machine) Do(fn func() error) error {
	if err := m.usable(); err != nil {
		return err
	}
	ns, err := m.openNetns()
	if err != nil {
		return err
	}
	return errors.Join(inNetns(ns, fn), ns.Close())
}

func (m *Machine) openNetns() (*os.File, error) {
	ns, err := os.Open(m.NetnsPath())
	if err != nil {
		return nil, fmt.Errorf("open network namespace of %s: %w", m, err)
	}
	return ns, nil
}

// NetnsPath returns a file that stands for the machine's network namespace, for
// setns and for documents that name a namespace by its path. It is valid in
// every machine, too, and as long as the lab is up.
func (m *Machine) NetnsPath() string {
	if m.segment != "" {
		return m.Path("/run/netns/" + m.segment)
	}
	return fmt.Sprintf("/proc/%d/ns/net", m.pid)
}

// Path returns the host's path for a file that the machine sees at path: a
// socket below the machine's own /run, for instance.
func (m *Machine) Path(path string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", m.pid), path)
}

// Dial connects from the machine's network to a literal address.
func (m *Machine) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return m.DialFrom(ctx, network, nil, address)
}

// DialFrom is Dial with the local address given (*net.TCPAddr or *net.UDPAddr).
func (m *Machine) DialFrom(ctx context.Context, network string, local net.Addr, address string) (net.Conn, error) {
	// A literal address is dialed on the calling goroutine; a name, or several
	// addresses, would be dialed on others, outside the namespace.
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, err
	}
	dialer := net.Dialer{LocalAddr: local}
	dialer.SetMultipathTCP(false)
	var conn net.Conn
	err := m.Do(func() (err error) {
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens for TCP in the machine's network.
func (m *Machine) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	var listener net.Listener
	err := m.Do(func() (err error) {
		listener, err = config.Listen(ctx, network, address)
		return err
	})
	return listener, err
}

// ListenPacket listens for UDP in the machine's network.
func (m *Machine) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	var config net.ListenConfig
	var conn net.PacketConn
	err := m.Do(func() (err error) {
		conn, err = config.ListenPacket(ctx, network, address)
		return err
	})
	return conn, err
}
