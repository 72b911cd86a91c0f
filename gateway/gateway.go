//go:build linux

// Package gateway takes flows at decoys and leads them to services: the ingress
// decides by its own binding table, the egress dials the service as the
// intruder. The five steps of a connection stand in flow.go. Where a zone's edge
// is another machine, a flow goes there over one TCP connection, or in datagrams,
// with a PROXY v2 header (hop_linux.go), and an [Egress] takes it.
package gateway

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"decoynet/deception"
	"decoynet/internal/relay"
)

// Recorder takes records. Its methods never block; what they are given is the
// caller's again when they return.
type Recorder interface {
	Started(s *deception.Session)
	Ended(s *deception.Session)
	Event(e *deception.Event)
	SourceSeen(s *deception.SourceSeen)
}

// Feed is where flows are shown to who analyses them. Its methods never block.
type Feed interface {
	// Begin is told of a flow that was bound, before anything of it passes, and
	// returns who watches it; nil for nobody. What it is given is the caller's
	// again when it returns. Flows of one lane are begun by one goroutine, but for
	// those that come through the tunnel.
	Begin(s *deception.Session, lane int) relay.Watcher
}

// Config is what a gateway is made with.
type Config struct {
	Node     string   // name of this machine in every session
	Recorder Recorder // where sessions go
	// Suspect is called when a service refused a flow, so that its health can be
	// looked at now rather than at the next regular check. It must not block.
	Suspect func(service string)
	// Links are what is known of the egresses on other machines; nil where
	// nobody asks them.
	Links *Links
	// Feed is shown every flow that this gateway records: those that it takes at
	// decoys, and those that agents bring. Flows that this machine is only the
	// egress or the agent of are shown where they are recorded. Nil: nobody.
	Feed Feed
}

// Gateway is the relay's handler. Its binding table is exchanged whole.
type Gateway struct {
	cfg      Config
	table    atomic.Pointer[deception.Table]
	hops     atomic.Pointer[map[string]netip.AddrPort] // by service, where its egress is another machine
	ports    sourcePorts                               // of this machine's own, for hops
	services dialer
	unclear  sync.WaitGroup // flows of egresses that have ended, and are not recorded yet

	noHeads atomic.Bool
}

// New returns a gateway with an empty table.
func New(cfg Config) *Gateway {
	if cfg.Suspect == nil {
		cfg.Suspect = func(string) {}
	}
	g := &Gateway{cfg: cfg}
	g.ports.read()
	empty := &deception.State{}
	g.SetState(empty, deception.NewTable(empty))
	return g
}

// SetState makes t, the table of state, the one that new flows are led by.
// Flows that run go on.
func (g *Gateway) SetState(state *deception.State, t *deception.Table) {
	hops := hopsOf(state)
	g.hops.Store(&hops)
	g.table.Store(t)
}

// KeepHeads says whether sessions are recorded with the first bytes of each
// side. They are until told otherwise.
func (g *Gateway) KeepHeads(keep bool) { g.noHeads.Store(!keep) }

// Table returns the table in use.
func (g *Gateway) Table() *deception.Table { return g.table.Load() }

// MovedPorts returns how many flows reached their service from another source
// port than the intruder's, because that one was still taken.
func (g *Gateway) MovedPorts() uint64 { return g.services.moved.Load() }

// udpTuples are the (source, service) pairs in use by UDP flows. TCP needs no
// such book: there the kernel refuses a second connection of the same tuple,
// while of two UDP sockets it would let one take the other's answers.
type udpTuples struct {
	mu    sync.Mutex // guards inUse
	inUse map[udpTuple]struct{}
}

type udpTuple struct{ source, service netip.AddrPort }

// take books the pair; false where it is in use.
func (u *udpTuples) take(t udpTuple) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, taken := u.inUse[t]; taken {
		return false
	}
	if u.inUse == nil {
		u.inUse = map[udpTuple]struct{}{}
	}
	u.inUse[t] = struct{}{}
	return true
}

func (u *udpTuples) release(t udpTuple) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.inUse, t)
}
