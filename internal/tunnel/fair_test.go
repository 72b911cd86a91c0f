package tunnel

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"decoynet/deception"
)

// serveByHeader does what the header says, for tests with different streams on
// one connection.
func serveByHeader(quit <-chan struct{}) func(string, *Stream) {
	return func(node string, s *Stream) {
		switch string(s.Header()) {
		case "echo":
			echo(node, s)
		case "stall": // reads nothing, and writes as much as it can
			go func() {
				<-quit
				s.Reset(deception.EndShutdown)
			}()
			for p := make([]byte, 64<<10); ; {
				if _, err := s.Write(p); err != nil {
					return
				}
			}
		case "sink":
			io.Copy(io.Discard, s)
			s.CloseWrite()
		}
	}
}

// TestStalledStreams shows that streams that nobody reads, at either end, do not
// hold up another one on the same connection.
func TestStalledStreams(t *testing.T) {
	for _, count := range []int{1, 1000} {
		t.Run(fmt.Sprint(count), func(t *testing.T) {
			quit := make(chan struct{})
			st := newSite(t, serveByHeader(quit))
			c := st.clientWith(ClientConfig{Connections: 1})
			var all sync.WaitGroup
			var idle []*Stream
			for range count {
				s := open(t, c, "stall", false)
				idle = append(idle, s)
				all.Go(func() {
					for p := make([]byte, 64<<10); ; {
						if _, err := s.Write(p); err != nil {
							return
						}
					}
				})
			}
			eventually(t, "all are stalled", func() bool {
				return !slices.ContainsFunc(idle, func(s *Stream) bool { return !stalled(s) })
			})
			for range 10 {
				exchange(t, open(t, c, "echo", false), "not held up")
			}
			big := make([]byte, 4<<20)
			exchange(t, open(t, c, "echo", false), string(big))

			status := st.server.Status()
			if got := status.Peers[0].Streams; got != count {
				t.Errorf("%d streams are left, want the %d that stall", got, count)
			}
			// What a stalled stream holds is its first window, in buffers that
			// are at most twice as large as what they hold.
			if limit := int64(count) * 2 * firstWindow; status.Held > limit {
				t.Errorf("the server holds %d bytes, want at most %d", status.Held, limit)
			}
			close(quit)
			within(t, "resets", func() {
				for _, s := range idle {
					s.Reset(deception.EndShutdown)
				}
				all.Wait()
			})
			eventually(t, "nothing is held", func() bool { return st.server.Status().Held == 0 })
		})
	}
}

// TestBulkDoesNotDelaySmall measures how long a keystroke takes while sixteen
// streams of the same connection send as much as they can.
func TestBulkDoesNotDelaySmall(t *testing.T) {
	quit := make(chan struct{})
	st := newSite(t, serveByHeader(quit))
	defer close(quit)
	c := st.clientWith(ClientConfig{Connections: 1})
	var all sync.WaitGroup
	var bulk []*Stream
	stop := make(chan struct{})
	for range 16 {
		s := open(t, c, "sink", false)
		bulk = append(bulk, s)
		all.Go(func() {
			for p := make([]byte, 64<<10); ; {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := s.Write(p); err != nil {
					return
				}
			}
		})
	}
	s := open(t, c, "echo", false)
	var trips []time.Duration
	p := make([]byte, 1)
	within(t, "keystrokes", func() {
		for range 100 {
			began := time.Now()
			s.Write(p)
			if _, err := s.Read(p); err != nil {
				t.Error(err)
				return
			}
			trips = append(trips, time.Since(began))
		}
	})
	close(stop)
	within(t, "bulk", all.Wait)
	for _, b := range bulk {
		b.Close()
	}
	s.Close()
	slices.Sort(trips)
	t.Logf("keystrokes while 16 streams send all they can: median %v, longest %v", trips[len(trips)/2], trips[len(trips)-1])
	if median := trips[len(trips)/2]; median > time.Second {
		t.Errorf("a keystroke takes %v", median)
	}
}

// TestWriterOrder shows the order in which the writer takes frames, without a
// network: a stream with little to send is out after at most one frame of each
// that has much.
func TestWriterOrder(t *testing.T) {
	c := newConn(&tape{}, connConfig{dialed: true, peer: hello{helloVersion, MaxStreams, firstWindow}})
	var bulk []*Stream
	for range 4 {
		s, err := c.open(nil, false)
		if err != nil {
			t.Fatal(err)
		}
		for range sendQueue / maxPayload {
			s.Write(make([]byte, maxPayload))
		}
		bulk = append(bulk, s)
	}
	b := &batch{wire: c.wire}
	c.gather(b, 2*maxFrame) // two have had a turn
	b.flush()
	c.wire.(*tape).out = nil
	small, err := c.open(nil, false)
	if err != nil {
		t.Fatal(err)
	}
	small.Write([]byte("keystroke"))
	c.gather(b, batchSize)
	b.flush()
	frames := c.wire.(*tape).frames(t)
	at := slices.IndexFunc(frames, func(f frame) bool { return f.stream == small.id && f.kind == frameData })
	before := 0
	for _, f := range frames[:max(at, 0)] {
		before += len(f.payload)
	}
	// Two had no turn yet, and one of the others may come in between. Three
	// records more are to follow.
	if after := len(frames) - 1 - at; at < 0 || before > 3*maxPayload || after != 3 {
		t.Errorf("the keystroke is frame %d, after %d bytes and before %d frames of others", at, before, after)
	}
	for _, s := range append(bulk, small) {
		s.broke()
	}
}

// TestOpenWaitsForNothing shows that a stream and its first data leave together,
// before anything came back.
func TestOpenWaitsForNothing(t *testing.T) {
	c := newConn(&tape{}, connConfig{dialed: true, peer: hello{helloVersion, MaxStreams, firstWindow}})
	s, err := c.open([]byte("header"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.broke()
	io.WriteString(s, "request")
	s.CloseWrite()
	b := &batch{wire: c.wire}
	c.gather(b, batchSize)
	b.flush()
	var got []string
	for _, f := range c.wire.(*tape).frames(t) {
		got = append(got, fmt.Sprintf("%v %q", f.kind, f.payload))
	}
	want := []string{`open "header"`, `data "request"`, `fin ""`}
	if !slices.Equal(got, want) {
		t.Errorf("the first batch is %q, want %q", got, want)
	}
}

// TestStreamsAtOnce shows that a client uses its connections evenly, and what
// happens when all are full.
func TestStreamsAtOnce(t *testing.T) {
	quit := make(chan struct{})
	st := newSite(t, func(_ string, s *Stream) { <-quit })
	defer close(quit)
	c := st.client()
	eventually(t, "two connections", func() bool { return c.Status()[0].Connections == 2 })
	for range 100 {
		open(t, c, "", false)
	}
	eventually(t, "100 streams at the server", func() bool {
		total := 0
		for _, p := range st.server.Status().Peers {
			total += p.Streams
		}
		return total == 100
	})
	for _, p := range st.server.Status().Peers {
		if p.Streams != 50 {
			t.Errorf("a connection has %d of 100 streams", p.Streams)
		}
	}
	for _, conns := range c.usable.Load().conns {
		for _, cn := range conns {
			cn.cfg.peer.streams = 51
		}
	}
	for range 2 {
		open(t, c, "", false)
	}
	_, err := c.Open(context.Background(), nil, false)
	endsWith(t, err, deception.EndOverload)
}
