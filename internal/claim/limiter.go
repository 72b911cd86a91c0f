package claim

import (
	"sync"
	"time"
)

// Rates of frames.
const (
	// DefaultRate is the most frames a second in one segment: 1 Mbit/s of
	// broadcasts, below what switches' storm control takes notice of.
	DefaultRate = 2000
	// DefaultNodeRate is a good rate for the Limiter that all segments share: 67
	// Mbit/s of a trunk port, for the few seconds of a start.
	DefaultNodeRate = 100_000
)

// Limiter is a token bucket: no second, wherever it begins, has more than the
// rate. It may be used from several goroutines.
type Limiter struct {
	fill, burst float64

	mu     sync.Mutex // guards what follows
	tokens float64
	last   time.Time
}

// NewLimiter returns a full bucket for that many frames a second, two at least.
func NewLimiter(rate int) *Limiter {
	rate = max(rate, 2)
	// A second may find the bucket full: the rate is what flows in and what was
	// in it, together.
	burst := max(rate/20, 1)
	return &Limiter{fill: float64(rate - burst), burst: float64(burst), tokens: float64(burst)}
}

// Take takes a token if there is one.
func (l *Limiter) Take(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if passed := now.Sub(l.last); !l.last.IsZero() && passed > 0 {
		l.tokens = min(l.tokens+passed.Seconds()*l.fill, l.burst)
	}
	if l.last.Before(now) {
		l.last = now
	}
	if l.tokens < 1 {
		return false
	}
	l.tokens--
	return true
}

// giveBack returns a token that was taken for nothing.
func (l *Limiter) giveBack() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tokens = min(l.tokens+1, l.burst)
}
