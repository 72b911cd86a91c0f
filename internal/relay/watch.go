package relay

import (
	"time"

	"decoynet/deception"
)

// Watcher is shown what a flow carries, as the intruder's network sees it: it
// hears of bytes when they were read and before they are written on, so that no
// answer comes before its question. Its methods are called on the flow's loop and
// must not block. Times are the loop's, read once a round.
type Watcher interface {
	// Data is told of one read of a side, over UDP of one datagram. b is the
	// caller's again when it returns.
	Data(side int, b []byte, at time.Time)
	// Wants tells whether Data is still of use. Where it is not, a large direction
	// is spliced and not shown.
	Wants(side int) bool
	// Fin is told that a side ended its stream, after total bytes.
	Fin(side int, total uint64, at time.Time)
	// Close is told that the flow is over, before Handler.Close.
	Close(s *deception.Session, at time.Time)
}

// Lane returns the number of the flow's loop, from 0. Flows of one lane are shown
// by one goroutine.
func (f *Flow) Lane() int { return f.loop.number }

// take counts what was read from side i, keeps its beginning and shows it to who
// watches.
func (l *loop) take(f *Flow, i int, b []byte) {
	l.count(f, i, len(b))
	f.keepHead(i, b)
	if f.Watch != nil {
		f.Watch.Data(i, b, l.wall)
	}
}

// splices tells whether what side i sends next can go through a pipe, unseen.
func (l *loop) splices(f *Flow, i int) bool {
	cfg := &l.engine.cfg
	return f.side[i].bytes >= cfg.SpliceAfter && !cfg.NoSplice && f.headLen[i] == deception.HeadBytes &&
		(f.Watch == nil || !f.Watch.Wants(i))
}
