package deception

import (
	"bytes"
	"testing"
	"time"
)

// Identifiers are UUIDs of version 7 that increase strictly, also within one
// millisecond, past the counter's end, and when the clock is set back.
func TestNewSessionIDs(t *testing.T) {
	var s idSource
	at := time.UnixMilli(1_800_000_000_000)
	last := s.new(at)
	if got := last.String()[:13]; got != "01a3185c-5000" {
		t.Errorf("identifier begins with %s, want the time's milliseconds", got)
	}
	for i := range 20_000 {
		if i == 10_000 {
			at = at.Add(-time.Hour)
		}
		id := s.new(at)
		if bytes.Compare(id[:], last[:]) <= 0 {
			t.Fatalf("%s does not come after %s", id, last)
		}
		if id[6]>>4 != 7 || id[8]>>6 != 2 {
			t.Fatalf("%s is no UUID of version 7", id)
		}
		last = id
	}
}

func TestKeyHoldsTheIdentifier(t *testing.T) {
	seen := map[SessionKey]bool{}
	for i := range 20000 {
		id := NewSessionID(time.Unix(1_700_000_000, int64(i)*100_000))
		k := id.Key()
		if k.Hi>>halfKey != 0 || k.Lo>>halfKey != 0 {
			t.Fatalf("%s: key %x %x has more than 45 bits a half", id, k.Hi, k.Lo)
		}
		if got := k.ID(); got != id {
			t.Fatalf("%s came back as %s", id, got)
		}
		if seen[k] {
			t.Fatalf("%s has the key of another", id)
		}
		seen[k] = true
	}
	// The bits of a foreign identifier that the key has no room for are lost, none else.
	foreign, err := ParseSessionID("ffffffff-ffff-7fff-bfff-ffffffffffff")
	if err != nil {
		t.Fatal(err)
	}
	if got := foreign.Key().ID(); [12]byte(got[:12]) != [12]byte(foreign[:12]) {
		t.Errorf("%s came back as %s", foreign, got)
	}
}
