package relay

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
)

// acceptsARound bounds how many connections a loop takes before the flows there
// are get their turn, and before other loops do.
const acceptsARound = 4

// readsATurn bounds what one side may move before the others get theirs.
const readsATurn = 8

func (l *loop) acceptTCP(from *listener) {
	for range acceptsARound {
		var sa sockaddr
		fd, errno := rawAccept(from.fd, &sa)
		switch errno {
		case 0:
		case unix.EINTR, unix.ECONNABORTED, unix.EPROTO:
			continue
		case unix.EMFILE, unix.ENFILE:
			l.turnAway(from.fd)
			return
		default: // EAGAIN; ENOBUFS and ENOMEM, where the next event tries again
			return
		}
		if l.engine.active.Load() >= int64(l.engine.cfg.MaxFlows) {
			l.engine.overload.Add(1)
			rawReset(fd)
			continue
		}
		source := addrPort(&sa)
		if from.Allowed != nil && !from.Allowed(source) {
			l.engine.barred.Add(1)
			rawReset(fd)
			continue
		}
		if from.Header != nil {
			l.beginHeader(from, fd, source)
			continue
		}
		if errno := rawGetsockname(fd, &sa); errno != 0 {
			rawReset(fd)
			continue
		}
		l.begin(from, fd, deception.TCP, sessionEnds{source: source, destination: addrPort(&sa)})
	}
}

// turnAway resets one waiting connection when there is no descriptor left for
// it: the one kept spare for this is given up for the length of the call. Left
// in the queue it would wake the loop for ever.
func (l *loop) turnAway(listenFD int) {
	l.engine.overload.Add(1)
	rawClose(l.spareFD)
	var sa sockaddr
	if fd, errno := rawAccept(listenFD, &sa); errno == 0 {
		rawReset(fd)
	}
	l.spareFD = spareDescriptor()
}

// begin asks the handler about a new flow and opens it.
func (l *loop) begin(from *listener, fd int, t deception.Transport, ends sessionEnds) *Flow {
	f := l.newFlow(from)
	f.side[Client].fd = fd
	f.Session.Start = l.wall
	f.Session.Transport = t
	f.Session.Source, f.Session.Destination = ends.source, ends.destination
	l.engine.active.Add(1)
	return l.admit(f)
}

// admit asks the handler about a flow whose ends are known and opens it. It
// returns nil where the flow is over or somebody else's.
func (l *loop) admit(f *Flow) *Flow {
	e, t, fd := l.engine, f.Session.Transport, f.side[Client].fd
	ok := e.handler.Accept(f)
	if !ok || f.Take != nil {
		e.active.Add(-1)
		switch {
		case ok && t == deception.TCP:
			l.handOver(f)
			return nil
		case fd >= 0:
			rawReset(fd)
		}
		e.refused.Add(1)
		l.drop(f)
		return nil
	}
	e.accepted.Add(1)
	if early := f.Early(); f.Watch != nil && len(early) > 0 {
		f.Watch.Data(Client, early, l.wall)
	}
	if t == deception.UDP {
		e.activeUDP.Add(1)
	}
	f.state = stateOpening
	l.open(f)
	if f.state == stateFree {
		return nil
	}
	return f
}

// open has the handler connect to the service, again later where that helps.
func (l *loop) open(f *Flow) {
	last := int(f.attempt) == attempts-1
	fd, err := l.engine.handler.Open(f, last)
	if errors.Is(err, ErrAgain) && !last {
		f.attempt++
		l.retry = append(l.retry, retryAt{sideRef: l.ref(f, Client), due: l.now + int64(pauses[f.attempt])})
		return
	}
	if err != nil {
		reason := deception.EndRefused
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOBUFS) {
			reason = deception.EndOverload
			l.engine.overload.Add(1)
		}
		l.end(f, reason, true)
		return
	}
	f.side[Server].fd = fd
	f.state = stateConnecting
	if f.Session.Transport == deception.UDP {
		l.openedUDP(f)
		return
	}
	f.side[Server].outWatched = true
	if errno := rawEpoll(l.epoll, unix.EPOLL_CTL_ADD, fd, edgeInOut, l.epollData(f.index, Server)); errno != 0 {
		l.end(f, deception.EndOverload, true)
	}
}

