package tunnel

import (
	"cmp"
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxStrangers = 256       // connections that have not shown a certificate yet
	maxPeerConns = 16        // of one node
	serverMemory = 512 << 20 // received and not read, of all connections
	closeExpiry  = 5 * time.Second
)

// ServerConfig says whom a server lets in and what it does with their streams.
type ServerConfig struct {
	// TLS has to require and verify client certificates.
	TLS *tls.Config
	// Node names the peer of a connection, or refuses it; the error is told to
	// the peer.
	Node func(tls.ConnectionState) (string, error)
	// Serve is called for each stream in a goroutine of its own. When it
	// returns, the stream is reset unless it has ended.
	Serve func(node string, s *Stream)
	// Refused is told of connections that were not let in, and of those that
	// were closed because the peer broke the protocol. It must not wait. Nil for
	// nobody.
	Refused func(peer netip.AddrPort, err error)
	Log     *slog.Logger
}

// PeerStatus is what is true of one connection of a node.
type PeerStatus struct {
	Node      string
	Address   netip.AddrPort
	Since     time.Time
	RoundTrip time.Duration
	Streams   int
}

// ServerStatus is what is true of a server.
type ServerStatus struct {
	Peers     []PeerStatus // sorted by node and address
	Strangers int          // connections that have not shown a certificate yet
	Refused   uint64       // connections that were not let in, since the start
	Broken    uint64       // closed because the peer broke the protocol
	Dropped   uint64       // datagrams that peers had no room for
	Held      int64        // bytes received that no stream has read yet
}

// Server takes connections of agents.
type Server struct {
	cfg      ServerConfig
	tls      *tls.Config
	instance uint64
	budget   budget
	ctx      context.Context
	cancel   context.CancelFunc
	conns    sync.WaitGroup
	serving  sync.WaitGroup
	refused  atomic.Uint64
	broken   atomic.Uint64

	mu        sync.Mutex // of all below
	listeners map[net.Listener]struct{}
	strangers *list.List // of *stranger, the oldest first
	peers     map[*peer]struct{}
	number    uint64 // of the message
	message   []byte
	told      bool
	each      func(node string) []byte // what nodes are told instead; nil for message
	dropped   uint64                   // by connections that are gone
}

// peer is a connection of a node that was let in.
type peer struct {
	*conn
	node    string
	address netip.AddrPort
	since   time.Time
}

// stranger is a connection that has not shown a certificate yet.
type stranger struct {
	net.Conn
	place *list.Element
	cuts  []func(node string) bool // calls of Disconnect since it came
}

// NewServer makes a server.
func NewServer(cfg ServerConfig) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Refused == nil {
		cfg.Refused = func(netip.AddrPort, error) {}
	}
	s := &Server{
		cfg: cfg, tls: tunnelTLS(cfg.TLS), instance: rand.Uint64(),
		budget:    budget{limit: serverMemory},
		listeners: map[net.Listener]struct{}{}, strangers: list.New(), peers: map[*peer]struct{}{},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Serve takes connections from l until Close, and then returns nil; else the
// listener's error. It closes l.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	s.mu.Lock()
	if s.ctx.Err() != nil {
		s.mu.Unlock()
		return ErrClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	for wait := time.Duration(0); ; {
		raw, err := l.Accept()
		switch {
		case err == nil:
			wait = 0
			s.admit(raw)
		case s.ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept agents on %s: %w", l.Addr(), err)
		default:
			// Out of descriptors, most likely: what runs gives some back.
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			s.cfg.Log.Warn("cannot accept agents for now", "listen", l.Addr().String(), "error", err)
			select {
			case <-s.ctx.Done():
				return nil
			case <-time.After(wait):
			}
		}
	}
}

// admit starts a connection. Where too many have not shown a certificate yet,
// the oldest of them goes: an agent is through in a round trip or two, who only
// holds connections open is not.
func (s *Server) admit(raw net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		raw.Close()
		return
	}
	if s.strangers.Len() >= maxStrangers {
		s.strangers.Remove(s.strangers.Front()).(*stranger).Close()
	}
	from := &stranger{Conn: raw}
	from.place = s.strangers.PushBack(from)
	s.conns.Go(func() { s.connection(from) })
}

// forget takes a connection off the list of strangers.
func (s *Server) forget(from *stranger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.strangers.Remove(from.place)
}

// connection runs a connection from the handshake to the end.
func (s *Server) connection(from *stranger) {
	defer from.Close()
	defer s.forget(from)
	address := addrPort(from.RemoteAddr())
	w := newWire(from.Conn)
	t := secure{tls.Server(w, s.tls), w}
	var node string
	peerHello, in, err := shake(s.ctx, t, hello{helloVersion, MaxStreams, firstWindow}, handshakeExpiry, func(state tls.ConnectionState) error {
		var err error
		if node, err = s.cfg.Node(state); err != nil {
			return err
		}
		if s.countPeers(node) >= maxPeerConns {
			return errTooMany
		}
		return nil
	})
	if err != nil {
		s.forget(from)
		if s.ctx.Err() == nil {
			s.refused.Add(1)
			s.cfg.Refused(address, err)
		}
		return
	}
	p := &peer{node: node, address: address, since: time.Now()}
	p.conn = newConn(t, connConfig{
		silence: serverSilence, streams: MaxStreams, budget: &s.budget, peer: peerHello,
		serve: func(st *Stream) { s.cfg.Serve(node, st) }, served: &s.serving,
	})
	if !s.join(p, from) {
		in.close()
		return
	}
	err = p.run(in)
	s.leave(p, err)
}

