package relay

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
)

// testHandler leads every flow to one service and keeps what it is told.
type testHandler struct {
	service netip.AddrPort

	mu     sync.Mutex // guards the rest
	idle   time.Duration
	watch  func(*Flow) Watcher
	source netip.Addr // of flows; zero: the intruder's own, any port
	port   uint16     // with it: this one
	opened int
	closed []deception.Session
	notify chan struct{}
}

func (h *testHandler) Accept(f *Flow) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	f.Idle = h.idle
	if h.watch != nil {
		f.Watch = h.watch(f)
	}
	return true
}

// from has the service see flows come from there.
func (h *testHandler) from(source netip.AddrPort) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.source, h.port = source.Addr(), source.Port()
}

func (h *testHandler) Open(f *Flow, last bool) (int, error) {
	typ := unix.SOCK_STREAM
	if f.Session.Transport == deception.UDP {
		typ = unix.SOCK_DGRAM
	}
	source := netip.AddrPortFrom(f.Session.Source.Addr(), 0)
	h.mu.Lock()
	if h.source.IsValid() {
		source = netip.AddrPortFrom(h.source, h.port)
	}
	h.mu.Unlock()
	fd, err := Dial(typ, source, h.service)
	if errors.Is(err, unix.EADDRNOTAVAIL) && !last {
		return -1, ErrAgain
	}
	return fd, err
}

func (h *testHandler) Opened(*Flow) { h.mu.Lock(); h.opened++; h.mu.Unlock() }

func (h *testHandler) Close(f *Flow) {
	s := f.Session
	s.SourceHead, s.DestinationHead = bytes.Clone(s.SourceHead), bytes.Clone(s.DestinationHead)
	h.mu.Lock()
	h.closed = append(h.closed, s)
	h.mu.Unlock()
	h.notify <- struct{}{}
}

// ended waits for the next closed session.
func (h *testHandler) ended(t *testing.T) deception.Session {
	t.Helper()
	select {
	case <-h.notify:
	case <-time.After(10 * time.Second):
		t.Fatal("no session ended within 10 s")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.closed[0]
	h.closed = h.closed[1:]
	return s
}

func listenSocket(t testing.TB, typ int) (int, netip.AddrPort) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	check(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	if typ == unix.SOCK_STREAM {
		check(t, unix.Listen(fd, 1024))
	} else {
		check(t, unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVORIGDSTADDR, 1))
	}
	a, err := LocalAddr(fd)
	check(t, err)
	return fd, a
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// start brings up an engine whose flows lead to serve, which is given every
// connection the service accepts.
func start(t testing.TB, cfg Config, serve func(*net.TCPConn)) (*testHandler, *Engine, string) {
	t.Helper()
	h := &testHandler{service: startService(t, serve), notify: make(chan struct{}, 4096)}
	e, addr := startEngine(t, h, cfg)
	return h, e, addr
}

// startService is a TCP service of its own.
func startService(t testing.TB, serve func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	service, err := net.Listen("tcp4", "127.0.0.1:0")
	check(t, err)
	t.Cleanup(func() { service.Close() })
	go func() {
		for {
			c, err := service.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); serve(c.(*net.TCPConn)) }()
		}
	}()
	return service.Addr().(*net.TCPAddr).AddrPort()
}

func startEngine(t testing.TB, h Handler, cfg Config) (*Engine, string) {
	t.Helper()
	e, err := New(h, cfg)
	check(t, err)
	fd, addr := listenSocket(t, unix.SOCK_STREAM)
	check(t, e.Add(&Listener{Name: "test"}, []int{fd}, nil))
	t.Cleanup(func() { check(t, e.Close(context.Background())) })
	return e, addr.String()
}

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp4", addr)
	check(t, err)
	t.Cleanup(func() { c.Close() })
	check(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	return c.(*net.TCPConn)
}

// wantTurnedAway dials and wants a reset, which may already meet the dial.
func wantTurnedAway(t *testing.T, addr string) {
	t.Helper()
	c, err := net.Dial("tcp4", addr)
	if err == nil {
		defer c.Close()
		check(t, c.SetDeadline(time.Now().Add(5*time.Second)))
		_, err = io.ReadAll(c)
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("intruder saw %v, want a reset", err)
	}
}

// echo avoids io.Copy's splice, whose pipes stay in a pool.
func echo(c *net.TCPConn) { io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}) }

func wantReason(t *testing.T, s deception.Session, want deception.EndReason) {
	t.Helper()
	if s.Reason != want {
		t.Errorf("end reason = %q, want %q", s.Reason, want)
	}
}

