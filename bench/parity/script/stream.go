package script

import (
	"net/netip"
	"time"

	"decoynet/deception"
)

// tuple is a conversation's key, the same for both directions.
type tuple struct {
	low, high netip.AddrPort
	transport deception.Transport
}

func tupleOf(a, b netip.AddrPort, t deception.Transport) tuple {
	if b.Compare(a) < 0 {
		a, b = b, a
	}
	return tuple{a, b, t}
}

// reader builds the script of one capture.
type reader struct {
	capture *Capture
	flows   map[tuple]*conversation // the present one of each tuple
	all     []*conversation
}

// conversation is a flow while its packets are read.
type conversation struct {
	index int
	flow  *Flow
	sides [2]stream
	over  bool // reset, or closed by both
}

// stream puts one side's bytes into order.
type stream struct {
	synced  bool   // a SYN was seen
	first   uint32 // its sequence number
	next    uint32 // expected
	waiting []segment
	fin     bool   // seen, at finAt
	finAt   uint32 // the sequence number of the FIN
	ended   bool   // the FIN's turn has come
	acked   uint32 // highest that the other side acknowledged
	acks    bool
}

type segment struct {
	seq  uint32
	data []byte
}

// before compares sequence numbers (RFC 9293, section 3.4).
func before(a, b uint32) bool { return int32(a-b) < 0 }

func (r *reader) packet(p Packet) {
	if p.TCP == nil && p.UDP == nil || p.Fragment {
		r.capture.Foreign++
		return
	}
	if p.UDP != nil {
		r.datagram(p)
		return
	}
	key := tupleOf(p.Source, p.Destination, deception.TCP)
	c := r.flows[key]
	if c == nil || c.over && p.TCP.SYN && !p.TCP.ACK {
		c = r.begin(key, p, deception.TCP)
		switch {
		case !p.TCP.SYN:
			c.flow.Why = "it starts in the middle"
		case p.TCP.ACK:
			c.flow.Client, c.flow.Server = p.Destination, p.Source
			c.flow.Why = "its first SYN is missing"
		}
	}
	if p.Cut {
		c.flow.Why = "the capture lacks ends of packets"
	}
	if !c.over {
		r.segment(c, p)
	}
}

func (r *reader) begin(key tuple, p Packet, t deception.Transport) *conversation {
	c := &conversation{index: len(r.all), flow: &Flow{Client: p.Source, Server: p.Destination, Transport: t}}
	r.flows[key] = c
	r.all = append(r.all, c)
	r.step(c, Client, Open, nil, p.Info.Timestamp)
	return c
}

func (r *reader) step(c *conversation, side int, kind Kind, data []byte, at time.Time) {
	r.capture.Steps = append(r.capture.Steps, Step{Flow: c.index, Side: side, Kind: kind, Data: data, At: at})
}

func (c *conversation) side(from netip.AddrPort) int {
	if from == c.flow.Client {
		return Client
	}
	return Server
}

func (r *reader) datagram(p Packet) {
	key := tupleOf(p.Source, p.Destination, deception.UDP)
	c := r.flows[key]
	if c == nil {
		c = r.begin(key, p, deception.UDP)
	}
	if p.Cut {
		c.flow.Why = "the capture lacks ends of packets"
	}
	r.step(c, c.side(p.Source), Data, p.Payload, p.Info.Timestamp)
}

// segment takes one TCP segment. What arrived first wins where two overlap.
func (r *reader) segment(c *conversation, p Packet) {
	side := c.side(p.Source)
	s, other := &c.sides[side], &c.sides[1-side]
	seq := p.TCP.Seq
	if p.TCP.SYN {
		if !s.synced {
			*s = stream{synced: true, first: seq, next: seq + 1}
		}
		seq++ // data of a SYN (Fast Open) begins behind it
	}
	if p.TCP.ACK && other.synced && (!other.acks || before(other.acked, p.TCP.Ack)) {
		other.acked, other.acks = p.TCP.Ack, true
	}
	if !s.synced {
		return // nothing to put it in order by; the flow is not playable
	}
	if p.TCP.RST {
		if behind := int32(seq - s.next); behind >= 0 && behind <= 1<<16 {
			r.step(c, side, Reset, nil, p.Info.Timestamp)
			c.over = true
		}
		return
	}
	if p.TCP.FIN && !s.fin {
		s.fin, s.finAt = true, seq+uint32(len(p.Payload))
	}
	if len(p.Payload) > 0 {
		s.waiting = append(s.waiting, segment{seq, p.Payload})
	}
	for _, piece := range s.take() {
		r.step(c, side, Data, piece, p.Info.Timestamp)
	}
	if s.fin && !s.ended && !before(s.next, s.finAt) {
		s.ended = true
		r.step(c, side, Fin, nil, p.Info.Timestamp)
		c.over = other.ended
	}
}

// take returns the pieces whose turn has come.
func (s *stream) take() (pieces [][]byte) {
	for moved := true; moved; {
		moved = false
		for i, w := range s.waiting {
			if before(s.next, w.seq) {
				continue
			}
			s.waiting = append(s.waiting[:i:i], s.waiting[i+1:]...)
			if known := s.next - w.seq; known < uint32(len(w.data)) {
				pieces = append(pieces, w.data[known:])
				s.next += uint32(len(w.data)) - known
			}
			moved = true
			break
		}
	}
	return pieces
}

// finish says which flows cannot be played, and takes their steps out.
func (r *reader) finish() {
	for _, c := range r.all {
		if c.flow.Why == "" && c.flow.Transport == deception.TCP {
			c.flow.Why = c.missing()
		}
		r.capture.Flows = append(r.capture.Flows, *c.flow)
	}
	kept := r.capture.Steps[:0]
	for _, s := range r.capture.Steps {
		if r.capture.Flows[s.Flow].Why == "" {
			kept = append(kept, s)
		}
	}
	r.capture.Steps = kept
}

// missing says what a TCP flow lacks; "" is nothing.
func (c *conversation) missing() string {
	if !c.sides[Server].synced {
		return "the server did not answer its SYN"
	}
	for i := range c.sides {
		s := &c.sides[i]
		end := s.next
		if s.ended {
			end++
		}
		// What follows a reset or a FIN is not waited for.
		if len(s.waiting) > 0 && !s.ended && !c.over || s.acks && before(end, s.acked) && before(s.acked, end+1<<30) && !c.over {
			return "the capture lacks bytes of it"
		}
	}
	return ""
}
