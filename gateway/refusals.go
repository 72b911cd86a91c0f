//go:build linux

package gateway

import (
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"time"

	"decoynet/deception"
)

// refusals counts peers that were turned away and reports them: at most one
// event a peer and cause in a minute, each with how many it stands for. A peer
// is an address; its ports do not matter.
type refusals struct {
	kind deception.EventKind
	node string
	tell func(*deception.Event)

	mu     sync.Mutex // guards the rest
	causes map[string]uint64
	quiet  map[refusalKey]*refusal
	turned time.Time // when quiet was last looked through
}

type refusalKey struct {
	peer  netip.Addr
	cause string
}

// refusal is one that was reported and what has come since.
type refusal struct {
	told  time.Time
	since int    // not told yet
	last  string // of those, the last one's words
	to    netip.AddrPort
}

const (
	refusalPause = time.Minute
	// refusalPeers bounds how many are remembered; with more the events are told
	// without waiting for further ones, but the counters go on.
	refusalPeers = 1024
)

// note counts one and reports it unless that was done a moment ago. what says
// in words what was wrong; at is where the peer knocked.
func (r *refusals) note(now time.Time, peer netip.AddrPort, at netip.AddrPort, cause, what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.causes == nil {
		r.causes, r.quiet = map[string]uint64{}, map[refusalKey]*refusal{}
	}
	r.causes[cause]++
	r.flushLocked(now)
	key := refusalKey{peer.Addr(), cause}
	if known := r.quiet[key]; known != nil {
		known.since++
		known.last, known.to = what, at
		return
	}
	if len(r.quiet) >= refusalPeers {
		return
	}
	r.quiet[key] = &refusal{told: now, to: at}
	r.report(now, peer, at, what)
}

// flush reports what has been held back for a minute.
func (r *refusals) flush(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flushLocked(now)
}

func (r *refusals) flushLocked(now time.Time) {
	if now.Sub(r.turned) < time.Second {
		return
	}
	r.turned = now
	for key, known := range r.quiet {
		switch {
		case now.Sub(known.told) < refusalPause:
		case known.since == 0:
			delete(r.quiet, key)
		default:
			r.report(now, netip.AddrPortFrom(key.peer, 0), known.to, fmt.Sprintf("%s (%d times since %s)",
				known.last, known.since, known.told.Format(time.RFC3339)))
			known.told, known.since = now, 0
		}
	}
}

func (r *refusals) report(now time.Time, peer, at netip.AddrPort, what string) {
	r.tell(&deception.Event{
		ID: deception.NewSessionID(now), Time: now, Kind: r.kind, Node: r.node, Source: peer, Destination: at, Message: what,
	})
}

// counts returns how many there were of each cause.
func (r *refusals) counts() map[string]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.causes)
}
