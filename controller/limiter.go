package controller

import (
	"net/netip"
	"sync"
	"time"
)

// Refusals that one address may cause at once, and how often one more. Beyond that,
// enrolments are turned away unseen and refusals are counted, not logged one by one:
// the audit log is no place to fill our disk from.
const (
	refusalBurst = 20
	refusalEvery = 3 * time.Second
	// limitedPeers bounds the memory for it. Peers beyond share one allowance.
	limitedPeers = 8192
)

// limiter is a token bucket for each address, in IPv6 each network of 64 bits, which
// is what one machine has.
type limiter struct {
	burst int
	every time.Duration

	mu    sync.Mutex // guards the rest
	peers map[netip.Prefix]*bucket
}

type bucket struct {
	used    int       // not yet refilled
	at      time.Time // of the last refill
	skipped int       // refusals that were not let through
}

func newLimiter(burst int, every time.Duration) *limiter {
	return &limiter{burst: burst, every: every, peers: make(map[netip.Prefix]*bucket)}
}

// exhausted tells whether take would refuse.
func (l *limiter) exhausted(now time.Time, peer netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.peers[network(peer)]
	if b == nil {
		return false
	}
	l.refill(b, now)
	return b.used >= l.burst
}

// take uses one of the peer's allowance. It returns whether there was one left and,
// if so, how many were refused since the last time.
func (l *limiter) take(now time.Time, peer netip.Addr) (skipped int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := network(peer)
	b := l.peers[key]
	if b == nil && len(l.peers) >= limitedPeers {
		key = netip.Prefix{}
		b = l.peers[key]
	}
	if b == nil {
		b = &bucket{at: now}
		l.peers[key] = b
	}
	l.refill(b, now)
	if b.used >= l.burst {
		b.skipped++
		return 0, false
	}
	b.used++
	skipped, b.skipped = b.skipped, 0
	return skipped, true
}

// forget drops what is refilled.
func (l *limiter) forget(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, b := range l.peers {
		if l.refill(b, now); b.used == 0 {
			delete(l.peers, key)
		}
	}
}

// refill is called with l.mu held.
func (l *limiter) refill(b *bucket, now time.Time) {
	if n := int(now.Sub(b.at) / l.every); n > 0 {
		b.used = max(0, b.used-n)
		b.at = b.at.Add(time.Duration(n) * l.every)
	}
}

func network(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 64
	if a.Is4() {
		bits = 32
	}
	p, _ := a.Prefix(bits) // the zero Prefix for the zero Addr
	return p
}
