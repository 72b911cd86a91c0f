package feed

import (
	"errors"
	"time"

	"decoynet/deception"
	"decoynet/internal/frame"
)

const (
	// keepAliveAfter is how long an output says nothing about an open flow: Suricata
	// forgets an established one after 600 s of silence, other sensors after 300.
	keepAliveAfter = 240 * time.Second
	// keepAliveRound is how long it takes to look at all open flows once.
	keepAliveRound = 30 * time.Second
	// nudgeAfter is how long an output waits for what comes after data.
	nudgeAfter = 100 * time.Millisecond
	// clockSlack is how much later than the clock a record may be.
	clockSlack = time.Second
)

const (
	// recentFlows is how many flows that ended lately an output remembers.
	recentFlows = 4096
	// unreadBytes is what a reader may not have looked at when it died: a FIFO's
	// pipe and what it had read at once.
	unreadBytes = 2 << 20
)

// ended is a flow that ended for an output, or was last shown, after so many bytes of
// all frames.
type ended struct {
	key   deception.SessionKey
	bytes uint64
}

// progress is how far an output is with a flow. It belongs to the output's
// goroutine.
type progress struct {
	epoch  uint32    // the reader that was told of the flow
	seq    [2]uint32 // the next sequence number of each side
	offset [2]uint32 // where in what the side sent that is
	state  progressState
	live   int32 // index in synthesis.live
	last   int64 // time of the last frame
}

type progressState uint16

const (
	stateShown     progressState = 1 << iota // the handshake was written
	stateDead                                // nothing more is written
	stateKnown                               // the offset of the client's side is known; <<1: of the server's
	stateKnown1                              //
	stateFinished                            // FIN was written for the client's side; <<1: for the server's
	stateFinished1                           //
	stateDue                                 // the client's side sent data and nothing since; <<1: the server's
	stateDue1                                //
	stateListed                              // it is in synthesis.due
)

// synthesis makes frames of records, for one output. It belongs to the output's
// goroutine.
type synthesis struct {
	out    *output
	epoch  uint32  // the reader that there is
	first  uint32  // the one that the output began with
	live   []*Flow // flows that are open and were shown, but mirrored ones, of whose end nobody tells
	due    []*Flow // those with data that nothing came after
	nudged int64   // when they were last looked at
	cursor int     // the next one to look at for keepAlive
	looked int64   // when that was last done
	last   int64   // the time of the last frame
	ids    uint32  // IPv4 identification
	buffer []byte
	quiet  bool // the output is an Archive
	recent [recentFlows]ended
	next   int // in recent
}

func (s *synthesis) start(o *output) {
	s.out, s.first = o, o.feed.nextEpoch()
	s.epoch = s.first
	s.buffer = make([]byte, 0, 2048)
	_, s.quiet = o.w.(Archive)
}

// until has the next frame be of a time, or of that of the frame before where that
// is later.
func (s *synthesis) until(at int64) { s.last = max(s.last, at) }

func (s *synthesis) write(b []byte) error {
	if err := s.out.w.Frame(s.last, b); err != nil {
		return err
	}
	s.out.frames.Add(1)
	s.out.bytes.Add(uint64(len(b)))
	return nil
}

// writeRecord makes frames of a record of a chunk.
func (o *output) writeRecord(c *chunk, r *record) {
	o.until(min(r.at+c.ahead, c.latest))
	data := c.data[r.begin : r.begin+r.n]
	err := o.record(r, data)
	for errors.Is(err, ErrRestart) && !o.aborted() {
		o.note(err)
		err = o.record(r, data)
	}
	if err != nil {
		o.note(err)
		o.giveUp(r.flow)
	}
}

// giveUp loses a flow of which something could not be written.
func (o *output) giveUp(w *Flow) {
	o.drop(w, &w.seen[o.slot])
	o.lose(w)
}

// record makes frames of one record.
func (s *synthesis) record(r *record, data []byte) error {
	w := r.flow
	p := &w.seen[s.out.slot]
	if p.epoch != s.epoch {
		s.meet(w, p, r.kind)
	}
	if p.state&stateDead != 0 {
		return nil
	}
	p.last = s.last
	switch {
	case r.kind == kindPacket:
		s.buffer = w.header[r.side].Packet(s.buffer[:0], data)
		err := s.write(s.buffer)
		s.remember(w, p)
		return err
	case w.transport != deception.TCP:
		return s.datagram(w, p, r, data)
	}
	if err := s.show(w, p); err != nil {
		return err
	}
	switch r.kind {
	case kindBegin:
		return nil
	case kindData:
		return s.data(w, p, r, data)
	case kindFin:
		return s.fin(w, p, int(r.side), r.offset)
	}
	return s.over(w, p, r)
}

// meet begins with a flow that the reader knows nothing of.
func (s *synthesis) meet(w *Flow, p *progress, k kind) {
	again := p.epoch >= s.first || w.born < s.first // to an earlier reader, or before the output was there
	*p = progress{epoch: s.epoch, live: -1}
	switch {
	case w.barred&s.out.bit != 0, k != kindBegin && w.lost.Load()&s.out.bit != 0, k > kindFin && k != kindPacket && again:
		p.state = stateDead
	case k == kindBegin, k == kindPacket && !again:
		p.state = stateKnown | stateKnown1
		s.out.flows.Add(1)
	default:
		s.out.again.Add(1)
		s.out.mark(w.key)
	}
}