func TestServiceSpeaksFirst(t *testing.T) {
	h, _, addr := start(t, Config{}, func(c *net.TCPConn) { fmt.Fprint(c, "SSH-2.0-OpenSSH\r\n"); io.Copy(io.Discard, c) })
	c := dial(t, addr)
	b := make([]byte, 17)
	_, err := io.ReadFull(c, b)
	check(t, err)
	if string(b) != "SSH-2.0-OpenSSH\r\n" {
		t.Fatalf("read %q", b)
	}
	c.Close()
	s := h.ended(t)
	wantReason(t, s, deception.EndClientClosed)
	if s.DestinationBytes != 17 || s.SourceBytes != 0 || string(s.DestinationHead) != string(b) {
		t.Errorf("session = %d/%d bytes, head %q", s.SourceBytes, s.DestinationBytes, s.DestinationHead)
	}
	if s.Destination.String() != addr || s.Source.String() != c.LocalAddr().String() {
		t.Errorf("session runs %s -> %s, want %s -> %s", s.Source, s.Destination, c.LocalAddr(), addr)
	}
}

// Half-close: each side may stop sending and still receive.
func TestHalfClose(t *testing.T) {
	h, _, addr := start(t, Config{}, func(c *net.TCPConn) {
		all, _ := io.ReadAll(c) // ends with the intruder's FIN
		fmt.Fprintf(c, "got %d", len(all))
	})
	c := dial(t, addr)
	c.Write([]byte("hello"))
	check(t, c.CloseWrite())
	answer, err := io.ReadAll(c)
	check(t, err)
	if string(answer) != "got 5" {
		t.Errorf("answer = %q", answer)
	}
	wantReason(t, h.ended(t), deception.EndClientClosed)

	got := make(chan string, 1)
	h, _, addr = start(t, Config{}, func(c *net.TCPConn) {
		c.Write([]byte("bye"))
		c.CloseWrite()
		all, _ := io.ReadAll(c)
		got <- string(all)
	})
	c = dial(t, addr)
	answer, err = io.ReadAll(c)
	check(t, err)
	c.Write([]byte("still here"))
	c.Close()
	if string(answer) != "bye" || <-got != "still here" {
		t.Error("bytes after the service's half-close were lost")
	}
	wantReason(t, h.ended(t), deception.EndServiceClosed)
}

func TestResetIsCarriedOver(t *testing.T) {
	saw := make(chan error, 1)
	h, _, addr := start(t, Config{}, func(c *net.TCPConn) {
		c.Write([]byte("x"))
		_, err := io.Copy(io.Discard, c)
		saw <- err
	})
	c := dial(t, addr)
	io.ReadFull(c, make([]byte, 1))
	c.SetLinger(0)
	c.Close()
	if err := <-saw; !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("service saw %v, want a reset", err)
	}
	wantReason(t, h.ended(t), deception.EndClientReset)

	h, _, addr = start(t, Config{}, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 1))
		c.SetLinger(0)
	})
	c = dial(t, addr)
	c.Write([]byte("x"))
	if _, err := io.ReadAll(c); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("intruder saw %v, want a reset", err)
	}
	wantReason(t, h.ended(t), deception.EndServiceReset)
}

func TestRefused(t *testing.T) {
	closed, err := net.Listen("tcp4", "127.0.0.1:0")
	check(t, err)
	closed.Close()
	h := &testHandler{service: closed.Addr().(*net.TCPAddr).AddrPort(), notify: make(chan struct{}, 8)}
	_, addr := startEngine(t, h, Config{})
	wantTurnedAway(t, addr)
	wantReason(t, h.ended(t), deception.EndRefused)
	if h.opened != 0 {
		t.Error("Opened was called for a refused flow")
	}
}

