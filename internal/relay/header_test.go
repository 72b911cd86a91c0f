package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
)

// However a header comes, the flow is the header's and what follows is data.
func TestHeader(t *testing.T) {
	got := make(chan string, 1)
	h := &testHandler{service: startService(t, readAll(got)), notify: make(chan struct{}, 16)}
	h.from(netip.MustParseAddrPort("127.0.0.1:0"))
	e, _, at, failed := startHop(t, h, "127.0.0.1:0")
	long := strings.Repeat("long", 200_000)
	for _, c := range []struct {
		name  string
		parts []string
		data  string
	}{
		{"alone", []string{tcpHeader}, ""},
		{"with data", []string{tcpHeader + "data"}, "data"},
		{"with much data", []string{tcpHeader + long}, long},
		{"then data", []string{tcpHeader, "data"}, "data"},
		{"in two parts", []string{tcpHeader[:7], tcpHeader[7:] + "data"}, "data"},
		{"byte by byte", append(strings.Split(tcpHeader, ""), "d", "a", "t", "a"), "data"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := dial(t, at.String())
			for i, part := range c.parts {
				if i > 0 {
					time.Sleep(3 * time.Millisecond) // so that parts do not arrive as one
				}
				_, err := io.WriteString(conn, part)
				check(t, err)
			}
			check(t, conn.CloseWrite())
			answer, err := io.ReadAll(conn)
			check(t, err)
			if all := receive(t, got); all != c.data || string(answer) != "bye" {
				t.Errorf("the service got %d bytes %.30q, want %d; it answered %q", len(all), all, len(c.data), answer)
			}
			s := h.ended(t)
			if s.Source.String() != "192.0.2.66:4711" || s.Destination.String() != "192.0.2.10:80" || s.SourceBytes != uint64(len(c.data)) ||
				string(s.SourceHead) != c.data[:min(len(c.data), deception.HeadBytes)] || s.Start.IsZero() {
				t.Errorf("session: %+v", s)
			}
			wantReason(t, s, deception.EndClientClosed)
		})
	}
	if s := e.Stats(); s.Accepted != 6 || s.BadHeader != 0 || s.Active != 0 || len(failed) != 0 {
		t.Errorf("stats: %+v, %d failed", s, len(failed))
	}
}

// Flows with headers carry large data both ways and end in order, although the
// sockets would be reset by a plain close.
func TestHeaderLargeTransfer(t *testing.T) {
	const size = 8 << 20
	sums := make(chan [32]byte, 1)
	h := &testHandler{notify: make(chan struct{}, 1)}
	h.from(netip.MustParseAddrPort("127.0.0.1:0"))
	h.service = startService(t, func(c *net.TCPConn) {
		done := make(chan struct{})
		go func() { sendRandom(c, 2, size); close(done) }()
		sums <- sumSlowly(c)
		<-done
	})
	_, _, at, _ := startHop(t, h, "127.0.0.1:0")
	c := dial(t, at.String())
	_, err := io.WriteString(c, tcpHeader)
	check(t, err)
	go sendRandom(c, 1, size)
	if got := sumSlowly(c); got != randomSum(2, size) {
		t.Error("bytes from the service were damaged")
	}
	if got := receive(t, sums); got != randomSum(1, size) {
		t.Error("bytes from the intruder were damaged")
	}
	if s := h.ended(t); s.SourceBytes != size || s.DestinationBytes != size {
		t.Errorf("counted %d and %d bytes, want %d each", s.SourceBytes, s.DestinationBytes, size)
	}
}

