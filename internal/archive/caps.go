package archive

import (
	"encoding/binary"

	"decoynet/deception"
)

const (
	// capsKept bounds the memory for what sessions have used of their limit: the
	// sessions with the newest frames are remembered, at least so many, at most
	// twice as many (12 MB).
	capsKept = 100_000
	// afterCap is how many control frames of a session are kept behind its limit:
	// its end, but no flood of them.
	afterCap = 16
)

// capNotice stands in the place of the first frame that is left out, so that who
// opens the file learns of it: an EtherType for local experiments, and words.
var capNotice = append([]byte{0x88, 0xb5},
	"decoynet: limit of a session's packets reached (inspect: pcap); from here on only SYN, FIN and RST are kept"...)

// verdict says what becomes of a frame.
type verdict int

const (
	keep verdict = iota
	leaveOut
	leaveOutFirst // it is the first of its session
)

// used is what a session has had.
type used struct {
	bytes uint64
	after uint16 // control frames kept behind the limit
	over  bool
}

// caps counts the bytes of sessions. Of the two maps the older is forgotten when
// the newer is full: a session that says nothing while a hundred thousand others
// speak begins anew.
type caps struct {
	limit        uint64 // 0: none
	newer, older map[deception.SessionKey]used
}

// take counts a frame of the session and says what becomes of it.
func (c *caps) take(key deception.SessionKey, frame []byte) verdict {
	if c.limit == 0 {
		return keep
	}
	u, known := c.newer[key]
	if !known {
		u = c.older[key]
		c.makeRoom()
	}
	v := u.take(uint64(len(frame)), c.limit, frame)
	c.newer[key] = u
	return v
}

func (u *used) take(size, limit uint64, frame []byte) verdict {
	switch {
	case u.bytes+size <= limit && !u.over:
		u.bytes += size
		return keep
	case isControl(frame) && u.after < afterCap:
		u.after++
		return keep
	case !u.over:
		u.over = true
		return leaveOutFirst
	}
	return leaveOut
}

func (c *caps) makeRoom() {
	if c.newer == nil || len(c.newer) >= capsKept {
		c.older, c.newer = c.newer, make(map[deception.SessionKey]used)
	}
}

// untagged returns the frame's EtherType behind VLAN tags, and where what follows
// begins.
func untagged(frame []byte) (etherType uint16, at int) {
	at = addresses
	for at+2 <= len(frame) {
		etherType = binary.BigEndian.Uint16(frame[at:])
		if etherType != 0x8100 && etherType != 0x88a8 {
			return etherType, at + 2
		}
		at += 4
	}
	return 0, len(frame)
}

// isControl tells whether a frame is a TCP segment with SYN, FIN or RST.
func isControl(frame []byte) bool {
	etherType, at := untagged(frame)
	ip := frame[at:]
	const tcp, flags = 6, 0x07
	switch {
	case etherType == 0x0800 && len(ip) >= 20 && ip[9] == tcp && binary.BigEndian.Uint16(ip[6:])&0x1fff == 0:
		ip = ip[min(len(ip), int(ip[0]&0xf)*4):]
	case etherType == 0x86dd && len(ip) >= 40 && ip[6] == tcp:
		ip = ip[40:]
	default:
		return false
	}
	return len(ip) >= 20 && ip[13]&flags != 0
}
