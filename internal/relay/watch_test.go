package relay

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
)

// witness is a Watcher that writes down what it is shown.
type witness struct {
	limit uint64 // what it wants of each side; 0: all

	mu   sync.Mutex // guards the rest
	said []string
	sums [2]hash.Hash
	size [2]uint64
	over chan struct{}
}

// watched has every flow of h seen by a witness of its own.
func watched(h *testHandler, limit uint64) <-chan *witness {
	all := make(chan *witness, 256)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watch = func(*Flow) Watcher {
		w := &witness{limit: limit, sums: [2]hash.Hash{sha256.New(), sha256.New()}, over: make(chan struct{})}
		all <- w
		return w
	}
	return all
}

func (w *witness) Data(side int, b []byte, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sums[side].Write(b)
	w.size[side] += uint64(len(b))
	if len(b) <= 64 && len(w.said) < 1000 {
		w.said = append(w.said, fmt.Sprintf("%d %s", side, b))
	}
	if since := time.Since(at); since < 0 || since > time.Minute {
		w.said = append(w.said, fmt.Sprintf("at %v", at))
	}
}

func (w *witness) Wants(side int) bool { return w.limit == 0 || w.size[side] < w.limit }

func (w *witness) Fin(side int, total uint64, _ time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(w.said, fmt.Sprintf("%d FIN after %d", side, total))
}

func (w *witness) Close(s *deception.Session, _ time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(w.said, fmt.Sprintf("%s %d %d", s.Reason, s.SourceBytes, s.DestinationBytes))
	close(w.over)
}

// wantSaid waits for the end of the witness's flow and wants it to have seen this.
func (w *witness) wantSaid(t *testing.T, want ...string) {
	t.Helper()
	select {
	case <-w.over:
	case <-time.After(20 * time.Second):
		t.Fatal("the witness has not heard of the end within 20 s")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if got := strings.Join(w.said, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("the witness saw\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// Every question stands before its answer, at the boundaries of what was sent.
func TestWatchedConversation(t *testing.T) {
	const rounds = 100
	h, _, addr := start(t, Config{}, func(c *net.TCPConn) {
		io.WriteString(c, "hello")
		b := make([]byte, 64)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			fmt.Fprintf(c, "%s back", b[:n])
		}
	})
	witnesses := watched(h, 0)
	var flows sync.WaitGroup
	for range 8 {
		flows.Go(func() {
			c := dial(t, addr)
			defer c.Close()
			b := make([]byte, 64)
			io.ReadFull(c, b[:5])
			for i := range rounds {
				fmt.Fprintf(c, "ask %03d", i)
				if _, err := io.ReadFull(c, b[:12]); err != nil {
					t.Error(err)
					return
				}
			}
			c.CloseWrite()
			io.ReadAll(c)
		})
	}
	flows.Wait()
	want := []string{"1 hello"}
	for i := range rounds {
		want = append(want, fmt.Sprintf("0 ask %03d", i), fmt.Sprintf("1 ask %03d back", i))
	}
	want = append(want, "0 FIN after 700", "1 FIN after 1205", "client_closed 700 1205")
	for range 8 {
		(<-witnesses).wantSaid(t, want...)
	}
}

func TestWatchedEnds(t *testing.T) {
	resets := func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 1))
		c.SetLinger(0)
	}
	h, _, addr := start(t, Config{}, resets)
	witnesses := watched(h, 0)
	c := dial(t, addr)
	c.Write([]byte("x"))
	io.ReadAll(c)
	(<-witnesses).wantSaid(t, "0 x", "service_reset 1 0")

	h, _, addr = start(t, Config{}, func(c *net.TCPConn) {
		io.WriteString(c, "bye")
		c.CloseWrite()
		io.ReadAll(c)
	})
	witnesses = watched(h, 0)
	c = dial(t, addr)
	io.ReadAll(c)
	io.WriteString(c, "late")
	c.Close()
	(<-witnesses).wantSaid(t, "1 bye", "1 FIN after 3", "0 late", "0 FIN after 4", "service_closed 4 3")

	closed, err := net.Listen("tcp4", "127.0.0.1:0")
	check(t, err)
	closed.Close()
	h = &testHandler{service: closed.Addr().(*net.TCPAddr).AddrPort(), notify: make(chan struct{}, 8)}
	witnesses = watched(h, 0)
	_, addr = startEngine(t, h, Config{})
	wantTurnedAway(t, addr)
	(<-witnesses).wantSaid(t, "refused 0 0")
}

