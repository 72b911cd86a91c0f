package pump

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"decoynet/deception"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// within bounds every wait of these tests.
const within = 20 * time.Second

// pair returns both ends of a TCP connection over loopback.
func pair(t testing.TB) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if far, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr)); err != nil {
		t.Fatal(err)
	}
	if near, err = l.AcceptTCP(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	for _, c := range []*net.TCPConn{near, far} {
		if err := c.SetDeadline(time.Now().Add(within)); err != nil {
			t.Fatal(err)
		}
	}
	return near, far
}

// plain hides everything of a stream but its four methods.
type plain struct{ Stream }

// waiting hides that a stream lends, and waits by reading ahead.
type waiting struct {
	Stream
	ahead []byte
	err   error
}

func (w *waiting) WaitRead() error {
	if len(w.ahead) == 0 && w.err == nil {
		b := make([]byte, 100)
		n, err := w.Stream.Read(b)
		w.ahead, w.err = b[:n], err
	}
	return nil
}

func (w *waiting) Read(b []byte) (int, error) {
	if len(w.ahead) == 0 {
		return 0, w.err
	}
	n := copy(b, w.ahead)
	w.ahead = w.ahead[n:]
	return n, nil
}

// makers are the ways in which a TCP connection becomes a stream.
var makers = map[string]func(t testing.TB, c *net.TCPConn) Stream{
	"tcp":     tcpStream,
	"plain":   func(t testing.TB, c *net.TCPConn) Stream { return plain{tcpStream(t, c)} },
	"waiting": func(t testing.TB, c *net.TCPConn) Stream { return &waiting{Stream: tcpStream(t, c)} },
}

func tcpStream(t testing.TB, c *net.TCPConn) Stream {
	t.Helper()
	s, err := NewTCP(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// running is a flow between two far ends.
type running struct {
	intruder, service *net.TCPConn
	flow              *Flow
	over              chan deception.Session
}

func start(t testing.TB, stream func(testing.TB, *net.TCPConn) Stream, opts Options) *running {
	t.Helper()
	near1, intruder := pair(t)
	near2, service := pair(t)
	r := &running{intruder: intruder, service: service, over: make(chan deception.Session, 1)}
	r.flow = New(stream(t, near1), stream(t, near2), opts)
	go func() {
		s := deception.Session{Start: time.Now()}
		r.flow.Run()
		r.flow.Fill(&s)
		r.over <- s
	}()
	return r
}

// wait returns the session of the flow that is over.
func (r *running) wait(t testing.TB) deception.Session {
	t.Helper()
	select {
	case s := <-r.over:
		return s
	case <-time.After(within):
		r.flow.End(deception.EndShutdown)
		t.Fatal("the flow does not end")
		return deception.Session{}
	}
}

func send(t testing.TB, c io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func expect(t testing.TB, c io.Reader, text string) {
	t.Helper()
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != text {
		t.Fatalf("read %q, %v; want %q", b, err, text)
	}
}

func expectFIN(t testing.TB, c io.Reader) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("read %d bytes, %v; want a FIN", n, err)
	}
}

func expectRST(t testing.TB, c io.Reader) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read until %v, want a reset", err)
	}
}

func reset(t testing.TB, c *net.TCPConn) {
	t.Helper()
	if err := errors.Join(c.SetLinger(0), c.Close()); err != nil {
		t.Fatal(err)
	}
}

func finish(t testing.TB, c *net.TCPConn) {
	t.Helper()
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
}
