package relay

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/kernel/steer"
)

// UDP has no connections, so a flow is what runs between one intruder's
// address and port and one decoy's. Its first datagram comes from the
// segment's steered socket; then a socket connected to the intruder stands for
// the flow, and the kernel prefers it (udp4_lib_lookup looks for connected
// sockets before it asks sk_lookup).

type udpKey struct {
	listener            *Listener
	peer                netip.AddrPort // who sent it, where a header says whose it is; else zero
	source, destination netip.AddrPort
}

// datagramsATurn bounds what one socket may bring before the others get
// their turn.
const datagramsATurn = 64

func (l *loop) acceptUDP(from *listener) {
	for range datagramsATurn {
		n, ends, errno := recvOriginal(from.fd, l.buf)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return
		}
		if from.Header != nil {
			l.acceptHeaderUDP(from, l.buf[:n], ends.source, ends.destination)
			continue
		}
		if !ends.destination.IsValid() {
			l.engine.truncated.Add(1) // no original destination: nothing to answer from
			continue
		}
		key := udpKey{listener: from.Listener, source: ends.source, destination: ends.destination}
		f := l.udp[key]
		if f == nil {
			if !l.roomForUDP() {
				l.engine.overload.Add(1)
				continue
			}
			if f = l.begin(from, -1, deception.UDP, ends); f == nil {
				continue
			}
			l.udp[key] = f
		}
		l.deliverUDP(f, l.buf[:n])
	}
}

// roomForUDP makes room for one more flow where the limit is reached: out of a
// few flows taken at random the quietest goes. So a flood of forged sources
// pushes out mostly itself.
func (l *loop) roomForUDP() bool {
	e := l.engine
	if e.activeUDP.Load() < int64(e.cfg.MaxUDPFlows) && e.active.Load() < int64(e.cfg.MaxFlows) {
		return true
	}
	const sample = 16
	var quietest *Flow
	seen := 0
	for _, f := range l.udp { // Go's map order starts at random
		if quietest == nil || f.last < quietest.last {
			quietest = f
		}
		if seen++; seen == sample {
			break
		}
	}
	if quietest == nil {
		return false
	}
	l.end(quietest, deception.EndOverload, false)
	e.overload.Add(1)
	return true
}

// openedUDP gives a flow its socket towards the intruder, and begins.
func (l *loop) openedUDP(f *Flow) {
	if f.answer == nil && !l.bindUDP(f) {
		return
	}
	var errno unix.Errno
	for i := 0; i < len(f.side) && errno == 0; i++ {
		if fd := f.side[i].fd; fd >= 0 {
			errno = rawEpoll(l.epoll, unix.EPOLL_CTL_ADD, fd, unix.EPOLLIN|unix.EPOLLET&0xffffffff, l.epollData(f.index, i))
		}
	}
	if errno != 0 {
		l.end(f, deception.EndOverload, false)
		return
	}
	f.state = stateRelaying
	f.last = l.now
	l.engine.handler.Opened(f)
}

// bindUDP makes the socket from which the intruder is answered. False means
// that the flow has ended.
func (l *loop) bindUDP(f *Flow) bool {
	family := unix.AF_INET
	if f.Session.Destination.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := f.Listener.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err != nil {
		l.end(f, deception.EndOverload, false)
		return false
	}
	f.side[Client].fd = fd
	errno := rawSetInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if errno == 0 {
		errno = rawBind(fd, f.Session.Destination, family)
	}
	if errno == 0 {
		errno = rawConnect(fd, f.Session.Source, family)
	}
	if errno != 0 {
		l.end(f, deception.EndOverload, false)
		return false
	}
	return true
}

func (l *loop) forgetUDP(f *Flow) {
	key := udpKey{f.Listener, f.Peer, f.Session.Source, f.Session.Destination}
	if l.udp[key] == f {
		delete(l.udp, key)
	}
	if peer := (peerKey{f.Listener, f.Peer}); f.answer != nil && l.peers[peer] == f {
		delete(l.peers, peer)
	}
}

func (l *loop) udpReady(f *Flow, sideIndex uint8, _ uint32) {
	if f.state == stateRelaying {
		l.pumpUDP(f, int(sideIndex))
	}
}

// pumpUDP passes the datagrams that wait at side i on.
func (l *loop) pumpUDP(f *Flow, i int) {
	for range datagramsATurn {
		n, errno := rawRecv(f.side[i].fd, l.buf, 0)
		switch {
		case errno == errAgain:
			return
		case errno == unix.EINTR:
			continue
		case errno == unix.ECONNREFUSED && i == Server: // ICMP port unreachable
			l.end(f, deception.EndRefused, false)
			return
		case errno == unix.ECONNREFUSED:
			l.end(f, deception.EndClientReset, false)
			return
		case errno != 0: // host or net unreachable for now: the idle timeout decides
			return
		}
		if !l.sendUDP(f, i, l.buf[:n]) {
			return
		}
	}
	l.again(f, i)
}

// sendUDP passes one datagram from side i to the other. False means that the
// flow has ended.
func (l *loop) sendUDP(f *Flow, i int, datagram []byte) bool {
	l.take(f, i, datagram)
	errno := f.sendDatagram(1-i, datagram)
	if errno == unix.ECONNREFUSED {
		// An error that an earlier datagram met; this one was not sent.
		errno = f.sendDatagram(1-i, datagram)
		if i == Client {
			l.end(f, deception.EndRefused, false)
			return false
		}
	}
	if errno != 0 {
		l.engine.truncated.Add(1)
	}
	return true
}

func (f *Flow) sendDatagram(to int, datagram []byte) unix.Errno {
	switch {
	case to == Server && len(f.Prelude) > 0:
		return rawSend2(f.side[Server].fd, f.Prelude, datagram)
	case to == Client && f.answer != nil:
		return f.answer.send(datagram)
	}
	_, errno := rawSend(f.side[to].fd, datagram, 0)
	return errno
}

// recvOriginal receives a datagram with the addresses it was sent from and to.
// The latter needs IP_RECVORIGDSTADDR and IPV6_RECVORIGDSTADDR on the socket.
func recvOriginal(fd int, b []byte) (int, sessionEnds, unix.Errno) {
	var (
		from    sockaddr
		control [steer.OOBSize]byte
		vec     = unix.Iovec{Base: &b[0], Len: uint64(len(b))}
		msg     = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&from)), Namelen: unix.SizeofSockaddrInet6, Iov: &vec, Iovlen: 1, Control: &control[0], Controllen: uint64(len(control))}
		ends    sessionEnds
	)
	n, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), 0)
	if errno != 0 {
		return 0, ends, errno
	}
	ends.source = addrPort(&from)
	ends.destination, _ = steer.OriginalDst(control[:msg.Controllen])
	return int(n), ends, 0
}
