package pump

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
)

// ErrRefused is returned by Socket.Connected where the peer does not take the
// connection: it refused, or nothing answered in time.
var ErrRefused = errors.New("connection refused")

// Socket is the Stream of a nonblocking socket's descriptor: of TCP, of
// connected UDP, or one end of a pair.
type Socket struct {
	// Abortive says that the socket has SO_LINGER with a time of zero, so that
	// the kernel resets it should this process die. It is taken off for a close
	// in order. Set it before the flow runs.
	Abortive bool

	file *os.File
	reading
}

// NewSocket returns the stream; the descriptor is the stream's from now on. It
// must be nonblocking. The name is for messages.
func NewSocket(fd int, name string, datagrams bool) (*Socket, error) {
	file := os.NewFile(uintptr(fd), name)
	if file == nil {
		return nil, fmt.Errorf("open socket of %s: %w", name, os.ErrInvalid)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open socket of %s: %w", name, err), file.Close())
	}
	s := &Socket{file: file}
	s.reading.init(raw, datagrams)
	return s, nil
}

// Connected waits, for at most the given time, until a connect that is under
// way has come through. It returns ErrRefused where it does not.
func (s *Socket) Connected(within time.Duration) error {
	if err := s.file.SetWriteDeadline(time.Now().Add(within)); err != nil {
		return fmt.Errorf("limit the wait for a connection: %w", err)
	}
	var failure error
	err := s.raw.Write(func(fd uintptr) bool {
		var done bool
		done, failure = connected(int(fd))
		return done
	})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: no answer within %v", ErrRefused, within)
	case err != nil:
		return fmt.Errorf("wait for a connection: %w", err)
	case errors.Is(failure, unix.ECONNRESET):
		// Accepted, and reset before we came to look: bytes may have come before.
		s.late = failure
	case failure != nil:
		return fmt.Errorf("%w: %w", ErrRefused, failure)
	}
	return s.file.SetWriteDeadline(time.Time{})
}

// connected tells whether a connect is decided, and how.
func connected(fd int) (bool, error) {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	switch {
	case err != nil:
		return true, err
	case code != 0:
		return true, unix.Errno(code)
	}
	_, err = unix.Getpeername(fd)
	if errors.Is(err, unix.ENOTCONN) {
		return false, nil
	}
	return true, err
}

// Read reads from the socket. Nothing but tests and io.Copy need it: the pump
// uses Lend.
func (s *Socket) Read(b []byte) (int, error) {
	got, err := s.Lend()
	n := copy(b, got)
	s.Return()
	return n, err
}

// Lend implements Lender.
func (s *Socket) Lend() ([]byte, error) {
	for {
		b, err := s.reading.Lend()
		if err == nil || !s.datagrams || !passing(err) {
			return b, err
		}
		s.Return()
	}
}

// passing tells whether an error concerns one datagram and not the exchange:
// the route was gone for a moment, the datagram too long for it. Reading or
// sending once more goes on behind it, and the idle time decides.
func passing(err error) bool {
	for _, e := range [...]unix.Errno{
		unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.ENETDOWN, unix.EMSGSIZE, unix.EPROTO,
		unix.ENOPROTOOPT, unix.EACCES, unix.EPERM, unix.ENOBUFS, unix.ENOMEM, unix.EAGAIN,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Write sends bytes, or one datagram. A datagram that the kernel does not take
// now is lost, as on the way; an ICMP port unreachable that an earlier one met
// is the error unix.ECONNREFUSED.
func (s *Socket) Write(b []byte) (int, error) {
	if !s.datagrams {
		return s.file.Write(b)
	}
	var failure error
	err := s.raw.Control(func(fd uintptr) {
		failure = unix.Sendto(int(fd), b, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT, nil)
	})
	switch {
	case err != nil:
		return 0, err
	case failure != nil && !passing(failure):
		return 0, failure
	}
	return len(b), nil
}

// CloseWrite sends a FIN; a socket of datagrams has none.
func (s *Socket) CloseWrite() error {
	if s.datagrams {
		return nil
	}
	var failure error
	err := s.raw.Control(func(fd uintptr) { failure = unix.Shutdown(int(fd), unix.SHUT_WR) })
	return errors.Join(err, failure)
}

// Reset closes the socket with an RST where its protocol has one.
func (s *Socket) Reset(deception.EndReason) {
	if !s.datagrams && !s.Abortive {
		s.linger(unix.Linger{Onoff: 1})
	}
	_ = s.file.Close() // fails where it is closed already
}

// Close closes the socket in order.
func (s *Socket) Close() error {
	if s.Abortive {
		s.linger(unix.Linger{})
	}
	return s.file.Close()
}

func (s *Socket) linger(l unix.Linger) {
	_ = s.raw.Control(func(fd uintptr) { // fails where it is closed already
		_ = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &l)
	})
}
