package tunnel

import (
	"net"
	"syscall"
)

// tcpNotSentLowat is TCP_NOTSENT_LOWAT of linux/tcp.h, which package syscall
// does not have.
const tcpNotSentLowat = 25

// limitUnsent keeps the kernel from taking megabytes that it cannot send yet:
// what waits there, waits before every other flow. What is on its way and not
// acknowledged does not count.
func limitUnsent(c net.Conn) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return
	}
	// Without it flows wait longer for each other; that is all.
	_ = raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotSentLowat, batchSize)
	})
}
