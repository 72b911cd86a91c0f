//go:build unix

package pump

import (
	"errors"
	"io"
	"syscall"
)

// reading reads a nonblocking descriptor into a buffer that is held only while
// there is something in it. It implements Lender.
type reading struct {
	raw       syscall.RawConn
	datagrams bool
	try       func(fd uintptr) bool // made once; a new one for every read would be garbage
	buf       *buffer
	n         int
	err       error
	late      error // what the connection died of before it was first read
}

func (r *reading) init(raw syscall.RawConn, datagrams bool) {
	r.raw, r.datagrams = raw, datagrams
	r.try = r.attempt
}

// attempt reads once; false where there is nothing, and the buffer goes back.
func (r *reading) attempt(fd uintptr) bool {
	r.buf = pool(r.datagrams).Get().(*buffer)
	for {
		r.n, r.err = syscall.Read(int(fd), r.buf.b)
		if !errors.Is(r.err, syscall.EINTR) {
			break
		}
	}
	if r.err == nil && r.n > 0 {
		return true
	}
	if !errors.Is(r.err, syscall.EAGAIN) {
		return true
	}
	r.Return()
	return false
}

// Lend implements Lender.
func (r *reading) Lend() ([]byte, error) {
	r.n, r.err = 0, nil
	if err := r.raw.Read(r.try); err != nil {
		return nil, err
	}
	switch {
	case r.err != nil:
		return nil, r.err
	case r.n == 0 && r.late != nil:
		return nil, r.late
	case r.n == 0 && !r.datagrams:
		return nil, io.EOF
	}
	return r.buf.b[:r.n], nil
}

// Return implements Lender.
func (r *reading) Return() {
	if r.buf != nil {
		pool(r.datagrams).Put(r.buf)
		r.buf = nil
	}
}