func TestIdle(t *testing.T) {
	h, _, addr := start(t, Config{}, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	h.mu.Lock()
	h.idle = 1500 * time.Millisecond
	h.mu.Unlock()
	c := dial(t, addr)
	for range 4 { // bytes keep it alive past its idle time
		c.Write([]byte("."))
		time.Sleep(600 * time.Millisecond)
	}
	if _, err := c.Write([]byte(".")); err != nil {
		t.Fatalf("ended although bytes passed: %v", err)
	}
	s := h.ended(t)
	wantReason(t, s, deception.EndIdle)
	if s.SourceBytes != 5 {
		t.Errorf("source bytes = %d, want 5", s.SourceBytes)
	}
}

// Large transfers go over to splice; every byte must come out, both ways at
// once, also when the reader is slow.
func TestLargeTransfer(t *testing.T) {
	for _, cfg := range []Config{{}, {NoSplice: true}, {SpliceAfter: 1}} {
		t.Run(fmt.Sprintf("splice=%v after=%d", !cfg.NoSplice, cfg.SpliceAfter), func(t *testing.T) {
			const size = 24 << 20
			sums := make(chan [32]byte, 1)
			h, e, addr := start(t, cfg, func(c *net.TCPConn) {
				done := make(chan struct{})
				go func() { sendRandom(c, 2, size); close(done) }()
				sums <- sumSlowly(c)
				<-done
			})
			c := dial(t, addr)
			go sendRandom(c, 1, size)
			if got := sumSlowly(c); got != randomSum(2, size) {
				t.Error("bytes from the service were damaged")
			}
			if got := <-sums; got != randomSum(1, size) {
				t.Error("bytes from the intruder were damaged")
			}
			s := h.ended(t)
			if s.SourceBytes != size || s.DestinationBytes != size {
				t.Errorf("counted %d and %d bytes, want %d each", s.SourceBytes, s.DestinationBytes, size)
			}
			if spliced := e.Stats().Spliced; cfg.NoSplice != (spliced == 0) {
				t.Errorf("spliced directions = %d", spliced)
			}
		})
	}
}

func sendRandom(c *net.TCPConn, seed uint64, size int) {
	r := rand.NewChaCha8([32]byte{byte(seed)})
	io.CopyN(c, r, int64(size))
	c.CloseWrite()
}

func randomSum(seed uint64, size int) (sum [32]byte) {
	h := sha256.New()
	io.CopyN(h, rand.NewChaCha8([32]byte{byte(seed)}), int64(size))
	h.Sum(sum[:0])
	return sum
}

func sumSlowly(c *net.TCPConn) (sum [32]byte) {
	h := sha256.New()
	b := make([]byte, 100_000)
	for n := 0; ; n++ {
		got, err := c.Read(b)
		h.Write(b[:got])
		if err != nil {
			h.Sum(sum[:0])
			return sum
		}
		if n%64 == 0 {
			time.Sleep(5 * time.Millisecond) // let queues fill
		}
	}
}

// A flow whose reader sleeps must not hold up another one on the same loop.
func TestStalledFlowHoldsUpNobody(t *testing.T) {
	h, _, addr := start(t, Config{Loops: 1}, func(c *net.TCPConn) {
		b := make([]byte, 1)
		io.ReadFull(c, b)
		if b[0] == 'f' { // flood
			for c.SetWriteDeadline(time.Now().Add(2*time.Second)) == nil {
				if _, err := c.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		}
		echo(c)
	})
	stalled := dial(t, addr)
	stalled.Write([]byte("f"))
	time.Sleep(300 * time.Millisecond)
	c := dial(t, addr)
	c.Write([]byte("e"))
	for range 100 {
		c.Write([]byte("ping"))
		b := make([]byte, 4)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "ping" {
			t.Fatalf("echo through a busy loop: %q, %v", b, err)
		}
	}
	stalled.SetLinger(0)
	stalled.Close()
	wantReason(t, h.ended(t), deception.EndClientReset)
}

func TestManyFlowsLeaveNothing(t *testing.T) {
	h, e, addr := start(t, Config{}, echo)
	before := openFiles(t)
	const flows = 500
	var wg sync.WaitGroup
	for i := range flows {
		wg.Go(func() {
			c, err := net.Dial("tcp4", addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			want := fmt.Sprintf("flow %d", i)
			c.Write([]byte(want))
			c.(*net.TCPConn).CloseWrite()
			if got, err := io.ReadAll(c); err != nil || string(got) != want {
				t.Errorf("echo = %q, %v", got, err)
			}
		})
	}
	wg.Wait()
	for range flows {
		wantReason(t, h.ended(t), deception.EndClientClosed)
	}
	if n := e.Stats().Active; n != 0 {
		t.Errorf("%d flows are still active", n)
	}
	for range 100 { // the clients' own closes may lag
		if openFiles(t) <= before {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("descriptors: %d before, %d after", before, openFiles(t))
}

func openFiles(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	return len(entries)
}

// Two flows whose service sees one and the same source: the second one cannot
// be opened before the first has gone, and is then opened by a retry.
func TestRetryWhileSourceIsTaken(t *testing.T) {
	h, e, addr := start(t, Config{}, func(c *net.TCPConn) { c.Write([]byte("x")); io.Copy(io.Discard, c) })
	probe, err := net.Listen("tcp4", "127.0.0.9:0")
	check(t, err)
	source := probe.Addr().(*net.TCPAddr).AddrPort()
	probe.Close()
	h.from(source)
	first := dial(t, addr)
	io.ReadFull(first, make([]byte, 1))
	second := dial(t, addr)
	time.Sleep(4 * time.Millisecond)
	first.SetLinger(0)
	first.Close()
	if _, err := io.ReadFull(second, make([]byte, 1)); err != nil {
		t.Fatalf("second flow: %v", err)
	}
	if e.Stats().Retries == 0 {
		t.Error("no retry was counted")
	}
	// TIME_WAIT stands on the tuple after an orderly close; it must not be in the way.
	for range 20 {
		second.Close()
		h.ended(t)
		second = dial(t, addr)
		if _, err := io.ReadFull(second, make([]byte, 1)); err != nil {
			t.Fatalf("reuse after close: %v", err)
		}
	}
}

func TestShutdownResetsBothSides(t *testing.T) {
	saw := make(chan error, 1)
	h, e, addr := start(t, Config{}, func(c *net.TCPConn) { c.Write([]byte("x")); _, err := io.Copy(io.Discard, c); saw <- err })
	c := dial(t, addr)
	io.ReadFull(c, make([]byte, 1))
	e.CloseFlows(func(f *Flow) bool { return f.Listener.Name == "other" }, deception.EndShutdown)
	if n := e.Stats().Active; n != 1 {
		t.Fatalf("a flow that was not meant is gone (%d active)", n)
	}
	e.CloseFlows(func(f *Flow) bool { return f.Listener.Name == "test" }, deception.EndShutdown)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("intruder saw %v, want a reset", err)
	}
	if err := <-saw; !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("service saw %v, want a reset", err)
	}
	wantReason(t, h.ended(t), deception.EndShutdown)
}

func TestFlowLimit(t *testing.T) {
	h, e, addr := start(t, Config{MaxFlows: 2}, func(c *net.TCPConn) { c.Write([]byte("x")); io.Copy(io.Discard, c) })
	var kept []*net.TCPConn
	for range 2 {
		c := dial(t, addr)
		io.ReadFull(c, make([]byte, 1))
		kept = append(kept, c)
	}
	wantTurnedAway(t, addr)
	if e.Stats().Overload != 1 {
		t.Errorf("overload = %d, want 1", e.Stats().Overload)
	}
	kept[0].Close()
	h.ended(t)
	again := dial(t, addr)
	if _, err := io.ReadFull(again, make([]byte, 1)); err != nil {
		t.Errorf("after one ended: %v", err)
	}
}

func TestUDP(t *testing.T) {
	service, err := net.ListenPacket("udp4", "127.0.0.1:0")
	check(t, err)
	defer service.Close()
	go func() {
		b := make([]byte, 65536)
		for {
			n, from, err := service.ReadFrom(b)
			if err != nil {
				return
			}
			service.WriteTo(b[:n], from)
		}
	}()
	h := &testHandler{service: service.LocalAddr().(*net.UDPAddr).AddrPort(), idle: time.Second, notify: make(chan struct{}, 64)}
	e, err := New(h, Config{MaxUDPFlows: 3})
	check(t, err)
	defer e.Close(context.Background())
	fd, addr := listenSocket(t, unix.SOCK_DGRAM)
	check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	check(t, e.Add(&Listener{Name: "test", Socket: func(domain, typ int) (int, error) { return unix.Socket(domain, typ, 0) }}, nil, []int{fd}))

	for _, size := range []int{0, 1, 1400, 60000} {
		c, err := net.Dial("udp4", addr.String())
		check(t, err)
		check(t, c.SetDeadline(time.Now().Add(5*time.Second)))
		for range 3 {
			sent := bytes.Repeat([]byte{'u'}, size)
			c.Write(sent)
			b := make([]byte, 65536)
			if n, err := c.Read(b); err != nil || !bytes.Equal(b[:n], sent) {
				t.Fatalf("datagram of %d bytes came back with %d, %v", size, n, err)
			}
		}
		c.Close()
	}
	// The fourth flow pushed out the quietest of three.
	if s := e.Stats(); s.Overload != 1 || s.ActiveUDP != 3 {
		t.Errorf("overload = %d, active = %d, want 1 and 3", s.Overload, s.ActiveUDP)
	}
	for range 4 {
		if s := h.ended(t); s.Reason != deception.EndIdle && s.Reason != deception.EndOverload {
			t.Errorf("end reason = %q", s.Reason)
		}
	}
	service.Close()
	c, err := net.Dial("udp4", addr.String())
	check(t, err)
	defer c.Close()
	c.Write([]byte("anybody?"))
	wantReason(t, h.ended(t), deception.EndRefused)
}
