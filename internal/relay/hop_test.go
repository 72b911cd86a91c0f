package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
)

// hopHandler is a testHandler that sets a prelude, or takes flows over.
type hopHandler struct {
	testHandler
	prelude string // guarded by mu
	take    func(early []byte) func(fd int)
}

func (h *hopHandler) say(prelude string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.prelude = prelude
}

func (h *hopHandler) Accept(f *Flow) bool {
	if h.take != nil {
		f.Take = h.take(f.Early())
	}
	return h.testHandler.Accept(f)
}

func (h *hopHandler) Open(f *Flow, last bool) (int, error) {
	typ := unix.SOCK_STREAM
	if f.Session.Transport == deception.UDP {
		typ = unix.SOCK_DGRAM
	}
	h.mu.Lock()
	f.Prelude = append(f.Prelude[:0], h.prelude...)
	h.mu.Unlock()
	f.Abortive = typ == unix.SOCK_STREAM
	return Connect(typ, 0, h.service)
}

// refusal is what Listener.Failed was told.
type refusal struct {
	peer netip.AddrPort
	err  error
}

// errBadHeader is what lineHeader says of what does not begin with "H ".
var errBadHeader = errors.New("bad header")

// lineHeader is a header of one line: H transport source destination.
func lineHeader(b []byte, f *Flow) (int, error) {
	if !strings.HasPrefix("H ", string(b[:min(2, len(b))])) {
		return 0, errBadHeader
	}
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		return 0, ErrShort
	}
	var transport, source, destination string
	if _, err := fmt.Sscanf(string(b[:end]), "H %s %s %s", &transport, &source, &destination); err != nil {
		return 0, errBadHeader
	}
	f.Session.Transport = map[string]deception.Transport{"tcp": deception.TCP, "udp": deception.UDP}[transport]
	f.Session.Source, f.Session.Destination = netip.MustParseAddrPort(source), netip.MustParseAddrPort(destination)
	return end + 1, nil
}

const tcpHeader = "H tcp 192.0.2.66:4711 192.0.2.10:80\n"

// startHop brings up an engine at a listener with headers, over TCP and UDP.
func startHop(t *testing.T, h Handler, bind string) (e *Engine, l *Listener, at netip.AddrPort, failed chan refusal) {
	t.Helper()
	e, err := New(h, Config{})
	check(t, err)
	failed = make(chan refusal, 64)
	l = &Listener{Name: "hop", Abortive: true, Header: lineHeader, Failed: func(peer netip.AddrPort, err error) { failed <- refusal{peer, err} }}
	at = netip.MustParseAddrPort(bind)
	var fds [2]int
	for i, typ := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
		family := unix.AF_INET
		if at.Addr().Is6() {
			family = unix.AF_INET6
		}
		fd, err := unix.Socket(family, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		check(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		if errno := rawBind(fd, at, family); errno != 0 {
			t.Fatal(errno)
		}
		bound, err := LocalAddr(fd)
		check(t, err)
		if typ == unix.SOCK_STREAM {
			check(t, unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
			check(t, unix.Listen(fd, 128))
		} else {
			check(t, unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVORIGDSTADDR, 1))
			if family == unix.AF_INET6 {
				check(t, unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR, 1))
			}
		}
		at, fds[i] = bound, fd
	}
	check(t, e.Add(l, fds[:1], fds[1:]))
	t.Cleanup(func() { check(t, e.Close(context.Background())) })
	return e, l, at, failed
}

// readAll sends all that comes from the intruder to got and then says "bye".
func readAll(got chan<- string) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		all, err := io.ReadAll(c)
		if err != nil {
			all = append(all, " "+err.Error()...)
		}
		got <- string(all)
		_, _ = io.WriteString(c, "bye")
	}
}

func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(10 * time.Second):
		t.Fatal("nothing came within 10 s")
	}
	panic("unreachable")
}

