package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"decoynet/deception"
)

const defaultConnections = 2

// ClientConfig says how a client reaches its gateways.
type ClientConfig struct {
	// TLS returns the configuration for a gateway that runs on the node. It is
	// asked before each handshake.
	TLS func(gatewayNode string) *tls.Config
	// Dial makes connections; nil for net.Dialer's.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Connections is how many connections each gateway gets, 2 if 0: a lost
	// segment then holds up half of the flows.
	Connections int
	// Told gets what a gateway tells (Server.Tell): its latest message, one call
	// at a time per gateway. Nil for nobody.
	Told func(gateway string, message []byte)
	// Explain turns errors of connections into text for LinkStatus.Err; nil for
	// the error's own.
	Explain func(error) string
	Log     *slog.Logger
}

// LinkStatus is what is true of a gateway's connections.
type LinkStatus struct {
	Gateway     string
	Address     string // where it was reached or, if it was not, last tried
	Connected   bool   // flows can be opened
	Connections int    // that are up
	RoundTrip   time.Duration
	Streams     int
	Dropped     uint64    // datagrams, since the client was made
	Since       time.Time // of Connected being what it is
	Err         string    // what went wrong last; empty once all connections are up
}

// Client keeps connections to all gateways of a list and opens streams to the
// first that can take them.
type Client struct {
	cfg    ClientConfig
	ctx    context.Context
	cancel context.CancelFunc
	links  sync.WaitGroup

	mu       sync.Mutex // of gateways and writing usable
	gateways []*gateway
	usable   atomic.Pointer[choice]
}

// choice is a snapshot of what Open chooses from.
type choice struct {
	conns   [][]*conn     // of each gateway in order of preference
	changed chan struct{} // closed when there is a newer choice
}

// NewClient makes a client without gateways.
func NewClient(cfg ClientConfig) *Client {
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	if cfg.Connections <= 0 {
		cfg.Connections = defaultConnections
	}
	if cfg.Explain == nil {
		cfg.Explain = error.Error
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{cfg: cfg}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.usable.Store(&choice{changed: make(chan struct{})})
	return c
}

// SetGateways replaces the list of gateways; its order is the preference. The
// connections to those that stay the same are kept. Those to others carry their
// streams to the end, but no new ones.
func (c *Client) SetGateways(list []deception.Gateway) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return
	}
	old := c.gateways
	c.gateways = nil
	for _, g := range list {
		i := slices.IndexFunc(old, func(o *gateway) bool { return o.is(g) })
		if i >= 0 {
			c.gateways = append(c.gateways, old[i])
			old = slices.Delete(slices.Clone(old), i, i+1)
			continue
		}
		c.gateways = append(c.gateways, c.startGateway(g))
	}
	for _, g := range old {
		g.retire()
	}
	c.chooseLocked()
}

// choose makes a new choice after a connection came or went.
func (c *Client) choose() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.chooseLocked()
}

func (c *Client) chooseLocked() {
	next := &choice{changed: make(chan struct{})}
	for _, g := range c.gateways {
		if conns := g.conns(); len(conns) > 0 {
			next.conns = append(next.conns, conns)
		}
	}
	close(c.usable.Swap(next).changed)
}

// Open opens a stream to the first gateway of the list that can take it, on its
// connection with the fewest streams; one that has not been heard of for a second
// comes after all others, before it is given up. Open waits for no answer: data
// may be written at once. The header, at most MaxHeader bytes (else ErrHeaderSize), is
// what Stream.Header returns at the other end.
//
// While no gateway is usable it waits until ctx is done; then it returns
// ErrNoGateway. It returns a *ResetError with EndOverload if all connections
// carry as many streams as they may, and ErrClosed after Close.
func (c *Client) Open(ctx context.Context, header []byte, datagrams bool) (*Stream, error) {
	if len(header) > MaxHeader {
		return nil, ErrHeaderSize
	}
	header = slices.Clone(header)
	for {
		if c.ctx.Err() != nil {
			return nil, ErrClosed
		}
		now := c.usable.Load()
		full := false
		for _, quiet := range []bool{false, true} {
			for _, conns := range now.conns {
				s, err := openOn(conns, quiet, header, datagrams)
				if s != nil {
					return s, nil
				}
				full = full || errors.Is(err, errFull)
			}
		}
		if full {
			return nil, &ResetError{deception.EndOverload}
		}
		select {
		case <-now.changed:
		case <-c.ctx.Done():
		case <-ctx.Done():
			return nil, c.noGateway()
		}
	}
}

// openOn opens a stream on the connection with the fewest, of those that are
// quiet or of those that are not.
func openOn(conns []*conn, quiet bool, header []byte, datagrams bool) (s *Stream, err error) {
	var best *conn
	for _, cn := range conns {
		if cn.quiet.Load() == quiet && (best == nil || cn.live.Load() < best.live.Load()) {
			best = cn
		}
	}
	if best == nil {
		return nil, nil
	}
	if s, err = best.open(header, datagrams); s != nil {
		return s, nil
	}
	for _, cn := range conns {
		if cn == best || cn.quiet.Load() != quiet {
			continue
		}
		other, otherErr := cn.open(header, datagrams)
		if other != nil {
			return other, nil
		}
		if errors.Is(otherErr, errFull) {
			err = otherErr
		}
	}
	return nil, err
}

// noGateway says why there is none.
func (c *Client) noGateway() error {
	var why []string
	for _, s := range c.Status() {
		if !s.Connected {
			why = append(why, fmt.Sprintf("%s: %s", s.Gateway, s.Err))
		}
	}
	if len(why) == 0 {
		return fmt.Errorf("%w: none is configured", ErrNoGateway)
	}
	return fmt.Errorf("%w: %s", ErrNoGateway, strings.Join(why, "; "))
}

// Status returns what is true of each gateway, in order of preference.
func (c *Client) Status() []LinkStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]LinkStatus, 0, len(c.gateways))
	for _, g := range c.gateways {
		out = append(out, g.status())
	}
	return out
}

// Close cuts all connections; their streams end with EndGateway. It returns when
// nothing of the client runs any more, except a call of Told.
func (c *Client) Close() {
	c.cancel()
	c.mu.Lock()
	gateways := c.gateways
	c.gateways = nil
	c.chooseLocked()
	c.mu.Unlock()
	for _, g := range gateways {
		g.retire()
	}
	c.links.Wait()
}
