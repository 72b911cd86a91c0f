package conntrack

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// ReadRaw hands out the datagrams of all groups as they come, for recordings,
// until ctx ends.
func ReadRaw(ctx context.Context, ns Namespace, ready func(), f func([]byte)) error {
	conn, err := dial(ns)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := errors.Join(conn.JoinGroup(groupNew), conn.JoinGroup(groupUpdate), conn.JoinGroup(groupDestroy)); err != nil {
		return err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	ready()
	buf := make([]byte, messageBuffer)
	for ctx.Err() == nil {
		var n int
		var readErr error
		if err := raw.Read(func(fd uintptr) bool {
			n, readErr = unix.Read(int(fd), buf)
			return !errors.Is(readErr, unix.EAGAIN)
		}); err != nil {
			return nil
		}
		if readErr != nil {
			return readErr
		}
		f(buf[:n])
	}
	return nil
}

// Messages is messages.
func Messages(b []byte, at time.Time, handler func(Event)) (bad int) {
	return messages(b, at, handler)
}
