package feed

import (
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
	ended    []deception.SessionKey // in the order of their end, from first on
	first    int
}

type known struct {
	session deception.Session
	partial bool
	ended   int64 // Unix nanoseconds when that was told; 0: it runs
}

func (r *roster) init() {
	for i := range r.shards {
		r.shards[i].sessions = map[deception.SessionKey]*known{}
	}
}

func (r *roster) shard(k deception.SessionKey) *rosterShard {
	return &r.shards[(k.Lo^k.Lo>>30)%rosterShards]
}

// Know remembers a session as it is now, instead of what was known of it before.
// The first bytes of its sides are left out.
func (f *Feed) Know(s *deception.Session) {
	k := s.ID.Key()
	f.roster.shard(k).know(k, s, time.Now().UnixNano())
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
	e.session = *s
	e.session.SourceHead, e.session.DestinationHead = nil, nil
	if e.ended == 0 && !s.Running() {
		e.ended = now
		r.ended = append(r.ended, k)
	}
}

// forget drops sessions that ended long ago, and those that are too many.
func (r *rosterShard) forget(now int64) {
	for r.first < len(r.ended) {
		e := r.sessions[r.ended[r.first]]
		if len(r.ended)-r.first <= rosterEnded/rosterShards && now-e.ended < int64(rosterAge) {
			break
		}
		delete(r.sessions, r.ended[r.first])
		r.first++
	}
	if r.first > len(r.ended)/2 && r.first > 1024 {
		r.ended = append(r.ended[:0], r.ended[r.first:]...)
		r.first = 0
	}
}

// Find returns what is known of a session. partial says that an output did not
// see all of it.
func (f *Feed) Find(k deception.SessionKey) (s deception.Session, partial, ok bool) {
	r := f.roster.shard(k)
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.sessions[k]
	if e == nil {
		return s, false, false
	}
	return e.session, e.partial, true
}

// mark notes that an output did not see all of a session.
func (r *roster) mark(k deception.SessionKey) {
	shard := r.shard(k)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if e := shard.sessions[k]; e != nil {
		e.partial = true
	}
}
