package agent

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"decoynet/deception"
)

// overload writes down flows that were turned away because there were too many:
// in each window one session for an intruder's address and a decoy's port, and
// one event with how many there were. To record every one of a flood would be
// the flood's next victim.
type overload struct {
	node     string
	limit    int
	recorder FlowRecorder
	count    atomic.Uint64 // since the start

	mu       sync.Mutex // guards the rest
	since    time.Time  // of the window; zero where nothing has come
	turned   uint64     // away in the window
	sessions map[turnedAway]*deception.Session
}

type turnedAway struct {
	source      netip.Addr
	transport   deception.Transport
	destination netip.AddrPort
}

const (
	overloadWindow   = 10 * time.Second
	overloadSessions = 256 // a window; more are in the event's count alone
)

// note takes a session that was turned away.
func (o *overload) note(now time.Time, s *deception.Session) {
	o.count.Add(1)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.since.IsZero() {
		o.since, o.sessions = now, map[turnedAway]*deception.Session{}
	}
	o.turned++
	key := turnedAway{s.Source.Addr(), s.Transport, s.Destination}
	if known := o.sessions[key]; known != nil {
		known.End = now
		return
	}
	if len(o.sessions) < overloadSessions {
		first := *s
		first.End, first.Reason = now, deception.EndOverload
		o.sessions[key] = &first
	}
}

// flush records the window where it is over, or at once.
func (o *overload) flush(now time.Time, atOnce bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.since.IsZero() || !atOnce && now.Sub(o.since) < overloadWindow {
		return
	}
	for _, s := range o.sessions {
		o.recorder.Ended(s)
	}
	o.recorder.Event(&deception.Event{
		ID: deception.NewSessionID(now), Time: now, Kind: deception.EventOverload, Node: o.node,
		Message: fmt.Sprintf("%d connections since %s were reset at once: %d flows at a time is the limit of this node",
			o.turned, o.since.Format(time.RFC3339), o.limit),
	})
	o.since, o.turned, o.sessions = time.Time{}, 0, nil
}
