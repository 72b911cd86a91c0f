package sense

import (
	"hash/maphash"
	"math"
	"time"
)

// crowd notices who stands out among those for whom there is no room: somebody
// could forge sources to hide behind them. It is a count-min sketch with
// conservative update; a source counts too much only where it shares all its
// counters with others.
type crowd struct {
	rows  [4][crowdWidth]uint32
	total uint64
	bar   uint32 // what a counter must have for its source to stand out
	since int64
}

const crowdWidth = 2048

// add counts a contact and tells whether its source stands out: it has sixteen
// more than the others account for, three standard deviations of those put
// aside.
func (c *crowd) add(h uint64) bool {
	if c.total%1024 == 0 {
		mean := float64(c.total) / crowdWidth
		c.bar = uint32(mean+3*math.Sqrt(mean)) + 16
	}
	c.total++
	var at [len(c.rows)]*uint32
	least := uint32(math.MaxUint32)
	for i := range c.rows {
		at[i] = &c.rows[i][h>>(16*i)%crowdWidth]
		least = min(least, *at[i])
	}
	for _, n := range at {
		if *n == least {
			*n = least + 1
		}
	}
	return least+1 >= c.bar
}

// forget begins anew after a while.
func (c *crowd) forget(now int64, after time.Duration) {
	if since := time.Duration(now - c.since); since >= after || since < 0 {
		*c = crowd{since: now}
	}
}

const (
	// displaceable is how many contacts a source may have to be displaced.
	displaceable = 4
	// displaceMost bounds what is displaced between two ticks.
	displaceMost = 1024
)

// displace makes room for a source that stands out, at the cost of one that did
// little. It tells whether there is room.
func (a *Aggregator) displace(k key, now int64) bool {
	h := maphash.Comparable(a.seed, k)
	if !a.crowd.add(h) || len(a.pending) >= displaceMost {
		return false
	}
	var victim *source
	for i := range uint64(8) {
		s := a.list[(h+i*0x9e3779b97f4a7c15)%uint64(len(a.list))]
		if n := s.count(); n <= displaceable && (victim == nil || n < victim.count()) {
			victim = s
		}
	}
	if victim == nil {
		return false
	}
	a.finish(victim, now)
	return true
}
