package strip

import (
	"encoding/binary"

	"decoynet/deception"
)

// farAway is how much a client must have sent for its numbers never to be taken
// for those of the header: they come round after 4 GiB.
const farAway = 1 << 30

// forward gives the sink the packet at hand as the two of the header would have
// exchanged it.
func (s *Stripper) forward(f *flow, side int, p *Packet) {
	seg := &s.seg
	f.learn(seg, side)
	if s.plain != nil {
		s.count(f, side)
		s.emit(f, side, p, seg)
		s.progress(f, side, p.At)
		return
	}
	out := *seg
	out.Source, out.Destination = f.Header.Source, f.Header.Destination
	if side == Server {
		out.Source, out.Destination = out.Destination, out.Source
	}
	var keep bool
	if side == Client {
		keep = s.moveClient(f, &out)
	} else {
		keep = s.moveServer(f, &out)
	}
	s.count(f, side)
	if keep {
		s.emit(f, side, p, &out)
	}
	s.progress(f, side, p.At)
}

// emit gives the sink what out says, cut where that is a super-segment.
func (s *Stripper) emit(f *flow, side int, p *Packet, out *Segment) {
	give := func(ip []byte) {
		s.stats.Emitted++
		s.sink.Packet(&f.Flow, side, p.At, ip)
	}
	if s.plain != nil && (len(out.whole) <= mtu || out.Transport == deception.UDP) && (p.Size == 0 || len(out.Payload) <= p.Size) {
		give(s.out.same(out, p.Unsummed))
		return
	}
	s.out.build(out, p.Size, give)
}

// dataStart is where the client's data begins, behind the header.
func (f *flow) dataStart() uint32 { return f.base[Client] + f.size }

// moveClient takes the header out of a client's segment and moves its number. It
// returns false where nothing is left to show.
func (s *Stripper) moveClient(f *flow, out *Segment) bool {
	out.Options = s.cleaned(out.Options)
	first := out.Seq
	if out.Has(FlagSYN) {
		first++
	}
	if f.far {
		out.Seq -= f.size
		return true
	}
	behind := int32(first - f.dataStart())
	if behind >= 0 {
		out.Seq = first - f.size
	} else {
		cut := min(-int64(behind), int64(len(out.Payload)))
		out.Payload = out.Payload[cut:]
		out.Seq = f.base[Client]
		if out.Urgent -= uint16(cut); cut > int64(s.seg.Urgent) {
			out.Flags &^= FlagURG
		}
		if len(out.Payload) == 0 && cut < -int64(behind) {
			out.Flags &^= FlagFIN // it would stand within the header
		}
		if len(out.Payload) == 0 && !out.Has(FlagSYN|FlagFIN|FlagRST) {
			if f.acked && !s.answers(f) {
				return false
			}
			out.Flags &^= FlagPSH
		}
	}
	if out.Has(FlagSYN) {
		out.Seq--
	}
	f.acked = f.acked || !out.Has(FlagSYN) && out.Has(FlagACK)
	return true
}

// answers tells whether the segment acknowledges more than was acknowledged: a
// service that speaks first.
func (s *Stripper) answers(f *flow) bool {
	return s.seg.Has(FlagACK) && len(s.seg.Payload) == 0 && f.spoke[Server] && s.seg.Ack != f.base[Server]
}

// moveServer moves what a server's segment says of the client's numbers. It
// returns false where it only acknowledges a part of the header.
func (s *Stripper) moveServer(f *flow, out *Segment) bool {
	out.Options = s.cleaned(out.Options)
	f.moveSACK(out.Options)
	if !out.Has(FlagACK) {
		return true
	}
	if !f.far && int32(out.Ack-f.dataStart()) <= 0 {
		within := out.Ack != f.base[Client]
		out.Ack = f.base[Client]
		return !within || len(out.Payload) > 0 || out.Has(FlagSYN|FlagFIN|FlagRST)
	}
	out.Ack -= f.size
	return true
}

// Kinds of TCP options (RFC 9293, section 3.2; RFC 2018; RFC 7323; RFC 7413).
const (
	optionEnd      = 0
	optionNOP      = 1
	optionSACK     = 5
	optionFastOpen = 34
)

// cleaned returns a copy of TCP options without those that no longer hold for other
// addresses and numbers (signatures, subflows), each replaced by NOPs, so that
// everything else stays where it was. It is valid until the next packet.
func (s *Stripper) cleaned(options []byte) []byte {
	out := s.options[:copy(s.options[:], options)]
	for at := 0; at < len(out); {
		kind := out[at]
		if kind == optionEnd {
			break
		}
		size := 1
		if kind != optionNOP {
			if at+1 >= len(out) || out[at+1] < 2 || at+int(out[at+1]) > len(out) {
				fill(out[at:])
				break
			}
			size = int(out[at+1])
		}
		if kind > 8 && kind != optionFastOpen {
			fill(out[at:][:size])
		}
		at += size
	}
	return out
}

func fill(b []byte) {
	for i := range b {
		b[i] = optionNOP
	}
}

// moveSACK moves the blocks of selective acknowledgements. A block within the
// header goes.
func (f *flow) moveSACK(options []byte) {
	for at := 0; at+1 < len(options) && options[at] != optionEnd; {
		if options[at] == optionNOP {
			at++
			continue
		}
		size := int(options[at+1])
		if options[at] == optionSACK {
			f.moveBlocks(options[at:][:size])
		}
		at += size
	}
}

func (f *flow) moveBlocks(option []byte) {
	kept := option[:2]
	for blocks := option[2:]; len(blocks) >= 8; blocks = blocks[8:] {
		left, right := f.moved(binary.BigEndian.Uint32(blocks)), f.moved(binary.BigEndian.Uint32(blocks[4:]))
		if left != right {
			kept = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(kept, left), right)
		}
	}
	if len(kept) == 2 {
		kept = kept[:0]
	} else {
		option[1] = byte(len(kept))
	}
	fill(option[len(kept):])
}

// moved is a client's number as it is without the header.
func (f *flow) moved(number uint32) uint32 {
	if !f.far && int32(number-f.dataStart()) <= 0 {
		return f.base[Client]
	}
	return number - f.size
}

// progress notes how the flow ends.
func (s *Stripper) progress(f *flow, side int, at int64) {
	seg := &s.seg
	switch {
	case f.ended:
		return
	case seg.Has(FlagRST) && side == Client:
		s.end(f, at, deception.EndClientReset)
	case seg.Has(FlagRST):
		s.end(f, at, deception.EndServiceReset)
	case f.fin[Client] && f.fin[Server]:
		s.end(f, at, f.closeReason())
	default:
		return
	}
	f.unlink()
	s.closing.push(f)
	if s.closing.n > s.limits.Flows {
		s.forget(s.closing.first())
	}
}
