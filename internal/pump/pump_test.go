package pump

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"decoynet/deception"

	"github.com/google/go-cmp/cmp"
)

// Whoever is the first to end a flow is named by it, and the other one sees the
// same kind of end.
func TestEnds(t *testing.T) {
	ends := []struct {
		name string
		do   func(t *testing.T, r *running)
		want deception.EndReason
	}{
		{"client closes", func(t *testing.T, r *running) {
			finish(t, r.intruder)
			expectFIN(t, r.service)
			send(t, r.service, "late") // half-closed, not closed
			expect(t, r.intruder, "late")
			finish(t, r.service)
			expectFIN(t, r.intruder)
		}, deception.EndClientClosed},
		{"service closes", func(t *testing.T, r *running) {
			finish(t, r.service)
			expectFIN(t, r.intruder)
			send(t, r.intruder, "late")
			expect(t, r.service, "late")
			finish(t, r.intruder)
			expectFIN(t, r.service)
		}, deception.EndServiceClosed},
		{"client resets", func(t *testing.T, r *running) {
			reset(t, r.intruder)
			expectRST(t, r.service)
		}, deception.EndClientReset},
		{"service resets", func(t *testing.T, r *running) {
			reset(t, r.service)
			expectRST(t, r.intruder)
		}, deception.EndServiceReset},
		{"client resets after the service's FIN", func(t *testing.T, r *running) {
			finish(t, r.service)
			expectFIN(t, r.intruder)
			reset(t, r.intruder)
			expectRST(t, r.service)
		}, deception.EndClientReset},
		{"ended from outside", func(t *testing.T, r *running) {
			r.flow.End(deception.EndUnbound)
			r.flow.End(deception.EndShutdown) // comes second
			expectRST(t, r.intruder)
			expectRST(t, r.service)
		}, deception.EndUnbound},
	}
	for kind, stream := range makers {
		for _, c := range ends {
			t.Run(kind+"/"+c.name, func(t *testing.T) {
				r := start(t, stream, Options{Idle: time.Hour, Heads: true})
				send(t, r.intruder, "ask")
				expect(t, r.service, "ask")
				send(t, r.service, "answer")
				expect(t, r.intruder, "answer")
				c.do(t, r)
				s := r.wait(t)
				if s.Reason != c.want {
					t.Errorf("the session ended with %q, want %q", s.Reason, c.want)
				}
				if !s.End.After(s.Start) || !strings.HasPrefix(string(s.SourceHead), "ask") || !strings.HasPrefix(string(s.DestinationHead), "answer") {
					t.Errorf("session %+v", s)
				}
				if want := uint64(len(s.SourceHead) + len(s.DestinationHead)); s.SourceBytes+s.DestinationBytes != want {
					t.Errorf("counted %d and %d bytes, want %d together", s.SourceBytes, s.DestinationBytes, want)
				}
			})
		}
	}
}

// A side that is reset while its peer takes nothing any more ends the flow all
// the same.
func TestResetWhileTheOtherSideIsStalled(t *testing.T) {
	r := start(t, tcpStream, Options{})
	block := make([]byte, 64<<10)
	for { // until nothing goes on: the service does not read
		if err := r.intruder.SetWriteDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := r.intruder.Write(block); err != nil {
			break
		}
	}
	reset(t, r.service)
	if s := r.wait(t); s.Reason != deception.EndServiceReset {
		t.Errorf("ended with %q", s.Reason)
	}
	expectRST(t, r.intruder)
}

func TestIdle(t *testing.T) {
	for kind, stream := range makers {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			const idle = time.Second
			r := start(t, stream, Options{Idle: idle})
			for began := time.Now(); time.Since(began) < idle*3/2; time.Sleep(idle / 50) {
				send(t, r.service, ".") // bytes of one direction keep it
				expect(t, r.intruder, ".")
			}
			expectRST(t, r.intruder)
			expectRST(t, r.service)
			if s := r.wait(t); s.Reason != deception.EndIdle || s.End.Sub(s.Start) < idle*2 {
				t.Errorf("ended with %q after %v", s.Reason, s.End.Sub(s.Start))
			}
		})
	}
}

// What goes in comes out, in both directions at once, whatever the sizes.
func TestBytesBothWays(t *testing.T) {
	for kind, stream := range makers {
		t.Run(kind, func(t *testing.T) {
			r := start(t, stream, Options{Idle: time.Minute, Heads: true})
			up, down := noise(1, 3<<20), noise(2, 5<<20)
			var all sync.WaitGroup
			exchange := func(c *net.TCPConn, out, in []byte) {
				all.Go(func() {
					if _, err := c.Write(out); err != nil {
						t.Error(err)
					}
					if err := c.CloseWrite(); err != nil {
						t.Error(err)
					}
				})
				all.Go(func() {
					if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, in) {
						t.Errorf("%d bytes came, %v; want %d, the same", len(got), err, len(in))
					}
				})
			}
			exchange(r.intruder, up, down)
			exchange(r.service, down, up)
			all.Wait()
			s := r.wait(t)
			if s.SourceBytes != uint64(len(up)) || s.DestinationBytes != uint64(len(down)) {
				t.Errorf("counted %d and %d bytes", s.SourceBytes, s.DestinationBytes)
			}
			if !bytes.Equal(s.SourceHead, up[:deception.HeadBytes]) || !bytes.Equal(s.DestinationHead, down[:deception.HeadBytes]) {
				t.Error("the heads are not the first bytes of each side")
			}
		})
	}
}