// A header that is wrong, too long, too late or cut off: reset, told, counted.
func TestHeaderFails(t *testing.T) {
	h := &testHandler{notify: make(chan struct{}, 1)}
	e, _, at, failed := startHop(t, h, "127.0.0.1:0")
	cases := []struct {
		name, send string
		end        bool
		want       error
	}{
		{"wrong", "GET / HTTP/1.1\r\n\r\n", false, errBadHeader},
		{"wrong in the second part", "H nothing\n", false, errBadHeader},
		{"of datagrams", "H udp 192.0.2.66:1 192.0.2.10:2\n", false, ErrHeaderTransport},
		{"endless", "H " + strings.Repeat("x", 2*HeaderSize), false, ErrHeaderSize},
		{"whole but too long", "H tcp 192.0.2.66:1 192.0.2.10:2" + strings.Repeat(" ", HeaderSize) + "\n", false, ErrHeaderSize},
		{"silent", "", false, ErrHeaderTimeout},
		{"half", "H tcp 192.0", false, ErrHeaderTimeout},
		{"cut off", "H tcp 192.0", true, ErrHeaderEnd},
		{"nothing at all", "", true, ErrHeaderEnd},
	}
	t.Run("all", func(t *testing.T) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				conn := dial(t, at.String())
				_, err := io.WriteString(conn, c.send)
				check(t, err)
				if c.end {
					check(t, conn.CloseWrite())
				}
				if _, err := io.ReadAll(conn); !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("saw %v, want a reset", err)
				}
			})
		}
	})
	told := map[error]int{}
	for range cases {
		r := receive(t, failed)
		if r.peer.Addr().String() != "127.0.0.1" || r.peer.Port() == 0 {
			t.Errorf("told of the peer %s", r.peer)
		}
		for _, c := range cases {
			if errors.Is(r.err, c.want) {
				told[c.want]++
				break
			}
		}
	}
	for _, c := range cases {
		want := 0
		for _, o := range cases {
			if o.want == c.want {
				want++
			}
		}
		if told[c.want] != want {
			t.Errorf("%s: told of %d, want %d", c.want, told[c.want], want)
		}
	}
	if s := e.Stats(); s.BadHeader != uint64(len(cases)) || s.Active != 0 || s.Accepted != 0 {
		t.Errorf("stats: %+v", s)
	}
}

// A peer that is not allowed is reset without a byte of it being read.
func TestAllowed(t *testing.T) {
	h := &testHandler{notify: make(chan struct{}, 1)}
	e, err := New(h, Config{})
	check(t, err)
	defer e.Close(context.Background())
	fd, addr := listenSocket(t, unix.SOCK_STREAM)
	var mu sync.Mutex
	var asked []netip.AddrPort
	l := &Listener{Name: "test", Allowed: func(peer netip.AddrPort) bool {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, peer)
		return false
	}}
	check(t, e.Add(l, []int{fd}, nil))
	wantTurnedAway(t, addr.String())
	mu.Lock()
	defer mu.Unlock()
	if s := e.Stats(); len(asked) != 1 || s.Barred != 1 || s.Accepted != 0 || s.Active != 0 {
		t.Errorf("asked about %v; stats %+v", asked, s)
	}
}

// Connections without a header yet go with their listener, and with the engine,
// and nobody is told that they failed.
func TestHeaderAndRemove(t *testing.T) {
	h := &testHandler{notify: make(chan struct{}, 1)}
	e, l, at, failed := startHop(t, h, "127.0.0.1:0")
	waiting := func() *net.TCPConn {
		c := dial(t, at.String())
		_, err := io.WriteString(c, tcpHeader[:5])
		check(t, err)
		for end := time.Now().Add(10 * time.Second); e.Stats().Active != 1; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the connection was not accepted")
			}
		}
		return c
	}
	c := waiting()
	e.CloseFlows(func(*Flow) bool { t.Error("asked about a flow that is none yet"); return true }, deception.EndShutdown)
	e.Remove(l)
	if _, err := io.ReadAll(c); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("saw %v, want a reset", err)
	}
	if s := e.Stats(); s.Active != 0 || s.BadHeader != 0 || len(failed) != 0 {
		t.Errorf("stats: %+v, %d failed", s, len(failed))
	}
	e2, _, at2, _ := startHop(t, h, "127.0.0.1:0")
	at, e = at2, e2
	c = waiting()
	check(t, e.Close(context.Background()))
	if _, err := io.ReadAll(c); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("saw %v, want a reset", err)
	}
}

