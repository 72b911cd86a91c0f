package strip

// span is a part of a side's stream that was not captured, or not yet.
type span struct{ from, to uint32 }

// maxSpans is how many a side may have. What is missing beyond that is counted at
// once.
const maxSpans = 8

// count notes how far the sides have come, and what was missed: bytes that the
// other side acknowledges and that were not captured.
func (s *Stripper) count(f *flow, side int) {
	seg := &s.seg
	first := seg.Seq
	if seg.Has(FlagSYN) {
		first++
	}
	if f.fin[side] && len(seg.Payload) == 0 && first == f.end[side]+1 {
		first-- // it has ended and only acknowledges: a FIN has a number, and is no byte
	}
	s.saw(f, side, first, first+uint32(len(seg.Payload)))
	if seg.Has(FlagACK) && f.spoke[1-side] {
		s.acknowledged(f, 1-side, seg.Ack)
	}
}

// saw notes bytes of a side that were captured.
func (s *Stripper) saw(f *flow, side int, from, to uint32) {
	if len(f.missing[side]) > 0 {
		f.fill(side, from, to)
	}
	next := f.next[side]
	if !f.advance(side, to) {
		return
	}
	if hole := (span{next, from}); !hole.empty() {
		if len(f.missing[side]) == maxSpans {
			s.missed(hole)
			return
		}
		f.missing[side] = append(f.missing[side], hole)
	}
}

// fill takes what was captured out of what is missing.
func (f *flow) fill(side int, from, to uint32) {
	var room [maxSpans]span
	left := room[:0]
	for _, m := range f.missing[side] {
		if before := (span{m.from, earlier(m.to, from)}); !before.empty() && len(left) < maxSpans {
			left = append(left, before)
		}
		if behind := (span{later(m.from, to), m.to}); !behind.empty() && len(left) < maxSpans {
			left = append(left, behind)
		}
	}
	f.missing[side] = append(f.missing[side][:0], left...)
}

// acknowledged notes that the other side has a side's bytes up to a number.
func (s *Stripper) acknowledged(f *flow, side int, ack uint32) {
	behind := ack
	if f.fin[side] {
		behind-- // a FIN has a number, too
	}
	if next := f.next[side]; f.advance(side, behind) {
		s.missed(span{next, behind})
	}
	missing := f.missing[side][:0]
	for _, m := range f.missing[side] {
		if (span{m.to, ack}).empty() && m.to != ack {
			missing = append(missing, m)
			continue
		}
		s.missed(m)
	}
	f.missing[side] = missing
}

func (s *Stripper) missed(m span) {
	s.stats.Gaps++
	s.stats.GapBytes += uint64(m.to - m.from)
}

// advance notes that a side's bytes are known of up to a number. False means that
// they were already, or that the number is none of this flow's.
func (f *flow) advance(side int, end uint32) bool {
	ahead := int32(end - f.next[side])
	if ahead <= 0 || ahead > farAway {
		return false
	}
	from := f.next[side]
	f.next[side] = end
	if side == Client && !f.far {
		// The header counts for nothing.
		ahead = max(0, ahead-max(0, int32(f.dataStart()-from)))
	}
	f.Bytes[side] += uint64(ahead)
	f.far = f.far || f.Bytes[Client] > farAway
	return true
}

func (m span) empty() bool { return int32(m.to-m.from) <= 0 }

func earlier(a, b uint32) uint32 {
	if int32(a-b) < 0 {
		return a
	}
	return b
}

func later(a, b uint32) uint32 {
	if int32(a-b) > 0 {
		return a
	}
	return b
}
