package store

import (
	"encoding/binary"
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
func (f *Filter) where(bindings []int64) (cond string, args []any) {
	var parts []string
	add := func(text string, values ...any) {
		parts = append(parts, text)
		args = append(args, values...)
	}
	if bindings != nil {
		add("binding IN (" + marks(len(bindings)) + ")")
		for _, id := range bindings {
			args = append(args, id)
		}
	}
	if !f.Since.IsZero() {
		add("(finish >= ? OR finish IS NULL)", f.Since.UnixNano())
	}
	if !f.Until.IsZero() {
		add("start < ?", f.Until.UnixNano())
	}
	if f.Running != nil {
		if *f.Running {
			add("finish IS NULL")
		} else {
			add("finish IS NOT NULL")
		}
	}
	switch {
	case !f.Source.IsValid():
	case f.Source.Addr().Is4():
		r := deception.RangeOf(f.Source)
		add("source BETWEEN ? AND ?", endpoint4(r.From, 0), endpoint4(r.To, 65535))
	default:
		add("typeof(source) = 'text'")
	}
	return strings.Join(parts, " AND "), args
}

func endpoint4(a netip.Addr, port int64) int64 {
	b := a.As4()
	return int64(binary.BigEndian.Uint32(b[:]))<<16 | port
}

func marks(n int) string { return strings.TrimSuffix(strings.Repeat("?,", n), ",") }

// named tells whether names restrict the filter.
func (f *Filter) named() bool { return f.Segment != "" || f.Decoy != "" || f.Service != "" }

func (f *Filter) matchesKey(k *bindingKey) bool {
	return (f.Segment == "" || f.Segment == k.segment) &&
		(f.Decoy == "" || f.Decoy == k.decoy) &&
		(f.Service == "" || f.Service == k.service)
}

// clockSlack is by how much a session's identifier and its start may differ:
// they are taken from the clock one after the other.
const clockSlack = 2 * time.Second

// bounds returns the identifiers between which all sessions lie that the filter
// chooses, except those that were long under way at Since.
func (f *Filter) bounds() (from, to deception.SessionID) {
	to = lastID
	if !f.Since.IsZero() {
		from = idAt(f.Since.Add(-longSession - clockSlack))
	}
	if !f.Until.IsZero() {
		to = idAt(f.Until.Add(clockSlack))
	}
	return from, to
}
