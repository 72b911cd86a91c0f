package rpc

import (
	"testing"
	"time"
)

// Full jitter: anything from nothing to a ceiling that doubles from 200 ms to 15 s.
func TestBackoff(t *testing.T) {
	p := usualPace
	for failures := range 100 {
		ceiling := p.last
		if failures < 7 {
			ceiling = min(p.last, p.first<<failures)
		}
		var low, high bool
		for range 200 {
			d := backoff(p.first, p.last, failures)
			if d < 0 || d > ceiling {
				t.Fatalf("after %d failures: %v, at most %v", failures, d, ceiling)
			}
			low, high = low || d < ceiling/4, high || d > ceiling*3/4
		}
		if !low || !high {
			t.Errorf("after %d failures: no jitter", failures)
		}
	}
	if p.silence != 12*time.Second || p.first != 200*time.Millisecond || p.last != 15*time.Second {
		t.Errorf("pace %+v", p)
	}
}
