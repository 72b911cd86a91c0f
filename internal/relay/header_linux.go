package relay

import (
	"errors"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"decoynet/deception"
)

// ErrHeaderTransport is told to Listener.Failed where a connection's header
// speaks of datagrams or the other way round.
var ErrHeaderTransport = errors.New("header of another transport than it came over")

// headerRead is how much is read at once while a header is awaited: what comes
// behind it has to be kept until the service has accepted.
const headerRead = 4 * HeaderSize

// beginHeader takes a connection whose header says what flow it is. Mostly the
// header is there already.
func (l *loop) beginHeader(from *listener, fd int, peer netip.AddrPort) {
	f := l.newFlow(from)
	f.side[Client].fd = fd
	f.Peer = peer
	f.Session.Start = l.wall
	f.Session.Transport = deception.TCP
	f.state = stateHeader
	l.engine.active.Add(1)
	l.readHeader(f)
}

// readHeader goes on with a header until it is whole, or nothing is there.
func (l *loop) readHeader(f *Flow) {
	client := &f.side[Client]
	for {
		kept := copy(l.buf, f.partial)
		n, errno := rawRead(client.fd, l.buf[kept:kept+headerRead])
		switch {
		case errno == unix.EINTR:
			continue
		case errno == errAgain:
			l.awaitHeader(f)
			return
		case errno != 0 || n == 0:
			l.failHeader(f, ErrHeaderEnd)
			return
		}
		b := l.buf[:kept+n]
		size, err := f.Listener.Header(b, f)
		if errors.Is(err, ErrShort) && len(b) < HeaderSize {
			f.partial = append(f.partial[:0], b...)
			continue
		}
		switch {
		case errors.Is(err, ErrShort) || err == nil && size > HeaderSize:
			err = ErrHeaderSize
		case err == nil && f.Session.Transport != deception.TCP && f.Session.Transport != 0:
			err = ErrHeaderTransport
		}
		if err != nil {
			l.failHeader(f, err)
			return
		}
		l.headerDone(f, b[size:])
		return
	}
}

// awaitHeader has epoll tell when more of the header has come.
func (l *loop) awaitHeader(f *Flow) {
	client := &f.side[Client]
	if client.watched {
		return
	}
	client.watched = true
	if errno := rawEpoll(l.epoll, unix.EPOLL_CTL_ADD, client.fd, edgeIn, l.epollData(f.index, Client)); errno != 0 {
		l.engine.overload.Add(1)
		l.dropHeader(f)
	}
}

// headerDone makes a flow of it like any other; early came behind the header.
func (l *loop) headerDone(f *Flow, early []byte) {
	f.partial = nil
	f.Session.Transport = deception.TCP
	if len(early) > 0 {
		l.count(f, Client, len(early))
		f.keepHead(Client, early)
		f.side[Server].pending = append([]byte(nil), early...)
	}
	f.last = l.now
	l.admit(f)
}

func (l *loop) failHeader(f *Flow, err error) {
	failed, peer := f.Listener.Failed, f.Peer
	l.engine.badHeader.Add(1)
	l.dropHeader(f)
	if failed != nil {
		failed(peer, err)
	}
}

// dropHeader resets a connection that never became a flow.
func (l *loop) dropHeader(f *Flow) {
	rawReset(f.side[Client].fd)
	l.engine.active.Add(-1)
	l.drop(f)
}

// dropHeaders does so with all of a listener's, or of every one (nil).
func (l *loop) dropHeaders(owner *Listener) {
	for i := range l.slots {
		if f := l.slots[i].flow; f != nil && f.state == stateHeader && (owner == nil || f.Listener == owner) {
			l.dropHeader(f)
		}
	}
}

// handOver gives the accepted socket to whom the handler named.
func (l *loop) handOver(f *Flow) {
	take, fd := f.Take, f.side[Client].fd
	if f.side[Client].watched {
		_ = rawEpoll(l.epoll, unix.EPOLL_CTL_DEL, fd, 0, 0)
	}
	l.engine.taken.Add(1)
	l.drop(f)
	take(fd)
}

// sendFirst gives the service's side what it is to get before anything else:
// the prelude, and what came behind the client's header. What the client has
// said meanwhile goes with it, so that the other end of a hop finds header and
// first data in one segment. False means that the flow has ended.
func (l *loop) sendFirst(f *Flow) bool {
	server := &f.side[Server]
	n := copy(l.buf, f.Prelude)
	n += copy(l.buf[n:], server.pending)
	server.pending = nil
	m, errno := rawRead(f.side[Client].fd, l.buf[n:])
	switch {
	case errno == errAgain || errno == unix.EINTR:
	case errno != 0:
		l.reset(f, Client)
		return false
	case m > 0: // at the end of the stream epoll will say so again
		l.take(f, Client, l.buf[n:n+m])
		n += m
	}
	return l.write(f, Server, l.buf[:n]) || f.state != stateFree
}

