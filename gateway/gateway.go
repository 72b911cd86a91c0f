//go:build linux

// Package gateway takes flows at decoys and leads them to services: the ingress
// decides by its own binding table, the egress dials the service as the
// intruder. The five steps of a connection stand in flow.go.
package gateway

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"decoynet/deception"
)

// Recorder takes session records. Its methods never block; the session is the
// caller's again when they return.
type Recorder interface {
	Started(s *deception.Session)
	Ended(s *deception.Session)
}

// Config is what a gateway is made with.
type Config struct {
	Node     string   // name of this machine in every session
	Recorder Recorder // where sessions go
	// Suspect is called when a service refused a flow, so that its health can be
	// looked at now rather than at the next regular check. It must not block.
	Suspect func(service string)
}

// Gateway is the relay's handler. Its binding table is exchanged whole.
type Gateway struct {
	cfg    Config
	table  atomic.Pointer[deception.Table]
	tuples udpTuples

	noHeads atomic.Bool
	moved   atomic.Uint64
}

// New returns a gateway with an empty table.
func New(cfg Config) *Gateway {
	if cfg.Suspect == nil {
		cfg.Suspect = func(string) {}
	}
	g := &Gateway{cfg: cfg}
	g.table.Store(deception.NewTable(&deception.State{}))
	return g
}

// SetTable makes t the table that new flows are led by. Flows that run go on.
func (g *Gateway) SetTable(t *deception.Table) { g.table.Store(t) }

// KeepHeads says whether sessions are recorded with the first bytes of each
// side. They are until told otherwise.
func (g *Gateway) KeepHeads(keep bool) { g.noHeads.Store(!keep) }

// Table returns the table in use.
func (g *Gateway) Table() *deception.Table { return g.table.Load() }

// MovedPorts returns how many flows reached their service from another source
// port than the intruder's, because that one was still taken.
func (g *Gateway) MovedPorts() uint64 { return g.moved.Load() }

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