func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func TestWithoutHeads(t *testing.T) {
	r := start(t, tcpStream, Options{})
	send(t, r.intruder, "secret")
	finish(t, r.intruder)
	finish(t, r.service)
	expect(t, r.service, "secret")
	if s := r.wait(t); s.SourceHead != nil || s.SourceBytes != 6 {
		t.Errorf("kept %q of %d bytes", s.SourceHead, s.SourceBytes)
	}
}

// A thousand silent flows hold no buffers: those would be 64 MB.
func TestSilentFlowsHoldNoBuffers(t *testing.T) {
	const flows = 1000
	var all []*running
	before := inUse()
	for range flows {
		r := start(t, tcpStream, Options{Idle: time.Hour, Heads: true})
		send(t, r.intruder, "hello")
		expect(t, r.service, "hello")
		all = append(all, r)
	}
	each := (int64(inUse()) - int64(before)) / flows
	t.Logf("%d bytes a flow, the test's own two connections included", each)
	if each > 24<<10 {
		t.Errorf("a silent flow costs %d bytes", each)
	}
	for _, r := range all {
		r.flow.End(deception.EndShutdown)
	}
	for _, r := range all {
		r.wait(t)
	}
}

func inUse() uint64 {
	runtime.GC()
	runtime.GC() // the second one empties what pools kept over the first
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// broken is a stream whose Read fails as a tunnel's does.
type broken struct {
	Stream
	err  error
	told chan deception.EndReason
}

func (b *broken) Read([]byte) (int, error)      { return 0, b.err }
func (b *broken) Reset(why deception.EndReason) { b.told <- why }

// An error that knows how the flow ended is believed, and passed on.
func TestStreamsThatKnowTheReason(t *testing.T) {
	for _, want := range []deception.EndReason{deception.EndGateway, deception.EndDenied, deception.EndIdle, deception.EndServiceReset} {
		near, far := pair(t)
		b := &broken{err: fmt.Errorf("tunnel: %w", reasoned{io.ErrClosedPipe, want}), told: make(chan deception.EndReason, 4)}
		var s deception.Session
		Run(&s, tcpStream(t, near), b, Options{})
		if got := <-b.told; s.Reason != want || got != want {
			t.Errorf("session %q, other side told %q; want %q", s.Reason, got, want)
		}
		expectRST(t, far)
	}
}

func TestDatagramsKeepTheirBounds(t *testing.T) {
	var sent []string
	got := make(chan string, 10)
	told := 0
	intruder := NewPackets(func(b []byte) error { got <- string(b); return nil }, func() { told++ })
	service := NewPackets(func(b []byte) error { sent = append(sent, string(b)); got <- ""; return nil }, nil)
	f := New(intruder, service, Options{Datagrams: true, Heads: true})
	over := make(chan struct{})
	go func() { f.Run(); close(over) }()
	big := strings.Repeat("x", 65507)
	for _, d := range []string{"one", "", big} {
		intruder.Push([]byte(d))
		<-got
	}
	service.Push([]byte("back"))
	if b := <-got; b != "back" {
		t.Errorf("the intruder got %q", b)
	}
	if diff := cmp.Diff([]string{"one", "", big}, sent); diff != "" {
		t.Error(diff)
	}
	f.End(deception.EndIdle)
	<-over
	var s deception.Session
	f.Fill(&s)
	if s.SourceBytes != uint64(3+len(big)) || s.DestinationBytes != 4 || s.Reason != deception.EndIdle || len(s.SourceHead) != deception.HeadBytes {
		t.Errorf("%d and %d bytes, head of %d, %q", s.SourceBytes, s.DestinationBytes, len(s.SourceHead), s.Reason)
	}
	intruder.Reset(deception.EndIdle)
	if told != 1 {
		t.Errorf("the end was told %d times", told)
	}
	for range packetsWaiting {
		intruder.Push(nil)
	}
	if intruder.Push(nil) {
		t.Error("a full queue took another datagram")
	}
}

func BenchmarkShortFlow(b *testing.B) {
	for b.Loop() {
		r := start(b, tcpStream, Options{Idle: time.Minute, Heads: true})
		send(b, r.intruder, "ask")
		expect(b, r.service, "ask")
		finish(b, r.intruder)
		finish(b, r.service)
		<-r.over
		r.intruder.Close()
		r.service.Close()
	}
}

func BenchmarkBulk(b *testing.B) {
	r := start(b, tcpStream, Options{Idle: time.Minute, Heads: true})
	go func() { _, _ = io.Copy(io.Discard, r.service) }()
	block := noise(3, 256<<10)
	b.SetBytes(int64(len(block)))
	for b.Loop() {
		if _, err := r.intruder.Write(block); err != nil {
			b.Fatal(err)
		}
	}
	r.flow.End(deception.EndShutdown)
	<-r.over
}
