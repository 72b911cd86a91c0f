package deception

import (
	crand "crypto/rand"
	"encoding/binary"
	"hash/crc32"
	"sync"
	"time"
)

// idSource makes session identifiers: UUIDs of version 7 (RFC 9562, method 1 of
// section 6.2: a counter behind the milliseconds), strictly increasing within
// a process and random enough never to meet those of another. Its last four bytes
// are made of the rest (see SessionKey).
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

// Time returns when the session started, to the millisecond.
func (id SessionID) Time() time.Time {
	return time.UnixMilli(int64(binary.BigEndian.Uint64(id[:8]) >> 16))
}

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
	copy(id[8:12], tail)
	id[8] = id[8]&0x3f | 0x80
	return id.Key().ID()
}

// SessionKey is what tells a session from all others in 90 bits, so that it fits
// into the two MAC addresses of a frame: the identifier without its fixed bits and
// its last four bytes, which are made of the others. Hi holds the first 45 bits,
// Lo the other 45, each in its low bits.
type SessionKey struct{ Hi, Lo uint64 }

const halfKey = 45 // bits of one half of a SessionKey

// Key returns the identifier's key. Two identifiers that were made by
// NewSessionID differ in it.
func (id SessionID) Key() SessionKey {
	first := binary.BigEndian.Uint64(id[:8])
	top := first >> 16                                                           // 48 bits of milliseconds
	low := first&0xfff<<30 | uint64(binary.BigEndian.Uint32(id[8:12]))&(1<<30-1) // 12 + 30 bits
	return SessionKey{Hi: top >> 3, Lo: top&7<<42 | low}
}

// ID returns the identifier that NewSessionID made of the key. Another version
// may have made another one, which then begins with the same twelve bytes.
func (k SessionKey) ID() SessionID {
	top := k.Hi<<3 | k.Lo>>42
	low := k.Lo & (1<<42 - 1)
	var id SessionID
	binary.BigEndian.PutUint64(id[:8], top<<16|0x7000|low>>30)
	binary.BigEndian.PutUint32(id[8:12], uint32(low&(1<<30-1))|1<<31)
	binary.BigEndian.PutUint32(id[12:], crc32.ChecksumIEEE(id[:12]))
	return id
}
