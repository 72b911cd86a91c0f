package relay

import (
	"net/netip"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls here are RawSyscalls: every descriptor is nonblocking, so none of
// them waits, and the scheduler's bookkeeping around a blocking call (two
// atomic state changes of the P) is saved on each.

const errAgain = unix.EAGAIN

func rawRead(fd int, b []byte) (int, unix.Errno) {
	n, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), e
}

// rawSend writes without SIGPIPE; flags may hold MSG_MORE.
func rawSend(fd int, b []byte, flags int) (int, unix.Errno) {
	var p unsafe.Pointer
	if len(b) > 0 {
		p = unsafe.Pointer(&b[0])
	}
	n, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(p), uintptr(len(b)), uintptr(unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT|flags), 0, 0)
	return int(n), e
}

func rawRecv(fd int, b []byte, flags int) (int, unix.Errno) {
	n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(flags), 0, 0)
	return int(n), e
}

func rawClose(fd int) { unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

func rawShutdown(fd int) unix.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
	return e
}

// rawReset makes the coming close send RST (SO_LINGER with a time of zero).
func rawReset(fd int) {
	l := unix.Linger{Onoff: 1, Linger: 0}
	unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&l)), unsafe.Sizeof(l), 0)
	rawClose(fd)
}

// rawCloseInOrder closes a socket that has SO_LINGER with a time of zero and
// whose FIN is due.
func rawCloseInOrder(fd int) {
	var off unix.Linger
	unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&off)), unsafe.Sizeof(off), 0)
	rawClose(fd)
}

// rawSend2 writes two parts as one datagram.
func rawSend2(fd int, a, b []byte) unix.Errno {
	vec := [2]unix.Iovec{{Base: unsafe.SliceData(a), Len: uint64(len(a))}, {Base: unsafe.SliceData(b), Len: uint64(len(b))}}
	msg := unix.Msghdr{Iov: &vec[0], Iovlen: 2}
	_, _, e := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
	return e
}

func rawSetInt(fd, level, name int, value int32) unix.Errno {
	_, _, e := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(unsafe.Pointer(&value)), 4, 0)
	return e
}

func rawSocketError(fd int) unix.Errno {
	var value int32
	size := uint32(4)
	_, _, e := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ERROR, uintptr(unsafe.Pointer(&value)), uintptr(unsafe.Pointer(&size)), 0)
	if e != 0 {
		return e
	}
	return unix.Errno(value)
}

// sockaddr is room for any IP socket address.
type sockaddr = unix.RawSockaddrInet6

func rawAccept(fd int, sa *sockaddr) (int, unix.Errno) {
	size := uint32(unix.SizeofSockaddrInet6)
	n, _, e := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(sa)), uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	return int(n), e
}

func rawGetsockname(fd int, sa *sockaddr) unix.Errno {
	size := uint32(unix.SizeofSockaddrInet6)
	_, _, e := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(sa)), uintptr(unsafe.Pointer(&size)))
	return e
}

// addrPort reads a socket address; IPv4-mapped addresses come out as IPv4.
func addrPort(sa *sockaddr) netip.AddrPort {
	if sa.Family == unix.AF_INET {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), ntohs(v4.Port))
	}
	return unmap(netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), ntohs(sa.Port)))
}

// fillSockaddr writes a as family's address (IPv4 is mapped for AF_INET6) and
// returns the size.
func fillSockaddr(sa *sockaddr, a netip.AddrPort, family int) uint32 {
	*sa = sockaddr{}
	if family == unix.AF_INET {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		v4.Family, v4.Port, v4.Addr = unix.AF_INET, ntohs(a.Port()), a.Addr().As4()
		return unix.SizeofSockaddrInet4
	}
	sa.Family, sa.Port, sa.Addr = unix.AF_INET6, ntohs(a.Port()), a.Addr().As16()
	return unix.SizeofSockaddrInet6
}

func ntohs(v uint16) uint16 { return v<<8 | v>>8 } // all platforms we build for are little-endian

func rawBind(fd int, a netip.AddrPort, family int) unix.Errno {
	var sa sockaddr
	size := fillSockaddr(&sa, a, family)
	_, _, e := unix.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(size))
	return e
}