// A large direction is shown whole for as long as it is wanted, and spliced from
// then on.
func TestWatchedLargeTransfer(t *testing.T) {
	const size = 24 << 20
	for _, limit := range []uint64{0, 1 << 20} {
		t.Run(fmt.Sprint("limit=", limit), func(t *testing.T) {
			h, e, addr := start(t, Config{}, func(c *net.TCPConn) {
				done := make(chan struct{})
				go func() { sumSlowly(c); close(done) }()
				sendRandom(c, 2, size)
				<-done
			})
			witnesses := watched(h, limit)
			c := dial(t, addr)
			go sendRandom(c, 1, size)
			if got := sumSlowly(c); got != randomSum(2, size) {
				t.Error("bytes from the service were damaged")
			}
			w := <-witnesses
			<-w.over
			if s := h.ended(t); s.SourceBytes != size || s.DestinationBytes != size {
				t.Errorf("counted %d and %d bytes", s.SourceBytes, s.DestinationBytes)
			}
			for side, seed := range []uint64{1, 2} {
				seen := w.size[side]
				if limit == 0 && seen != size || limit != 0 && (seen < limit || seen >= size) {
					t.Errorf("shown of side %d: %d bytes of %d, wanted %d", side, seen, size, limit)
				}
				if want := randomSum(seed, int(seen)); [32]byte(w.sums[side].Sum(nil)) != want {
					t.Errorf("side %d was shown other bytes than it sent", side)
				}
			}
			if spliced := e.Stats().Spliced; (spliced == 2) != (limit != 0) {
				t.Errorf("spliced directions = %d", spliced)
			}
		})
	}
}

// What machines say to each other about a flow is not shown, but what came with it
// is.
func TestWatchedBehindHeaders(t *testing.T) {
	got := make(chan string, 4)
	h := &hopHandler{testHandler: testHandler{notify: make(chan struct{}, 64)}}
	h.service = startService(t, readAll(got))
	h.say("PRELUDE ")
	witnesses := watched(&h.testHandler, 0)
	_, _, at, _ := startHop(t, h, "127.0.0.1:0")
	c := dial(t, at.String())
	io.WriteString(c, tcpHeader+"with it")
	check(t, c.CloseWrite())
	if _, err := io.ReadAll(c); err != nil {
		t.Fatal(err)
	}
	if all := receive(t, got); all != "PRELUDE with it" {
		t.Errorf("the service got %q", all)
	}
	(<-witnesses).wantSaid(t, "0 with it", "0 FIN after 7", "1 bye", "1 FIN after 3", "client_closed 7 3")
}

func TestWatchedDatagrams(t *testing.T) {
	service, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	check(t, err)
	defer service.Close()
	go func() {
		b := make([]byte, 1500)
		for {
			n, peer, err := service.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			service.WriteToUDPAddrPort(append(b[:n:n], " back"...), peer)
		}
	}()
	h := &testHandler{service: service.LocalAddr().(*net.UDPAddr).AddrPort(), notify: make(chan struct{}, 8)}
	witnesses := watched(h, 0)
	e, err := New(h, Config{})
	check(t, err)
	fd, addr := listenSocket(t, unix.SOCK_DGRAM)
	l := &Listener{Name: "test", Socket: func(domain, typ int) (int, error) { return unix.Socket(domain, typ, 0) }}
	check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	check(t, e.Add(l, nil, []int{fd}))
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(addr))
	check(t, err)
	defer c.Close()
	check(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	b := make([]byte, 1500)
	for _, text := range []string{"one", "two", ""} {
		io.WriteString(c, text)
		if n, err := c.Read(b); err != nil || string(b[:n]) != text+" back" {
			t.Fatalf("answered %q, %v", b[:n], err)
		}
	}
	check(t, e.Close(t.Context()))
	(<-witnesses).wantSaid(t, "0 one", "1 one back", "0 two", "1 two back", "0 ", "1  back", "shutdown 6 21")
}
