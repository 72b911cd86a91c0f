package tunnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"decoynet/deception"
)

const (
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 30 * time.Second
	// stableAfter is how long a connection has to last for the next one to be
	// tried without waiting long.
	stableAfter = 10 * time.Second
)

// backoff is how long to wait before the attempt-th try in a row: any time up to
// a bound that doubles, so that the agents of a gateway that comes back do not
// all come in the same moment.
func backoff(attempt int, random func(time.Duration) time.Duration) time.Duration {
	bound := maxBackoff
	if attempt < 16 {
		bound = min(firstBackoff<<attempt, maxBackoff)
	}
	return random(bound)
}

func randomUpTo(d time.Duration) time.Duration { return rand.N(d + 1) }

// gateway is one gateway of the client's list and the links to it.
type gateway struct {
	client  *Client
	of      deception.Gateway
	cancel  context.CancelFunc
	retired chan struct{} // closed when it is not in the list any more

	links []*link // does not change

	mu      sync.Mutex // of all below
	address string
	since   time.Time
	err     error
	logged  string // the error that was logged last
	dropped uint64 // by connections that are gone
	told    struct {
		instance, number uint64
		message          []byte
		running          bool
		last             []byte
		any              bool
	}
}

// link keeps one connection up.
type link struct {
	g    *gateway
	conn *conn // nil while there is none; guarded by the gateway's mu
}

// startGateway starts to connect. The caller holds the client's mu.
func (c *Client) startGateway(of deception.Gateway) *gateway {
	g := &gateway{client: c, of: of, retired: make(chan struct{}), since: time.Now()}
	g.err = errors.New("not connected yet")
	var ctx context.Context
	ctx, g.cancel = context.WithCancel(c.ctx)
	for range c.cfg.Connections {
		g.links = append(g.links, &link{g: g})
	}
	for _, l := range g.links {
		c.links.Go(func() { l.run(ctx) })
	}
	return g
}

// is tells whether a gateway of a new list is this one, unchanged.
func (g *gateway) is(other deception.Gateway) bool {
	return g.of.Name == other.Name && g.of.Node == other.Node && g.of.Listen == other.Listen &&
		slices.Equal(g.of.Addresses, other.Addresses)
}

// retire stops dialing, and connections when their last stream has ended.
func (g *gateway) retire() {
	close(g.retired)
	g.cancel()
}

// conns returns the connections that are up.
func (g *gateway) conns() []*conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []*conn
	for _, l := range g.links {
		if l.conn != nil {
			out = append(out, l.conn)
		}
	}
	return out
}

func (g *gateway) status() LinkStatus {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := LinkStatus{Gateway: g.of.Name, Address: g.address, Since: g.since, Dropped: g.dropped}
	for _, l := range g.links {
		if l.conn == nil {
			continue
		}
		s.Connections++
		s.Streams += int(l.conn.live.Load())
		s.Dropped += l.conn.dropped.Load()
		if t := time.Duration(l.conn.trip.smooth.Load()); s.RoundTrip == 0 || t > 0 && t < s.RoundTrip {
			s.RoundTrip = t
		}
	}
	s.Connected = s.Connections > 0
	s.Err = g.client.explain(g.err)
	return s
}

// explain puts an error of a gateway in words for a person.
func (c *Client) explain(err error) string {
	var dialed dialErrors
	switch {
	case err == nil:
		return ""
	case errors.As(err, &dialed):
		return dialed.explain(c.cfg.Explain)
	}
	return c.cfg.Explain(err)
}

// addresses are where the gateway is dialed.
func (g *gateway) addresses() ([]string, error) {
	if len(g.of.Addresses) > 0 {
		return g.of.Addresses, nil
	}
	if !g.of.Listen.IsValid() || g.of.Listen.Addr().IsUnspecified() {
		return nil, fmt.Errorf("gateway %s listens on every address of its machine: name those at which agents reach it (addresses)", g.of.Name)
	}
	return []string{g.of.Listen.String()}, nil
}

// run connects, again and again, until the gateway is retired.
func (l *link) run(ctx context.Context) {
	for attempt := 0; ctx.Err() == nil; attempt++ {
		cn, in, address, err := l.connect(ctx)
		if err == nil {
			began := time.Now()
			err = l.carry(cn, in, address)
			if time.Since(began) > stableAfter {
				attempt = 0
			}
		}
		if ctx.Err() != nil {
			return
		}
		l.failed(address, err)
		select {
		case <-ctx.Done():
		case <-time.After(backoff(attempt, randomUpTo)):
		}
	}
}

// connect tries the gateway's addresses in turn.
func (l *link) connect(ctx context.Context) (cn *conn, in *scanner, address string, err error) {
	addresses, err := l.g.addresses()
	if err != nil {
		return nil, nil, "", err
	}
	var failed dialErrors
	for _, address = range addresses {
		cn, in, err = l.dial(ctx, address)
		if err == nil {
			return cn, in, address, nil
		}
		failed = append(failed, dialError{address, err})
		if ctx.Err() != nil {
			break
		}
	}
	return nil, nil, address, failed
}

