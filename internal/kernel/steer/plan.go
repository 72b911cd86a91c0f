package steer

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// tag stands for a group in the kernel's tables.
type tag uint32

// state is what the kernel's tables hold. It is kept true entry by entry, also
// when a change fails in the middle, so that the next plan starts from the
// truth.
type state struct {
	prefixes map[netip.Prefix]tag
	ports    map[tag]portSet
	tags     map[uint32]tag // by group ID
	last     tag            // the last tag given out
}

func newState() *state {
	return &state{prefixes: map[netip.Prefix]tag{}, ports: map[tag]portSet{}, tags: map[uint32]tag{}}
}

// portEntry is one entry of the port table; an empty bitmap deletes it.
type portEntry struct {
	group uint32 // to name it in an error
	tag   tag
	slot  slot
	bits  bitmap
}

// prefixEntry is one entry of the address table.
type prefixEntry struct {
	group  uint32
	tag    tag
	prefix netip.Prefix
}

// change leads from a state to a desired one, in the order of its fields.
type change struct {
	openPorts    []portEntry   // new or other bitmaps
	setPrefixes  []prefixEntry // most specific first
	dropPrefixes []prefixEntry // least specific first
	dropPorts    []portEntry
	tags         map[uint32]tag // afterwards
	last         tag
}

func (c *change) empty() bool {
	return len(c.openPorts)+len(c.setPrefixes)+len(c.dropPrefixes)+len(c.dropPorts) == 0
}

// plan computes a change that no packet sees half of: if its entries are
// written one by one, each (address, transport, port) is as it was up to one
// entry, and as it shall be from there on.
//
// Where no prefix changes, port entries do that in place. Where prefixes change
// too, an address that leaves a group must not see the group's new ports, nor
// one that joins it the old: then a group with other ports gets a new tag whose
// ports are all there before the first prefix leads to it.
//
// Prefixes are set most specific first and dropped least specific first: in
// the other order an address of two new prefixes would for a moment belong to the
// wider one, and likewise an address of two dropped ones.
//
// Entries of the first three fields may as well be written at once. Those of
// dropPorts may not be among them, even in a transaction: a packet looks up twice,
// and may have its tag from before and look for its port after.
func plan(cur *state, want desired) change {
	c := change{tags: make(map[uint32]tag, len(want.groups)), last: cur.last}
	moved := prefixesDiffer(cur, want)
	for group, set := range want.groups {
		t, known := cur.tags[group]
		if !known || moved && !cur.ports[t].equal(set) {
			c.last++
			t = c.last
		}
		c.tags[group] = t
		old := cur.ports[t]
		for at, bits := range set {
			if old[at] != bits {
				c.openPorts = append(c.openPorts, portEntry{group, t, at, bits})
			}
		}
	}
	for prefix, group := range want.prefixes {
		if t, there := cur.prefixes[prefix]; !there || t != c.tags[group] {
			c.setPrefixes = append(c.setPrefixes, prefixEntry{group, c.tags[group], prefix})
		}
	}
	group := make(map[tag]uint32, len(cur.tags))
	for id, t := range cur.tags {
		group[t] = id
	}
	for prefix, t := range cur.prefixes {
		if _, stays := want.prefixes[prefix]; !stays {
			c.dropPrefixes = append(c.dropPrefixes, prefixEntry{group[t], t, prefix})
		}
	}
	live := make(map[tag]portSet, len(c.tags))
	for id, t := range c.tags {
		live[t] = want.groups[id]
	}
	for t, set := range cur.ports {
		for at := range set {
			if _, stays := live[t][at]; !stays {
				c.dropPorts = append(c.dropPorts, portEntry{group: group[t], tag: t, slot: at})
			}
		}
	}
	slices.SortFunc(c.openPorts, comparePorts)
	slices.SortFunc(c.dropPorts, comparePorts)
	slices.SortFunc(c.setPrefixes, func(a, b prefixEntry) int { return -compareLength(a, b) })
	slices.SortFunc(c.dropPrefixes, compareLength)
	return c
}

func prefixesDiffer(cur *state, want desired) bool {
	if len(cur.prefixes) != len(want.prefixes) {
		return true
	}
	for prefix, group := range want.prefixes {
		is, there := cur.prefixes[prefix]
		shall, known := cur.tags[group]
		if !there || !known || is != shall {
			return true
		}
	}
	return false
}

func compareLength(a, b prefixEntry) int {
	return cmp.Or(cmp.Compare(a.prefix.Bits(), b.prefix.Bits()), a.prefix.Addr().Compare(b.prefix.Addr()))
}

func comparePorts(a, b portEntry) int {
	return cmp.Or(cmp.Compare(a.tag, b.tag), cmp.Compare(a.slot.Transport, b.slot.Transport),
		cmp.Compare(a.slot.Index, b.slot.Index))
}

// setPort and the three below record that one entry was written.
func (s *state) setPort(e portEntry) {
	set := s.ports[e.tag]
	if set == nil {
		set = portSet{}
		s.ports[e.tag] = set
	}
	set[e.slot] = e.bits
}

func (s *state) dropPort(e portEntry) {
	delete(s.ports[e.tag], e.slot)
	if len(s.ports[e.tag]) == 0 {
		delete(s.ports, e.tag)
	}
}

func (s *state) setPrefix(e prefixEntry) { s.prefixes[e.prefix] = e.tag }

func (s *state) dropPrefix(e prefixEntry) { delete(s.prefixes, e.prefix) }

// after returns the state that a change leads to. The old one stays as it is;
// the two share what does not differ.
func (s *state) after(c change) *state {
	next := &state{
		prefixes: s.prefixes, tags: c.tags, last: c.last,
		ports: make(map[tag]portSet, len(s.ports)),
	}
	if len(c.setPrefixes)+len(c.dropPrefixes) > 0 {
		next.prefixes = maps.Clone(s.prefixes)
	}
	for t, set := range s.ports {
		next.ports[t] = maps.Clone(set)
	}
	for _, e := range c.openPorts {
		next.setPort(e)
	}
	for _, e := range c.setPrefixes {
		next.setPrefix(e)
	}
	for _, e := range c.dropPrefixes {
		next.dropPrefix(e)
	}
	for _, e := range c.dropPorts {
		next.dropPort(e)
	}
	return next
}

// slots returns how many entries the port table holds.
func (s *state) slots() int {
	n := 0
	for _, set := range s.ports {
		n += len(set)
	}
	return n
}

func (s *state) status() Status {
	st := Status{Groups: len(s.tags), Prefixes: len(s.prefixes)}
	for _, t := range s.tags {
		st.Ports += s.ports[t].len()
	}
	return st
}

// failedGroups collects the groups that a joined error names.
func failedGroups(err error) []uint32 {
	failed := map[uint32]bool{}
	var walk func(error)
	walk = func(err error) {
		switch e := err.(type) {
		case *GroupError:
			failed[e.Group] = true
		case interface{ Unwrap() []error }:
			for _, err := range e.Unwrap() {
				walk(err)
			}
		}
	}
	walk(err)
	return slices.Sorted(maps.Keys(failed))
}
