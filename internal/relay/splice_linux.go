package relay

import (
	"golang.org/x/sys/unix"
)

// pipe is a pipe(7) that stands between two sockets while bytes are in it.
type pipe struct {
	r, w  int
	bytes int // in it now
}

// pipeSize is how much one pipe may hold, bytes. The kernel's default of 64 KiB
// makes splice slower than copying on a veth, where one segment is that large.
const pipeSize = 1 << 20

// pipePool keeps empty pipes. A flow holds one only while it has bytes in it,
// so idle flows cost no descriptors.
type pipePool struct {
	free  []*pipe
	limit int // pipes at once
	made  int
}

// get returns an empty pipe, or nil when the limit is reached or the system
// gives none: then the caller copies.
func (p *pipePool) get() *pipe {
	if n := len(p.free); n > 0 {
		one := p.free[n-1]
		p.free = p.free[:n-1]
		return one
	}
	if p.made >= p.limit {
		return nil
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return nil
	}
	// Without the right to a larger pipe the default will do.
	_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize)
	p.made++
	return &pipe{r: fds[0], w: fds[1]}
}

// put takes a pipe back; one that still holds bytes of an ended flow is closed.
func (p *pipePool) put(one *pipe) {
	if one.bytes != 0 {
		one.close()
		p.made--
		return
	}
	p.free = append(p.free, one)
}

func (p *pipePool) close() {
	for _, one := range p.free {
		one.close()
	}
	p.free = nil
}

func (p *pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

// splice moves one pipe's worth from side i to the other. False means that the
// turn is over: nothing more to read, nothing taken, or the flow ended.
func (l *loop) splice(f *Flow, i int) bool {
	from, to := &f.side[i], &f.side[1-i]
	p := l.pipes.get()
	if p == nil {
		return l.copyOnce(f, i)
	}
	if !from.spliced {
		from.spliced = true
		l.engine.spliced.Add(1)
	}
	n, errno := rawSplice(from.fd, p.w, pipeSize)
	if errno != 0 || n == 0 {
		l.pipes.put(p)
		switch {
		case errno == errAgain || errno == unix.EINTR:
		case errno != 0:
			l.reset(f, i)
		default:
			l.endOfStream(f, i)
		}
		return false
	}
	p.bytes = n
	l.count(f, i, n)
	l.noDelay(to)
	to.pipe = p
	return l.drainPipe(f, 1-i)
}

// drainPipe empties the pipe that stands before side i and gives it back. False
// means that bytes are left in it, or that the flow has ended.
func (l *loop) drainPipe(f *Flow, i int) bool {
	to := &f.side[i]
	for to.pipe.bytes > 0 {
		n, errno := rawSplice(to.pipe.r, to.fd, to.pipe.bytes)
		switch {
		case errno == unix.EINTR:
			continue
		case errno == errAgain:
			l.watchOut(f, i)
			return false
		case errno != 0:
			l.reset(f, i)
			return false
		}
		to.pipe.bytes -= n
		f.last = l.now
	}
	l.pipes.put(to.pipe)
	to.pipe = nil
	return true
}

// copyOnce is splice without a pipe.
func (l *loop) copyOnce(f *Flow, i int) bool {
	n, errno := rawRead(f.side[i].fd, l.buf)
	switch {
	case errno == errAgain:
		return false
	case errno == unix.EINTR:
		return true
	case errno != 0:
		l.reset(f, i)
		return false
	case n == 0:
		l.endOfStream(f, i)
		return false
	}
	l.count(f, i, n)
	return l.write(f, 1-i, l.buf[:n])
}