// join makes a stranger a peer and tells it the latest message. It refuses a
// node that was cut off while it shook hands.
func (s *Server) join(p *peer, from *stranger) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.strangers.Remove(from.place)
	cut := slices.ContainsFunc(from.cuts, func(match func(string) bool) bool { return match(p.node) })
	if s.ctx.Err() != nil || cut {
		return false
	}
	s.peers[p] = struct{}{}
	s.budget.conns.Store(int64(len(s.peers)))
	s.tellLocked(p)
	return true
}

func (s *Server) leave(p *peer, err error) {
	s.mu.Lock()
	delete(s.peers, p)
	s.budget.conns.Store(int64(len(s.peers)))
	s.dropped += p.dropped.Load()
	s.mu.Unlock()
	s.cfg.Log.Info("connection of a node ended", "node", p.node, "peer", p.address.String(), "error", err)
	if errors.Is(err, ErrProtocol) {
		s.broken.Add(1)
		s.cfg.Refused(p.address, fmt.Errorf("node %s: %w", p.node, err))
	}
}

func (s *Server) countPeers(node string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.peers {
		if p.node == node {
			n++
		}
	}
	return n
}

// Disconnect cuts the connections of the nodes that match, at once. Their
// streams end at both ends with EndGateway.
//
// Whoever decides in ServerConfig.Node or TLS has to know of it before: a node
// that is to stay away is refused there when it comes back. match must not call
// the server.
func (s *Server) Disconnect(match func(node string) bool) {
	s.mu.Lock()
	for e := s.strangers.Front(); e != nil; e = e.Next() {
		from := e.Value.(*stranger)
		from.cuts = append(from.cuts, match)
	}
	s.mu.Unlock()
	for _, p := range s.snapshot() {
		if match(p.node) {
			p.fail(errCutOff, errCutOff.Error())
		}
	}
}

func (s *Server) snapshot() []*peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*peer, 0, len(s.peers))
	for p := range s.peers {
		out = append(out, p)
	}
	return out
}

// Tell brings a message to all clients, those that connect later included. It is
// meant for a state: a client that is behind gets the latest message only. One
// of more than MaxMessage bytes is not sent, and logged.
func (s *Server) Tell(message []byte) {
	if len(message) > MaxMessage {
		s.cfg.Log.Error("the message for agents is too long and was not sent", "bytes", len(message), "limit", MaxMessage)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.message, s.told, s.each = slices.Clone(message), true, nil
	s.number++
	for p := range s.peers {
		s.tellLocked(p)
	}
}

// TellEach is Tell with a message for each node: message is asked now, again for
// every connection that comes later, and must not call the server. Nil is no
// message: the node keeps what it was told last.
func (s *Server) TellEach(message func(node string) []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.each = message
	s.number++
	for p := range s.peers {
		s.tellLocked(p)
	}
}

// tellLocked brings a peer the latest message.
func (s *Server) tellLocked(p *peer) {
	message, ok := s.message, s.told
	if s.each != nil {
		message = s.each(p.node)
		ok = message != nil
	}
	if len(message) > MaxMessage {
		s.cfg.Log.Error("the message for a node is too long and was not sent", "node", p.node, "bytes", len(message), "limit", MaxMessage)
		return
	}
	if ok {
		p.tell(s.instance, s.number, message)
	}
}

// Status returns what is true now.
func (s *Server) Status() ServerStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := ServerStatus{
		Strangers: s.strangers.Len(), Refused: s.refused.Load(), Broken: s.broken.Load(),
		Dropped: s.dropped, Held: s.budget.held.Load(),
	}
	for p := range s.peers {
		out.Dropped += p.dropped.Load()
		out.Peers = append(out.Peers, PeerStatus{
			Node: p.node, Address: p.address, Since: p.since,
			RoundTrip: time.Duration(p.trip.smooth.Load()), Streams: int(p.live.Load()),
		})
	}
	slices.SortFunc(out.Peers, func(a, b PeerStatus) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), a.Address.Compare(b.Address))
	})
	return out
}

// Close stops listening and cuts all connections; their streams end with
// EndGateway. It returns when nothing of the server runs any more, and waits for
// calls of Serve at most 5 s.
func (s *Server) Close() {
	s.cancel()
	s.mu.Lock()
	for l := range s.listeners {
		l.Close()
	}
	for e := s.strangers.Front(); e != nil; e = e.Next() {
		e.Value.(*stranger).Close()
	}
	s.mu.Unlock()
	for _, p := range s.snapshot() {
		p.fail(errStopping, errStopping.Error())
	}
	s.conns.Wait()
	served := make(chan struct{})
	go func() {
		s.serving.Wait()
		close(served)
	}()
	select {
	case <-served:
	case <-time.After(closeExpiry):
		s.cfg.Log.Warn("flows of agents go on after the gateway was closed")
	}
}

// addrPort is the address of a TCP peer; zero for other kinds.
func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
