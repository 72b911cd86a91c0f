package feed

import (
	"sync/atomic"
	"time"

	"decoynet/deception"
	"decoynet/internal/frame"
)

// Flow is one flow that is fed. All methods may be called on nil.
type Flow struct {
	feed      *Feed
	lane      *lane
	key       deception.SessionKey
	transport deception.Transport
	closed    bool   // guarded by lane.mu
	born      uint32 // the last reader that there was when it began
	tuple     uint64
	depth     uint64 // bytes of each side that are fed; 0: no limit
	barred    uint64 // the outputs that lost it before it began
	header    [2]frame.Header
	fed       [2]atomic.Uint64 // payload of each side that was fed
	lost      atomic.Uint64    // the outputs that lost it, one bit each
	seen      [maxOutputs]progress
}

// Data tells what was read from a side, in one piece; of a UDP flow, one
// datagram. It is copied.
func (w *Flow) Data(side int, b []byte, at time.Time) {
	if !w.Wants(side) || len(b) == 0 && w.transport == deception.TCP {
		return
	}
	if w.transport == deception.UDP && len(b) > frame.MaxDatagram {
		w.feed.bad.Add(1)
		return
	}
	if w.feed.pressed.Load() != 0 && w.fed[Client].Load()+w.fed[Server].Load() > heavyFlow {
		w.dropHeavy()
		if !w.Wants(side) {
			return
		}
	}
	w.lane.mu.Lock()
	defer w.lane.mu.Unlock()
	if w.closed { // by a flow with the same addresses and ports
		w.feed.roster.mark(w.key, ^uint32(0))
		return
	}
	r := record{flow: w, at: at.UnixNano(), kind: kindData, side: uint8(side)}
	for {
		n := min(len(b), chunkBytes)
		r.offset = uint32(w.fed[side].Load())
		w.lane.add(r, b[:n])
		w.fed[side].Add(uint64(n))
		if b = b[n:]; len(b) == 0 {
			return
		}
	}
}

// dropHeavy loses a flow of many bytes to the outputs whose queue is half full, so
// that there is room for the many flows of few.
func (w *Flow) dropHeavy() {
	for _, o := range *w.feed.outputs.Load() {
		if w.feed.pressed.Load()&o.bit != 0 {
			o.lose(w)
		}
	}
}

// Wants tells whether Data of a side would go anywhere. It is false beyond the
// depth, and where the flow is lost.
func (w *Flow) Wants(side int) bool {
	if w == nil {
		return false
	}
	return w.wanted() && (w.depth == 0 || w.fed[side].Load() < w.depth)
}

// wanted tells whether there is an output that has not lost the flow.
func (w *Flow) wanted() bool { return w.feed.mask.Load()&^w.lost.Load() != 0 }

// Fin tells that a side will send nothing more, after so many bytes in all.
func (w *Flow) Fin(side int, total uint64, at time.Time) {
	if w == nil || w.transport != deception.TCP || !w.wanted() {
		return
	}
	w.lane.mu.Lock()
	defer w.lane.mu.Unlock()
	if !w.closed {
		w.lane.add(record{flow: w, at: at.UnixNano(), kind: kindFin, side: uint8(side), offset: uint32(total)}, nil)
	}
}

// Close tells that the flow is over. Of the session, Reason and the bytes of both
// sides must be set.
func (w *Flow) Close(s *deception.Session, at time.Time) {
	if w == nil {
		return
	}
	w.feed.Know(s)
	w.lane.mu.Lock()
	defer w.lane.mu.Unlock()
	if w.closed {
		return
	}
	w.closed = true
	w.end(record{
		at: at.UnixNano(), kind: ending(s.Reason),
		offset: uint32(s.SourceBytes), other: uint32(s.DestinationBytes),
	})
}

// end hands in the record of a flow's end. lane.mu is held.
func (w *Flow) end(r record) {
	w.feed.running.Add(-1)
	if w.wanted() {
		r.flow = w
		w.lane.add(r, nil)
	}
	w.lane.ended = append(w.lane.ended, w)
	w.feed.soon()
}

// ending is the kind of record for how a flow ended, as it was seen on the
// intruder's side of the decoy.
func ending(r deception.EndReason) kind {
	switch r {
	case deception.EndNone, deception.EndClientClosed:
		return kindClientClosed
	case deception.EndServiceClosed:
		return kindServiceClosed
	case deception.EndClientReset:
		return kindClientReset
	}
	// The decoy reset the intruder's connection: because the service did, or did
	// not accept it, or because decoynet ended it.
	return kindServerReset
}
