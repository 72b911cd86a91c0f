package relay

import (
	"io"
	"net"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/feed"
)

// gate is a writer of a feed that waits while it is closed.
type gate struct{ mu sync.Mutex }

func (g *gate) Frame(int64, []byte) error { g.mu.Lock(); defer g.mu.Unlock(); return nil }
func (*gate) Flush() error                { return nil }

// BenchmarkConnection is what a short connection costs the loop, by the processor
// time of its thread, which says something also where the machine is busy: with
// nobody who watches, with a feed, and with a feed whose output stands still.
func BenchmarkConnection(b *testing.B) {
	for _, mode := range []string{"unwatched", "fed", "stuck"} {
		b.Run(mode, func(b *testing.B) {
			f := feed.New(feed.Config{Lanes: 1, QueueBytes: 1 << 20})
			out := &gate{}
			if mode != "unwatched" {
				f.Add("out", out)
			}
			h, e, addr := benchEngine(b, f)
			if mode == "stuck" {
				out.mu.Lock()
				for i := 0; f.Lost() == 0; i++ {
					if i > 200_000 {
						b.Fatal("the output stands still and loses nothing")
					}
					connectOnce(b, addr, h)
				}
			}
			before := loopTime(b, e)
			b.ResetTimer()
			for b.Loop() {
				connectOnce(b, addr, h)
			}
			b.ReportMetric((loopTime(b, e)-before)/1e3/float64(b.N), "loop-us/op")
			b.ReportMetric(float64(f.Lost())/float64(b.N), "lost/op")
			if mode == "stuck" {
				out.mu.Unlock()
			}
			if err := f.Close(); err != nil {
				b.Error(err)
			}
		})
	}
}

// benchEngine is an engine with one loop before a service that speaks first.
func benchEngine(b *testing.B, f *feed.Feed) (*testHandler, *Engine, string) {
	h, e, addr := start(b, Config{Loops: 1}, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "hello")
		_, _ = io.Copy(io.Discard, c)
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watch = func(flow *Flow) Watcher {
		s := &flow.Session
		s.ID, s.Node, s.Segment = deception.NewSessionID(s.Start), "gw", "office"
		if w := f.Begin(s, flow.Lane()); w != nil {
			return w
		}
		return nil
	}
	return h, e, addr
}

// connectOnce hears the service out, resets, and waits for the session's end.
func connectOnce(b *testing.B, addr string, h *testHandler) {
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		b.Fatal(err)
	}
	_ = c.(*net.TCPConn).SetLinger(0) // no port waits in TIME_WAIT
	c.Close()
	<-h.notify
	h.mu.Lock()
	h.closed = h.closed[:0]
	h.mu.Unlock()
}

// loopTime is what the loop's thread has used, ns.
func loopTime(b *testing.B, e *Engine) float64 {
	var u unix.Rusage
	if err := e.loops[0].do(func() error { return unix.Getrusage(unix.RUSAGE_THREAD, &u) }); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano() + u.Stime.Nano())
}