func rawConnect(fd int, a netip.AddrPort, family int) unix.Errno {
	var sa sockaddr
	size := fillSockaddr(&sa, a, family)
	_, _, e := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(size))
	return e
}

// rawEpoll is epoll_ctl(2).
func rawEpoll(ep, op, fd int, events uint32, data uint64) unix.Errno {
	ev := unix.EpollEvent{Events: events, Fd: int32(uint32(data)), Pad: int32(uint32(data >> 32))}
	_, _, e := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(ep), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
	return e
}

func eventData(ev *unix.EpollEvent) uint64 {
	return uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32
}

// epollWait is the one call that may wait, hence not raw.
func epollWait(ep int, events []unix.EpollEvent, msec int) (int, unix.Errno) {
	r, _, e := unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(ep), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(msec), 0, 0)
	runtime.KeepAlive(events)
	return int(r), e
}

func rawSplice(from, to, n int) (int, unix.Errno) {
	r, _, e := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
	return int(r), e
}

// Dial opens a nonblocking socket bound to source (any address, see
// IP_TRANSPARENT in ip(7)) and starts connecting it to target. With port 0 in
// source the kernel picks one that is free for that target. Both are of one
// family; typ is unix.SOCK_STREAM or unix.SOCK_DGRAM.
//
// It returns unix.EADDRNOTAVAIL or unix.EADDRINUSE where the source port is
// taken by another connection to the same target.
func Dial(typ int, source, target netip.AddrPort) (int, error) {
	family, level, option := unix.AF_INET, unix.SOL_IP, unix.IP_TRANSPARENT
	if target.Addr().Is6() {
		family, level, option = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	r, _, e := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), uintptr(typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC), 0)
	if e != 0 {
		return -1, e
	}
	fd := int(r)
	if e = rawSetInt(fd, level, option, 1); e == 0 {
		// Without SO_REUSEADDR on every such socket a second connection from
		// the same intruder's port could not be bound at all.
		e = rawSetInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if e == 0 && source.Port() == 0 {
		// The port is picked at connect, where the whole tuple is known.
		e = rawSetInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	}
	if e == 0 {
		e = rawBind(fd, source, family)
	}
	if e == 0 {
		if e = rawConnect(fd, target, family); e == unix.EINPROGRESS {
			e = 0
		}
	}
	if e != 0 {
		rawClose(fd)
		return -1, e
	}
	return fd, nil
}

// Connect opens a nonblocking socket of this machine's own and starts connecting
// it to another machine of ours. A TCP socket has SO_LINGER with a time of zero
// (see Listener.Abortive). port is its source port; with 0 the kernel picks one.
//
// Naming the port has a point: connect(2) then takes it although a connection of
// the same tuple stands in TIME_WAIT, which the kernel does not do for a port that
// it picks itself (twp in __inet_hash_connect), so that 28,000 flows a minute
// would be the most that a hop could carry. It returns unix.EADDRNOTAVAIL or
// unix.EADDRINUSE where the port is taken.
func Connect(typ int, port uint16, target netip.AddrPort) (int, error) {
	family, any := unix.AF_INET, netip.IPv4Unspecified()
	if target.Addr().Is6() {
		family, any = unix.AF_INET6, netip.IPv6Unspecified()
	}
	r, _, e := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), uintptr(typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC), 0)
	if e != 0 {
		return -1, e
	}
	fd := int(r)
	if typ == unix.SOCK_STREAM {
		l := unix.Linger{Onoff: 1, Linger: 0}
		_, _, e = unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&l)), unsafe.Sizeof(l), 0)
	}
	if e == 0 && port != 0 {
		if e = rawSetInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); e == 0 {
			e = rawBind(fd, netip.AddrPortFrom(any, port), family)
		}
	}
	if e == 0 {
		if e = rawConnect(fd, target, family); e == unix.EINPROGRESS {
			e = 0
		}
	}
	if e != 0 {
		rawClose(fd)
		return -1, e
	}
	return fd, nil
}

// LocalAddr returns the address that a socket is bound to.
func LocalAddr(fd int) (netip.AddrPort, error) {
	var sa sockaddr
	if e := rawGetsockname(fd, &sa); e != 0 {
		return netip.AddrPort{}, e
	}
	return addrPort(&sa), nil
}
