package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// dataLock keeps a second decoynet from the same data directory, and from the
// same network namespace, where the two would take each other's objects for
// leftovers.
type dataLock struct {
	file  *os.File
	inNet net.Listener
}

// lockData locks the data directory and the machine's network.
func lockData(data string) (*dataLock, error) {
	l, err := lockDirectory(data)
	if err != nil {
		return nil, err
	}
	// An abstract socket's name belongs to the network namespace and is free
	// again when its holder dies, however it dies.
	if l.inNet, err = net.Listen("unix", "@decoynet"); err != nil {
		l.release()
		return nil, fmt.Errorf("another decoynet runs on this machine, with another data directory; only one can own its segments (`ss -xlp src @decoynet` names it): %w", err)
	}
	return l, nil
}

// lockDirectory makes the data directory where it is missing and locks it.
func lockDirectory(data string) (*dataLock, error) {
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	path := filepath.Join(data, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(path)
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("decoynet (pid %s) already runs on data directory %s; stop it first, or use another machine", bytes.TrimSpace(holder), data)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err := f.Truncate(0); err == nil {
		_, _ = fmt.Fprintln(f, os.Getpid())
	}
	return &dataLock{file: f}, nil
}

func (l *dataLock) release() {
	if l.inNet != nil {
		_ = l.inNet.Close()
	}
	_ = l.file.Close()
}

// checkCapabilities names what the process lacks.
func checkCapabilities() error {
	needed := []struct {
		bit  uint
		name string
	}{
		{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"},
		{unix.CAP_NET_BIND_SERVICE, "CAP_NET_BIND_SERVICE"},
		{unix.CAP_NET_RAW, "CAP_NET_RAW"},
		{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"},
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	var missing []string
	for _, n := range needed {
		if data[n.bit/32].Effective&(1<<(n.bit%32)) == 0 {
			missing = append(missing, n.name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("missing %s; run as root, or give the unit these in AmbientCapabilities", strings.Join(missing, ", "))
	}
	return nil
}
