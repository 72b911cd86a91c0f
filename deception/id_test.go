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
