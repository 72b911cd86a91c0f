package strip

import (
	"math"

	"decoynet/deception"
)

// takeDatagram takes a packet of UDP. Each datagram of a client begins with the
// header; answers have none.
func (s *Stripper) takeDatagram(p *Packet) {
	at := p.At
	f, side := s.find()
	if s.plain != nil {
		s.takePlainDatagram(f, side, p)
		return
	}
	h, n, passed := s.readHeader(s.seg.Payload, deception.UDP)
	switch {
	case n > 0 && passed != nil:
		*passed++
		return
	case n > 0 && (f == nil || side == Server || f.Header != h):
		if f != nil {
			s.end(f, at, deception.EndLost)
			s.forget(f)
		}
		f, side = &flow{key: key{s.seg.Source, s.seg.Destination, s.seg.Transport}, last: at}, Client
		f.From, f.To, f.Start, f.Header = s.seg.Source, s.seg.Destination, at, h
		if !s.begin(f) {
			return
		}
		s.flows[f.key] = f
		s.datagrams.push(f)
	case n == 0 && (f == nil || side == Client):
		s.stats.NoHeaders++
		return
	}
	f.last = at
	s.touch(f)
	out := s.seg
	out.Payload = out.Payload[n:]
	out.Source, out.Destination = f.Header.Source, f.Header.Destination
	if side == Server {
		out.Source, out.Destination = out.Destination, out.Source
	}
	f.Bytes[side] += uint64(len(out.Payload))
	if ip4Size+udpSize+len(out.Payload) > math.MaxUint16 {
		s.stats.Malformed++ // an answer over IPv6 that IPv4 has no room for
		return
	}
	s.emit(f, side, p, &out)
}

// takePlainDatagram does so where flows have no header.
func (s *Stripper) takePlainDatagram(f *flow, side int, p *Packet) {
	if f == nil {
		if f = s.openPlain(p.At); f == nil {
			s.stats.Stray++
			return
		}
		side = Client
	}
	f.last = p.At
	s.touch(f)
	f.Bytes[side] += uint64(len(s.seg.Payload))
	s.emit(f, side, p, &s.seg)
}
