package load

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// serverEvents is how many sockets the server handles per wait.
const serverEvents = 512

// chunk is how much a sender hands to the kernel, and a receiver takes from it,
// at a time.
const chunk = 256 << 10

// server is the epoll loop behind Serve. What a descriptor is for is looked up
// by its number.
type server struct {
	epoll int
	roles []serverRole // indexed by descriptor
	sunk  uint64       // bytes that all sinks received
	zeros []byte
}

type serverRole struct {
	listener bool
	port     uint16 // one of the Port constants; 0 is an unused descriptor
}

// Serve listens on all Ports of addr and serves until the context ends. The
// ports are open when ready is called.
func Serve(ctx context.Context, addr netip.Addr, ready func()) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	epoll, err := newEpoll()
	if err != nil {
		return err
	}
	s := &server{epoll: epoll, zeros: make([]byte, chunk)}
	defer s.close()
	for _, port := range Ports {
		if err := s.listen(addr, port); err != nil {
			return err
		}
	}
	ready()
	events := make([]unix.EpollEvent, serverEvents)
	for ctx.Err() == nil {
		// An idle server must not disturb the measurement of others.
		n, err := wait(epoll, events, 1000)
		if err != nil {
			return err
		}
		for i := range events[:n] {
			s.handle(int(events[i].Fd), events[i].Events)
		}
	}
	return nil
}

func (s *server) listen(addr netip.Addr, port int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make a listener: %w", err)
	}
	s.put(fd, serverRole{listener: true, port: uint16(port)})
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return fmt.Errorf("set SO_REUSEADDR: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: addr.As4()}); err != nil {
		return fmt.Errorf("bind %s port %d: %w", addr, port, err)
	}
	if err := unix.Listen(fd, 4096); err != nil {
		return fmt.Errorf("listen on port %d: %w", port, err)
	}
	if e := rawWatch(s.epoll, unix.EPOLL_CTL_ADD, fd, unix.EPOLLIN, int32(fd)); e != 0 {
		return fmt.Errorf("watch port %d: %w", port, e)
	}
	return nil
}

func (s *server) put(fd int, r serverRole) {
	for fd >= len(s.roles) {
		s.roles = append(s.roles, make([]serverRole, 1024)...)
	}
	s.roles[fd] = r
}

func (s *server) handle(fd int, events uint32) {
	r := s.roles[fd]
	switch {
	case r.listener:
		s.accept(fd, r.port)
	case r.port == PortBanner, r.port == PortCloser, r.port == PortTotal:
		s.awaitEOF(fd)
	case r.port == PortSource:
		s.send(fd, events)
	case r.port == PortSink:
		s.sink(fd)
	}
}

func (s *server) accept(listener int, port uint16) {
	var peer unix.RawSockaddrInet4
	var banner [bannerLen]byte
	for range serverEvents {
		fd, e := rawAccept(listener, &peer)
		if e == syscall.ECONNABORTED || e == syscall.EINTR {
			continue
		}
		if e != 0 {
			// EAGAIN: all taken. Out of descriptors: those that wait are taken
			// when the level-triggered event comes again.
			return
		}
		s.put(fd, serverRole{port: port})
		events := uint32(unix.EPOLLIN)
		switch port {
		case PortSource:
			events = unix.EPOLLOUT
		case PortBanner, PortCloser:
			putBanner(&banner, peer.Addr, swap16(peer.Port))
			if n, e := rawSend(fd, banner[:]); e != 0 || n != bannerLen {
				s.drop(fd)
				continue
			}
			if port == PortCloser {
				rawShutdown(fd)
			}
		case PortTotal:
			var total [totalLen]byte
			binary.BigEndian.PutUint64(total[:], s.sunk)
			if n, e := rawSend(fd, total[:]); e != 0 || n != totalLen {
				s.drop(fd)
				continue
			}
			rawShutdown(fd)
		}
		if e := rawWatch(s.epoll, unix.EPOLL_CTL_ADD, fd, events, int32(fd)); e != 0 {
			s.drop(fd)
		}
	}
}

// awaitEOF closes when the client has, or has reset the connection.
func (s *server) awaitEOF(fd int) {
	var b [64]byte
	n, e := rawRecv(fd, b[:])
	if e == syscall.EAGAIN || n > 0 && e == 0 {
		return
	}
	s.drop(fd)
}

func (s *server) send(fd int, events uint32) {
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		s.drop(fd)
		return
	}
	if _, e := rawSend(fd, s.zeros); e != 0 && e != syscall.EAGAIN {
		s.drop(fd)
	}
}

func (s *server) sink(fd int) {
	n, e := rawDiscard(fd, 4*chunk)
	switch {
	case e == syscall.EAGAIN:
		return
	case e == 0 && n > 0:
		s.sunk += uint64(n)
		return
	}
	s.drop(fd)
}

func (s *server) drop(fd int) {
	s.roles[fd] = serverRole{}
	rawClose(fd)
}

func (s *server) close() {
	for fd, r := range s.roles {
		if r.port != 0 {
			rawClose(fd)
		}
	}
	rawClose(s.epoll)
}
