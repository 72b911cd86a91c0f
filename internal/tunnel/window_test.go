package tunnel

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestWindow walks a window through what a reader may do, and compares its size
// and what was granted.
func TestWindow(t *testing.T) {
	const trip = 100 * time.Millisecond
	const first = firstWindow
	type step struct {
		read  int
		after time.Duration // since the first byte of the measurement
	}
	for name, test := range map[string]struct {
		steps []step
		full  bool // the connection has given away what it may
		size  int
		grant int // of all steps
	}{
		"little is not told":          {[]step{{first/4 - 1, 0}}, false, first, 0},
		"a quarter is granted again":  {[]step{{first / 4, 0}}, false, first, first / 4},
		"drained at once":             {[]step{{first, time.Millisecond}}, false, 8 * first, 8 * first},
		"drained in two round trips":  {[]step{{first / 2, 0}, {first / 2, 2 * trip}}, false, 8 * first, 8 * first},
		"drained in three":            {[]step{{first / 2, 0}, {first / 2, 3 * trip}}, false, first, first},
		"no memory for more":          {[]step{{first, time.Millisecond}}, true, first, first},
		"grows on and on":             {[]step{{first, 0}, {8 * first, 0}, {64 * first, 0}}, false, 256 * first, 256*first + 72*first},
		"not beyond the largest":      {[]step{{first, 0}, {8 * first, 0}, {64 * first, 0}, {256 * first, 0}, {1024 * first, 0}}, false, maxWindow, maxWindow + (8+64+256+1024)*first},
		"shrinks with a slow reader":  {[]step{{first, 0}, {8 * first, 65 * trip}}, false, 4 * first, 12 * first},
		"never below the first":       {[]step{{first, 65 * trip}, {first, 65 * trip}}, false, first, 2 * first},
		"is left where it is between": {[]step{{first, 0}, {8 * first, 10 * trip}}, false, 8 * first, 16 * first},
	} {
		t.Run(name, func(t *testing.T) {
			w := window{size: first, credit: first}
			extra, granted := 0, 0
			extend := func(delta int) bool {
				if test.full && delta > 0 {
					return false
				}
				extra += delta
				return true
			}
			for _, s := range test.steps {
				if !w.arrived(s.read) {
					t.Fatalf("%d bytes are refused, with a credit of %d", s.read, w.credit)
				}
				granted += w.take(s.read, w.started+s.after, trip, extend)
			}
			if w.size != test.size || granted != test.grant {
				t.Errorf("size %d, granted %d; want %d and %d", w.size, granted, test.size, test.grant)
			}
			if extra != w.extra(first) {
				t.Errorf("%d bytes booked for %d", extra, w.extra(first))
			}
			// What is outstanding, not told and allowed is the window, always.
			if w.credit+w.taken != w.size {
				t.Errorf("credit %d and %d taken of %d", w.credit, w.taken, w.size)
			}
			if w.arrived(w.credit + 1) {
				t.Error("more than the credit is let in")
			}
		})
	}
}

func TestRoundTrip(t *testing.T) {
	var r roundTrip
	ms := time.Millisecond
	for _, s := range []struct{ trip, now time.Duration }{
		{100 * ms, 0}, {180 * ms, 1000 * ms}, {100 * ms, 2000 * ms},
	} {
		r.sample(s.trip, s.now)
	}
	smooth := time.Duration(r.smooth.Load())
	if diff := cmp.Diff(108750*time.Microsecond, smooth); diff != "" {
		t.Errorf("smoothed (-want +got):\n%s", diff)
	}
	if low := time.Duration(r.low.Load()); low != 100*ms {
		t.Errorf("shortest %v", low)
	}
	// The way became longer: after a while that is the shortest.
	for now := 3 * time.Second; now < 30*time.Second; now += time.Second {
		r.sample(300*ms, now)
	}
	if low := time.Duration(r.low.Load()); low != 300*ms {
		t.Errorf("shortest %v after the way became longer", low)
	}
}

// TestExtend shows that no stream takes all the memory that windows may have.
func TestExtend(t *testing.T) {
	c := newConn(&tape{}, connConfig{peer: hello{helloVersion, 1, firstWindow}})
	if !c.extend(maxExtra / 2) {
		t.Error("half of all is refused")
	}
	if c.extend(maxExtra / 2) {
		t.Error("all that is left is given away")
	}
	if !c.extend(maxExtra / 8) {
		t.Error("a quarter of what is left is refused")
	}
	c.extend(-maxExtra / 2)
	if !c.extend(maxExtra / 4) {
		t.Error("what was given back is not given again")
	}
	c.hold(maxHeld/4 + 1)
	if c.extend(1) {
		t.Error("windows grow while much is unread")
	}
}
