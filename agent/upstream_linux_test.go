package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/proxyheader"
	"decoynet/internal/pump"
)

// within bounds every wait of these tests.
const within = 20 * time.Second

// eventually waits until ok says so.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %v still not: %s", within, what)
		}
	}
}

// gateways are ingress gateways and, behind them, a service: it says whose flow
// it is, then echoes.
type gateways struct {
	mu      sync.Mutex // guards the rest
	down    bool
	changed chan struct{} // closed when down changes
	headers []proxyheader.Header
	open    map[*gatewayStream]struct{}
}

func newGateways() *gateways {
	return &gateways{changed: make(chan struct{}), open: map[*gatewayStream]struct{}{}}
}

func (g *gateways) set(down bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.down = down
	close(g.changed)
	g.changed = make(chan struct{})
}

// cut breaks every stream, as the end of a connection does.
func (g *gateways) cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for s := range g.open {
		s.cut()
	}
}

func (g *gateways) Gateways() []GatewayLink {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := GatewayLink{Name: "gw1", Address: "gw.example:7444", Connected: !g.down}
	if g.down {
		l.Problem = "connection refused"
	}
	return []GatewayLink{l}
}

func (g *gateways) Open(ctx context.Context, header []byte, datagrams bool) (pump.Stream, error) {
	for {
		g.mu.Lock()
		down, changed := g.down, g.changed
		g.mu.Unlock()
		if !down {
			break
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed:
		}
	}
	h, n, err := proxyheader.Parse(header)
	if err != nil || n != len(header) {
		return nil, fmt.Errorf("bad header: %w", err)
	}
	s := &gatewayStream{of: g}
	if datagrams {
		s.Stream = echoPackets(h)
	} else if s.Stream, err = echoTCP(h); err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.headers = append(g.headers, h)
	g.open[s] = struct{}{}
	return s, nil
}

func greeting(h proxyheader.Header) string {
	return fmt.Sprintf("%s %s to %s\n", h.Transport, h.Source, h.Destination)
}

func echoTCP(h proxyheader.Header) (pump.Stream, error) {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	near, err := net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		return nil, err
	}
	service, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	go func() {
		defer service.Close()
		if _, err := io.WriteString(service, greeting(h)); err == nil {
			_, _ = io.Copy(service, service)
		}
	}()
	return pump.NewTCP(near)
}

func echoPackets(h proxyheader.Header) pump.Stream {
	var p *pump.Packets
	p = pump.NewPackets(func(b []byte) error {
		p.Push(append([]byte(greeting(h)), b...))
		return nil
	}, nil)
	return p
}

// gatewayStream is a stream that can break.
type gatewayStream struct {
	pump.Stream
	of *gateways

	mu     sync.Mutex // guards broken
	broken bool
}

func (s *gatewayStream) cut() {
	s.mu.Lock()
	s.broken = true
	s.mu.Unlock()
	s.Stream.Reset(deception.EndGateway)
}

// lostGateway is the error of a broken stream, as the tunnel's.
type lostGateway struct{ error }

func (lostGateway) EndReason() deception.EndReason { return deception.EndGateway }

func (s *gatewayStream) explain(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && s.broken {
		return lostGateway{err}
	}
	return err
}

func (s *gatewayStream) Read(b []byte) (int, error) {
	n, err := s.Stream.Read(b)
	return n, s.explain(err)
}

func (s *gatewayStream) Write(b []byte) (int, error) {
	n, err := s.Stream.Write(b)
	return n, s.explain(err)
}

func (s *gatewayStream) Reset(reason deception.EndReason) {
	s.of.mu.Lock()
	delete(s.of.open, s)
	s.of.mu.Unlock()
	s.Stream.Reset(reason)
}

// records are what an agent wrote down.
type records struct {
	mu       sync.Mutex // guards the rest
	sessions []deception.Session
	events   []deception.Event
}

func (r *records) Ended(s *deception.Session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sessions = append(r.sessions, *s)
}

func (r *records) Event(e *deception.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, *e)
}

func (r *records) ended() []deception.Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.sessions)
}

func (r *records) of(kind deception.EventKind) []deception.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(r.events), func(e deception.Event) bool { return e.Kind != kind })
}

// site is listen mode with everything around it.
type site struct {
	*Listen
	courier *Courier
	up      *gateways
	records *records
}

func newSite(t testing.TB, maxFlows int) *site {
	t.Helper()
	s := &site{up: newGateways(), records: &records{}}
	s.courier = NewCourier(CourierConfig{Node: "crm-1", Upstream: s.up, Recorder: s.records, MaxFlows: maxFlows})
	s.Listen = NewListen(ListenConfig{Carrier: s.courier, Recorder: s.records, retry: 50 * time.Millisecond})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		if err := errors.Join(s.Listen.Close(ctx), s.courier.Close(ctx)); err != nil {
			t.Error(err)
		}
	})
	return s
}

// state is an agent's part of a document: one decoy a line, as
// "crm any 445,161/udp" or "erp 192.0.2.7 8000-8010".
func state(t testing.TB, lines ...string) *deception.State {
	t.Helper()
	s := &deception.State{Node: "crm-1", Nodes: []deception.Node{{Name: "crm-1"}}, Gateways: []deception.Gateway{{Name: "gw1", Node: "hq"}}}
	for _, line := range lines {
		f := strings.Fields(line)
		d := deception.Decoy{Name: f[0], Node: "crm-1", Segment: deception.HostSegment, Idle: time.Hour, Path: deception.PathRelay}
		if d.Any = f[1] == "any"; !d.Any {
			for _, text := range strings.Split(f[1], ",") {
				r, err := deception.ParseAddrRange(text)
				if err != nil {
					t.Fatal(err)
				}
				d.Addresses = append(d.Addresses, r)
			}
		}
		b := deception.Binding{Service: "win"}
		for _, text := range strings.Split(f[2], ",") {
			r, err := deception.ParsePortRange(text)
			if err != nil {
				t.Fatal(err)
			}
			b.Ports = append(b.Ports, r)
		}
		d.Bind = []deception.Binding{b}
		s.Decoys = append(s.Decoys, d)
	}
	return s
}

func (s *site) apply(t testing.TB, up Up, lines ...string) error {
	t.Helper()
	return s.Apply(t.Context(), state(t, lines...), up)
}

func (s *site) mustApply(t testing.TB, lines ...string) {
	t.Helper()
	if err := s.apply(t, nil, lines...); err != nil {
		t.Fatal(err)
	}
}

// dial connects and reads what the service says of it.
func dial(t testing.TB, at string) (*net.TCPConn, string) {
	t.Helper()
	d := net.Dialer{Timeout: within}
	d.SetMultipathTCP(false)
	conn, err := d.DialContext(t.Context(), "tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn), readLine(t, conn)
}

func readLine(t testing.TB, conn net.Conn) string {
	t.Helper()
	var line []byte
	b := make([]byte, 1)
	for {
		if _, err := conn.Read(b); err != nil {
			t.Fatalf("after %q: %v", line, err)
		}
		if line = append(line, b...); b[0] == '\n' {
			return string(line)
		}
	}
}

func told(transport string, conn net.Conn) string {
	local, _ := netip.ParseAddrPort(conn.LocalAddr().String())
	remote, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
	return fmt.Sprintf("%s %s to %s\n", transport, local, remote)
}
