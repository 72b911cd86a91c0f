package gateway

import (
	"bytes"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/health"
)

// An ingress gateway asks an egress of ours which services are up by a
// connection with the command LOCAL, on which it says nothing more. The answer
// is lines of JSON: the whole report first and after every change, an empty
// object every second in between. A line without "ports" changes nothing, so
// that more may be said one day.

// healthLine is one line of the answer.
type healthLine struct {
	Ports []portLine `json:"ports"`
}

// portLine is what is known of one unit of health (health.Port).
type portLine struct {
	Service   string         `json:"service"`
	Transport string         `json:"transport"` // tcp or udp
	Address   netip.AddrPort `json:"address"`
	Range     bool           `json:"range,omitempty"`
	Up        bool           `json:"up"`
	Since     time.Time      `json:"since"`
	Err       string         `json:"error,omitempty"`
}

const (
	healthBeat = time.Second     // between lines
	healthLost = 3 * time.Second // without one the egress counts as lost
	healthSize = 4 << 20         // bytes, of a line at most
	// maxWatchers bounds the connections of one address that ask for health.
	maxWatchers = 64
)

// healthOf writes the report for ports from what is known of them.
func healthOf(ports []health.Port, known map[health.Port]health.State) healthLine {
	line := healthLine{Ports: make([]portLine, len(ports))}
	for i, p := range ports {
		st, ok := known[p]
		if !ok {
			st.Err = "not looked at yet"
		}
		line.Ports[i] = portLine{p.Service, p.Transport.String(), p.Address, p.Range, st.Up, st.Since, st.Err}
	}
	return line
}

// read is the inverse of healthOf; lines of transports that are none are left
// out.
func (h *healthLine) read() map[health.Port]health.State {
	out := make(map[health.Port]health.State, len(h.Ports))
	for _, l := range h.Ports {
		p := health.Port{Service: l.Service, Transport: deception.TCP, Address: l.Address, Range: l.Range}
		switch l.Transport {
		case "tcp":
		case "udp":
			p.Transport = deception.UDP
		default:
			continue
		}
		out[p] = health.State{Up: l.Up, Since: l.Since, Err: l.Err}
	}
	return out
}

// watchers are the connections of ingress gateways that ask for health.
type watchers struct {
	known func() map[health.Port]health.State
	wg    sync.WaitGroup

	mu      sync.Mutex // guards the rest
	conns   map[*watcher]struct{}
	changed chan struct{} // closed when there may be news
	closed  bool
}

type watcher struct {
	post *post
	peer netip.Addr
	conn net.Conn
}

func (w *watchers) init(known func() map[health.Port]health.State) {
	w.known, w.conns, w.changed = known, map[*watcher]struct{}{}, make(chan struct{})
}

// join answers on the accepted socket fd until it breaks. It does not wait.
func (w *watchers) join(p *post, peer netip.Addr, fd int) {
	file := os.NewFile(uintptr(fd), "health of services for "+peer.String())
	conn, err := net.FileConn(file) // a duplicate
	file.Close()
	if err != nil {
		return
	}
	one := &watcher{post: p, peer: peer, conn: conn}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || w.countLocked(p) >= maxWatchers {
		conn.Close()
		return
	}
	w.conns[one] = struct{}{}
	w.wg.Go(func() {
		w.serve(one)
		conn.Close()
		w.mu.Lock()
		delete(w.conns, one)
		w.mu.Unlock()
	})
}

func (w *watchers) serve(one *watcher) {
	beat := time.NewTicker(healthBeat)
	defer beat.Stop()
	var told []byte
	for {
		w.mu.Lock()
		changed := w.changed
		w.mu.Unlock()
		line, err := json.Marshal(healthOf(one.post.edge.Load().ports(one.peer), w.known()))
		if err != nil {
			return // what cannot be written is never made
		}
		send := line
		if bytes.Equal(line, told) {
			send = []byte("{}")
		}
		told = line
		_ = one.conn.SetWriteDeadline(time.Now().Add(healthLost))
		if _, err := one.conn.Write(append(send, '\n')); err != nil {
			return
		}
		select {
		case <-beat.C:
		case <-changed:
		}
		if w.gone(one) {
			return
		}
	}
}

// gone tells whether the connection is to end, or was ended by its peer.
func (w *watchers) gone(one *watcher) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, in := w.conns[one]
	return w.closed || !in || hungUp(one.conn)
}

// look has all of them told of what has changed.
func (w *watchers) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.changed)
	w.changed = make(chan struct{})
}

// leave ends those of one post.
func (w *watchers) leave(p *post) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for one := range w.conns {
		if one.post == p {
			one.conn.Close()
			delete(w.conns, one)
		}
	}
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *watchers) count(p *post) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.countLocked(p)
}

func (w *watchers) countLocked(p *post) int {
	n := 0
	for one := range w.conns {
		if one.post == p {
			n++
		}
	}
	return n
}

// close ends all of them and waits until they have.
func (w *watchers) close() {
	w.mu.Lock()
	w.closed = true
	for one := range w.conns {
		one.conn.Close()
	}
	close(w.changed)
	w.changed = make(chan struct{})
	w.mu.Unlock()
	w.wg.Wait()
}

// hungUp tells, without waiting, whether the other end of a TCP connection has
// sent FIN or reset it, whatever is still to be read before that.
func hungUp(conn net.Conn) bool {
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		// poll(2) reports POLLERR and POLLHUP without being asked for them.
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(fds, 0)
		gone = err == nil && n > 0 && fds[0].Revents != 0
	})
	return gone || err != nil
}
