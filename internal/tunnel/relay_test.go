package tunnel

import (
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// way is a network between a client and a server: a TCP relay that can delay,
// throttle, swallow and cut. Its buffer has no end, as if the network held the
// bytes.
type way struct {
	t       testing.TB
	address netip.AddrPort
	target  netip.AddrPort
	delay   time.Duration // in each direction
	rate    int           // bytes per second in each direction, 0 for no limit

	mu       sync.Mutex
	swallows bool // nothing arrives any more, and nobody is told
	oneWay   bool // only what the client sends is swallowed
	changed  chan struct{}
	conns    map[net.Conn]struct{}
	closed   bool
	running  sync.WaitGroup
}

func newWay(t testing.TB, target netip.AddrPort, delay time.Duration, rate int) *way {
	t.Helper()
	w := &way{t: t, target: target, delay: delay, rate: rate, changed: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	l := listen(t, loopback)
	w.address = l.Addr().(*net.TCPAddr).AddrPort()
	w.running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.running.Go(func() { w.carry(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		w.mu.Lock()
		w.closed = true
		w.mu.Unlock()
		w.cut()
		w.running.Wait()
	})
	return w
}

// swallow makes everything vanish from now on, or only what the client sends;
// connections are still taken, and stay open.
func (w *way) swallow(on, oneWay bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.swallows, w.oneWay = on, oneWay
}

// cut closes all connections with a reset.
func (w *way) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	close(w.changed)
	w.changed = make(chan struct{})
}

// add registers a connection; it returns what is closed at the next cut.
func (w *way) add(c net.Conn) (cut <-chan struct{}, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		c.Close()
		return nil, false
	}
	w.conns[c] = struct{}{}
	return w.changed, true
}

func (w *way) carry(client net.Conn) {
	server, err := net.Dial("tcp", w.target.String())
	if err != nil {
		client.Close()
		return
	}
	cut, ok := w.add(client)
	_, ok2 := w.add(server)
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.conns, client)
		delete(w.conns, server)
		client.Close()
		server.Close()
	}()
	if !ok || !ok2 {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { w.direction(client, server, cut, true) })
	both.Go(func() { w.direction(server, client, cut, false) })
	both.Wait()
}

type parcel struct {
	due  time.Time
	data []byte
}

// direction carries one direction to its end.
func (w *way) direction(from, to net.Conn, cut <-chan struct{}, toServer bool) {
	var mu sync.Mutex
	var queue []parcel
	ended := false
	news := make(chan struct{}, 1)
	w.running.Go(func() {
		for {
			buf := make([]byte, 64<<10)
			n, err := from.Read(buf)
			w.mu.Lock()
			lost := w.swallows && (toServer || !w.oneWay)
			w.mu.Unlock()
			mu.Lock()
			if n > 0 && !lost {
				queue = append(queue, parcel{time.Now().Add(w.delay), buf[:n]})
			}
			ended = err != nil
			mu.Unlock()
			select {
			case news <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	})
	free := time.Now() // when the line has carried what came before
	for {
		mu.Lock()
		batch, over := queue, ended
		queue = nil
		mu.Unlock()
		for _, p := range batch {
			if w.rate > 0 {
				if p.due.After(free) {
					free = p.due
				}
				free = free.Add(time.Duration(float64(len(p.data)) / float64(w.rate) * float64(time.Second)))
				p.due = free
			}
			if !sleepUntil(p.due, cut) {
				return
			}
			if _, err := to.Write(p.data); err != nil {
				from.Close()
				return
			}
		}
		if len(batch) > 0 {
			continue
		}
		if over {
			to.Close()
			return
		}
		select {
		case <-news:
		case <-cut:
			return
		}
	}
}

func sleepUntil(t time.Time, cut <-chan struct{}) bool {
	d := time.Until(t)
	if d <= 0 {
		return true
	}
	select {
	case <-time.After(d):
		return true
	case <-cut:
		return false
	}
}
