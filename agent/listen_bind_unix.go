//go:build unix

package agent

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// maySplit says that a port which another process has at one address may be
// listened on at the others: no socket here can be pushed aside by that.
const maySplit = true

// exclusive sees to it that a port is never shared. On Linux, package net's
// SO_REUSEADDR lets a listener come back while old connections are in TIME_WAIT,
// and a second listening socket is refused all the same
// (inet_csk_bind_conflict). BSD's and so macOS's lets one bind to an address of
// another's wildcard socket and take its connections: there it is switched off.
func exclusive(_, _ string, raw syscall.RawConn) error {
	if runtime.GOOS == "linux" {
		return nil
	}
	var failure error
	err := raw.Control(func(fd uintptr) {
		failure = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 0)
	})
	return errors.Join(err, failure)
}

// checkFree is for systems where binding alone does not tell that a port is in
// use.
func checkFree(context.Context, string, netip.AddrPort) error { return nil }

func portInUse(err error) bool { return errors.Is(err, unix.EADDRINUSE) }

// noFamily tells whether an error means that the machine does not speak IPv6
// (or IPv4) at all.
func noFamily(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EPROTONOSUPPORT)
}

// explain says what to do about an error of binding.
func explain(err error) string {
	switch {
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return "this machine does not have that address (yet); decoynet takes it as soon as it does"
	case errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM):
		return "permission denied; ports below 1024 need CAP_NET_BIND_SERVICE (AmbientCapabilities=CAP_NET_BIND_SERVICE in the systemd unit)"
	case errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE):
		return "no file descriptors are left; a higher LimitNOFILE, or fewer ports"
	}
	return err.Error()
}