// A prelude goes first, once, and is in no counter; also where the intruder
// says nothing, or says more than the service takes at once.
func TestPrelude(t *testing.T) {
	got := make(chan string, 1)
	h := &hopHandler{testHandler: testHandler{service: startService(t, readAll(got)), notify: make(chan struct{}, 16)}}
	_, addr := startEngine(t, h, Config{})
	for _, text := range []string{"", "x", strings.Repeat("long", 200_000)} {
		const prelude = "prelude of the flow;"
		h.say(prelude)
		c := dial(t, addr)
		_, err := io.WriteString(c, text)
		check(t, err)
		check(t, c.CloseWrite())
		answer, err := io.ReadAll(c)
		check(t, err)
		if all := receive(t, got); all != prelude+text || string(answer) != "bye" {
			t.Errorf("the service got %d bytes that begin %.30q, want the prelude and %d; it answered %q", len(all), all, len(text), answer)
		}
		s := h.ended(t)
		if s.SourceBytes != uint64(len(text)) || s.DestinationBytes != 3 || string(s.SourceHead) != text[:min(len(text), deception.HeadBytes)] {
			t.Errorf("counted %d and %d bytes, head %.30q", s.SourceBytes, s.DestinationBytes, s.SourceHead)
		}
		wantReason(t, s, deception.EndClientClosed)
	}
	// The flow's memory is used again: without a prelude there is none.
	h.say("")
	c := dial(t, addr)
	check(t, c.CloseWrite())
	if all := receive(t, got); all != "" {
		t.Errorf("a flow without a prelude sent %q", all)
	}
	h.ended(t)
}

// The service speaks first; the prelude was still there before.
func TestPreludeAndServiceSpeaksFirst(t *testing.T) {
	h := &hopHandler{prelude: "prelude;", testHandler: testHandler{notify: make(chan struct{}, 1)}}
	h.service = startService(t, func(c *net.TCPConn) {
		b := make([]byte, 8)
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		fmt.Fprintf(c, "after %s", b)
		echo(c)
	})
	_, addr := startEngine(t, h, Config{})
	c := dial(t, addr)
	b := make([]byte, len("after prelude;"))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "after prelude;" {
		t.Fatalf("the service said %q, %v", b, err)
	}
	c.Close()
	wantReason(t, h.ended(t), deception.EndClientClosed)
}

func TestPreludeUDP(t *testing.T) {
	service, err := net.ListenPacket("udp4", "127.0.0.1:0")
	check(t, err)
	defer service.Close()
	h := &hopHandler{prelude: "prelude;", testHandler: testHandler{service: addrPortOf(service.LocalAddr()), notify: make(chan struct{}, 4)}}
	e, err := New(h, Config{})
	check(t, err)
	defer e.Close(context.Background())
	fd, addr := listenSocket(t, unix.SOCK_DGRAM)
	check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	check(t, e.Add(&Listener{Name: "test", Socket: func(domain, typ int) (int, error) { return unix.Socket(domain, typ, 0) }}, nil, []int{fd}))
	c, err := net.Dial("udp4", addr.String())
	check(t, err)
	defer c.Close()
	check(t, service.SetDeadline(time.Now().Add(10*time.Second)))
	b := make([]byte, 65536)
	for _, text := range []string{"one", "", strings.Repeat("2", 30000)} {
		_, err := io.WriteString(c, text)
		check(t, err)
		n, _, err := service.ReadFrom(b)
		if err != nil || string(b[:n]) != "prelude;"+text {
			t.Fatalf("the service got %.30q (%d bytes, %v), want the prelude and %d bytes", b[:n], n, err, len(text))
		}
	}
	e.CloseFlows(func(*Flow) bool { return true }, deception.EndShutdown)
	if s := h.ended(t); s.SourceBytes != 30003 {
		t.Errorf("counted %d bytes, want 30003", s.SourceBytes)
	}
}

