package demo

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"decoynet/deception"
)

// screen is what a person reads: plain lines, in a pipe as on a terminal, where
// they also have some colour.
type screen struct {
	w      io.Writer
	colour bool
	began  time.Time
	asking bool // a step's line is open
}

// The colours, as SGR parameters (ECMA-48).
const (
	bold, faint, red, green = "1", "2", "31", "32"
)

func (s *screen) paint(colour, text string) string {
	if !s.colour || text == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// say writes lines. What cannot be written to a terminal that went away is
// nobody's loss.
func (s *screen) say(format string, args ...any) {
	s.finish()
	fmt.Fprintf(s.w, format+"\n", args...)
}

// finish ends the line of a step that has not told its result.
func (s *screen) finish() {
	if s.asking {
		fmt.Fprintln(s.w)
		s.asking = false
	}
}

// title opens a part of the output.
func (s *screen) title(text string) {
	s.say("\n%s", s.paint(bold, text))
}

func (s *screen) clock() string {
	return s.paint(faint, fmt.Sprintf("%6.1f s", time.Since(s.began).Seconds()))
}

// command shows what a person types on a machine, and where it was long, folded
// as a shell takes it.
func (s *screen) command(at, prompt, line string) {
	const width = 84
	shown := s.paint(faint, fmt.Sprintf("%6s%s", at, prompt))
	for len(line) > width {
		cut := strings.LastIndexByte(line[:width], ' ')
		if cut <= 0 {
			break
		}
		s.say("  %s %s \\", shown, s.paint(bold, line[:cut]))
		shown, line = strings.Repeat(" ", 7), "   "+line[cut:]
	}
	s.say("  %s %s", shown, s.paint(bold, line))
}

// printed shows what a command answered.
func (s *screen) printed(text string) {
	for line := range strings.Lines(strings.TrimSpace(text)) {
		s.say("          %s", strings.TrimRight(line, " \n"))
	}
}

// note tells of something that is done.
func (s *screen) note(text string) {
	s.say("%s  %s", s.clock(), text)
}

// stepWidth is where results stand.
const stepWidth = 46

// step tells of something that begins; the result goes on the same line.
func (s *screen) step(text string) {
	s.finish()
	pad := max(0, stepWidth-utf8.RuneCountInString(text))
	fmt.Fprintf(s.w, "%s  %s%s", s.clock(), text, strings.Repeat(" ", pad))
	s.asking = true
}

// most faults are shown; those behind them are of the same kind.
const most = 5

// result ends the step.
func (s *screen) result(text string, err error) {
	if err != nil {
		text = s.paint(red, "FAILED")
	}
	if s.asking {
		s.asking = false
		fmt.Fprintf(s.w, "  %s\n", text)
	}
	if err != nil {
		s.faults(10, strings.Split(strings.TrimSpace(err.Error()), "\n"))
	}
}

// faults lists what is wrong.
func (s *screen) faults(indent int, faults []string) {
	for i, f := range faults {
		if i == most {
			s.say("%*s... and %d more", indent, "", len(faults)-most)
			break
		}
		s.say("%*s%s", indent, "", s.paint(red, f))
	}
}

// verdict writes one line of the judgement.
func (s *screen) verdict(name, says string, faults []string) {
	word := s.paint(green, "ok  ")
	if len(faults) > 0 {
		word = s.paint(red, "FAIL")
	}
	s.say("  %s  %-11s %s", word, name, says)
	s.faults(20, faults)
}

// omitted writes a line of the judgement about what there is nothing to say of.
func (s *screen) omitted(name, says string) {
	s.say("  %s  %-11s %s", s.paint(faint, "--  "), name, says)
}

// listing writes a server's visits: on the left what decoynet has recorded, on
// the right what the server's own log says.
func (s *screen) listing(v serverVerdict) {
	const left = 69
	line := func(recorded, logged string) { s.say("  %-*s  %s", left, recorded, logged) }
	s.say("\n  %s", s.paint(faint, fmt.Sprintf("%-*s  %s", left, "decoynet get sessions --service "+v.Service, v.Name+"'s own log")))
	for _, r := range v.Rows {
		if r.Group == "" {
			line(r.recorded(), s.logged(r))
		}
	}
	for _, group := range v.groups() {
		same, of := 0, 0
		for _, r := range v.Rows {
			if r.Group == group {
				of++
			}
			if r.Group == group && r.same() {
				same++
			}
		}
		line(fmt.Sprintf("... %d %s", of, group), s.agreement(same, of))
	}
	if rest := v.Sessions - len(v.Rows); rest > 0 {
		logged := v.Matched - v.logged()
		says := s.agreement(logged, rest)
		switch {
		case logged <= 0:
			says = "none: gone without a word"
		case logged < rest:
			says = fmt.Sprintf("%d the same, the others gone without a word", logged)
		}
		line(fmt.Sprintf("... %d of the port scans", rest), says)
	}
	if strange := v.Peers - v.Matched; strange > 0 {
		line("", s.paint(red, fmt.Sprintf("%d that are not the intruder's", strange)))
	}
	if v.Checks > 0 {
		line("", fmt.Sprintf("%d checks of decoynet's own", v.Checks))
	}
}

// groups returns the names of the groups of visits, in order.
func (v *serverVerdict) groups() []string {
	var names []string
	for _, r := range v.Rows {
		if r.Group != "" && !slices.Contains(names, r.Group) {
			names = append(names, r.Group)
		}
	}
	return names
}

// logged returns how many visits are in the server's log.
func (v *serverVerdict) logged() int {
	n := 0
	for _, r := range v.Rows {
		if r.Contact != nil {
			n++
		}
	}
	return n
}

func (s *screen) agreement(same, of int) string {
	if same == of {
		return s.paint(green, "all the same")
	}
	return s.paint(red, fmt.Sprintf("%d the same, %d not", same, of-same))
}

// recorded is the session's side of a row.
func (r row) recorded() string {
	if r.Session == nil {
		return fmt.Sprintf("%s from %s: NOT RECORDED", r.Tool, r.Source)
	}
	way := r.Session.Path
	if r.Session.Segment == deception.HostSegment {
		way = r.Session.Node // it came through the node's own address
	}
	return fmt.Sprintf("%s %-24s -> %-25s %s", r.Session.Start.Format("15:04:05"), r.Session.Source, r.Session.Destination, way)
}

// same tells whether the server saw what the intruder used.
func (r row) same() bool {
	return r.Contact != nil && r.Session != nil && r.Contact.Peer == r.Source && r.Session.Source == r.Source
}

// logged is the server's side of a row.
func (s *screen) logged(r row) string {
	if r.Contact == nil {
		return s.paint(red, "not in the log")
	}
	if !r.same() {
		return s.paint(red, r.Contact.Peer.String())
	}
	return s.paint(green, r.Contact.Peer.String())
}
