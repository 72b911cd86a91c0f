package feed

import (
	"cmp"
	"math"
	"slices"
)

// item is what waits for an output: a chunk of a lane, or a flow of it that was
// lost.
type item struct {
	chunk *chunk
	lost  *Flow
	lane  int
	batch uint64
}

// merger writes what several lanes told in the order of time. It belongs to the
// output's goroutine.
type merger struct {
	lanes  []source // of all lanes
	active []*source
}

// source is what one lane told of a batch, as far as it is not written yet.
type source struct {
	items  []item
	item   int   // the one that comes next
	record int   // of that, if it is a chunk
	at     int64 // when that was
}

// look notes when what comes next was. A lost flow is ended at once, where it stands.
func (s *source) look() {
	s.at = math.MinInt64
	if it := s.items[s.item]; it.lost == nil {
		s.at = it.chunk.records[s.record].at
	}
}

// step goes on to the next item, and tells whether there is one.
func (s *source) step() bool {
	s.items[s.item] = item{}
	s.record = 0
	if s.item++; s.item < len(s.items) {
		return true
	}
	s.items, s.item = s.items[:0], 0
	return false
}

// writeAll makes frames of items, batch after batch, and clears them.
func (o *output) writeAll(items []item) {
	// A lane that is ahead may have offered some of the next batch before another one
	// was done with this.
	slices.SortStableFunc(items, func(a, b item) int { return cmp.Compare(a.batch, b.batch) })
	for len(items) > 0 {
		n := 1
		for n < len(items) && items[n].batch == items[0].batch {
			n++
		}
		o.writeBatch(items[:n])
		items = items[n:]
	}
	o.attend()
}

// writeBatch merges what lanes told at the same time. The order within a lane
// remains, also where its times do not rise.
func (o *output) writeBatch(items []item) {
	for i, it := range items {
		items[i] = item{} // what is written is not kept in memory
		s := &o.lanes[it.lane]
		if s.items = append(s.items, it); len(s.items) == 1 {
			o.active = append(o.active, s)
			s.look()
		}
	}
	for len(o.active) > 0 {
		earliest, until := 0, int64(math.MaxInt64)
		for i, s := range o.active[1:] {
			if s.at < o.active[earliest].at {
				earliest, until = i+1, o.active[earliest].at
			} else {
				until = min(until, s.at)
			}
		}
		if !o.writeUntil(o.active[earliest], until) {
			o.active = slices.Delete(o.active, earliest, earliest+1)
		}
	}
}

// writeUntil writes what a lane told up to some time, and tells whether there is
// more of it.
func (o *output) writeUntil(s *source, until int64) (more bool) {
	for s.at <= until {
		it := &s.items[s.item]
		done := true
		if it.lost != nil {
			o.endLost(it.lost)
		} else {
			done = o.writeNext(s, it.chunk)
		}
		if done && !s.step() {
			return false
		}
		s.look()
	}
	return true
}

// writeNext writes the next record of a chunk, and tells whether it is done with
// the chunk.
func (o *output) writeNext(s *source, c *chunk) (done bool) {
	if s.record == 0 && o.aborted() {
		o.loseAll(c)
	} else {
		o.writeRecord(c, &c.records[s.record])
		if s.record++; s.record < len(c.records) {
			return false
		}
	}
	size := c.size()
	c.release()
	o.took(size)
	return true
}
