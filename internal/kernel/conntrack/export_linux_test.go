package conntrack

import (
	"context"
	"time"
)

// ReadRaw hands out the datagrams of all groups as they come, for recordings,
// until ctx ends.
func ReadRaw(ctx context.Context, ns Namespace, ready func(), f func([]byte)) error {
	s, err := openEvents(ns)
	if err != nil {
		return err
	}
	defer s.close()
	ready()
	for ctx.Err() == nil {
		if _, err := s.read(f); err != nil {
			return err
		}
		time.Sleep(gather)
	}
	return nil
}

// Messages is messages.
func Messages(b []byte, at time.Time, handler func(Event)) (bad int) {
	return messages(b, at, handler)
}

// SetReceiveBuffer makes the sockets of later calls hold that little.
func SetReceiveBuffer(size int) (restore func()) {
	old := receiveBuffer
	receiveBuffer = size
	return func() { receiveBuffer = old }
}

// Sweep makes the kernel forget what has expired, as a Listener does under load.
func Sweep(ns Namespace) error {
	p, err := newPrompter(ns)
	if err != nil {
		return err
	}
	p.sweep()
	return p.close()
}
