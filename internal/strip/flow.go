package strip

import (
	"errors"

	"decoynet/deception"
	"decoynet/internal/proxyheader"
)

// flow is a flow between two gateways from its first packet on.
type flow struct {
	Flow
	key          key
	began, ended bool  // what the sink was told
	last         int64 // when its last packet came

	// Of TCP. base is the sequence number of a side's first byte, next the one
	// behind the last that is known of; for a side that has said nothing, neither
	// is known.
	base, next [2]uint32
	spoke      [2]bool
	missing    [2][]span // before next
	fin        [2]bool
	end        [2]uint32 // the number of a side's FIN
	firstFIN   int       // whose came first, where there is one
	acked      bool      // the client's acknowledgement of the handshake was given to the sink
	size       uint32    // of the header; base[Client]+size is where the data begins
	far        bool      // the client's numbers are so far on that the header cannot come again

	hole      int64  // when the server was seen to have what is not in head; 0: never
	upTo      uint32 // up to where
	head      []byte // what is known of the client's first bytes, without a hole
	held      []held // until the header is whole, or what they acknowledge was captured
	heldBytes int

	in         *list
	prev, succ *flow
}

// held is a packet that waits for the header to be whole.
type held struct {
	packet Packet
	side   int
}

// heldCost is what a held packet costs besides its bytes.
const heldCost = 96

func isShort(err error) bool { return errors.Is(err, proxyheader.ErrShort) }

// takeSegment takes a packet of TCP.
func (s *Stripper) takeSegment(p *Packet) {
	f, side := s.find()
	if s.seg.Has(FlagSYN) && !s.seg.Has(FlagACK|FlagRST) && (f == nil || s.replaces(f, side)) {
		if f != nil {
			s.end(f, p.At, f.lostReason())
			if !f.began {
				s.stats.Early++
			}
			s.forget(f)
		}
		f, side = s.open(p.At), Client
	}
	if f == nil {
		s.stats.Stray++
		return
	}
	f.last = p.At
	if f.in != &s.waiting {
		s.touch(f)
		s.inOrder(f, side, p)
		return
	}
	s.await(f, side, p)
}

// replaces tells whether the SYN at hand begins another flow between the same
// ports. One that is sent again has the same number.
func (s *Stripper) replaces(f *flow, side int) bool {
	return side == Server || s.seg.Seq+1 != f.base[Client]
}

// open begins to follow a flow. It returns nil for one that is of no use.
func (s *Stripper) open(at int64) *flow {
	if s.plain != nil {
		return s.openPlain(at)
	}
	for s.waiting.n >= s.limits.Waiting {
		s.pass(s.waiting.first(), &s.stats.Overflow)
	}
	f := &flow{key: key{s.seg.Source, s.seg.Destination, s.seg.Transport}}
	f.From, f.To, f.Start = s.seg.Source, s.seg.Destination, at
	s.flows[f.key] = f
	s.waiting.push(f)
	return f
}

// openPlain does so where flows have no header.
func (s *Stripper) openPlain(at int64) *flow {
	if !s.plain(s.seg.Transport, s.seg.Destination) {
		return nil
	}
	f := &flow{key: key{s.seg.Source, s.seg.Destination, s.seg.Transport}, last: at}
	f.From, f.To, f.Start = s.seg.Source, s.seg.Destination, at
	f.Header = proxyheader.Header{Transport: s.seg.Transport, Source: s.seg.Source, Destination: s.seg.Destination}
	if !s.begin(f) {
		return nil
	}
	s.flows[f.key] = f
	if s.seg.Transport == deception.UDP {
		s.datagrams.push(f)
	} else {
		s.running.push(f)
	}
	return f
}

// touch puts the flow behind those that moved longer ago.
func (s *Stripper) touch(f *flow) {
	l := f.in
	f.unlink()
	l.push(f)
}

// await takes a packet of a flow whose header is not whole.
func (s *Stripper) await(f *flow, side int, p *Packet) {
	seg := &s.seg
	f.learn(seg, side)
	if seg.Has(FlagRST) {
		s.pass(f, &s.stats.Early)
		return
	}
	if !s.hold(f, side, p) {
		return
	}
	if side == Client && f.extend(seg) {
		f.extendFromHeld()
	}
	if len(f.head) > 0 {
		h, n, passed := s.readHeader(f.head, deception.TCP)
		if passed != nil {
			s.pass(f, passed)
			return
		}
		if n > 0 {
			f.Header, f.size = h, uint32(n)
			s.whole(f)
			return
		}
	}
	// The server has what we have not: it will not be sent again.
	if f.hole = f.lacks(seg, side, f.hole, p.At); f.hole != 0 && p.At-f.hole > int64(lateness) {
		s.pass(f, &s.stats.Holes)
		return
	}
	if f.fin[Client] && f.fin[Server] {
		s.pass(f, &s.stats.Early)
	}
}