func addrPortOf(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.AddrPort()
	case *net.UDPAddr:
		return a.AddrPort()
	}
	return netip.AddrPort{}
}

// The handler takes sockets over: with all that was not read, and nothing of
// them left on the loop.
func TestTake(t *testing.T) {
	type taken struct {
		conn  net.Conn
		early string
	}
	got := make(chan taken, 1)
	h := &hopHandler{testHandler: testHandler{notify: make(chan struct{}, 1)}}
	h.take = func(early []byte) func(int) {
		kept := string(early)
		return func(fd int) {
			file := os.NewFile(uintptr(fd), "taken")
			defer file.Close()
			c, err := net.FileConn(file)
			if err != nil {
				t.Error(err)
			}
			got <- taken{c, kept}
		}
	}
	plain, addr := startEngine(t, h, Config{})
	hop, _, at, _ := startHop(t, h, "127.0.0.1:0")
	for _, c := range []struct {
		name, addr   string
		parts        []string
		early, after string
		engine       *Engine
	}{
		{"plain", addr, []string{"hello"}, "", "hello", plain},
		{"with a header", at.String(), []string{tcpHeader + "early"}, "early", "", hop},
		{"with a slow header", at.String(), []string{tcpHeader[:5], tcpHeader[5:], "later"}, "", "later", hop},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := c.engine.Stats().Taken
			client := dial(t, c.addr)
			for i, part := range c.parts {
				if i > 0 {
					time.Sleep(20 * time.Millisecond)
				}
				_, err := io.WriteString(client, part)
				check(t, err)
			}
			one := receive(t, got)
			defer one.conn.Close()
			check(t, one.conn.SetDeadline(time.Now().Add(10*time.Second)))
			b := make([]byte, len(c.early+c.after)-len(one.early))
			_, err := io.ReadFull(one.conn, b)
			check(t, err)
			if all := one.early + string(b); all != c.early+c.after {
				t.Errorf("took over %q and read %q, want %q", one.early, b, c.early+c.after)
			}
			_, err = io.WriteString(one.conn, "yours")
			check(t, err)
			if _, err := io.ReadFull(client, make([]byte, 5)); err != nil {
				t.Error(err)
			}
			s := c.engine.Stats()
			if s.Taken != before+1 || s.Active != 0 || s.Accepted != 0 || s.Refused != 0 {
				t.Errorf("stats: %+v", s)
			}
		})
	}
	if len(h.closed) != 0 || h.opened != 0 {
		t.Error("a flow that was taken over was opened or closed")
	}
}

// A source port that is named may be used again although TIME_WAIT stands on
// the tuple, which a port that the kernel picks is not.
func TestConnectReusesPorts(t *testing.T) {
	service := startService(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	probe, err := net.Listen("tcp4", "127.0.0.1:0")
	check(t, err)
	port := addrPortOf(probe.Addr()).Port()
	probe.Close()
	for i := range 3 {
		fd, err := Connect(unix.SOCK_STREAM, port, service)
		if err != nil {
			t.Fatalf("connection %d from port %d: %v", i+1, port, err)
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if _, err := unix.Poll(fds, 10_000); err != nil || fds[0].Revents != unix.POLLOUT {
			t.Fatalf("connection %d: %v, %#x", i+1, err, fds[0].Revents)
		}
		if a, err := LocalAddr(fd); err != nil || a.Port() != port {
			t.Errorf("connected from %s (%v), want port %d", a, err, port)
		}
		if _, err := Connect(unix.SOCK_STREAM, port, service); !errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Errorf("the same tuple once more: %v, want EADDRNOTAVAIL", err)
		}
		// We close first, in order, and so hold the TIME_WAIT.
		check(t, unix.Shutdown(fd, unix.SHUT_WR))
		fds[0].Events = unix.POLLRDHUP
		if _, err := unix.Poll(fds, 10_000); err != nil {
			t.Fatal(err)
		}
		rawCloseInOrder(fd)
	}
}
