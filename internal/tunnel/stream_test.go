package tunnel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"decoynet/deception"

	"github.com/google/go-cmp/cmp"
)

func TestEcho(t *testing.T) {
	st := newSite(t, echo)
	c := st.client()
	for _, size := range []int{0, 1, 100, maxPayload - 1, maxPayload, maxPayload + 1, 64 << 10, 300_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			exchange(t, open(t, c, "header", false), strings.Repeat("x", size))
		})
	}
}

// TestIntegrity sends random amounts both ways on many streams at once and
// compares digests, so that a byte lost, doubled or mixed up shows.
func TestIntegrity(t *testing.T) {
	type sums struct{ sent, got [32]byte }
	talk := func(s *Stream, seed uint64) sums {
		random := rand.New(rand.NewPCG(seed, 7))
		sent := sha256.New()
		var out sums
		var both sync.WaitGroup
		both.Go(func() {
			for range 40 {
				p := make([]byte, 1+random.IntN(1<<(4+random.IntN(13))))
				for i := range p {
					p[i] = byte(random.Uint32())
				}
				sent.Write(p)
				if _, err := s.Write(p); err != nil {
					t.Errorf("write: %v", err)
				}
			}
			s.CloseWrite()
		})
		got := sha256.New()
		if _, err := io.Copy(got, s); err != nil {
			t.Errorf("read: %v", err)
		}
		both.Wait()
		sent.Sum(out.sent[:0])
		got.Sum(out.got[:0])
		return out
	}
	var mu sync.Mutex
	served := map[string]sums{}
	st := newSite(t, func(_ string, s *Stream) {
		sum := talk(s, uint64(len(s.Header())))
		mu.Lock()
		defer mu.Unlock()
		served[string(s.Header())] = sum
	})
	c := st.client()
	dialed := map[string]sums{}
	within(t, "all streams", func() {
		var all sync.WaitGroup
		for i := range 50 {
			all.Go(func() {
				name := strings.Repeat("h", i)
				s, err := c.Open(context.Background(), []byte(name), false)
				if err != nil {
					t.Error(err)
					return
				}
				sum := talk(s, uint64(1000+i))
				mu.Lock()
				defer mu.Unlock()
				dialed[name] = sum
			})
		}
		all.Wait()
	})
	eventually(t, "all served", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(served) == 50
	})
	for name, d := range dialed {
		s := served[name]
		if d.sent != s.got || s.sent != d.got {
			t.Errorf("stream %d: what was read is not what was written", len(name))
		}
	}
	eventually(t, "places are free again", func() bool {
		return c.Status()[0].Streams == 0 && st.server.Status().Peers[0].Streams == 0
	})
	if held := st.server.Status().Held; held != 0 {
		t.Errorf("the server holds %d bytes for streams that have ended", held)
	}
}

func TestHeader(t *testing.T) {
	got := make(chan string, 1)
	st := newSite(t, func(node string, s *Stream) { got <- node + " " + string(s.Header()) })
	c := st.client()
	header := []byte(strings.Repeat("h", MaxHeader))
	want := "crm-1 " + string(header)
	s, err := c.Open(context.Background(), header, false)
	if err != nil {
		t.Fatal(err)
	}
	clear(header) // it is the caller's again
	if diff := cmp.Diff(want, <-got); diff != "" {
		t.Errorf("header (-want +got):\n%s", diff)
	}
	s.Close()
	if _, err := c.Open(context.Background(), make([]byte, MaxHeader+1), false); !errors.Is(err, ErrHeaderSize) {
		t.Errorf("Open with a header that is too long: %v", err)
	}
}

