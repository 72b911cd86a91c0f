package conntrack

import (
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// gather is how long events are let collect before they are read together. While
// nobody waits on the socket the kernel wakes nobody: an event a wake-up would
// cost more than all the rest of the listening. The first event after a silence is
// read at once.
const gather = 10 * time.Millisecond

// batch is how many messages one system call reads, messageSize what each of them
// may have; an event of the kernel has about 300 bytes.
const (
	batch       = 64
	messageSize = 2048
)

// eventSocket receives the event groups of a namespace. It does without the
// runtime's poller, and so without the netlink library: a descriptor in an epoll
// set wakes a thread for every single event, whether anybody wants it or not.
type eventSocket struct {
	fd   int
	stop *os.File // eventfd that ends a wait
	vec  [batch]mmsghdr
	iov  [batch]unix.Iovec
	buf  [batch][messageSize]byte
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [unsafe.Sizeof(uintptr(0)) - 4]byte
}

func openEvents(ns Namespace) (*eventSocket, error) {
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open eventfd: %w", err)
	}
	s := &eventSocket{fd: -1, stop: os.NewFile(uintptr(stop), "eventfd")}
	if err := ns.Do(s.open); err != nil {
		return nil, errors.Join(fmt.Errorf("listen to connection events of namespace %s: %w", ns.Name(), err), s.close())
	}
	for i := range s.vec {
		s.iov[i].Base = &s.buf[i][0]
		s.iov[i].SetLen(messageSize)
		s.vec[i].hdr.Iov = &s.iov[i]
		s.vec[i].hdr.SetIovlen(1)
	}
	return s, nil
}

func (s *eventSocket) open() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	s.fd = fd
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	for _, o := range []struct{ level, name, value int }{
		{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer},
		// Without it the kernel drops events that find no room; with it, an
		// end is kept and sent again (net/netfilter/nf_conntrack_ecache.c).
		{unix.SOL_NETLINK, unix.NETLINK_BROADCAST_ERROR, 1},
		{unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, groupNew},
		{unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, groupUpdate},
		{unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, groupDestroy},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("set socket option %d: %w", o.name, err)
		}
	}
	return nil
}

// read hands over what has come, datagram by datagram, without waiting. A
// datagram that was too long for its buffer comes as nil. It returns how many there
// were, and unix.ENOBUFS if the kernel found no room for some.
func (s *eventSocket) read(f func([]byte)) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.vec[0])), batch, unix.MSG_DONTWAIT, 0, 0)
	switch errno {
	case 0:
	case unix.EAGAIN, unix.EINTR:
		return 0, nil
	default:
		return 0, errno
	}
	for i := range int(n) {
		m := &s.vec[i]
		if m.hdr.Flags&unix.MSG_TRUNC != 0 {
			f(nil)
		} else {
			f(s.buf[i][:m.len])
		}
		m.hdr.Flags = 0
	}
	return int(n), nil
}

// wait returns when there is something to read, or interrupt was called.
func (s *eventSocket) wait() error {
	fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}, {Fd: int32(s.stop.Fd()), Events: unix.POLLIN}}
	_, err := unix.Poll(fds, -1)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("poll: %w", err)
	}
	return nil
}

// interrupt ends the present wait and all later ones.
func (s *eventSocket) interrupt() {
	_, _ = s.stop.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0})
}

func (s *eventSocket) close() error {
	err := s.stop.Close()
	if s.fd >= 0 {
		err = errors.Join(err, unix.Close(s.fd))
	}
	return err
}
