package outbound

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait: a loaded machine takes its time.
const patience = 20 * time.Second

// serve runs a server on loopback until the test ends. Its connections are closed
// after handle, and at the latest with the test.
func serve(t testing.TB, address string, handle func(net.Conn)) (at string) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	var (
		mu    sync.Mutex // guards conns
		conns = map[net.Conn]bool{}
		wg    sync.WaitGroup
	)
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(2 * patience))
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			wg.Go(func() {
				defer func() {
					c.Close()
					mu.Lock()
					delete(conns, c)
					mu.Unlock()
				}()
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

// greeter speaks first, then echoes until the client's FIN, and answers that with
// a last word.
func greeter(c net.Conn) {
	io.WriteString(c, "hello\n")
	io.Copy(c, c)
	io.WriteString(c, "bye\n")
}

// converse talks to a greeter at the other end of the connection.
func converse(t testing.TB, c net.Conn) {
	t.Helper()
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	r := bufio.NewReaderSize(c, 16)
	line := func(want string) {
		t.Helper()
		if got, err := r.ReadString('\n'); got != want || err != nil {
			t.Errorf("read %q, %v; want %q", got, err, want)
		}
	}
	line("hello\n")
	io.WriteString(c, "one\n")
	line("one\n")
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Errorf("close write: %v", err)
	}
	line("bye\n")
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
}

// fakeProxy reads one request and hands it to answer with the connection.
func fakeProxy(t testing.TB, answer func(c net.Conn, req *http.Request)) (at string) {
	return serve(t, "127.0.0.1:0", func(c net.Conn) {
		br := bufio.NewReader(c)
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		answer(c, req)
	})
}

// untilGone waits for the client to close.
func untilGone(c net.Conn) { io.Copy(io.Discard, c) }

func dialer(t testing.TB, proxy string) *Dialer {
	t.Helper()
	d, err := New(proxy)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// mentions fails where a text lacks one of the parts.
func mentions(t testing.TB, what, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%s: %q does not say %q", what, text, p)
		}
	}
}
