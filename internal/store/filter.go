package store

import (
	"net/netip"
	"strings"
	"time"

	"decoynet/deception"
)

// Filter chooses sessions. Zero fields choose all.
type Filter struct {
	ID deception.SessionID
	// Since and Until choose the sessions that ran at some time in [Since,
	// Until): also one that began before Since and ended after it.
	Since, Until time.Time
	Running      *bool
	Source       netip.Prefix // the intruder's address
	// Names; all sessions of one match exactly.
	Segment, Decoy, Service string
	Scanner                 string // sessions of this known scanner
	Unknown                 bool   // sessions of nobody who is known
	// Limit is the greatest number of sessions: the newest ones or, with
	// After, the oldest behind it.
	Limit int
	// After chooses sessions that sort behind the identifier, which is the way
	// to read on where a listing stopped.
	After deception.SessionID
}

// matches checks what the statement built by where does not.
func (f *Filter) matches(s *deception.Session) bool {
	return !f.Source.IsValid() || f.Source.Contains(s.Source.Addr())
}

// where writes the filter's conditions on the columns of session, without
// those on the identifier. Bindings are those that carry the wanted names, nil
// where names do not matter.
func (f *Filter) where(d dialect, bindings []int64, a *arguments) string {
	parts := []string{"TRUE"}
	if bindings != nil {
		marks := make([]string, len(bindings))
		for i, id := range bindings {
			marks[i] = a.add(id)
		}
		parts = append(parts, "binding IN ("+strings.Join(marks, ", ")+")")
	}
	if !f.Since.IsZero() {
		parts = append(parts, "(finish >= "+a.add(f.Since.UnixNano())+" OR finish IS NULL)")
	}
	if !f.Until.IsZero() {
		parts = append(parts, "start < "+a.add(f.Until.UnixNano()))
	}
	if f.Running != nil {
		if *f.Running {
			parts = append(parts, "finish IS NULL")
		} else {
			parts = append(parts, "finish IS NOT NULL")
		}
	}
	if f.Scanner != "" {
		parts = append(parts, "binding IN (SELECT id FROM binding WHERE scanner = "+a.add(f.Scanner)+")")
	}
	if f.Unknown {
		parts = append(parts, "binding IN (SELECT id FROM binding WHERE scanner = '')")
	}
	if f.Source.IsValid() {
		parts = append(parts, d.within(a, f.Source))
	}
	return strings.Join(parts, " AND ")
}

// named tells whether names restrict the filter.
func (f *Filter) named() bool { return f.Segment != "" || f.Decoy != "" || f.Service != "" }

func (f *Filter) matchesKey(k *bindingKey) bool {
	return (f.Segment == "" || f.Segment == k.segment) &&
		(f.Decoy == "" || f.Decoy == k.decoy) &&
		(f.Service == "" || f.Service == k.service)
}

// clockSkew is by how much a session's identifier and its start may differ:
// where one clock made them, they were taken one after the other. Sessions that
// differ by more are found by an index of their own.
const clockSkew = time.Second

// bounds returns the identifiers between which all sessions lie that the filter
// chooses, except those that were long under way at Since and those with the
// flag skewed.
func (f *Filter) bounds() (from, to deception.SessionID) {
	to = lastID
	if !f.Since.IsZero() {
		from = idAt(f.Since.Add(-longSession - 2*clockSkew))
	}
	if !f.Until.IsZero() {
		to = idAt(f.Until.Add(2 * clockSkew))
	}
	return from, to
}
