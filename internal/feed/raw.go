package feed

import (
	"time"

	"decoynet/deception"
	"decoynet/internal/frame"
)

const (
	// rawFlowsMost is how many mirrored flows are known at once, or twice that.
	rawFlowsMost = 65536
	// rawFlowsAge is how long one is known that shows no packet, or twice that.
	rawFlowsAge = 10 * time.Minute
)

// rawFlows are the flows of which packets come as they are. Nobody tells of their
// end: two generations of them are kept, of which the older one is forgotten when
// the younger one is full or old. It is guarded by the mutex of the last lane.
type rawFlows struct {
	young, old map[deception.SessionKey]*Flow
	born       int64
}

func (r *rawFlows) find(k deception.SessionKey, at int64) *Flow {
	if len(r.young) >= rawFlowsMost || at-r.born > int64(rawFlowsAge) || r.young == nil {
		r.old, r.young, r.born = r.young, map[deception.SessionKey]*Flow{}, at
	}
	w := r.young[k]
	if w == nil {
		if w = r.old[k]; w != nil {
			r.young[k] = w
		}
	}
	return w
}

// Frame shows an IP packet of a flow as it is, but for the Ethernet header that it
// gets. side says who of the two sent it, at when, in Unix nanoseconds. It is
// copied. Of the session, ID, Node and Segment must be set.
func (f *Feed) Frame(s *deception.Session, side int, at int64, ip []byte) {
	if f.mask.Load() == 0 {
		return
	}
	if len(ip) < 20 || len(ip) > 65535 || ip[0]>>4 != 4 && ip[0]>>4 != 6 {
		f.bad.Add(1)
		return
	}
	key := s.ID.Key()
	l := f.lanes[len(f.lanes)-1]
	l.mu.Lock()
	defer l.mu.Unlock()
	w := f.raw.find(key, at)
	if w == nil {
		w = f.newRaw(s, key, ip[0]>>4 == 6)
	}
	if f.pressed.Load() != 0 && w.fed[Client].Load()+w.fed[Server].Load() > heavyFlow {
		w.dropHeavy()
	}
	if !w.wanted() {
		return
	}
	w.fed[side].Add(uint64(len(ip)))
	l.add(record{flow: w, at: at, kind: kindPacket, side: uint8(side)}, ip)
}

func (f *Feed) newRaw(s *deception.Session, key deception.SessionKey, v6 bool) *Flow {
	w := &Flow{feed: f, lane: f.lanes[len(f.lanes)-1], key: key, transport: s.Transport, born: f.readers.Load()}
	intruder, decoy := frame.Addresses(key)
	tags := f.tags.of(s.Node, s.Segment)
	w.header[Client] = frame.NewPacketHeader(intruder, decoy, tags, v6)
	w.header[Server] = frame.NewPacketHeader(decoy, intruder, tags, v6)
	w.barred = f.full.Load() & f.mask.Load()
	w.lost.Store(w.barred)
	f.begun.Add(1)
	if w.barred != 0 {
		f.countLost(key, w.barred)
	}
	f.raw.young[key] = w
	return w
}
