package spool

import (
	"encoding/binary"
	"os"
)

// Kinds is how many kinds of records are told apart among those that were given up.
const Kinds = 8

// Tally counts records by their kind. Kind 0 is what is not known: what was damaged,
// or given up by a program that did not look.
type Tally [Kinds]uint64

func (t *Tally) add(more *Tally) {
	for i, n := range more {
		t[i] += n
	}
}

// classifier tells a record's kind, see Config; nil where nobody asks.
type classifier func(record []byte) int

// count adds a record that is given up.
func (c classifier) count(t *Tally, record []byte) {
	if c == nil {
		return
	}
	if kind := c(record); 0 < kind && kind < Kinds {
		t[kind]++
	}
}

// frames adds records that are given up while they are in memory.
func (c classifier) frames(t *Tally, b []byte) {
	for len(b) > 0 {
		n := frameHeader + int(binary.LittleEndian.Uint32(b[4:]))
		c.count(t, b[frameHeader:n])
		b = b[n:]
	}
}

// segment adds the records of a segment, from a number on, that is given up. What
// cannot be read stays of no known kind.
func (c classifier) segment(t *Tally, g *segment, from uint64) {
	if c == nil {
		return
	}
	f, err := os.Open(g.path)
	if err != nil {
		return
	}
	defer f.Close()
	r := newFrameReader(f, segmentHeader, g.size)
	for number := g.first; number < g.end; number++ {
		record, err := r.next()
		if err != nil {
			return
		}
		if number >= from {
			c.count(t, record)
		}
	}
}
