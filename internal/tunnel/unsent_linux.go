package tunnel

import (
	"net"
	"syscall"
)

// tcpNotSentLowat is TCP_NOTSENT_LOWAT of linux/tcp.h, which package syscall
// does not have.
const tcpNotSentLowat = 25

// unsentLimit returns what bounds the bytes that the kernel takes of the
// connection and cannot send yet, or nil where that cannot be bounded. What is
// on its way and not acknowledged does not count.
func unsentLimit(c net.Conn) func(bytes int) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	return func(bytes int) {
		// Without it flows wait longer for each other; that is all.
		_ = raw.Control(func(fd uintptr) {
			_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotSentLowat, bytes)
		})
	}
}