// peerKey names the other end of a UDP socket whose datagrams have headers.
type peerKey struct {
	listener *Listener
	peer     netip.AddrPort
}

// acceptHeaderUDP takes a datagram that begins with a header. Nearly always it
// is the header that the peer's last one had, byte for byte, and need not be
// read again.
func (l *loop) acceptHeaderUDP(from *listener, datagram []byte, peer, local netip.AddrPort) {
	if from.Allowed != nil && !from.Allowed(peer) {
		l.engine.barred.Add(1)
		return
	}
	if f := l.peers[peerKey{from.Listener, peer}]; f != nil && len(f.partial) <= len(datagram) && string(f.partial) == string(datagram[:len(f.partial)]) {
		l.deliverUDP(f, datagram[len(f.partial):])
		return
	}
	f := &l.scratch
	*f = Flow{Listener: from.Listener, Peer: peer}
	size, err := from.Header(datagram, f)
	switch {
	case errors.Is(err, ErrShort):
		err = ErrHeaderEnd
	case err == nil && size > HeaderSize:
		err = ErrHeaderSize
	case err == nil && f.Session.Transport != deception.UDP:
		err = ErrHeaderTransport
	}
	if err != nil {
		l.engine.badHeader.Add(1)
		if from.Failed != nil {
			from.Failed(peer, err)
		}
		return
	}
	key := udpKey{from.Listener, peer, f.Session.Source, f.Session.Destination}
	if known := l.udp[key]; known != nil {
		l.deliverUDP(known, datagram[size:])
		return
	}
	if f = l.admitUDP(from, datagram[:size], peer, local); f != nil {
		l.udp[key], l.peers[peerKey{from.Listener, peer}] = f, f
		l.deliverUDP(f, datagram[size:])
	}
}

// admitUDP makes a flow of what the scratch flow has learnt from a header.
func (l *loop) admitUDP(from *listener, header []byte, peer, local netip.AddrPort) *Flow {
	if !l.roomForUDP() {
		l.engine.overload.Add(1)
		return nil
	}
	f := l.newFlow(from)
	f.Session, f.Value, f.Peer = l.scratch.Session, l.scratch.Value, peer
	f.Session.Start = l.wall
	f.partial = append(f.partial[:0], header...)
	f.answer = &answerWay{from: from, local: local.Addr()}
	f.answer.size = fillSockaddr(&f.answer.to, peer, from.family)
	l.engine.active.Add(1)
	return l.admit(f)
}

func (l *loop) deliverUDP(f *Flow, data []byte) {
	if f.state != stateRelaying { // waits for its socket; UDP may lose
		l.engine.truncated.Add(1)
		return
	}
	l.sendUDP(f, Client, data)
}

// answerWay is how a UDP flow whose datagrams have headers answers: from the
// listening socket, plainly. A socket connected to the peer for each flow
// would also take the datagrams of the peer's other flows.
type answerWay struct {
	from  *listener
	local netip.Addr // where the peer sent to
	to    sockaddr
	size  uint32
}

// send sends a datagram to the peer. Where the socket is bound to no address
// the answer has to come from the one that was asked (IP_PKTINFO).
func (a *answerWay) send(b []byte) unix.Errno {
	var control [40]byte // CMSG_SPACE of either kind, and aligned as uint64
	vec := unix.Iovec{Base: unsafe.SliceData(b), Len: uint64(len(b))}
	msg := unix.Msghdr{Name: (*byte)(unsafe.Pointer(&a.to)), Namelen: a.size, Iov: &vec, Iovlen: 1}
	if a.from.wildcard && a.local.IsValid() {
		msg.Control = &control[0]
		msg.Controllen = uint64(a.fillPktinfo(&control))
	}
	_, _, e := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(a.from.fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
	return e
}

// fillPktinfo writes the control message that names the local address, in IPv6
// form on an IPv6 socket also for IPv4 (ip_cmsg_send takes it), and returns its
// size.
func (a *answerWay) fillPktinfo(control *[40]byte) int {
	head := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
	body := unsafe.Pointer(&control[unix.CmsgLen(0)])
	if a.from.family == unix.AF_INET {
		head.Level, head.Type = unix.SOL_IP, unix.IP_PKTINFO
		head.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
		(*unix.Inet4Pktinfo)(body).Spec_dst = a.local.As4()
		return unix.CmsgSpace(unix.SizeofInet4Pktinfo)
	}
	head.Level, head.Type = unix.SOL_IPV6, unix.IPV6_PKTINFO
	head.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
	(*unix.Inet6Pktinfo)(body).Addr = a.local.As16()
	return unix.CmsgSpace(unix.SizeofInet6Pktinfo)
}
