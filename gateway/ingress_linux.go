package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/health"
	"decoynet/internal/pki"
	"decoynet/internal/tunnel"
)

// Ingress is the gateway's side of the tunnel: agents on other nodes bring their
// flows to it. It decides by the gateway's own table where they lead; an agent
// can speak for the decoys of its node only.
type Ingress struct {
	gateway *Gateway
	cfg     IngressConfig

	peers   atomic.Pointer[map[string]uint32]
	notices atomic.Pointer[map[string][]byte] // by node
	state   atomic.Pointer[deception.State]
	claims  claims
	refused refusals

	accepted, overload atomic.Uint64

	done chan struct{}
	wg   sync.WaitGroup // the goroutines of listeners and of flush, and flows that came without a tunnel

	mu        sync.Mutex // serialises Apply, NoteHealth, Status and Close; guards the rest
	closed    bool
	server    *tunnel.Server // made with the first listener
	listeners map[netip.AddrPort]net.Listener
	problems  []string

	flowsMu sync.Mutex // guards flows
	flows   map[deception.SessionID]*inflow
}

// IngressConfig is what an ingress is made with.
type IngressConfig struct {
	// Identity is who this node is to agents. Nil where it belongs to no
	// controller: then it takes no flows but those of its own machine (Carry).
	Identity *pki.Identity
	Recorder Recorder // for events; nil for the gateway's
	// Up tells whether a service's port is known to be open. Nil: all are.
	Up       func(health.Port) bool
	MaxFlows int // at once (default 16384)
	Log      *slog.Logger
}

const defaultIngressFlows = 16384

// IngressStatus is what is true about an ingress gateway. Counters run since its
// start.
type IngressStatus struct {
	Listen    []string      `json:"listen"`
	Listening bool          `json:"listening"`
	Agents    []AgentStatus `json:"agents"`
	Flows     int           `json:"flows"`
	Accepted  uint64        `json:"accepted"`
	Overload  uint64        `json:"overload"`
	// ClaimsRefused counts flows of agents that spoke for decoys which are not
	// theirs.
	ClaimsRefused uint64 `json:"claims_refused"`
	// Refused counts connections and streams that were turned away, by cause.
	Refused  map[string]uint64 `json:"refused,omitempty"`
	Problems []string          `json:"problems,omitempty"`
}

// AgentStatus is what is true about one node that is connected.
type AgentStatus struct {
	Node        string        `json:"node"`
	Address     string        `json:"address"`
	Connections int           `json:"connections"`
	Since       time.Time     `json:"since"`
	RoundTrip   time.Duration `json:"round_trip"` // ns
	Streams     int           `json:"streams"`
}

// NewIngress returns an ingress that listens nowhere.
func NewIngress(g *Gateway, cfg IngressConfig) *Ingress {
	if cfg.Recorder == nil {
		cfg.Recorder = g.cfg.Recorder
	}
	if cfg.Up == nil {
		cfg.Up = func(health.Port) bool { return true }
	}
	if cfg.MaxFlows <= 0 {
		cfg.MaxFlows = defaultIngressFlows
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	in := &Ingress{
		gateway: g, cfg: cfg, done: make(chan struct{}),
		listeners: map[netip.AddrPort]net.Listener{}, flows: map[deception.SessionID]*inflow{},
	}
	in.refused = refusals{kind: deception.EventPeerRefused, node: g.cfg.Node, tell: cfg.Recorder.Event}
	in.claims.tell = cfg.Recorder.Event
	in.peers.Store(&map[string]uint32{})
	in.notices.Store(&map[string][]byte{})
	in.state.Store(&deception.State{})
	in.wg.Go(in.flush)
	return in
}

// flush reports in time what refusals have been held back.
func (in *Ingress) flush() {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-in.done:
			return
		case now := <-ticker.C:
			in.refused.flush(now)
			in.claims.flush(now)
		}
	}
}

