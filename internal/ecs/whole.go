package ecs

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"decoynet/deception"
)

// WholeSession is a session with what was found in it.
type WholeSession struct {
	Session  deception.Session
	Findings []deception.Finding // of it; the newest ones, where there are more
}

// wholeDocument is what WriteJSON writes.
type wholeDocument struct {
	Session  SessionDocument   `json:"session"`
	Findings []FindingDocument `json:"findings"`
	Notes    []string          `json:"notes,omitempty"`
}

// WriteJSON writes the session as one object: its document, those of its findings in
// the order of time, and what may be missing.
func (s *WholeSession) WriteJSON(w io.Writer) error {
	d := wholeDocument{Session: Document(&s.Session), Findings: []FindingDocument{}, Notes: s.notes()}
	for _, f := range s.inOrder() {
		d.Findings = append(d.Findings, NewFindingDocument(f))
	}
	j := NewJSON(w)
	j.enc.SetIndent("", "  ")
	if err := j.write(d); err != nil {
		return fmt.Errorf("write session %s: %w", s.Session.ID, err)
	}
	return nil
}

func (s *WholeSession) inOrder() []*deception.Finding {
	out := make([]*deception.Finding, len(s.Findings))
	for i := range s.Findings {
		out[i] = &s.Findings[i]
	}
	slices.SortStableFunc(out, func(a, b *deception.Finding) int { return a.Time.Compare(b.Time) })
	return out
}

// notes say what may be missing.
func (s *WholeSession) notes() (notes []string) {
	a := s.Session.Analysis
	partial := a != nil && a.Partial
	var lost uint64
	for i := range s.Findings {
		partial, lost = partial || s.Findings[i].Partial, max(lost, s.Findings[i].FeedLost)
	}
	if a != nil && a.Findings > uint64(len(s.Findings)) {
		notes = append(notes, fmt.Sprintf("the newest %d findings of %d; --limit 0 for all", len(s.Findings), a.Findings))
	}
	if partial {
		notes = append(notes, "Suricata was not shown all of this session: alerts and records may be missing")
	}
	if lost > 0 && !partial {
		notes = append(notes, fmt.Sprintf("by then %d other flows had not been shown to Suricata, all in all", lost))
	}
	return notes
}

// WriteText writes the session for a person.
func (s *WholeSession) WriteText(w io.Writer, opts TableOptions) error {
	opts = opts.withDefaults()
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, line := range s.head(&opts) {
		if line[1] != "" {
			fmt.Fprintf(t, "%s\t%s\n", line[0], line[1])
		}
	}
	fmt.Fprintln(t)
	for _, m := range s.moments() {
		fmt.Fprintf(t, "%s\t%s\t%s\n", s.offset(m.at), m.what, m.text)
	}
	for i, note := range s.notes() {
		if i == 0 {
			fmt.Fprintln(t)
		}
		fmt.Fprintf(t, "! %s\n", note)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write session %s: %w", s.Session.ID, err)
	}
	return nil
}

// head is who, where, how much and how it ended; lines without text are left out.
func (s *WholeSession) head(o *TableOptions) [][2]string {
	v := &s.Session
	state := state(o, v)
	if v.Running() {
		state += " for " + o.duration(v)
	} else {
		state += " after " + o.duration(v)
	}
	source := endpoint(v.Source)
	if v.Scanner != "" {
		source += ", known scanner " + name(v.Scanner)
	}
	decoy := fmt.Sprintf("%s  %s %s in segment %s", endpoint(v.Destination), v.Transport, name(v.Decoy), name(v.Segment))
	if v.Node != "" {
		decoy += " on node " + name(v.Node)
	}
	service := "none was reached"
	if v.DestinationNAT.IsValid() {
		service = fmt.Sprintf("%s  %s by path %s, saw %s (%s)", endpoint(v.DestinationNAT), name(v.Service), name(string(v.Path)),
			cmp.Or(endpoint(v.SourceNAT), "-"), v.SourceMode)
	}
	lines := [][2]string{
		{"session", v.ID.String()},
		{"started", o.time(v.Start)},
		{"state", state},
		{"source", source},
		{"decoy", decoy},
		{"service", service},
		{"bytes", fmt.Sprintf("%d from the intruder, %d from the service", v.SourceBytes, v.DestinationBytes)},
		{"community id", CommunityID(v.Transport, v.Source, v.Destination)},
	}
	if a := v.Analysis; a != nil {
		lines = append(lines, analysisLines(a)...)
	}
	return lines
}

func analysisLines(a *deception.Analysis) [][2]string {
	alerts := fmt.Sprint(a.Alerts)
	if worst := severity(a.Severity); worst != "" {
		alerts += ", the worst of severity " + worst
	}
	text := func(s string) string { return Printable([]byte(s), said) }
	return [][2]string{
		{"protocol", text(protocol(a.Application))},
		{"alerts", alerts},
		{"user agent", text(a.UserAgent)},
		{"server name", text(a.ServerName)},
		{"user", text(a.User)},
		{"JA3", text(a.JA3)},
		{"JA4", text(a.JA4)},
		{"SSH client", text(a.SSH)},
		{"HASSH", text(a.HASSH)},
	}
}

// moment is a line of the timeline. A side's first bytes have no time of their own.
type moment struct {
	at         time.Time
	what, text string
}

// moments are in the order of time, except that the start is the first: Suricata's
// clock may be another one.
func (s *WholeSession) moments() []moment {
	v := &s.Session
	out := []moment{{at: v.Start, what: "start"}}
	for _, side := range []struct {
		what string
		head []byte
	}{{"sent", v.SourceHead}, {"received", v.DestinationHead}} {
		if len(side.head) > 0 {
			out = append(out, moment{what: side.what, text: Printable(side.head, said)})
		}
	}
	ended := v.Running()
	for _, f := range s.inOrder() {
		if !ended && f.Time.After(v.End) {
			out, ended = append(out, s.end()), true
		}
		m := moment{at: f.Time, what: name(f.Kind), text: FindingLine(f, said)}
		if f.Alert != nil {
			m.what = strings.ToUpper(m.what)
			if f.Scanner != "" {
				m.what = "rule"
			}
			m.text = strings.TrimSpace(fmt.Sprintf("severity %s  %s", cmp.Or(severity(f.Alert.Severity), "-"), m.text))
		}
		out = append(out, m)
	}
	if !ended {
		out = append(out, s.end())
	}
	return out
}

func (s *WholeSession) end() moment {
	return moment{at: s.Session.End, what: "end", text: s.Session.Reason.String()}
}

// offset is how long after the session's start something was.
func (s *WholeSession) offset(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	d := at.Sub(s.Session.Start)
	return fmt.Sprintf("%+.3fs", d.Seconds())
}
