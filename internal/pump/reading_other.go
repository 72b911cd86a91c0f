//go:build !unix

package pump

import "syscall"

// reading waits until there is something to read. It implements Waiter.
type reading struct {
	raw syscall.RawConn
}

func (r *reading) init(raw syscall.RawConn, _ bool) { r.raw = raw }

// WaitRead implements Waiter. Package net waits, with a read of no bytes,
// whenever the function that it calls says that it found nothing.
func (r *reading) WaitRead() error {
	waited := false
	return r.raw.Read(func(uintptr) bool {
		before := waited
		waited = true
		return before
	})
}
