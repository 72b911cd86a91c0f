package load

import (
	"context"
	"encoding/binary"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// streams is the loop behind Download and Upload. What counts is what arrived:
// the client's own count of a download, the server's count of an upload.
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
	start := time.Now()
	if err := t.transfer(ctx, spec, start); err != nil {
		return Result{}, err
	}
	if spec.Kind == Upload {
		if err := t.collect(spec); err != nil {
			return Result{}, err
		}
	}
	t.res.Elapsed = time.Since(start)
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

// collect half-closes every stream and adds up what the server says it got.
func (t *streams) collect(spec Spec) error {
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
			case n != len(b):
				t.fail(id, "EOF")
			default:
				t.res.Bytes += binary.BigEndian.Uint64(b[:])
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