// dialErrors is what went wrong with each address of a gateway.
type dialErrors []dialError

type dialError struct {
	address string
	err     error
}

func (e dialErrors) Error() string { return e.explain(error.Error) }

func (e dialErrors) Unwrap() []error {
	var out []error
	for _, d := range e {
		out = append(out, d.err)
	}
	return out
}

// explain says it in one line, each error as in says it.
func (e dialErrors) explain(in func(error) string) string {
	var text []string
	for _, d := range e {
		text = append(text, d.address+": "+in(d.err))
	}
	return strings.Join(text, "; ")
}

func (l *link) dial(ctx context.Context, address string) (*conn, *scanner, error) {
	cfg := &l.g.client.cfg
	dialing, cancel := context.WithTimeout(ctx, dialTimeout)
	raw, err := cfg.Dial(dialing, "tcp", address)
	if err != nil && dialing.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("no answer within %v: %w", dialTimeout, err)
	}
	cancel()
	if err != nil {
		return nil, nil, err
	}
	w := newWire(raw)
	t := secure{tls.Client(w, tunnelTLS(cfg.TLS(l.g.of.Node))), w}
	peer, in, err := shake(ctx, t, hello{helloVersion, MaxStreams, firstWindow}, handshakeExpiry,
		func(tls.ConnectionState) error { return nil })
	if err != nil {
		raw.Close()
		return nil, nil, err
	}
	return newConn(t, connConfig{dialed: true, silence: clientSilence, streams: MaxStreams, peer: peer, told: l.g.heard}), in, nil
}

// carry runs a connection to its end.
func (l *link) carry(cn *conn, in *scanner, address string) error {
	g := l.g
	g.mu.Lock()
	l.conn = cn
	up := g.connectedLocked()
	if up == 1 {
		g.since = time.Now()
	}
	if up == len(g.links) {
		g.err = nil
	}
	g.address, g.logged = address, ""
	g.mu.Unlock()
	g.client.choose()
	g.client.cfg.Log.Info("connected to gateway", "gateway", g.of.Name, "address", address)

	stop := make(chan struct{})
	var drain sync.WaitGroup
	drain.Go(func() { l.drain(cn, stop) })
	err := cn.run(in)
	close(stop)
	drain.Wait()

	g.mu.Lock()
	l.conn = nil
	g.dropped += cn.dropped.Load()
	if g.connectedLocked() == 0 {
		g.since = time.Now()
	}
	g.mu.Unlock()
	g.client.choose()
	return err
}

// drain ends a connection when the client is closed, or when the gateway is
// retired and the last stream has ended.
func (l *link) drain(cn *conn, stop <-chan struct{}) {
	client := l.g.client
	select {
	case <-stop:
		return
	case <-client.ctx.Done():
	case <-l.g.retired:
		every := time.NewTicker(tickEvery)
		defer every.Stop()
		for cn.live.Load() > 0 && client.ctx.Err() == nil {
			select {
			case <-stop:
				return
			case <-client.ctx.Done():
			case <-every.C:
			}
		}
	}
	cn.fail(errRetired, "this agent closes the connection")
}

// failed notes why there is no connection.
func (l *link) failed(address string, err error) {
	g := l.g
	g.mu.Lock()
	g.err = err
	if address != "" && g.connectedLocked() == 0 {
		g.address = address
	}
	g.mu.Unlock()
	text := g.client.explain(err)
	g.mu.Lock()
	same := text == g.logged
	g.logged = text
	g.mu.Unlock()
	if !same { // it is tried again and again
		g.client.cfg.Log.Warn("no connection to gateway", "gateway", g.of.Name, "error", text)
	}
}

func (g *gateway) connectedLocked() (n int) {
	for _, l := range g.links {
		if l.conn != nil {
			n++
		}
	}
	return n
}

// heard takes a message from any of the connections. Each brings all of them,
// and they are not in step: an older one than that known is dropped.
func (g *gateway) heard(instance, number uint64, message []byte) {
	if g.client.cfg.Told == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	t := &g.told
	if t.any && t.instance == instance && number <= t.number {
		return
	}
	if message == nil {
		message = []byte{}
	}
	t.any, t.instance, t.number, t.message = true, instance, number, message
	if !t.running {
		t.running = true
		go g.tell()
	}
}

// tell passes messages on, the latest only, so that the reader of a connection
// waits for nobody.
func (g *gateway) tell() {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := &g.told
	for t.message != nil && g.client.ctx.Err() == nil {
		m := t.message
		t.message = nil
		if t.last != nil && bytes.Equal(m, t.last) {
			continue // a gateway that was started anew says what it said before
		}
		t.last = m
		g.mu.Unlock()
		g.client.cfg.Told(g.of.Name, m)
		g.mu.Lock()
	}
	t.running = false
}
