package deception

import (
	crand "crypto/rand"
	"encoding/binary"
	"sync"
	"time"
)

// idSource makes session identifiers: UUIDs of version 7 (RFC 9562, method 1 of
// section 6.2: a counter behind the milliseconds), strictly increasing within
// a process and random enough never to meet those of another.
type idSource struct {
	mu      sync.Mutex // guards the rest
	millis  int64
	counter uint16 // 12 bits
	random  [512]byte
	left    int // bytes of random not used yet
}

// ids is the process's one source of identifiers.
var ids idSource

// NewSessionID returns the identifier of a session that starts at t.
func NewSessionID(t time.Time) SessionID { return ids.new(t) }

// new returns the identifier of a session that starts at t.
func (s *idSource) new(t time.Time) SessionID {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left < 8 {
		_, _ = crand.Read(s.random[:]) // never fails (crypto/rand)
		s.left = len(s.random)
	}
	tail := s.random[len(s.random)-s.left:][:8]
	s.left -= 8
	if now := t.UnixMilli(); now > s.millis {
		s.millis, s.counter = now, binary.BigEndian.Uint16(tail)&0x3ff
	} else if s.counter++; s.counter > 0xfff {
		s.millis++ // more than four thousand in a millisecond: borrow the next one
		s.counter = 0
	}
	var id SessionID
	binary.BigEndian.PutUint64(id[:8], uint64(s.millis)<<16|0x7000|uint64(s.counter))
	copy(id[8:], tail)
	id[8] = id[8]&0x3f | 0x80
	return id
}
