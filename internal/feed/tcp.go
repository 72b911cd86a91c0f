package feed

import "decoynet/internal/frame"

// skipStep is how much of what was left out is acknowledged at once.
const skipStep = frame.WindowSize / 2

// segment writes one TCP segment of a side and moves its sequence number on.
func (s *synthesis) segment(w *Flow, p *progress, side int, flags uint8, data []byte) error {
	s.ids++
	segment := frame.Segment{Flags: flags, ID: uint16(s.ids), Seq: p.seq[side], Data: data}
	if flags&frame.ACK != 0 {
		segment.Ack = p.seq[1-side]
	}
	s.buffer = w.header[side].TCP(s.buffer[:0], &segment)
	if err := s.write(s.buffer); err != nil {
		return err
	}
	if len(data) > 0 {
		p.state |= stateDue << side
	} else {
		p.state &^= stateDue << side
	}
	p.seq[side] += uint32(len(data))
	if flags&(frame.SYN|frame.FIN) != 0 {
		p.seq[side]++
	}
	return nil
}

// show writes the handshake of a flow, once.
func (s *synthesis) show(w *Flow, p *progress) error {
	if p.state&stateShown != 0 {
		return nil
	}
	p.seq = [2]uint32{uint32(w.key.Lo) * 0x9e3779b1, uint32(w.key.Lo>>8) * 0x85ebca6b}
	if err := s.segment(w, p, Client, frame.SYN, nil); err != nil {
		return err
	}
	if err := s.segment(w, p, Server, frame.SYN|frame.ACK, nil); err != nil {
		return err
	}
	if err := s.segment(w, p, Client, frame.ACK, nil); err != nil {
		return err
	}
	p.state |= stateShown
	s.open(w, p)
	return nil
}

// data writes what a side sent, and for each segment the other side's
// acknowledgement: Suricata looks at data when it is acknowledged.
func (s *synthesis) data(w *Flow, p *progress, r *record, data []byte) error {
	side := int(r.side)
	known := progressState(stateKnown) << side
	if p.state&known == 0 {
		p.state |= known
		p.offset[side] = r.offset
	}
	if p.offset[side] != r.offset {
		s.out.lose(w) // something in between did not come here
		s.out.endLost(w)
		return nil
	}
	cut := w.header[side].Cut()
	for len(data) > 0 {
		n := min(len(data), cut)
		flags := uint8(frame.ACK)
		if n == len(data) {
			flags |= frame.PSH
		}
		if err := s.segment(w, p, side, flags, data[:n]); err != nil {
			return err
		}
		p.offset[side] += uint32(n)
		if err := s.segment(w, p, 1-side, frame.ACK, nil); err != nil {
			return err
		}
		data = data[n:]
	}
	if p.state&stateListed == 0 && !s.quiet {
		p.state |= stateListed
		s.due = append(s.due, w)
	}
	return nil
}

// skip moves over what was left out of what a side sent, up to a total. The other
// side acknowledges it in steps that the window allows.
func (s *synthesis) skip(w *Flow, p *progress, side int, total uint32) error {
	known := progressState(stateKnown) << side
	if p.state&known == 0 {
		p.state |= known
		p.offset[side] = total
	}
	left := total - p.offset[side]
	p.offset[side] = total
	for ; left > skipStep; left -= skipStep {
		p.seq[side] += skipStep
		if err := s.segment(w, p, 1-side, frame.ACK, nil); err != nil {
			return err
		}
	}
	p.seq[side] += left
	return nil
}

// fin ends what a side sends.
func (s *synthesis) fin(w *Flow, p *progress, side int, total uint32) error {
	finished := progressState(stateFinished) << side
	if p.state&finished != 0 {
		return nil
	}
	p.state |= finished
	if err := s.skip(w, p, side, total); err != nil {
		return err
	}
	if err := s.segment(w, p, side, frame.FIN|frame.ACK, nil); err != nil {
		return err
	}
	if err := s.segment(w, p, 1-side, frame.ACK, nil); err != nil {
		return err
	}
	const both = stateFinished | stateFinished1
	if p.state&both != both || s.quiet {
		return nil
	}
	return s.segment(w, p, side, frame.ACK, nil)
}

// over ends a flow.
func (s *synthesis) over(w *Flow, p *progress, r *record) error {
	totals := [2]uint32{r.offset, r.other}
	var err error
	switch r.kind {
	case kindClientClosed:
		err = s.close(w, p, Client, totals)
	case kindServiceClosed:
		err = s.close(w, p, Server, totals)
	case kindClientReset:
		err = s.abort(w, p, Client, totals)
	default:
		err = s.abort(w, p, Server, totals)
	}
	if err == nil {
		s.drop(w, p)
	}
	return err
}

// close has both sides finish, as far as they have not.
func (s *synthesis) close(w *Flow, p *progress, first int, totals [2]uint32) error {
	if err := s.fin(w, p, first, totals[first]); err != nil {
		return err
	}
	return s.fin(w, p, 1-first, totals[1-first])
}

// abort has a side reset the flow, unless both have finished.
func (s *synthesis) abort(w *Flow, p *progress, side int, totals [2]uint32) error {
	const both = stateFinished | stateFinished1
	if p.state&both == both {
		return nil
	}
	for i, total := range totals {
		if p.state&(stateFinished<<i) == 0 {
			if err := s.skip(w, p, i, total); err != nil {
				return err
			}
		}
	}
	return s.reset(w, p, side)
}

// reset ends a flow at once.
func (s *synthesis) reset(w *Flow, p *progress, side int) error {
	if err := s.nudge(w, p); err != nil {
		return err
	}
	if err := s.segment(w, p, side, frame.RST|frame.ACK, nil); err != nil || s.quiet {
		return err
	}
	return s.segment(w, p, 1-side, frame.RST|frame.ACK, nil)
}