// Apply listens where state has gateways on this node and lets the peers in: by
// node, the generation that its certificate must have. Others are cut off at
// once. Flows that the gateway's table leads elsewhere or nowhere are ended, so
// Gateway.SetState comes first. What could not be listened at is in the error,
// and tried again by the next call.
func (in *Ingress) Apply(ctx context.Context, state *deception.State, peers map[string]uint32) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return errors.New("ingress gateway is closed")
	}
	in.state.Store(state)
	allowed := maps.Clone(peers)
	in.peers.Store(&allowed)
	if in.server != nil {
		in.server.Disconnect(func(name string) bool { return in.check(name) != nil })
	}
	in.CloseFlows(in.misled, deception.EndUnbound)
	want := map[netip.AddrPort]string{}
	for _, g := range state.Gateways {
		if g.Node == state.Node {
			want[g.Listen] = g.Name
		}
	}
	for at, l := range in.listeners {
		if _, still := want[at]; !still {
			_ = l.Close() // it is open: closing a socket that listens cannot fail
			delete(in.listeners, at)
		}
	}
	var errs []error
	in.problems = nil
	if len(want) > 0 && in.cfg.Identity == nil {
		// Said, and no error: what this machine does for itself is not touched by it.
		in.problems = append(in.problems, "agents on other machines cannot come: this machine has no certificate; enrol it with a controller (decoynet join)")
		clear(want)
	}
	for _, at := range slices.SortedFunc(maps.Keys(want), netip.AddrPort.Compare) {
		if in.listeners[at] == nil {
			if err := in.listen(ctx, at); err != nil {
				errs = append(errs, fmt.Errorf("gateway %s cannot listen at %s: %w", want[at], at, err))
			}
		}
	}
	if len(want) == 0 && in.server != nil {
		in.server.Disconnect(func(string) bool { return true })
	}
	in.noteHealth()
	for _, err := range errs {
		in.problems = append(in.problems, err.Error())
	}
	return errors.Join(errs...)
}

// misled tells whether the gateway's table leads a flow elsewhere, or nowhere.
func (in *Ingress) misled(s *deception.Session) bool {
	target, ok := in.gateway.Table().Lookup(deception.SegmentKey(s.Node, s.Segment), s.Transport, s.Destination)
	return !ok || target.Decoy.Name != s.Decoy || target.Service.Name != s.Service || target.Address != s.DestinationNAT
}

// listen must be called with mu held.
func (in *Ingress) listen(ctx context.Context, at netip.AddrPort) error {
	cfg := net.ListenConfig{KeepAlive: -1} // the tunnel has pings of its own
	cfg.SetMultipathTCP(false)
	network := "tcp" // one at :: takes IPv4 as well (RFC 3493, 3.7)
	if at.Addr().Is4() {
		network = "tcp4"
	}
	l, err := cfg.Listen(ctx, network, at.String())
	if err != nil {
		return explainGatewayListen(err)
	}
	if in.server == nil {
		in.server = tunnel.NewServer(tunnel.ServerConfig{
			TLS: in.cfg.Identity.IngressTLS(in.allow), Node: in.name, Serve: in.Serve, Log: in.cfg.Log,
			Refused: func(peer netip.AddrPort, err error) {
				in.refused.note(time.Now(), peer, at, "connection", "an agent's connection was refused: "+pki.Explain(err))
			},
		})
		in.server.TellEach(in.noticeFor)
	}
	in.listeners[at] = l
	server := in.server
	in.wg.Go(func() {
		// It returns when the listener was closed, by Apply or Close.
		if err := server.Serve(l); err != nil && !errors.Is(err, net.ErrClosed) {
			in.cfg.Log.Error("the ingress gateway does not take agents any more", "listen", at.String(), "error", err)
		}
	})
	return nil
}

func explainGatewayListen(err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%w: another program has the port; end it or change gateways[].listen (tried again by itself)", err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("%w: no interface of this machine has that address (tried again by itself)", err)
	}
	return err
}

// errNotPeer is what a node hears that may not bring flows here.
var errNotPeer = errors.New("this node may not bring flows here: it was revoked, or enrolled anew since")