// echoUDP starts a service that answers each datagram with whom it came from and
// the datagram.
func echoUDP(t *testing.T) netip.AddrPort {
	t.Helper()
	service, err := net.ListenPacket("udp4", "127.0.0.1:0")
	check(t, err)
	t.Cleanup(func() { service.Close() })
	go func() {
		b := make([]byte, 65536)
		for {
			n, from, err := service.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = service.WriteTo(append([]byte(from.String()+" "), b[:n]...), from)
		}
	}()
	return addrPortOf(service.LocalAddr())
}

// Datagrams with headers: flows by peer and header, answers plain and from the
// address that was asked, also where the socket is bound to none.
func TestHeaderUDP(t *testing.T) {
	for _, c := range []struct{ bind, asked string }{
		{"127.0.0.1:0", "127.0.0.1"},
		{"0.0.0.0:0", "127.0.0.9"},
		{"[::1]:0", "::1"},
		{"[::]:0", "::1"},
		{"[::]:0", "127.0.0.9"},
	} {
		t.Run(c.bind+" asked as "+c.asked, func(t *testing.T) {
			h := &testHandler{service: echoUDP(t), notify: make(chan struct{}, 16)}
			h.from(netip.MustParseAddrPort("127.0.0.1:0"))
			e, l, at, failed := startHop(t, h, c.bind)
			to := netip.AddrPortFrom(netip.MustParseAddr(c.asked), at.Port())
			first, second := dialUDP(t, to), dialUDP(t, to)
			ask := func(c net.Conn, source, text string) string {
				_, err := fmt.Fprintf(c, "H udp %s 192.0.2.10:161\n%s", source, text)
				check(t, err)
				b := make([]byte, 65536)
				n, err := c.Read(b)
				check(t, err)
				from, data, _ := strings.Cut(string(b[:n]), " ")
				if data != text {
					t.Errorf("%d bytes came back, want %d", len(data), len(text))
				}
				return from
			}
			a := ask(first, "192.0.2.66:1", "one")
			if again := ask(first, "192.0.2.66:1", strings.Repeat("two", 10000)); again != a {
				t.Errorf("a flow's datagrams came from %s and %s", a, again)
			}
			ask(first, "192.0.2.66:1", "")
			// Another source by the same peer, then the first one again; and the
			// same source by another peer.
			b := ask(first, "192.0.2.66:2", "three")
			if again := ask(first, "192.0.2.66:1", "four"); again != a || b == a {
				t.Errorf("flows of one peer: %s, %s, then %s", a, b, again)
			}
			if other := ask(second, "192.0.2.66:1", "five"); other == a || other == b {
				t.Errorf("a flow of another peer came from %s", other)
			}
			for text, want := range map[string]error{
				"nonsense": errBadHeader, "H udp": ErrHeaderEnd, tcpHeader: ErrHeaderTransport,
				"H udp 192.0.2.66:1 192.0.2.10:2" + strings.Repeat(" ", HeaderSize) + "\n": ErrHeaderSize,
			} {
				_, err := io.WriteString(first, text)
				check(t, err)
				if r := receive(t, failed); !errors.Is(r.err, want) || r.peer != addrPortOf(first.LocalAddr()) {
					t.Errorf("%.20q: told %v of %s, want %v", text, r.err, r.peer, want)
				}
			}
			if s := e.Stats(); s.ActiveUDP != 3 || s.Accepted != 3 || s.BadHeader != 4 || s.Truncated != 0 {
				t.Errorf("stats: %+v", s)
			}
			e.Remove(l)
			for range 3 {
				wantReason(t, h.ended(t), deception.EndShutdown)
			}
		})
	}
}

func dialUDP(t *testing.T, at netip.AddrPort) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", at.String())
	check(t, err)
	t.Cleanup(func() { c.Close() })
	check(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	return c
}