// lacks returns since when a part of the header is missing that the server has, 0
// where none is.
func (f *flow) lacks(seg *Segment, side int, since, at int64) int64 {
	known := f.base[Client] + uint32(len(f.head))
	if since != 0 && int32(f.upTo-known) <= 0 {
		since = 0
	}
	if side == Server && seg.Has(FlagACK) && int32(seg.Ack-known) > 0 && !f.fin[Client] {
		f.upTo = seg.Ack
		if since == 0 {
			since = at
		}
	}
	return since
}

// learn notes where the numbers of a side begin.
func (f *flow) learn(seg *Segment, side int) {
	if seg.Has(FlagSYN) || !f.spoke[side] {
		first := seg.Seq
		if seg.Has(FlagSYN) {
			first++
		}
		if !f.spoke[side] || f.base[side] != first && side == Server && !f.began {
			f.base[side], f.next[side], f.spoke[side] = first, first, true
		}
	}
	if seg.Has(FlagFIN) && !f.fin[side] {
		if !f.fin[1-side] {
			f.firstFIN = side
		}
		f.fin[side], f.end[side] = true, seg.Seq+uint32(len(seg.Payload))
		if seg.Has(FlagSYN) {
			f.end[side]++
		}
	}
}

// hold keeps a copy of the packet. False means that the flow is forgotten, for
// want of room.
func (s *Stripper) hold(f *flow, side int, p *Packet) bool {
	cost := len(s.seg.whole) + heldCost
	for f.heldBytes+cost <= s.limits.FlowBytes && s.stats.Held+cost > s.limits.Held {
		oldest := s.waiting.first()
		s.pass(oldest, &s.stats.Overflow)
		if oldest == f {
			return false
		}
	}
	if !s.keep(f, side, p) {
		s.pass(f, &s.stats.Overflow)
		return false
	}
	return true
}

func (s *Stripper) release(f *flow) {
	s.stats.Held -= f.heldBytes
	f.held, f.heldBytes, f.head = nil, 0, nil
}

// extend adds to the client's first bytes what follows them without a hole.
func (f *flow) extend(seg *Segment) bool {
	first := seg.Seq
	if seg.Has(FlagSYN) {
		first++
	}
	skip := int64(int32(f.base[Client] + uint32(len(f.head)) - first))
	if skip < 0 || skip >= int64(len(seg.Payload)) || len(f.head) >= proxyheader.MaxSize {
		return false
	}
	fresh := seg.Payload[skip:]
	f.head = append(f.head, fresh[:min(len(fresh), proxyheader.MaxSize-len(f.head))]...)
	return true
}

// extendFromHeld does so with what came before its turn.
func (f *flow) extendFromHeld() {
	var seg Segment
	for again := true; again; {
		again = false
		for i := range f.held {
			h := &f.held[i]
			if h.side == Client && seg.parse(&h.packet) == fine && f.extend(&seg) {
				again = true
			}
		}
	}
}

// whole gives out a flow whose header is whole, with all that has waited.
func (s *Stripper) whole(f *flow) {
	waited := f.held
	s.release(f)
	f.unlink()
	if !s.begin(f) {
		return
	}
	s.running.push(f)
	f.next[Client] = f.base[Client]
	f.fin = [2]bool{}
	for i := range waited {
		h := &waited[i]
		if s.seg.parse(&h.packet) == fine && s.flows[f.key] == f {
			s.inOrder(f, h.side, &h.packet)
		}
	}
}

// idleReason says how a flow ended of which nothing comes any more.
func (f *flow) idleReason() deception.EndReason {
	if f.fin[Client] || f.fin[Server] {
		return f.closeReason()
	}
	return deception.EndIdle
}

// lostReason says how a flow ended whose ports another one takes.
func (f *flow) lostReason() deception.EndReason {
	if f.fin[Client] || f.fin[Server] {
		return f.closeReason()
	}
	return deception.EndLost
}

func (f *flow) closeReason() deception.EndReason {
	if f.firstFIN == Client {
		return deception.EndClientClosed
	}
	return deception.EndServiceClosed
}

// list is a ring of flows.
type list struct {
	root flow // succ is the first, prev the last
	n    int
}

func (l *list) init() { l.root.prev, l.root.succ = &l.root, &l.root }

func (l *list) first() *flow {
	if l.n == 0 {
		return nil
	}
	return l.root.succ
}

// push adds a flow that is in no list at the end.
func (l *list) push(f *flow) {
	f.in, f.prev, f.succ = l, l.root.prev, &l.root
	f.prev.succ, l.root.prev = f, f
	l.n++
}

// unlink takes the flow out of its list, if it is in one.
func (f *flow) unlink() {
	if f.in == nil {
		return
	}
	f.prev.succ, f.succ.prev = f.succ, f.prev
	f.in.n--
	f.in, f.prev, f.succ = nil, nil, nil
}
