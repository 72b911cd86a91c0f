package strip

import "time"

// lateness is how long a packet waits for those that it answers. What two
// processors handle at the same time may be captured the other way round: a bridge
// forwards a segment first and shows it to packet sockets then, when the answer may
// be there already. A sensor that sees an acknowledgement first takes what it
// acknowledges for lost.
const lateness = 20 * time.Millisecond

// inOrder gives the sink the packet at hand, once it has what that acknowledges.
func (s *Stripper) inOrder(f *flow, side int, p *Packet) {
	if len(f.held) > 0 && p.At-f.held[0].packet.At > int64(lateness) {
		seg := s.seg
		s.flush(f)
		s.seg = seg
	}
	if s.ahead(f, side) && s.keep(f, side, p) {
		s.late[f] = struct{}{}
		return
	}
	s.forward(f, side, p)
	s.catchUp(f)
}

// ahead tells whether the packet at hand acknowledges what was not captured yet.
func (s *Stripper) ahead(f *flow, side int) bool {
	if !s.seg.Has(FlagACK) || !f.spoke[1-side] {
		return false
	}
	known := f.next[1-side]
	for _, m := range f.missing[1-side] {
		known = earlier(known, m.from)
	}
	if f.fin[1-side] {
		known++ // a FIN has a number, too
	}
	missing := int32(s.seg.Ack - known)
	return 0 < missing && missing <= farAway
}

// keep keeps a copy of the packet, if there is room.
func (s *Stripper) keep(f *flow, side int, p *Packet) bool {
	cost := len(s.seg.whole) + heldCost
	if f.heldBytes+cost > s.limits.FlowBytes || s.stats.Held+cost > s.limits.Held {
		return false
	}
	copied := Packet{At: p.At, Data: append([]byte(nil), s.seg.whole...), Unsummed: p.Unsummed, Size: p.Size}
	f.held = append(f.held, held{packet: copied, side: side})
	f.heldBytes += cost
	s.stats.Held += cost
	return true
}

// catchUp gives out those packets that wait for nothing any more.
func (s *Stripper) catchUp(f *flow) {
	for again := len(f.held) > 0; again; {
		again = false
		for i := range f.held {
			h := f.held[i]
			if s.seg.parse(&h.packet) == fine && s.ahead(f, h.side) {
				continue
			}
			f.held = append(f.held[:i:i], f.held[i+1:]...)
			s.unhold(f, &h)
			s.forward(f, h.side, &h.packet)
			again = len(f.held) > 0
			break
		}
	}
	if len(f.held) == 0 {
		delete(s.late, f)
	}
}

func (s *Stripper) unhold(f *flow, h *held) {
	cost := len(h.packet.Data) + heldCost
	f.heldBytes -= cost
	s.stats.Held -= cost
}

// flush gives out all that waits: what it waits for was not captured.
func (s *Stripper) flush(f *flow) {
	waited := f.held
	f.held = nil
	delete(s.late, f)
	for i := range waited {
		h := &waited[i]
		s.unhold(f, h)
		if s.seg.parse(&h.packet) == fine {
			s.forward(f, h.side, &h.packet)
		}
	}
}

// flushLate does so for all flows of which nothing came meanwhile.
func (s *Stripper) flushLate(now int64) {
	for f := range s.late {
		if now-f.held[0].packet.At > int64(lateness) {
			s.flush(f)
		}
	}
}
