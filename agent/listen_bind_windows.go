package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"

	"golang.org/x/sys/windows"
)

// maySplit: no. A socket at one address can be had on Windows, even an exclusive
// one, while another process holds the port at every address, and would take
// that address's connections away from it.
const maySplit = false

// soExclusiveAddrUse is SO_EXCLUSIVEADDRUSE, ((int)(~SO_REUSEADDR)) in
// winsock2.h.
const soExclusiveAddrUse = ^4

// exclusive sees to it that a port is never shared, in either direction: see
// "Using SO_REUSEADDR and SO_EXCLUSIVEADDRUSE" in Microsoft's documentation of
// Winsock.
func exclusive(_, _ string, raw syscall.RawConn) error {
	var failure error
	err := raw.Control(func(fd uintptr) {
		failure = windows.SetsockoptInt(windows.Handle(fd), windows.SOL_SOCKET, soExclusiveAddrUse, 1)
	})
	return errors.Join(err, failure)
}

// checkFree looks, before a single address is bound, whether somebody has the
// port at every address: an exclusive socket for every address is refused then.
func checkFree(ctx context.Context, network string, at netip.AddrPort) error {
	every := netip.IPv6Unspecified()
	if at.Addr().Is4() {
		every = netip.IPv4Unspecified()
	}
	cfg := net.ListenConfig{Control: exclusive}
	whole := netip.AddrPortFrom(every, at.Port()).String()
	var (
		socket io.Closer
		err    error
	)
	if strings.HasPrefix(network, "tcp") {
		socket, err = cfg.Listen(ctx, network, whole)
	} else {
		socket, err = cfg.ListenPacket(ctx, network, whole)
	}
	if err != nil {
		return bindError(err)
	}
	return socket.Close()
}

// portInUse tells whether another socket has the port. An exclusive bind that
// meets another's exclusive socket is refused with WSAEACCES.
func portInUse(err error) bool {
	return errors.Is(err, windows.WSAEADDRINUSE) || errors.Is(err, windows.WSAEACCES)
}

func noFamily(err error) bool { return errors.Is(err, windows.WSAEAFNOSUPPORT) }

// explain says what to do about an error of binding.
func explain(err error) string {
	if errors.Is(err, windows.WSAEADDRNOTAVAIL) {
		return "this machine does not have that address (yet); decoynet takes it as soon as it does"
	}
	return err.Error()
}
