package pump

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
)

func init() { makers["socket"] = socketStream }

// socketStream hands a copy of the connection's descriptor over.
func socketStream(t testing.TB, c *net.TCPConn) Stream {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	if err := raw.Control(func(original uintptr) { fd, err = unix.FcntlInt(original, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(err, c.Close()); err != nil { // the copy is all there is, so that closing it closes the connection
		t.Fatal(err)
	}
	return newSocket(t, fd, false)
}

func newSocket(t testing.TB, fd int, datagrams bool) *Socket {
	t.Helper()
	s, err := NewSocket(fd, "test", datagrams)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// dial starts connecting a nonblocking socket.
func dial(t testing.TB, typ int, to netip.AddrPort) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		t.Fatal(err)
	}
	return fd
}

func listen(t testing.TB) (*net.TCPListener, netip.AddrPort) {
	t.Helper()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, l.Addr().(*net.TCPAddr).AddrPort()
}

func TestConnected(t *testing.T) {
	l, at := listen(t)
	s := newSocket(t, dial(t, unix.SOCK_STREAM, at), false)
	if err := s.Connected(within); err != nil {
		t.Fatal(err)
	}
	s.Reset(deception.EndNone)
	l.Close()
	s = newSocket(t, dial(t, unix.SOCK_STREAM, at), false)
	if err := s.Connected(within); !errors.Is(err, ErrRefused) || !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
	s.Reset(deception.EndNone)
}

// A full queue of a listener that accepts nothing leaves SYNs without answer.
func TestConnectedGivesUp(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(name.(*unix.SockaddrInet4).Port))
	for range 4 {
		s := newSocket(t, dial(t, unix.SOCK_STREAM, at), false)
		defer s.Reset(deception.EndNone)
		if err = s.Connected(200 * time.Millisecond); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrRefused) {
		t.Errorf("Connected = %v, want ErrRefused", err)
	}
}

// A service that accepts, answers and resets at once loses neither its bytes
// nor its reset.
func TestResetBeforeTheFirstLook(t *testing.T) {
	l, at := listen(t)
	fd := dial(t, unix.SOCK_STREAM, at)
	conn, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	send(t, conn, "banner")
	reset(t, conn)
	s := newSocket(t, fd, false)
	if err := s.Connected(within); err != nil {
		t.Fatal(err)
	}
	near, intruder := pair(t)
	var session deception.Session
	Run(&session, tcpStream(t, near), s, Options{})
	if session.Reason != deception.EndServiceReset || session.DestinationBytes > 6 {
		t.Errorf("%q after %d bytes", session.Reason, session.DestinationBytes)
	}
	expectRST(t, intruder)
}

// Datagrams over a connected UDP socket and over one end of a pair.
func TestDatagramSockets(t *testing.T) {
	service, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	intruder := newSocket(t, ends[0], true)
	defer intruder.Close()
	at := service.LocalAddr().(*net.UDPAddr).AddrPort()
	f := New(newSocket(t, ends[1], true), newSocket(t, dial(t, unix.SOCK_DGRAM, at), true), Options{Datagrams: true})
	over := make(chan struct{})
	go func() { f.Run(); close(over) }()
	b := make([]byte, 100)
	for _, d := range []string{"ask", ""} {
		send(t, intruder, d)
		n, from, err := service.ReadFromUDPAddrPort(b)
		if err != nil || string(b[:n]) != d {
			t.Fatalf("the service got %q, %v; want %q", b[:n], err, d)
		}
		if _, err := service.WriteToUDPAddrPort(append(b[:n:n], '!'), from); err != nil {
			t.Fatal(err)
		}
		if n, err = intruder.Read(b); err != nil || string(b[:n]) != d+"!" {
			t.Fatalf("the intruder got %q, %v", b[:n], err)
		}
	}
	service.Close() // the next datagram meets ICMP port unreachable
	for deadline := time.Now().Add(within); f.Reason() == deception.EndNone && time.Now().Before(deadline); {
		if _, err := intruder.Write([]byte("again")); err != nil {
			break // our end of the pair is closed
		}
		time.Sleep(time.Millisecond)
	}
	<-over
	if f.Reason() != deception.EndRefused {
		t.Errorf("ended with %q, want refused", f.Reason())
	}
}
