package ecs

import (
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"decoynet/deception"
)

// TableOptions say how a table looks.
type TableOptions struct {
	Wide     bool
	Location *time.Location   // of times; nil stands for time.Local
	Now      func() time.Time // for the age of running sessions; nil stands for time.Now
}

// Table writes sessions as plain text in columns: no colours, no frames, so
// that it reads the same in a terminal, a file and grep. The header is written
// once. A column is as wide as the widest cell so far; what was written already
// stays as it is.
type Table struct{ grid[deception.Session] }

// grid is a table of some kind of thing.
type grid[T any] struct {
	w       io.Writer
	opts    TableOptions
	columns []column[T]
	widths  []int
	pending [][]string
	begun   bool
}

// pendingRows are looked at together to find the columns' widths.
const pendingRows = 500

// excerpt is how many columns the first bytes of a side may take.
const excerpt = 60

type column[T any] struct {
	title string
	width int // for which the column is prepared
	right bool
	cell  func(*TableOptions, *T) string
}

var narrow = []column[deception.Session]{
	{"TIME", 23, false, func(o *TableOptions, s *deception.Session) string { return o.time(s.Start) }},
	{"SOURCE", 21, false, func(_ *TableOptions, s *deception.Session) string { return endpoint(s.Source) }},
	{"DECOY", 21, false, func(_ *TableOptions, s *deception.Session) string { return endpoint(s.Destination) }},
	{"SERVICE", 8, false, func(_ *TableOptions, s *deception.Session) string { return name(s.Service) }},
	{"STATE", 14, false, state},
	{"BYTES", 9, true, func(_ *TableOptions, s *deception.Session) string {
		return size(s.SourceBytes) + "/" + size(s.DestinationBytes)
	}},
	{"DURATION", 8, true, (*TableOptions).duration},
}

var wide = append(append([]column[deception.Session]{{"ID", 36, false, func(_ *TableOptions, s *deception.Session) string { return s.ID.String() }}}, narrow...),
	column[deception.Session]{"SEEN AS", 21, false, func(_ *TableOptions, s *deception.Session) string { return endpoint(s.SourceNAT) }},
	column[deception.Session]{"SERVICE ADDRESS", 21, false, func(_ *TableOptions, s *deception.Session) string { return endpoint(s.DestinationNAT) }},
	column[deception.Session]{"TRANSPORT", 9, false, func(_ *TableOptions, s *deception.Session) string { return s.Transport.String() }},
	column[deception.Session]{"DECOY NAME", 10, false, func(_ *TableOptions, s *deception.Session) string { return name(s.Decoy) }},
	column[deception.Session]{"SEGMENT", 8, false, func(_ *TableOptions, s *deception.Session) string { return name(s.Segment) }},
	column[deception.Session]{"PATH", 6, false, func(_ *TableOptions, s *deception.Session) string { return name(string(s.Path)) }},
	column[deception.Session]{"SOURCE MODE", 11, false, func(_ *TableOptions, s *deception.Session) string { return s.SourceMode.String() }},
	column[deception.Session]{"SCANNER", 7, false, func(_ *TableOptions, s *deception.Session) string { return name(s.Scanner) }},
	analysed("PROTOCOL", false, func(a *deception.Analysis) string { return name(protocol(a.Application)) }),
	analysed("ALERTS", true, func(a *deception.Analysis) string { return strconv.FormatUint(a.Alerts, 10) }),
	analysed("SEV", true, func(a *deception.Analysis) string { return severity(a.Severity) }),
	analysed("USER AGENT", false, func(a *deception.Analysis) string { return Printable([]byte(a.UserAgent), excerpt) }),
	analysed("JA4", false, func(a *deception.Analysis) string { return name(a.JA4) }),
	analysed("HASSH", false, func(a *deception.Analysis) string { return name(a.HASSH) }),
	analysed("SERVER NAME", false, func(a *deception.Analysis) string { return Printable([]byte(a.ServerName), excerpt) }),
	analysed("USER", false, func(a *deception.Analysis) string { return Printable([]byte(a.User), excerpt) }),
	column[deception.Session]{"COMMUNITY ID", 30, false, func(_ *TableOptions, s *deception.Session) string {
		return CommunityID(s.Transport, s.Source, s.Destination)
	}},
	column[deception.Session]{"SENT", 10, false, func(_ *TableOptions, s *deception.Session) string { return Printable(s.SourceHead, excerpt) }},
	column[deception.Session]{"RECEIVED", 10, false, func(_ *TableOptions, s *deception.Session) string { return Printable(s.DestinationHead, excerpt) }},
)

