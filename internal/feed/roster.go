package feed

import (
	"net/netip"
	"sync"
	"time"

	"decoynet/deception"
)

const (
	rosterShards = 16
	// rosterEnded is how many ended sessions are remembered, over all shards.
	rosterEnded = 200_000
	// rosterAge is how long an ended session is remembered.
	rosterAge = 15 * time.Minute
)

// roster knows the sessions that run or ended lately.
type roster struct {
	shards [rosterShards]rosterShard
}

type rosterShard struct {
	mu       sync.Mutex // guards the rest
	sessions map[deception.SessionKey]*known
	names    map[names]*names // those of sessions, each once
	ended    []deception.SessionKey
	first    int // in ended: the one that ended longest ago
}

// known is a session in half the memory.
type known struct {
	id         deception.SessionID
	start, end int64 // Unix nanoseconds; end is 0 while it runs
	names      *names
	source     [2]netip.AddrPort // as at the decoy, as at the service
	to         [2]netip.AddrPort
	bytes      [2]uint64
	transport  deception.Transport
	mode       deception.SourceMode
	reason     deception.EndReason
	partial    uint32 // the names of outputs that did not see all of it, see losses
	forgetting int64  // when its end was told, see clock.elapsed; 0: it was not
}

// names are the words of a session, which many have in common.
type names struct {
	node, segment, decoy, service, scanner string
	path                                   deception.Path
}

func (r *roster) init() {
	for i := range r.shards {
		r.shards[i].sessions = map[deception.SessionKey]*known{}
		r.shards[i].names = map[names]*names{}
	}
}

func (r *roster) shard(k deception.SessionKey) *rosterShard {
	return &r.shards[(k.Lo^k.Lo>>30)%rosterShards]
}

// Know remembers a session as it is now, instead of what was known of it before.
// The first bytes of its sides are left out.
func (f *Feed) Know(s *deception.Session) {
	k := s.ID.Key()
	f.roster.shard(k).know(k, s, f.clock.elapsed())
}

func (r *rosterShard) know(k deception.SessionKey, s *deception.Session, now int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forget(now)
	e := r.sessions[k]
	if e == nil {
		e = &known{}
		r.sessions[k] = e
	}
	*e = known{
		id: s.ID, start: s.Start.UnixNano(), names: r.namesOf(s, e.names),
		source: [2]netip.AddrPort{s.Source, s.SourceNAT}, to: [2]netip.AddrPort{s.Destination, s.DestinationNAT},
		bytes:     [2]uint64{s.SourceBytes, s.DestinationBytes},
		transport: s.Transport, mode: s.SourceMode, reason: s.Reason,
		partial: e.partial, forgetting: e.forgetting,
	}
	if s.Running() {
		return
	}
	e.end = s.End.UnixNano()
	r.over(k, e, now)
}

// Done tells that nothing more is shown of a session. It is forgotten as one that
// has ended is, also where nobody tells of its end.
func (f *Feed) Done(k deception.SessionKey) {
	r := f.roster.shard(k)
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.sessions[k]; e != nil {
		r.over(k, e, f.clock.elapsed())
	}
}

func (r *rosterShard) over(k deception.SessionKey, e *known, now int64) {
	if e.forgetting == 0 {
		e.forgetting = now
		r.ended = append(r.ended, k)
	}
}

// namesOf returns the words of a session; before are those that it had, or nil.
func (r *rosterShard) namesOf(s *deception.Session, before *names) *names {
	n := names{node: s.Node, segment: s.Segment, decoy: s.Decoy, service: s.Service, scanner: s.Scanner, path: s.Path}
	if before != nil && *before == n {
		return before
	}
	same := r.names[n]
	if same == nil {
		same = new(names) // not &n, which would take memory each time
		*same = n
		r.names[n] = same
	}
	return same
}

// forget drops sessions that ended long ago, and those that are too many.
func (r *rosterShard) forget(now int64) {
	for r.first < len(r.ended) {
		e := r.sessions[r.ended[r.first]]
		if len(r.ended)-r.first <= rosterEnded/rosterShards && now-e.forgetting < int64(rosterAge) {
			break
		}
		delete(r.sessions, r.ended[r.first])
		r.first++
	}
	if r.first > len(r.ended)/2 && r.first > 1024 {
		r.ended = append(r.ended[:0], r.ended[r.first:]...)
		r.first = 0
	}
	if len(r.sessions) == 0 {
		clear(r.names)
	}
}

// Find returns what is known of a session. partial says that an output did not
// see all of it.
func (f *Feed) Find(k deception.SessionKey) (s deception.Session, partial, ok bool) {
	s, partly, ok := f.find(k)
	return s, partly != 0, ok
}

func (f *Feed) find(k deception.SessionKey) (s deception.Session, partial uint32, ok bool) {
	r := f.roster.shard(k)
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.sessions[k]
	if e == nil {
		return s, 0, false
	}
	s = deception.Session{
		ID: e.id, Start: time.Unix(0, e.start), Node: e.names.node, Segment: e.names.segment, Decoy: e.names.decoy,
		Service: e.names.service, Scanner: e.names.scanner, Path: e.names.path,
		Source: e.source[0], SourceNAT: e.source[1], Destination: e.to[0], DestinationNAT: e.to[1],
		SourceBytes: e.bytes[0], DestinationBytes: e.bytes[1],
		Transport: e.transport, SourceMode: e.mode, Reason: e.reason,
	}
	if e.end != 0 {
		s.End = time.Unix(0, e.end)
	}
	return s, e.partial, true
}

// mark notes that outputs did not see all of a session.
func (r *roster) mark(k deception.SessionKey, names uint32) {
	shard := r.shard(k)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if e := shard.sessions[k]; e != nil {
		e.partial |= names
	}
}
