package feed

import "time"

// stuckAfter is how long an output with something to write may get nothing done.
const stuckAfter = time.Second

// Stats are what a feed has done since it began.
type Stats struct {
	Flows   uint64 // that were told of
	Running int64  // of those, not ended
	Lost    uint64 // that an output did not see whole
	Bad     uint64 // flows and packets that could not be shown: mixed address families, no IP
	Outputs []OutputStats
}

// OutputStats are those of one output.
type OutputStats struct {
	Name         string
	Flows        uint64 // shown from their beginning
	Reintroduced uint64 // shown from where they were, to a reader or an output that came later
	Lost         uint64 // not shown whole
	Cut          uint64 // that ran, or had just ended, when a reader was gone
	Frames       uint64
	Bytes        uint64
	Queued       int64 // bytes of memory that wait
	Limit        int64 // most of them
	Errors       uint64
	LastError    string
	StuckSince   time.Time // nothing was written since then though something waits; zero where it is not stuck
}

// Stats returns the counters.
func (f *Feed) Stats() Stats {
	s := Stats{Flows: f.begun.Load(), Running: f.running.Load(), Lost: f.lost.Load(), Bad: f.bad.Load()}
	for _, o := range *f.outputs.Load() {
		s.Outputs = append(s.Outputs, o.stats())
	}
	return s
}

func (o *output) stats() OutputStats {
	s := OutputStats{
		Name: o.name, Flows: o.flows.Load(), Reintroduced: o.again.Load(), Lost: o.lost.Load(), Cut: o.cut.Load(),
		Frames: o.frames.Load(), Bytes: o.bytes.Load(), Errors: o.errors.Load(),
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	s.Queued, s.Limit = o.queued, o.limit
	if o.err != nil {
		s.LastError = o.err.Error()
	}
	if still := time.Duration(o.feed.clock.elapsed() - o.moved.Load()); s.Queued > 0 && still > stuckAfter {
		s.StuckSince = time.Now().Add(-still)
	}
	return s
}
