package feed

import (
	"slices"
	"sync"
	"sync/atomic"

	"decoynet/deception"
)

// maxNames is how many names of outputs losses are told apart by; further ones
// count as the last of these.
const maxNames = 32

// losses are what outputs of a name lost, also those that there are no longer.
type losses struct {
	flows [maxNames]atomic.Uint64

	mu    sync.Mutex // guards names
	names []string
}

// number returns which bit of a session stands for a name.
func (l *losses) number(name string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := slices.Index(l.names, name)
	if n < 0 {
		l.names = append(l.names, name)
		n = len(l.names) - 1
	}
	return min(n, maxNames-1)
}

// View is the feed as whoever reads one output has it: what other outputs lost does
// not count.
type View struct {
	feed   *Feed
	number int
}

// Of returns the view of an output, which need not be there yet.
func (f *Feed) Of(output string) View { return View{f, f.losses.number(output)} }

// Find is Feed.Find, where partial says that this output did not see all of it.
func (v View) Find(k deception.SessionKey) (s deception.Session, partial, ok bool) {
	s, partly, ok := v.feed.find(k)
	return s, partly&(1<<v.number) != 0, ok
}

// Lost is how many flows this output did not see whole because it did not keep up.
func (v View) Lost() uint64 { return v.feed.losses.flows[v.number].Load() }