// TestHalfClose shows that each direction ends by itself.
func TestHalfClose(t *testing.T) {
	asked := make(chan string, 1)
	st := newSite(t, func(_ string, s *Stream) {
		got, err := io.ReadAll(s)
		if err != nil {
			t.Errorf("server reads: %v", err)
		}
		asked <- string(got)
		io.WriteString(s, "answer after the end of the question")
		s.CloseWrite()
	})
	s := open(t, st.client(), "", false)
	io.WriteString(s, "question")
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write([]byte("more")); !errors.Is(err, errWritten) {
		t.Errorf("Write after CloseWrite: %v", err)
	}
	if err := s.CloseWrite(); err != nil {
		t.Errorf("a second CloseWrite: %v", err)
	}
	within(t, "read", func() {
		got, err := io.ReadAll(s)
		if err != nil || string(got) != "answer after the end of the question" {
			t.Errorf("read %q, %v", got, err)
		}
	})
	if q := <-asked; q != "question" {
		t.Errorf("the server read %q", q)
	}
}

// TestServeReturns shows that a stream is over when Serve returns.
func TestServeReturns(t *testing.T) {
	st := newSite(t, func(_ string, s *Stream) { io.WriteString(s, "early") })
	s := open(t, st.client(), "", false)
	within(t, "read", func() {
		got, err := io.ReadAll(s)
		if string(got) != "early" {
			t.Errorf("read %q", got)
		}
		endsWith(t, err, deception.EndShutdown)
	})
}

// TestReset resets from both ends, while both ends wait in Read or in Write.
func TestReset(t *testing.T) {
	for _, where := range []string{"client", "server"} {
		for _, waits := range []string{"read", "write"} {
			t.Run(where+" resets while both "+waits, func(t *testing.T) {
				server := make(chan *Stream)
				serverErr := make(chan error, 1)
				wait := func(s *Stream) error {
					p := make([]byte, 64<<10)
					for {
						var err error
						if waits == "read" {
							_, err = s.Read(p)
						} else {
							_, err = s.Write(p)
						}
						if err != nil {
							return err
						}
					}
				}
				st := newSite(t, func(_ string, s *Stream) {
					server <- s
					serverErr <- wait(s)
				})
				s := open(t, st.client(), "", false)
				clientErr := make(chan error, 1)
				go func() { clientErr <- wait(s) }()
				ss := <-server
				if waits == "write" {
					eventually(t, "both ends are stalled", func() bool { return stalled(s) && stalled(ss) })
				}
				if where == "client" {
					s.Reset(deception.EndClientReset)
				} else {
					ss.Reset(deception.EndClientReset)
				}
				within(t, "both ends wake", func() {
					endsWith(t, <-clientErr, deception.EndClientReset)
					endsWith(t, <-serverErr, deception.EndClientReset)
				})
				for _, end := range []*Stream{s, ss} {
					_, err := end.Write([]byte("x"))
					endsWith(t, err, deception.EndClientReset)
					endsWith(t, end.CloseWrite(), deception.EndClientReset)
					end.Reset(deception.EndIdle) // changes nothing
					_, err = end.Read(make([]byte, 1))
					endsWith(t, err, deception.EndClientReset)
				}
			})
		}
	}
}

// stalled tells whether the stream has more to send than the peer takes.
func stalled(s *Stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out == 0 && s.backlog > stalledQueue/2
}

// TestResetAfterData shows that what was written before a reset arrives before
// it, as a service's last words before its RST.
func TestResetAfterData(t *testing.T) {
	words := bytes.Repeat([]byte("last words "), 2000)
	st := newSite(t, func(_ string, s *Stream) {
		s.Write(words)
		s.Reset(deception.EndServiceReset)
	})
	s := open(t, st.client(), "", false)
	within(t, "read", func() {
		got, err := io.ReadAll(s)
		if !bytes.Equal(got, words) {
			t.Errorf("read %d bytes, want %d", len(got), len(words))
		}
		endsWith(t, err, deception.EndServiceReset)
	})
}

// TestResetReasons shows that every reason arrives as it was sent.
func TestResetReasons(t *testing.T) {
	st := newSite(t, func(_ string, s *Stream) { s.Reset(deception.EndReason(s.Header()[0])) })
	c := st.client()
	for r := deception.EndClientClosed; r <= deception.EndDenied+1; r++ {
		s := open(t, c, string([]byte{byte(r)}), false)
		_, err := s.Read(make([]byte, 1))
		endsWith(t, err, r)
	}
	s := open(t, c, "\x00", false)
	_, err := s.Read(make([]byte, 1))
	endsWith(t, err, deception.EndShutdown)
}

