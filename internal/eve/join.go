package eve

import (
	"net/netip"
	"time"

	"decoynet/deception"
)

// Sessions knows the sessions that are fed to Suricata, and those that ended a
// while ago.
type Sessions interface {
	// Find returns the session of a key. partial says that the feed lost some of
	// it.
	Find(k deception.SessionKey) (s deception.Session, partial, ok bool)
}

const (
	// flowsKept is how many flows' sessions are remembered, at least.
	flowsKept = 32 << 10
	// oldest is how long before an event its session may have begun, and newest
	// how far the clock of the machine that named the session may be ahead.
	oldest = 366 * 24 * time.Hour
	newest = 10 * time.Minute
)

// joiner finds the sessions of events. The session's key is in the MAC addresses
// of an event. Events that Suricata makes of no packet (what it finds in a flow
// when that ends, or when its protocol changes) have none; for them it is
// remembered from other events of the same flow.
type joiner struct {
	sessions Sessions
	// flows and before hold the flows that were seen last. When flows is full, it
	// becomes before: so those are forgotten that nobody asked for, without an
	// order being kept.
	flows, before map[uint64]flow
}

// flow is what is remembered of a flow of Suricata's. Its number is unique for a
// time only, so the addresses must be the same too.
type flow struct {
	key             deception.SessionKey
	transport       deception.Transport
	intruder, decoy netip.AddrPort
}

func newJoiner(s Sessions) *joiner {
	return &joiner{sessions: s, flows: map[uint64]flow{}}
}

// learn remembers the session of the event's flow, or recalls it. It tells whether
// the event named one that was not known before.
func (j *joiner) learn(e *event) (fresh bool) {
	if !e.hasFlow {
		return false
	}
	known, ok := j.recall(e.flow)
	switch {
	case e.named:
		f := flow{e.key, e.transport, e.source, e.destination}
		if e.reversed {
			f.intruder, f.decoy = f.decoy, f.intruder
		}
		if ok && known == f {
			return false
		}
		j.remember(e.flow, f)
		return true
	case !e.ethernet && ok && known.transport == e.transport:
		switch {
		case known.intruder == e.source && known.decoy == e.destination:
			e.key, e.named, e.ethernet, e.reversed = known.key, true, true, false
		case known.intruder == e.destination && known.decoy == e.source:
			e.key, e.named, e.ethernet, e.reversed = known.key, true, true, true
		}
	}
	return false
}

func (j *joiner) remember(number uint64, f flow) {
	if len(j.flows) >= flowsKept {
		j.flows, j.before = make(map[uint64]flow, flowsKept), j.flows
	}
	j.flows[number] = f
}

func (j *joiner) recall(number uint64) (flow, bool) {
	f, ok := j.flows[number]
	if ok {
		return f, true
	}
	if f, ok = j.before[number]; ok {
		j.remember(number, f)
	}
	return f, ok
}

// verdict says what became of the search for an event's session.
type verdict int

const (
	joined      verdict = iota
	unlisted            // joined, but nobody here knows the session: it is of before a restart
	mismatched          // the addresses are not those of the session
	unknown             // the MAC addresses are of no session
	addressless         // there are no MAC addresses
)

// join finds the session of an event and turns the event's addresses so that the
// source is the intruder.
func (j *joiner) join(e *event) (id deception.SessionID, partial bool, v verdict) {
	switch {
	case !e.ethernet:
		return id, false, addressless
	case !e.named:
		return id, false, unknown
	}
	s, partial, ok := j.sessions.Find(e.key)
	if !ok {
		id = e.key.ID()
		began := time.UnixMilli(int64(e.key.Hi<<3 | e.key.Lo>>42))
		if began.Before(e.time.Add(-oldest)) || began.After(e.time.Add(newest)) {
			return deception.SessionID{}, false, unknown // somebody else's addresses, by chance of the same form
		}
		if e.reversed {
			e.turn()
		}
		return id, false, unlisted
	}
	if !e.source.IsValid() {
		e.source, e.destination, e.transport, e.ports = s.Source, s.Destination, s.Transport, true
		return s.ID, partial, joined
	}
	if e.same(e.destination, e.source, &s) && !e.same(e.source, e.destination, &s) {
		e.turn()
	}
	if !e.same(e.source, e.destination, &s) {
		return deception.SessionID{}, false, mismatched
	}
	e.source, e.destination = s.Source, s.Destination
	return s.ID, partial, joined
}

// turn exchanges the event's addresses.
func (e *event) turn() {
	e.source, e.destination = e.destination, e.source
	e.turned = !e.turned
}

// same tells whether a flow from source to destination is the session's. Of an
// event without ports the addresses are compared.
func (e *event) same(source, destination netip.AddrPort, s *deception.Session) bool {
	if e.transport != s.Transport {
		return false
	}
	if !e.ports {
		return source.Addr() == s.Source.Addr() && destination.Addr() == s.Destination.Addr()
	}
	return source == s.Source && destination == s.Destination
}
