package load

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// totalLen is the size of what the server says on PortTotal.
const totalLen = 8

// streams is the loop behind Download and Upload. What counts is what arrived:
// the client's own count of a download, the server's count of an upload, which is
// asked for by a connection of its own: not every gateway carries an answer
// behind the client's FIN.
type streams struct {
	epoll int
	fds   []int
	data  []byte
	res   Result
}

func runStreams(ctx context.Context, spec Spec) (Result, error) {
	epoll, err := newEpoll()
	if err != nil {
		return Result{}, err
	}
	t := &streams{epoll: epoll, data: make([]byte, chunk), res: Result{Failed: map[string]uint64{}}}
	defer t.close()
	port, events := PortSource, uint32(unix.EPOLLIN)
	if spec.Kind == Upload {
		port, events = PortSink, unix.EPOLLOUT
	}
	targets := rawTargets(spec.Targets, port)
	for i := range spec.Parallel {
		fd, e := rawSocket()
		if e != 0 {
			return Result{}, fmt.Errorf("make a socket: %w", e)
		}
		t.fds = append(t.fds, fd)
		if e := rawConnect(fd, &targets[i%len(targets)]); e != 0 && e != syscall.EINPROGRESS {
			return Result{}, fmt.Errorf("connect to %s: %w", spec.Targets[i%len(targets)], e)
		}
		if e := rawWatch(epoll, unix.EPOLL_CTL_ADD, fd, events, int32(i)); e != 0 {
			return Result{}, fmt.Errorf("watch a stream: %w", e)
		}
	}
	var before uint64
	if spec.Kind == Upload {
		if before, err = total(ctx, spec); err != nil {
			return Result{}, err
		}
	}
	start := time.Now()
	if err := t.transfer(ctx, spec, start); err != nil {
		return Result{}, err
	}
	if spec.Kind == Upload {
		if err := t.finish(spec); err != nil {
			return Result{}, err
		}
	}
	t.res.Elapsed = time.Since(start)
	if spec.Kind == Upload {
		after, err := total(ctx, spec)
		if err != nil {
			return Result{}, err
		}
		t.res.Bytes = after - before
	}
	t.res.Done = uint64(spec.Parallel) - t.res.Failures()
	return t.res, ctx.Err()
}

func (t *streams) transfer(ctx context.Context, spec Spec, start time.Time) error {
	events := make([]unix.EpollEvent, 128)
	for time.Since(start) < spec.Duration && ctx.Err() == nil {
		n, err := wait(t.epoll, events, 50)
		if err != nil {
			return err
		}
		for i := range events[:n] {
			id := events[i].Fd
			if spec.Kind == Download {
				t.receive(id)
			} else {
				t.send(id)
			}
		}
	}
	return nil
}

func (t *streams) receive(id int32) {
	n, e := rawDiscard(t.fds[id], 4*chunk)
	switch {
	case e == syscall.EAGAIN:
	case e != 0:
		t.fail(id, unix.ErrnoName(e))
	case n == 0:
		t.fail(id, "EOF")
	default:
		t.res.Bytes += uint64(n)
	}
}

func (t *streams) send(id int32) {
	if _, e := rawSend(t.fds[id], t.data); e != 0 && e != syscall.EAGAIN {
		t.fail(id, unix.ErrnoName(e))
	}
}

// finish half-closes every stream and waits until the other end has closed it.
func (t *streams) finish(spec Spec) error {
	left := 0
	for id, fd := range t.fds {
		if fd < 0 {
			continue
		}
		left++
		rawShutdown(fd)
		if e := rawWatch(t.epoll, unix.EPOLL_CTL_MOD, fd, unix.EPOLLIN, int32(id)); e != 0 {
			return fmt.Errorf("watch a stream: %w", e)
		}
	}
	events := make([]unix.EpollEvent, 128)
	for deadline := time.Now().Add(spec.Timeout); left > 0 && time.Now().Before(deadline); {
		n, err := wait(t.epoll, events, 50)
		if err != nil {
			return err
		}
		for i := range events[:n] {
			id := events[i].Fd
			var b [8]byte
			n, e := rawRecv(t.fds[id], b[:])
			switch {
			case e == syscall.EAGAIN:
				continue
			case e != 0:
				t.fail(id, unix.ErrnoName(e))
			case n != 0:
				t.fail(id, "bad answer")
			default:
				rawClose(t.fds[id])
				t.fds[id] = -1
			}
			left--
		}
	}
	if left > 0 {
		t.res.Failed["timeout"] += uint64(left)
	}
	return nil
}

// total asks the server how many bytes its sinks have got, until that does not
// grow any more: a gateway may close a stream before the last of it has arrived.
func total(ctx context.Context, spec Spec) (n uint64, err error) {
	for last := ^uint64(0); n != last; {
		last = n
		if n, err = askTotal(ctx, spec); err != nil {
			return 0, fmt.Errorf("ask how much has arrived: %w", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return n, nil
}

func askTotal(ctx context.Context, spec Spec) (uint64, error) {
	dialer := net.Dialer{Timeout: spec.Timeout}
	c, err := dialer.DialContext(ctx, "tcp4", netip.AddrPortFrom(spec.Targets[0], PortTotal).String())
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(spec.Timeout)); err != nil {
		return 0, err
	}
	var b [totalLen]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(b[:]), nil
}

func (t *streams) fail(id int32, why string) {
	t.res.Failed[why]++
	rawClose(t.fds[id])
	t.fds[id] = -1
}

func (t *streams) close() {
	for _, fd := range t.fds {
		if fd >= 0 {
			rawClose(fd)
		}
	}
	rawClose(t.epoll)
}
