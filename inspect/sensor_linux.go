package inspect

import (
	"sync/atomic"
	"time"

	"decoynet/deception"
	"decoynet/internal/suricata"
)

// lossEvery is how often an event says that a sensor loses more and more.
const lossEvery = 10 * time.Minute

// sensor is what a Suricata that others run says about itself. Of one that does not
// keep up with the tap device nobody else would know.
type sensor struct {
	counters atomic.Pointer[suricata.Counters] // nil: nothing so far
	tell     func(kind deception.EventKind, message string)
	told     time.Time // of the last event; the event reader's
}

// heard takes an event of the type stats. It is called by one goroutine.
func (s *sensor) heard(event []byte) {
	c, err := suricata.ParseStats(event)
	if err != nil {
		return // it was counted as broken, if it is no JSON
	}
	before := s.counters.Swap(&c)
	lost := c.CaptureDrops + c.MemoryDrops
	if before != nil && c.Captured >= before.Captured { // else it was started anew
		lost -= min(lost, before.CaptureDrops+before.MemoryDrops)
	}
	if lost > 0 && (s.told.IsZero() || time.Since(s.told) >= lossEvery) {
		s.told = time.Now()
		s.tell(deception.EventSensorLoss, lossText(&c))
	}
}

// forget is for another Suricata.
func (s *sensor) forget() { s.counters.Store(nil) }

func lossText(c *suricata.Counters) string {
	return "inspect: Suricata has not seen everything since it started, alerts may be missing: " + c.Lost()
}
