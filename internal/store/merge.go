package store

import (
	"cmp"
	"net/netip"

	"decoynet/deception"
)

// What is told of one session, by whom:
//
//   - the ingress gateway, of every flow that reached it: it knows the service
//     and what that saw as its peer;
//   - the agent, of a flow that the tunnel lost (gateway_lost): it knows how much
//     passed and when it broke, and nothing of the service;
//   - an egress on another machine, what the service saw (deception.SourceSeen);
//   - the store itself, when a process died (lost).
//
// Reports come in any order and more than once. A row takes its two halves, who
// talked with whom and how it ended, each from the report that knows it best;
// from the first one that was written where two know it equally well.

// certainty ranks what a report says of the session's end.
func certainty(s *deception.Session) int {
	switch {
	case s.Running():
		return 0
	case s.Reason == deception.EndLost: // by default: nobody came to say how
		return 1
	case s.Reason == deception.EndGateway: // how the tunnel ended
		return 2
	}
	return 3
}

// knows tells whether a report's author reached the service.
func (s *stored) knows() bool {
	if s.flags&flagSeen != 0 {
		return s.flags&flagKnew != 0
	}
	return s.DestinationNAT.IsValid()
}

// merge returns the row that comes of another report on the session, and whether
// that changed anything.
func merge(have, got *stored) (out stored, changed bool) {
	out = *have
	ends := cmp.Compare(certainty(&got.Session), certainty(&have.Session))
	if knows := cmp.Compare(bit(got.knows()), bit(have.knows())); knows > 0 || knows == 0 && ends > 0 {
		out.takeParties(got)
		changed = true
	}
	if ends > 0 {
		out.End, out.Reason, out.origin = got.End, got.Reason, 0
		out.SourceBytes, out.DestinationBytes = got.SourceBytes, got.DestinationBytes
		out.SourceHead = firstOf(got.SourceHead, have.SourceHead)
		out.DestinationHead = firstOf(got.DestinationHead, have.DestinationHead)
		changed = true
	}
	if !out.Running() && out.End.Before(out.Start) { // two clocks
		out.End = out.Start
	}
	return out, changed
}

// takeParties sets who talked with whom. What an egress saw stays.
func (s *stored) takeParties(from *stored) {
	s.Start, s.binding = from.Start, from.binding
	s.Source, s.Destination = from.Source, from.Destination
	s.flags = s.flags&flagSeen | from.flags&flagSkewed
	if s.flags&flagSeen != 0 {
		s.flags |= bit(from.knows()) * flagKnew
		return
	}
	s.SourceNAT, s.DestinationNAT, s.SourceMode = from.SourceNAT, from.DestinationNAT, from.SourceMode
}

// see sets what an egress saw, as far as it says, and tells whether that is new.
func (s *stored) see(seen *deception.SourceSeen) (changed bool) {
	before := *s
	if s.flags&flagSeen == 0 {
		s.flags |= flagSeen | bit(s.knows())*flagKnew
	}
	s.SourceMode = min(seen.SourceMode, deception.SourceMasquerade)
	s.SourceNAT = known(seen.SourceNAT, s.SourceNAT)
	s.DestinationNAT = known(seen.DestinationNAT, s.DestinationNAT)
	return s.flags != before.flags || s.SourceMode != before.SourceMode ||
		s.SourceNAT != before.SourceNAT || s.DestinationNAT != before.DestinationNAT
}

func known(a, otherwise netip.AddrPort) netip.AddrPort {
	if a.IsValid() {
		return a
	}
	return otherwise
}

func firstOf(a, b []byte) []byte {
	if len(a) > 0 {
		return a
	}
	return b
}

func bit(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

// tally is what sessions add to the totals of their binding.
type tally struct {
	ended          int64
	up, down, last int64 // bytes each way; start of the newest, ns
}

// countedBytes is the most that one session adds each way, 16 TiB, so that what
// somebody invents cannot make the totals overflow.
const countedBytes = 1 << 44

func counted(bytes uint64) int64 { return int64(min(bytes, countedBytes)) }

// tally is what the session adds, nothing while it runs.
func (s *stored) tally() tally {
	if s.Running() {
		return tally{}
	}
	return tally{1, counted(s.SourceBytes), counted(s.DestinationBytes), nanos(s.Start)}
}

func (t *tally) add(o tally) {
	t.ended += o.ended
	t.up += o.up
	t.down += o.down
	t.last = max(t.last, o.last)
}

// remove takes back what add added, except for last.
func (t *tally) remove(o tally) {
	t.ended -= o.ended
	t.up -= o.up
	t.down -= o.down
}
