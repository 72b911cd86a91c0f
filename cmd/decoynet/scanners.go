package main

import (
	"slices"
	"sync/atomic"

	"decoynet/deception"
)

// marker is the recorder that everything on a node records by. It puts the names
// of known scanners on what they did, and so is the one place that sees it all:
// relayed, in the kernel, from agents, and sensed.
//
// What counts is the time of the contact: a scanner is a stranger from the moment
// at which its time is over, whether or not a document is applied then.
type marker struct {
	recorder
	known atomic.Pointer[deception.ScannerTable] // nil where nobody is known
}

// know makes the state's scanners the known ones.
func (m *marker) know(s *deception.State) {
	if len(s.Scanners) == 0 {
		m.known.Store(nil)
		return
	}
	m.known.Store(deception.NewScannerTable(slices.Clone(s.Scanners)))
}

func (m *marker) Started(s *deception.Session) { m.recorder.Started(m.marked(s)) }

func (m *marker) Ended(s *deception.Session) { m.recorder.Ended(m.marked(s)) }

// marked returns the session with its mark: a copy, as others may be reading it.
func (m *marker) marked(s *deception.Session) *deception.Session {
	name := m.known.Load().Match(s.Source.Addr(), s.Transport, s.Destination.Port(), s.Start)
	if name == "" || s.Scanner != "" {
		return s
	}
	out := *s
	out.Scanner = name
	return &out
}

// Probe marks a probe that is not marked yet, as far as can be told of it as a
// whole: who sensed it saw each port.
func (m *marker) Probe(p *deception.Probe) {
	if p.Scanner == "" {
		if name := m.known.Load().MatchProbe(p); name != "" {
			out := *p
			out.Scanner = name
			p = &out
		}
	}
	m.recorder.Probe(p)
}

// Finding marks what was found of a known scanner. What counts is when its session
// started, as for the session itself.
func (m *marker) Finding(f *deception.Finding) {
	if f.Scanner == "" {
		at := f.Time
		if !f.Session.IsZero() {
			at = f.Session.Time()
		}
		if name := m.known.Load().Match(f.Source.Addr(), f.Transport, f.Destination.Port(), at); name != "" {
			out := *f
			out.Scanner = name
			f = &out
		}
	}
	m.recorder.Finding(f)
}
