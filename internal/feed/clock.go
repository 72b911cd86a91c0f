package feed

import (
	"sync/atomic"
	"time"
)

// clock is the machine's, but that it is never set back: sensors forget flows and
// write what they know of them by the time of the packets. From the moment when the
// machine's clock is set back, times are moved on by as much.
type clock struct {
	start time.Time
	most  atomic.Int64 // by how much the machine's clock was ahead of where it began
	set   atomic.Int64 // by how much tests set it
}

func (c *clock) init() { c.start = time.Now() }

// now returns the time, and what is to be added to those of the machine's clock.
func (c *clock) now() (now, ahead int64) {
	t := time.Now()
	now = t.UnixNano() + c.set.Load()
	drift := now - c.start.UnixNano() - int64(t.Sub(c.start)) // Sub does not look at the clock that can be set
	most := c.most.Load()
	for drift > most && !c.most.CompareAndSwap(most, drift) {
		most = c.most.Load()
	}
	ahead = max(0, most-drift)
	return now + ahead, ahead
}

// elapsed is how long the feed has been there, in nanoseconds, whatever becomes of
// the machine's clock.
func (c *clock) elapsed() int64 { return int64(time.Since(c.start)) }
