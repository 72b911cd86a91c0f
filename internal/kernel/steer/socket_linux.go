package steer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// udpBuffer is the receive buffer of a UDP socket. One socket takes the first
// datagrams of every flow of a segment, so a scan arrives as one burst: a small
// datagram costs 768 bytes of it, a sweep of 10,000 addresses some 8 MB.
const udpBuffer = 8 << 20

// OOBSize is a control buffer that holds all that a datagram of a steered
// socket brings along, for recvmsg.
const OOBSize = 128

// sockets are the sockets that bound ports are steered to. TCP and UDP share
// one port number, so that a TPROXY rule serves both.
type sockets struct {
	family   int // AF_INET6 and dual-stack, or AF_INET where the kernel has no IPv6
	port     uint16
	tcp, udp []int
	ns       int // the namespace, where the kernel cannot tell it from a socket; else -1
}

// openIn opens the sockets in a namespace.
func openIn(ns Namespace, count, backlog int) (*sockets, error) {
	var s *sockets
	err := ns.Do(func() (err error) {
		s, err = openSockets(count, backlog)
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, s.remember(ns)
}

// remember makes sure that namespace will work.
func (s *sockets) remember(ns Namespace) error {
	fd, err := s.namespace()
	if err == nil {
		return unix.Close(fd)
	}
	// Linux before 4.10.
	if s.ns, err = unix.FcntlInt(uintptr(ns.FD()), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return errors.Join(fmt.Errorf("duplicate the descriptor of namespace %s: %w", ns.Name(), err), s.close())
	}
	return nil
}

// namespace returns a descriptor of the sockets' namespace, for the caller to
// close. A socket keeps its namespace and leads back to it, so that hundreds of
// segments do without a descriptor each for it.
func (s *sockets) namespace() (int, error) {
	if s.ns >= 0 {
		fd, err := unix.FcntlInt(uintptr(s.ns), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("duplicate descriptor of network namespace: %w", err)
		}
		return fd, nil
	}
	fd, err := unix.IoctlRetInt(s.tcp[0], unix.SIOCGSKNS)
	if err != nil {
		return -1, fmt.Errorf("get a socket's network namespace: %w", err)
	}
	return fd, nil
}

// enter runs f in the sockets' namespace, on a thread of its own.
func (s *sockets) enter(f func() error) error {
	fd, err := s.namespace()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return (&scratch{fd}).Do(f)
}

// openSockets opens the sockets in the calling thread's namespace.
func openSockets(count, backlog int) (*sockets, error) {
	s, err := openFamily(unix.AF_INET6, count, backlog)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return openFamily(unix.AF_INET, count, backlog)
	}
	return s, err
}

func openFamily(family int, count, backlog int) (*sockets, error) {
	var err error
	for range 16 {
		// The kernel picks the TCP port; now and then a UDP socket has it.
		s := &sockets{family: family, ns: -1}
		if err = s.open(count, backlog); err == nil {
			return s, nil
		}
		_ = s.close() // the cause is err
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return nil, err
}

func (s *sockets) open(count, backlog int) error {
	for range count {
		fd, err := s.socket(unix.SOCK_STREAM, count > 1)
		if err != nil {
			return fmt.Errorf("open TCP listener: %w", err)
		}
		s.tcp = append(s.tcp, fd)
		// Accepted sockets inherit it, which saves the relay a call for each.
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return fmt.Errorf("set TCP_NODELAY: %w", err)
		}
		if err := unix.Listen(fd, backlog); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
	}
	for range count {
		fd, err := s.socket(unix.SOCK_DGRAM, count > 1)
		if err != nil {
			return fmt.Errorf("open UDP socket: %w", err)
		}
		s.udp = append(s.udp, fd)
		if err := s.prepareUDP(fd); err != nil {
			return err
		}
	}
	return nil
}

// socket opens one socket bound to loopback and the port of the others. It goes
// past package net, whose listeners are MPTCP ones, of which neither BPF nor
// TPROXY knows a thing.
func (s *sockets) socket(kind int, shared bool) (int, error) {
	fd, err := unix.Socket(s.family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := s.bind(fd, shared); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (s *sockets) bind(fd int, shared bool) error {
	type option struct {
		level, name, value int
		set                bool
	}
	six := s.family == unix.AF_INET6
	for _, o := range []option{
		{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0, six},
		{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1, shared},
		// One flag of the socket, whichever family's option sets it. TPROXY
		// assigns packets to sockets that have it, and to no others; iptables'
		// drops those of an established one without. So accepted sockets, which
		// inherit it, have it with every mechanism: the segment may change to
		// another one.
		{unix.SOL_IP, unix.IP_TRANSPARENT, 1, true},
	} {
		if !o.set {
			continue
		}
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("set socket option %d of level %d: %w", o.name, o.level, err)
		}
	}
	if err := unix.Bind(fd, s.loopback()); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if s.port != 0 {
		return nil
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("get socket name: %w", err)
	}
	switch name := name.(type) {
	case *unix.SockaddrInet6:
		s.port = uint16(name.Port)
	case *unix.SockaddrInet4:
		s.port = uint16(name.Port)
	}
	return nil
}

func (s *sockets) loopback() unix.Sockaddr {
	if s.family == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(s.port), Addr: loopback4.As4()}
	}
	return &unix.SockaddrInet6{Port: int(s.port), Addr: loopback4.As16()}
}

var loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

func (s *sockets) prepareUDP(fd int) error {
	// An IPv6 socket reports the destination of an IPv4 datagram by the IPv4
	// option, but its IPV6_PKTINFO covers both families.
	pktinfo := [2]int{unix.SOL_IP, unix.IP_PKTINFO}
	if s.family == unix.AF_INET6 {
		pktinfo = [2]int{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVORIGDSTADDR, 1); err != nil {
			return fmt.Errorf("set IPV6_RECVORIGDSTADDR: %w", err)
		}
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVORIGDSTADDR, 1); err != nil {
		return fmt.Errorf("set IP_RECVORIGDSTADDR: %w", err)
	}
	if err := unix.SetsockoptInt(fd, pktinfo[0], pktinfo[1], 1); err != nil {
		return fmt.Errorf("set PKTINFO: %w", err)
	}
	// Past net.core.rmem_max, which needs CAP_NET_ADMIN in the first user
	// namespace; what the limit allows is better than no socket.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, udpBuffer) == nil {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, udpBuffer); err != nil {
		return fmt.Errorf("set SO_RCVBUF: %w", err)
	}
	return nil
}

func (s *sockets) close() error {
	var errs []error
	for _, fd := range slices.Concat(s.tcp, s.udp) {
		if err := unix.Close(fd); err != nil {
			errs = append(errs, fmt.Errorf("close socket: %w", err))
		}
	}
	if s.ns >= 0 {
		errs = append(errs, unix.Close(s.ns))
	}
	s.tcp, s.udp, s.ns = nil, nil, -1
	return errors.Join(errs...)
}

// OriginalDst returns the address and port that a datagram was sent to, from
// the control messages that recvmsg returned with it. The address is unmapped.
// It does not allocate.
func OriginalDst(oob []byte) (netip.AddrPort, bool) {
	for len(oob) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		oob = rest
		switch {
		case h.Level == unix.SOL_IP && h.Type == unix.IP_ORIGDSTADDR && len(data) >= unix.SizeofSockaddrInet4:
			port := binary.BigEndian.Uint16(data[2:])
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte(data[4:8])), port), true
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_ORIGDSTADDR && len(data) >= unix.SizeofSockaddrInet6:
			port := binary.BigEndian.Uint16(data[2:])
			return netip.AddrPortFrom(netip.AddrFrom16([16]byte(data[8:24])).Unmap(), port), true
		}
	}
	return netip.AddrPort{}, false
}