func (l *loop) tcpReady(f *Flow, sideIndex uint8, events uint32) {
	i := int(sideIndex)
	if f.state != stateRelaying && !l.beforeRelaying(f, i, events) {
		return
	}
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		f.side[i].hup = true
	}
	if events&unix.EPOLLERR != 0 && l.failed(f, i) {
		return
	}
	if events&unix.EPOLLOUT != 0 && (len(f.side[i].pending) > 0 || f.side[i].pipe != nil) {
		if !l.flush(f, i) {
			return
		}
	}
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP) != 0 {
		l.pump(f, i)
	}
}

// beforeRelaying takes the events of a flow that does not relay yet. False means
// that there is nothing more to do about them.
func (l *loop) beforeRelaying(f *Flow, i int, events uint32) bool {
	switch {
	case f.state == stateHeader:
		l.readHeader(f)
		return false
	case i == Client: // known from its header on; looked at once the service has accepted
		return false
	}
	return f.state == stateConnecting && l.connected(f, events)
}

// connected takes the first event of the service's socket: accepted, or not.
func (l *loop) connected(f *Flow, events uint32) bool {
	var failure unix.Errno
	if events&unix.EPOLLERR != 0 {
		failure = rawSocketError(f.side[Server].fd)
	}
	if failure != 0 && failure != unix.ECONNRESET {
		l.end(f, deception.EndRefused, true)
		return false
	}
	if events&unix.EPOLLOUT == 0 {
		return false
	}
	f.state = stateRelaying
	f.last = l.now
	l.engine.handler.Opened(f)
	if failure == unix.ECONNRESET { // accepted, and reset before we came to look
		if l.pump(f, Server); f.state == stateRelaying {
			l.reset(f, Server)
		}
		return false
	}
	if (len(f.Prelude) > 0 || len(f.side[Server].pending) > 0) && !l.sendFirst(f) {
		return false
	}
	// Only now is the intruder's side watched: epoll reports at once what has
	// come in meanwhile.
	operation := unix.EPOLL_CTL_ADD
	if f.side[Client].watched {
		operation = unix.EPOLL_CTL_MOD
	}
	if errno := rawEpoll(l.epoll, operation, f.side[Client].fd, edgeIn, l.epollData(f.index, Client)); errno != 0 {
		l.end(f, deception.EndOverload, true)
		return false
	}
	return true
}

// failed ends the flow when the side was reset while its bytes cannot be read
// on (the other side is not taking any); otherwise reading finds the error
// itself, behind the last bytes.
func (l *loop) failed(f *Flow, i int) bool {
	to := &f.side[1-i]
	if len(to.pending) == 0 && to.pipe == nil && !f.side[i].eof {
		return false
	}
	if rawSocketError(f.side[i].fd) == 0 {
		return false
	}
	l.reset(f, i)
	return true
}

// reset ends a flow because side i was reset.
func (l *loop) reset(f *Flow, i int) {
	reason := deception.EndClientReset
	if i == Server {
		reason = deception.EndServiceReset
	}
	l.end(f, reason, true)
}

// pump moves bytes from side i to the other until one of them will not go on.
func (l *loop) pump(f *Flow, i int) {
	from, to := &f.side[i], &f.side[1-i]
	if from.eof || len(to.pending) > 0 || to.pipe != nil {
		return // flush goes on from here when the other side takes bytes again
	}
	for range readsATurn {
		if l.splices(f, i) {
			if more := l.splice(f, i); !more {
				return
			}
			continue
		}
		n, errno := rawRead(from.fd, l.buf)
		switch {
		case errno == errAgain:
			return
		case errno == unix.EINTR:
			continue
		case errno != 0:
			l.reset(f, i)
			return
		case n == 0:
			l.endOfStream(f, i)
			return
		}
		l.take(f, i, l.buf[:n])
		if !l.write(f, 1-i, l.buf[:n]) {
			return
		}
		if n < len(l.buf) && !from.hup {
			return // the queue is empty; the next byte raises a new edge
		}
	}
	l.again(f, i)
}

func (l *loop) count(f *Flow, i, n int) {
	f.side[i].bytes += uint64(n)
	f.last = l.now
}

// again puts a side on the list of those to go on with in the next round.
func (l *loop) again(f *Flow, i int) {
	if !f.side[i].queued {
		f.side[i].queued = true
		l.ready = append(l.ready, l.ref(f, i))
	}
}