func TestReadDeadline(t *testing.T) {
	st := newSite(t, echo)
	s := open(t, st.client(), "", false)
	defer s.Close()
	within(t, "read", func() {
		p := make([]byte, 10)
		s.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if _, err := s.Read(p); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read: %v", err)
		}
		s.SetReadDeadline(time.Time{})
		io.WriteString(s, "later")
		if n, err := s.Read(p); err != nil || string(p[:n]) != "later" {
			t.Errorf("Read without a deadline: %q, %v", p[:n], err)
		}
		// One that is set while a Read waits, and passed already.
		go func() {
			time.Sleep(10 * time.Millisecond)
			s.SetReadDeadline(time.Unix(1, 0))
		}()
		if _, err := s.Read(p); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read: %v", err)
		}
	})
}

// TestWaitRead shows that it waits as Read does, and takes nothing from it.
func TestWaitRead(t *testing.T) {
	for _, datagrams := range []bool{false, true} {
		t.Run(fmt.Sprintf("datagrams %v", datagrams), func(t *testing.T) {
			st := newSite(t, echo)
			s := open(t, st.client(), "", datagrams)
			within(t, "reads", func() {
				p := make([]byte, 100)
				for _, text := range []string{"a", "longer"} {
					io.WriteString(s, text)
					if err := s.WaitRead(); err != nil {
						t.Errorf("WaitRead: %v", err)
					}
					if n, err := s.Read(p); err != nil || string(p[:n]) != text {
						t.Errorf("read %q, %v", p[:n], err)
					}
				}
				s.SetReadDeadline(time.Unix(1, 0))
				if err := s.WaitRead(); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("WaitRead after the deadline: %v", err)
				}
				s.SetReadDeadline(time.Time{})
				s.CloseWrite()
				if err := s.WaitRead(); err != io.EOF {
					t.Errorf("WaitRead at the end: %v", err)
				}
			})
		})
	}
}

// TestPlacesAreUsedAgain opens more streams one after the other than a
// connection has numbers for at once.
func TestPlacesAreUsedAgain(t *testing.T) {
	st := newSite(t, echo)
	c := st.clientWith(ClientConfig{Connections: 1})
	cn := onlyConn(t, c)
	for range 300 {
		exchange(t, open(t, c, "", false), "x")
	}
	cn.mu.Lock()
	defer cn.mu.Unlock()
	if len(cn.slots) > 8 {
		t.Errorf("300 streams in a row took %d places", len(cn.slots))
	}
}

// onlyConn returns the client's connection when there is exactly one.
func onlyConn(t testing.TB, c *Client) *conn {
	t.Helper()
	var conns [][]*conn
	eventually(t, "one connection", func() bool {
		conns = c.usable.Load().conns
		return len(conns) == 1 && len(conns[0]) == 1
	})
	return conns[0][0]
}

// TestIdleStreamsAreSmall measures what an idle stream costs: both ends of it, and
// the goroutine that serves it.
func TestIdleStreamsAreSmall(t *testing.T) {
	const count = 5000
	quit := make(chan struct{})
	st := newSite(t, func(_ string, s *Stream) { <-quit })
	defer close(quit)
	c := st.client()
	first := open(t, c, "", false)
	defer first.Close()
	memory := func() int64 {
		runtime.GC()
		runtime.GC() // the first one only empties the pools
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc + m.StackInuse)
	}
	before := memory()
	var all []*Stream
	for range count {
		all = append(all, open(t, c, "a header", false))
	}
	eventually(t, "all are open", func() bool {
		total := 0
		for _, p := range st.server.Status().Peers {
			total += p.Streams
		}
		return total > count
	})
	each := (memory() - before) / count
	t.Logf("an idle stream takes %d bytes (a Stream %d)", each, unsafe.Sizeof(Stream{}))
	if each > 8<<10 {
		t.Errorf("an idle stream takes %d bytes", each)
	}
	for _, s := range all {
		s.Close()
	}
}
