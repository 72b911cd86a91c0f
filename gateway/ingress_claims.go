package gateway

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"decoynet/deception"
	"decoynet/internal/proxyheader"
)

// claims counts flows of agents that spoke for decoys which are not theirs, and
// reports them: at most one event a node and decoy address in a minute, each with
// how many it stands for.
type claims struct {
	tell  func(*deception.Event)
	count atomic.Uint64

	mu    sync.Mutex // guards quiet
	quiet map[claimKey]*claim
}

type claimKey struct {
	node  string
	decoy netip.Addr
}

// claim is one that was reported and what has come since.
type claim struct {
	told  time.Time
	since int // not told yet
	last  deception.Event
}

// maxClaims bounds how many are remembered; a flood of addresses beyond is told
// of by the counter alone.
const maxClaims = 1024

// note counts one; the header is what the agent of the session's node said.
func (c *claims) note(now time.Time, s *deception.Session, h *proxyheader.Header) {
	c.count.Add(1)
	who := "node " + s.Node
	if h.Node != s.Node {
		who += fmt.Sprintf(", in the name of node %s,", h.Node)
	}
	e := deception.Event{
		ID: deception.NewSessionID(now), Time: now, Kind: deception.EventClaimRefused, Node: s.Node, Segment: s.Segment,
		Decoy: h.Decoy, Session: s.ID, Source: s.Source, Destination: s.Destination,
		Message: fmt.Sprintf("%s brought a flow to %s %s in segment %s, which is no port of a decoy of its own; "+
			"it was refused. Unless the document has just changed, look at that machine", who, s.Transport, s.Destination, s.Segment),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.quiet == nil {
		c.quiet = map[claimKey]*claim{}
	}
	key := claimKey{s.Node, s.Destination.Addr()}
	if known := c.quiet[key]; known != nil {
		known.since++
		known.last = e
		return
	}
	if len(c.quiet) < maxClaims {
		c.quiet[key] = &claim{told: now}
		c.tell(&e)
	}
}

// flush reports what has been held back for a minute.
func (c *claims) flush(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, known := range c.quiet {
		switch {
		case now.Sub(known.told) < refusalPause:
		case known.since == 0:
			delete(c.quiet, key)
		default:
			e := known.last
			e.ID, e.Time = deception.NewSessionID(now), now
			e.Message = fmt.Sprintf("%s (%d times since %s)", e.Message, known.since, known.told.Format(time.RFC3339))
			c.tell(&e)
			*known = claim{told: now}
		}
	}
}
