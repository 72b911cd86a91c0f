package capture

import (
	"net/netip"
	"sync"
	"time"

	"decoynet/deception"
)

// flowKey names a flow of the kernel path for as long as it lasts: an intruder may
// use the same ports again for the next one.
type flowKey struct {
	segment             string
	transport           deception.Transport
	source, destination netip.AddrPort
}

const (
	// near is how far apart the two times of one flow's beginning may be: that of
	// its first packet, and that at which connection tracking confirmed it.
	near = 2 * time.Second
	// waitFor is how long one of the two is waited for. Where events of connection
	// tracking were lost, its table is read a minute later.
	waitFor = 3 * time.Minute
	// mostWaiting bounds how many wait.
	mostWaiting = 65536
	// mostOfOne bounds how many of the same ports do.
	mostOfOne = 32
)

// arrival is a flow that one of the two has told of, and the other not yet.
type arrival struct {
	key    flowKey
	id     deception.SessionID
	at     time.Time
	mirror bool // the mirror came first
	gone   bool // the other came, too
}

// rendezvous gives a flow one identifier, whoever asks first: the mirror, at its
// first packet, or who records it, when connection tracking tells of it. When both
// have asked it forgets the flow: each of them remembers the answer.
type rendezvous struct {
	mu      sync.Mutex // guards the rest
	waiting map[flowKey][]*arrival
	queue   []*arrival // in the order in which they came, from first on
	first   int
	gone    int // of queue, from first on
}

func newRendezvous() *rendezvous { return &rendezvous{waiting: map[flowKey][]*arrival{}} }

// id returns the identifier of the flow that began at a time.
func (r *rendezvous) id(k flowKey, at time.Time, mirror bool) deception.SessionID {
	r.mu.Lock()
	defer r.mu.Unlock()
	// The one that came first among those that it can be.
	for _, a := range r.waiting[k] {
		if a.mirror != mirror && a.at.Sub(at).Abs() <= near {
			r.drop(a)
			return a.id
		}
	}
	if same := r.waiting[k]; len(same) == mostOfOne {
		r.drop(same[0])
	}
	r.makeRoom(at)
	a := &arrival{key: k, id: deception.NewSessionID(at), at: at, mirror: mirror}
	r.waiting[k] = append(r.waiting[k], a)
	r.queue = append(r.queue, a)
	return a.id
}

// makeRoom forgets those that have waited for too long, or are too many.
func (r *rendezvous) makeRoom(at time.Time) {
	for len(r.queue)-r.first > 0 {
		oldest := r.queue[r.first]
		if !oldest.gone && at.Sub(oldest.at) < waitFor && len(r.queue)-r.first-r.gone < mostWaiting {
			break
		}
		r.drop(oldest)
		r.queue[r.first] = nil
		r.first++
		r.gone--
	}
	if r.first+r.gone > len(r.queue)/2 {
		left := r.queue[:0]
		for _, a := range r.queue[r.first:] {
			if !a.gone {
				left = append(left, a)
			}
		}
		clear(r.queue[len(left):])
		r.queue, r.first, r.gone = left, 0, 0
	}
}

// drop forgets a flow. Its place in the queue stays.
func (r *rendezvous) drop(a *arrival) {
	if a.gone {
		return
	}
	a.gone = true
	r.gone++
	list := r.waiting[a.key]
	for i := range list {
		if list[i] == a {
			list = append(list[:i:i], list[i+1:]...)
			break
		}
	}
	if len(list) == 0 {
		delete(r.waiting, a.key)
		return
	}
	r.waiting[a.key] = list
}
