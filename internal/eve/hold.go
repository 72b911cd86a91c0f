package eve

import (
	"slices"
	"time"
)

const (
	// holdFor is how long an event waits for another one that tells its session.
	holdFor = 500 * time.Millisecond
	// maxHeld and maxHeldBytes bound the events that wait, also those that were
	// handed over meanwhile without their session.
	maxHeld      = 1024
	maxHeldBytes = 8 << 20
)

// holder keeps events that do not tell their session until another event of the
// same flow does. Nobody waits long: after a while an alert is handed over as it
// is, and once more when its session is known. At the latest Suricata's event of
// the whole flow tells that.
type holder struct {
	list  []held // oldest first
	bytes int
}

type held struct {
	line   []byte
	offset int64
	place  checkpoint // of the line
	flow   uint64
	since  time.Time
	handed bool // nobody waits for it any longer
}

// add keeps an event. It returns those for which there is no room any more.
func (h *holder) add(x held) (out []held) {
	h.list = append(h.list, x)
	h.bytes += len(x.line)
	n := 0
	for len(h.list)-n > maxHeld || h.bytes > maxHeldBytes && len(h.list)-n > 1 {
		h.bytes -= len(h.list[n].line)
		n++
	}
	out = slices.Clone(h.list[:n])
	h.list = slices.Delete(h.list, 0, n)
	return out
}

// take returns the events of a flow and forgets them.
func (h *holder) take(flow uint64) (out []held) {
	h.list = slices.DeleteFunc(h.list, func(x held) bool {
		if x.flow != flow {
			return false
		}
		h.bytes -= len(x.line)
		out = append(out, x)
		return true
	})
	return out
}

// due returns the events that have waited long enough. They are kept, and not
// returned again.
func (h *holder) due(now time.Time) (out []held) {
	for i := range h.list {
		x := &h.list[i]
		if !x.handed && now.Sub(x.since) >= holdFor {
			x.handed = true
			out = append(out, *x)
		}
	}
	return out
}

// first returns the place of the oldest event that waits.
func (h *holder) first() (checkpoint, bool) {
	for i := range h.list {
		if !h.list[i].handed {
			return h.list[i].place, true
		}
	}
	return checkpoint{}, false
}