// write sends to side i and keeps what it would not take. False means that no
// more may be read for it now, or that the flow has ended.
func (l *loop) write(f *Flow, i int, b []byte) bool {
	to := &f.side[i]
	l.noDelay(to)
	for len(b) > 0 {
		n, errno := rawSend(to.fd, b, 0)
		switch {
		case errno == errAgain:
			to.pending = append(to.pending[:0], b...)
			l.watchOut(f, i)
			return false
		case errno == unix.EINTR:
			continue
		case errno != 0:
			l.reset(f, i)
			return false
		}
		b = b[n:]
	}
	return true
}

// watchOut has epoll tell when side i takes bytes again. It looks at once, so
// that nothing is missed.
func (l *loop) watchOut(f *Flow, i int) {
	to := &f.side[i]
	if to.outWatched {
		return
	}
	to.outWatched = true
	// It cannot fail: the socket is registered, and nothing is allocated.
	rawEpoll(l.epoll, unix.EPOLL_CTL_MOD, to.fd, edgeInOut, l.epollData(f.index, i))
}

// noDelay switches Nagle's algorithm off before the second write: the first
// one goes out at once anyway, and very many flows have only one.
func (l *loop) noDelay(to *side) {
	if to.writes && !to.noDelay {
		rawSetInt(to.fd, unix.SOL_TCP, unix.TCP_NODELAY, 1)
		to.noDelay = true
	}
	to.writes = true
}

// flush sends what is kept for side i, then goes on reading for it. False
// means that the flow has ended.
func (l *loop) flush(f *Flow, i int) bool {
	to := &f.side[i]
	if to.pipe != nil {
		if !l.drainPipe(f, i) {
			return f.state != stateFree
		}
	}
	if kept := to.pending; len(kept) > 0 {
		to.pending = nil
		if !l.write(f, i, kept) {
			return f.state != stateFree
		}
		f.last = l.now
	}
	if f.side[1-i].eof {
		return l.passEnd(f, 1-i)
	}
	l.pump(f, 1-i)
	return f.state != stateFree
}

// endOfStream takes a FIN from side i: first carry out what is still to be
// written, then half-close the other side.
func (l *loop) endOfStream(f *Flow, i int) {
	f.side[i].eof = true
	f.last = l.now
	if f.ended == deception.EndNone {
		f.ended = deception.EndClientClosed
		if i == Server {
			f.ended = deception.EndServiceClosed
		}
	}
	if f.Watch != nil {
		f.Watch.Fin(i, f.side[i].bytes, l.wall)
	}
	l.passEnd(f, i)
}

// passEnd carries the end of stream of side i over. False means that this was
// the second one and the flow has ended.
func (l *loop) passEnd(f *Flow, i int) bool {
	to := &f.side[1-i]
	if len(to.pending) > 0 || to.pipe != nil {
		return true
	}
	if to.eof && !l.unsent(f, i) {
		l.end(f, f.ended, false) // close sends the FIN that is still owed
		return false
	}
	if !to.shut {
		to.shut = true
		rawShutdown(to.fd)
	}
	return true
}

// unsent tells whether bytes are still kept for side i.
func (l *loop) unsent(f *Flow, i int) bool {
	return len(f.side[i].pending) > 0 || f.side[i].pipe != nil
}

// end closes both sockets and tells the handler. With abort both sides get RST
// where their protocol has one.
func (l *loop) end(f *Flow, reason deception.EndReason, abort bool) {
	if f.state == stateFree {
		return
	}
	abort = abort && f.Session.Transport == deception.TCP
	for i := range f.side {
		fd := f.side[i].fd
		switch {
		case fd < 0:
		case abort:
			rawReset(fd)
		case f.abortive(i):
			rawCloseInOrder(fd)
		default:
			rawClose(fd)
		}
	}
	l.engine.active.Add(-1)
	if f.Session.Transport == deception.UDP {
		l.engine.activeUDP.Add(-1)
		l.forgetUDP(f)
	}
	s := &f.Session
	s.End = l.wall
	if !s.End.After(s.Start) {
		s.End = s.Start.Add(time.Nanosecond) // both read from the round's clock
	}
	s.Reason = reason
	s.SourceBytes, s.DestinationBytes = f.side[Client].bytes, f.side[Server].bytes
	s.SourceHead, s.DestinationHead = f.StartOf(Client), f.StartOf(Server)
	if f.Watch != nil {
		f.Watch.Close(s, l.wall)
	}
	l.engine.handler.Close(f)
	f.state = stateFree
	l.drop(f)
}

// sessionEnds are the two ends of a flow as the intruder sees it.
type sessionEnds struct{ source, destination netip.AddrPort }