func (in *Ingress) allow(node string, generation uint32) error {
	if want, ok := (*in.peers.Load())[node]; !ok || want != generation {
		return errNotPeer
	}
	return nil
}

// name names a connection to the tunnel: by node and generation, so that one
// that has become a node anew is not taken for what it was.
func (in *Ingress) name(state tls.ConnectionState) (string, error) {
	node, generation, err := pki.PeerNode(state)
	if err != nil {
		return "", err
	}
	return node + "/" + strconv.FormatUint(uint64(generation), 10), in.allow(node, generation)
}

// check tells whether a connection of that name may still bring flows.
func (in *Ingress) check(name string) error {
	node, number := nodeOf(name)
	generation, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return errNotPeer
	}
	return in.allow(node, uint32(generation))
}

func nodeOf(name string) (node, generation string) {
	node, generation, _ = strings.Cut(name, "/")
	return node, generation
}

// Status tells what is true now.
func (in *Ingress) Status() IngressStatus {
	in.mu.Lock()
	defer in.mu.Unlock()
	s := IngressStatus{
		Accepted: in.accepted.Load(), Overload: in.overload.Load(), ClaimsRefused: in.claims.count.Load(),
		Refused: in.refused.counts(), Problems: slices.Clone(in.problems), Listening: len(in.listeners) > 0 && len(in.problems) == 0,
	}
	for _, at := range slices.SortedFunc(maps.Keys(in.listeners), netip.AddrPort.Compare) {
		s.Listen = append(s.Listen, at.String())
	}
	if in.server != nil {
		s.Agents = agentsOf(in.server.Status().Peers)
	}
	in.flowsMu.Lock()
	defer in.flowsMu.Unlock()
	s.Flows = len(in.flows)
	return s
}

// agentsOf joins the connections of each node; they come sorted by name.
func agentsOf(peers []tunnel.PeerStatus) []AgentStatus {
	var out []AgentStatus
	for _, p := range peers {
		node, _ := nodeOf(p.Node)
		if n := len(out); n == 0 || out[n-1].Node != node {
			out = append(out, AgentStatus{Node: node, Address: p.Address.String(), Since: p.Since, RoundTrip: p.RoundTrip})
		}
		a := &out[len(out)-1]
		a.Connections++
		a.Streams += p.Streams
		a.RoundTrip = min(a.RoundTrip, p.RoundTrip)
		if p.Since.Before(a.Since) {
			a.Since = p.Since
		}
	}
	return out
}

// CloseFlows ends the flows that match wants ended, with a reset to both sides.
// What match is given holds what was known when the flow was bound.
func (in *Ingress) CloseFlows(match func(*deception.Session) bool, reason deception.EndReason) {
	var out []*inflow
	in.flowsMu.Lock()
	for _, f := range in.flows {
		if match(&f.bound) {
			out = append(out, f)
		}
	}
	in.flowsMu.Unlock()
	for _, f := range out {
		f.End(reason)
	}
}

// closeDelay lets agents hear how their flows ended before the tunnel is cut.
const closeDelay = 100 * time.Millisecond

// Close ends all flows with reason shutdown and cuts the tunnel. It waits no
// longer than ctx allows, but for the tunnel's own few seconds.
func (in *Ingress) Close(ctx context.Context) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.closed {
		in.closed = true
		close(in.done)
	}
	for at, l := range in.listeners {
		_ = l.Close()
		delete(in.listeners, at)
	}
	in.flowsMu.Lock()
	running := len(in.flows)
	in.flowsMu.Unlock()
	in.CloseFlows(func(*deception.Session) bool { return true }, deception.EndShutdown)
	if in.server != nil {
		if running > 0 {
			select {
			case <-time.After(closeDelay):
			case <-ctx.Done():
			}
		}
		in.server.Close()
	}
	gone := make(chan struct{})
	go func() { in.wg.Wait(); close(gone) }()
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("end the flows of agents: %w", ctx.Err())
	}
}
