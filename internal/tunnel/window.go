package tunnel

import (
	"sync/atomic"
	"time"
)

// A receiver allows each stream a window: bytes that the peer may have sent and
// the reader not yet taken. It starts small, so that thousands of streams that
// nobody reads cost little, and grows each time that a whole window was taken
// within two round trips: then the window was the limit, not the reader.
const (
	firstWindow   = 64 << 10
	maxWindow     = 64 << 20  // of a stream, bytes
	maxExtra      = 128 << 20 // of all streams of a connection together, beyond their first windows
	maxHeld       = 192 << 20 // received and not read, of a connection; then the stream that holds most is reset
	datagramCost  = 128       // of a datagram, beyond its bytes: empty ones take memory too
	datagramFirst = 4         // first windows that a stream of datagrams is given at once

	grantShare    = 4  // a quarter of the window is granted at a time
	growsWithin   = 2  // round trips for a whole window
	shrinksBeyond = 64 // round trips for a whole window
	// shortestTrip is what is taken for a round trip where it is less, or not
	// known: a machine that does other things as well adds as much.
	shortestTrip   = 100 * time.Microsecond
	minTripForgets = 10 * time.Second
)

// growth is by how much a window grows. What is small grows fast: a transfer
// over 100 ms reaches megabytes with its third window.
func growth(size int) int {
	if size < 1<<20 {
		return 8
	}
	return 4
}

// window is the receiver's account of one stream.
type window struct {
	size    int // the peer may have this much outstanding
	credit  int // what of it the peer has not used
	taken   int // read, but not yet granted again
	through int // read since the measurement began
	started time.Duration
	runs    bool // the measurement: from the first byte that arrives on
}

// arrived books n bytes. It returns false if the peer was not allowed to send
// them.
func (w *window) arrived(n int) bool {
	if n > w.credit {
		return false
	}
	w.credit -= n
	if !w.runs {
		w.runs, w.started, w.through = true, clock(), 0
	}
	return true
}

// due tells whether taking n bytes grants something, for which take needs the
// time.
func (w *window) due(n int) bool { return w.taken+n >= w.size/grantShare }

// take books n bytes as read at the time now, and returns how much the peer may
// send in addition. extend asks for more memory for the connection's windows
// (or, less than 0, gives it back) and may refuse.
func (w *window) take(n int, now, trip time.Duration, extend func(delta int) bool) (grant int) {
	w.taken += n
	w.through += n
	if w.taken < w.size/grantShare {
		return 0
	}
	if w.through >= w.size && w.runs {
		w.resize(now-w.started, max(trip, shortestTrip), extend)
		w.runs = false
	}
	grant, w.taken = w.taken, 0
	w.credit += grant
	return grant
}

// resize fits the window to how long a whole one took.
func (w *window) resize(elapsed, trip time.Duration, extend func(delta int) bool) {
	switch {
	case elapsed <= growsWithin*trip && w.size < maxWindow:
		if delta := min(w.size*growth(w.size), maxWindow) - w.size; extend(delta) {
			w.size += delta
			w.taken += delta
		}
	case elapsed > shrinksBeyond*trip && w.size >= 2*datagramFirst*firstWindow:
		// Half of it is not granted again, as far as it was taken.
		delta := min(w.size/2, w.taken)
		extend(-delta)
		w.size -= delta
		w.taken -= delta
	}
}

// extra is what the window takes beyond a first one.
func (w *window) extra(first int) int { return max(w.size-first, 0) }

// budget bounds what peers can make a process hold.
type budget struct {
	limit int64
	held  atomic.Int64
	conns atomic.Int64
}

// exceeded tells whether all connections together hold too much, and one that
// holds own bytes more than its share.
func (b *budget) exceeded(own int64) bool {
	return b != nil && b.held.Load() > b.limit && own > b.limit/max(b.conns.Load(), 1)
}

// roundTrip keeps the smoothed round trip as TCP does (RFC 6298, section 2) and
// the shortest one of late: what the way takes where nothing waits on it.
type roundTrip struct {
	smooth atomic.Int64
	low    atomic.Int64
	// The reader's alone.
	next  int64 // shortest of the period that runs
	since time.Duration
}

func (r *roundTrip) sample(trip, now time.Duration) {
	t := int64(max(trip, 1))
	if old := r.smooth.Load(); old == 0 {
		r.smooth.Store(t)
	} else {
		r.smooth.Store(old + (t-old)/8)
	}
	if low := r.low.Load(); low == 0 || t < low {
		r.low.Store(t)
	}
	if r.next == 0 || t < r.next {
		r.next = t
	}
	if now-r.since > minTripForgets {
		r.low.Store(r.next)
		r.next, r.since = 0, now
	}
}
