package rpc

import (
	"decoynet/internal/spool"

	"google.golang.org/protobuf/encoding/protowire"
)

// Kinds of records in a spool, by which what was given up is counted.
const (
	KindUnknown = iota
	KindSession // how it ended
	KindStart   // that a session runs
	KindSourceSeen
	KindEvent
	KindProbe
	KindFinding
)

const _ = uint(spool.Kinds - 1 - KindFinding) // all of them have room there

// Numbers of the fields that tell kinds apart, in messages Record and Session.
const (
	fieldSession, fieldSourceSeen, fieldEvent, fieldProbe, fieldFinding protowire.Number = 1, 2, 3, 4, 5

	fieldEnd protowire.Number = 3
)

// KindOf is for spool.Config.Kind. It looks no further than it must: a spool that
// gives records up does so by tens of thousands.
func KindOf(record []byte) int {
	number, what, n := protowire.ConsumeTag(record)
	if n < 0 || what != protowire.BytesType {
		return KindUnknown
	}
	switch number {
	case fieldSession:
		if session, n := protowire.ConsumeBytes(record[n:]); n < 0 || !has(session, fieldEnd) {
			return KindStart
		}
		return KindSession
	case fieldSourceSeen:
		return KindSourceSeen
	case fieldEvent:
		return KindEvent
	case fieldProbe:
		return KindProbe
	case fieldFinding:
		return KindFinding
	}
	return KindUnknown
}

// has tells whether a message has a field of that number.
func has(message []byte, want protowire.Number) bool {
	for len(message) > 0 {
		number, _, n := protowire.ConsumeField(message)
		if n < 0 || number == want {
			return n >= 0
		}
		message = message[n:]
	}
	return false
}