// analysed is a column of what was found in a session.
func analysed(title string, right bool, cell func(*deception.Analysis) string) column[deception.Session] {
	return column[deception.Session]{title, len(title), right, func(_ *TableOptions, s *deception.Session) string {
		if s.Analysis == nil {
			return ""
		}
		return cell(s.Analysis)
	}}
}

// NewTable returns a table to w. Call Flush when no more sessions come for now.
func NewTable(w io.Writer, opts TableOptions) *Table {
	columns := narrow
	if opts.Wide {
		columns = wide
	}
	return &Table{newGrid(w, opts, columns)}
}

func newGrid[T any](w io.Writer, opts TableOptions, columns []column[T]) grid[T] {
	t := grid[T]{w: w, opts: opts.withDefaults(), columns: columns, widths: make([]int, len(columns))}
	for i, c := range columns {
		t.widths[i] = max(c.width, len(c.title))
	}
	return t
}

func (o TableOptions) withDefaults() TableOptions {
	if o.Location == nil {
		o.Location = time.Local
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// Write adds a row, which may wait for Flush.
func (t *grid[T]) Write(v *T) error {
	row := make([]string, len(t.columns))
	for i, c := range t.columns {
		if row[i] = c.cell(&t.opts, v); row[i] == "" {
			row[i] = "-"
		}
	}
	t.pending = append(t.pending, row)
	if len(t.pending) == pendingRows {
		return t.Flush()
	}
	return nil
}

// Flush writes the rows that wait, and the header where there was none yet.
func (t *grid[T]) Flush() error {
	for _, row := range t.pending {
		for i, cell := range row {
			t.widths[i] = max(t.widths[i], utf8.RuneCountInString(cell))
		}
	}
	var out strings.Builder
	if !t.begun {
		header := make([]string, len(t.columns))
		for i, c := range t.columns {
			header[i] = c.title
		}
		t.line(&out, header)
	}
	for _, row := range t.pending {
		t.line(&out, row)
	}
	t.begun, t.pending = true, t.pending[:0]
	if _, err := io.WriteString(t.w, out.String()); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}

func (t *grid[T]) line(out *strings.Builder, row []string) {
	for i, cell := range row {
		pad := strings.Repeat(" ", t.widths[i]-utf8.RuneCountInString(cell))
		if i > 0 {
			out.WriteString("  ")
		}
		switch {
		case t.columns[i].right:
			out.WriteString(pad + cell)
		case i == len(row)-1:
			out.WriteString(cell)
		default:
			out.WriteString(cell + pad)
		}
	}
	out.WriteByte('\n')
}

func (o *TableOptions) time(t time.Time) string {
	return t.In(o.Location).Format("2006-01-02 15:04:05.000")
}

func (o *TableOptions) duration(s *deception.Session) string {
	if s.Running() {
		return span(o.Now().Sub(s.Start))
	}
	return span(s.End.Sub(s.Start))
}

func state(_ *TableOptions, s *deception.Session) string {
	if s.Running() {
		return "running"
	}
	if s.Reason == deception.EndNone {
		return "ended"
	}
	return s.Reason.String()
}

func endpoint(a netip.AddrPort) string {
	if !a.Addr().IsValid() {
		return ""
	}
	return name(a.String()) // a zone is a name too
}

// size writes a number of bytes in at most four digits: 999, 1.5k, 12k, 3.4M.
func size(n uint64) string {
	if n < 1000 {
		return strconv.FormatUint(n, 10)
	}
	f := float64(n)
	for _, unit := range "kMGTPE" {
		f /= 1000
		switch {
		case f < 9.95:
			return fmt.Sprintf("%.1f%c", f, unit)
		case f < 999.5:
			return fmt.Sprintf("%.0f%c", f, unit)
		}
	}
	return strconv.FormatUint(n, 10)
}

// span writes a duration in the unit that fits it.
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Millisecond:
		return fmt.Sprintf("%dus", d.Microseconds())
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.1fms", d.Seconds()*1000)
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Truncate(100*time.Millisecond).Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%02dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}
