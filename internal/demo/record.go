package demo

import (
	"maps"
	"net/netip"
	"slices"

	"decoynet/deception"
)

// reach is how far a flow has come, as the intruder's card saw it.
type reach uint8

const (
	begun       reach = iota + 1 // a SYN went out
	accepted                     // a SYN-ACK came back
	established                  // and was acknowledged; or an answer to a datagram came
)

// record is what the intruder's card has seen.
type record struct {
	own    []netip.Addr         // the intruder's addresses
	began  []flow               // every flow the intruder began, in order, once
	stage  map[flow]reach       // how far it has come
	claims map[netip.Addr][]mac // who was said to own an address
}

func newRecord(own []netip.Addr) record {
	return record{own: own, stage: map[flow]reach{}, claims: map[netip.Addr][]mac{}}
}

// note takes a frame down.
func (r *record) note(f frame) {
	switch {
	case f.owner.IsValid():
		if !slices.Contains(r.own, f.owner) && !slices.Contains(r.claims[f.owner], f.at) {
			r.claims[f.owner] = append(r.claims[f.owner], f.at)
		}
	case slices.Contains(r.own, f.Source.Addr()):
		r.sent(f)
	case slices.Contains(r.own, f.Destination.Addr()):
		r.received(f)
	}
}

func (r *record) sent(f frame) {
	switch {
	case f.Transport == deception.UDP, f.syn && !f.ack:
		if r.stage[f.flow] == 0 {
			r.stage[f.flow] = begun
			r.began = append(r.began, f.flow)
		}
	case f.ack && !f.rst && r.stage[f.flow] == accepted:
		r.stage[f.flow] = established
	}
}

// received takes an answer down. A SYN-ACK that is answered by RST alone (a
// scanner that has lost patience) makes no connection.
func (r *record) received(f frame) {
	back := f.reversed()
	switch {
	case r.stage[back] != begun:
	case f.Transport == deception.UDP:
		r.stage[back] = established
	case f.syn && f.ack:
		r.stage[back] = accepted
	}
}

func (r *record) clone() record {
	out := *r
	out.began, out.stage, out.claims = slices.Clone(r.began), maps.Clone(r.stage), map[netip.Addr][]mac{}
	for a, m := range r.claims {
		out.claims[a] = slices.Clone(m)
	}
	return out
}

// with returns the record of both cards. Who answers for an address is told by
// r's network alone.
func (r record) with(other record) record {
	out := r.clone()
	out.own = slices.Concat(r.own, other.own)
	out.began = append(out.began, other.began...)
	maps.Copy(out.stage, other.stage)
	return out
}