func (s *synthesis) datagram(w *Flow, p *progress, r *record, data []byte) error {
	switch r.kind {
	case kindBegin, kindFin:
		return nil
	case kindData:
		s.open(w, p)
		s.ids++
		s.buffer = w.header[r.side].UDP(s.buffer[:0], uint16(s.ids), data)
		return s.write(s.buffer)
	}
	s.drop(w, p)
	return nil
}

// open notes that a flow is open.
func (s *synthesis) open(w *Flow, p *progress) {
	if p.live < 0 {
		p.live = int32(len(s.live))
		s.live = append(s.live, w)
	}
}

// left notes that a flow was shown up to now.
func (s *synthesis) left(w *Flow) {
	s.recent[s.next] = ended{w.key, s.out.bytes.Load()}
	s.next = (s.next + 1) % recentFlows
}

// remember does so for a mirrored flow now and then, as it may go on or not. Its
// offset is where that was last done, in KB and never 0.
func (s *synthesis) remember(w *Flow, p *progress) {
	now := uint32(s.out.bytes.Load()>>10) + 1
	if p.offset[0] == 0 || now-p.offset[0] > unreadBytes>>10/16 {
		p.offset[0] = now
		s.left(w)
	}
}

// drop forgets a flow.
func (s *synthesis) drop(w *Flow, p *progress) {
	if p.epoch != s.epoch {
		return
	}
	p.state |= stateDead
	s.left(w)
	if p.live < 0 {
		return
	}
	end := len(s.live) - 1
	moved := s.live[end]
	s.live[p.live] = moved
	moved.seen[s.out.slot].live = p.live
	s.live[end] = nil
	s.live = s.live[:end]
	p.live = -1
}

// forgetAll is for a new reader. What the one before had seen of flows that run, or
// have just ended, is not known; it may have died before it said what it found.
func (s *synthesis) forgetAll() {
	for _, w := range s.live {
		s.out.cut.Add(1)
		s.out.mark(w.key)
	}
	for i, e := range s.recent {
		if e.bytes != 0 && e.bytes+unreadBytes >= s.out.bytes.Load() {
			s.out.cut.Add(1)
			s.out.mark(e.key)
		}
		s.recent[i] = ended{}
	}
	clear(s.live)
	clear(s.due)
	s.live, s.due, s.cursor = s.live[:0], s.due[:0], 0
}

// endLost ends a flow that the output lost, as it must not take it for idle.
func (o *output) endLost(w *Flow) {
	p := &w.seen[o.slot]
	if p.epoch != o.epoch { // what is told of it later comes too late
		*p = progress{epoch: o.epoch, state: stateDead, live: -1}
		return
	}
	if p.state&(stateShown|stateDead) == stateShown {
		o.note(o.reset(w, p, Server))
	}
	o.drop(w, p)
}

// attend does what is to be done about flows of which nothing is told.
func (o *output) attend() {
	if o.quiet {
		return
	}
	now, _ := o.feed.clock.now()
	if now-o.nudged >= int64(nudgeAfter) {
		o.nudged = now
		o.nudgeAll(now, nudgeAfter)
	}
	o.keepAlive(now)
}

// nudgeAll has the reader look at data that nothing came after for so long. What
// came a moment ago waits for the next round: a service's answer is on its way, and
// Suricata that looks at half a transaction may not look at it again.
func (o *output) nudgeAll(at int64, quiet time.Duration) {
	kept := o.due[:0]
	for _, w := range o.due {
		p := &w.seen[o.slot]
		if p.epoch != o.epoch || p.state&stateDead != 0 {
			continue
		}
		if p.state&(stateDue|stateDue1) != 0 && quiet > 0 && at-p.last < int64(quiet) {
			kept = append(kept, w)
			continue
		}
		p.state &^= stateListed
		o.until(at)
		if err := o.nudge(w, p); err != nil {
			o.note(err)
			if p.epoch != o.epoch {
				return // the new reader was told of none of them
			}
		}
	}
	clear(o.due[len(kept):])
	o.due = kept
}

// nudge acknowledges once more on the sides that sent data last. Suricata puts
// data together when the other side acknowledges it, and looks at it when its own
// side sends the next packet; of a service that hangs there would be none.
func (s *synthesis) nudge(w *Flow, p *progress) error {
	for side := range p.seq {
		if p.state&(stateDue<<side) != 0 && !s.quiet {
			if err := s.segment(w, p, side, frame.ACK, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// keepAlive says something about flows that have been idle for long. It looks at a
// few flows each time.
func (o *output) keepAlive(at int64) {
	if o.looked == 0 {
		o.looked = at
	}
	n := int(int64(len(o.live)+1) * (at - o.looked) / int64(keepAliveRound))
	if n <= 0 {
		return
	}
	o.looked = at
	for range min(n, len(o.live)) {
		if o.cursor >= len(o.live) {
			o.cursor = 0
		}
		w := o.live[o.cursor]
		o.cursor++
		p := &w.seen[o.slot]
		if w.transport != deception.TCP || at-p.last < int64(keepAliveAfter) {
			continue
		}
		o.until(at)
		p.last = o.last
		if err := o.segment(w, p, Client, frame.ACK, nil); err != nil {
			o.note(err)
			return
		}
	}
}
