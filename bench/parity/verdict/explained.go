package verdict

import (
	"fmt"
	"slices"
	"strings"
)

// Explanation is why something that Suricata said of an original cannot be had of
// a feed, as somebody has found who looked at both.
type Explanation struct {
	Feed, Kind, Capture string // * is any
	What                string // part of what is missed; * is all of it
	Why                 string
	used                bool
}

// Explained is a reviewed list of misses.
type Explained []Explanation

// ParseExplained reads a list: five fields a line, with | between them. Lines that
// begin with # say something to a reader.
func ParseExplained(text string) (Explained, error) {
	var list Explained
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.SplitN(line, "|", 5)
		for i := range f {
			f[i] = strings.TrimSpace(f[i])
		}
		if len(f) != 5 || slices.Contains(f, "") {
			return nil, fmt.Errorf("line %d of the explained misses: want feed | kind | capture | what | why", n)
		}
		list = append(list, Explanation{Feed: f[0], Kind: f[1], Capture: f[2], What: f[3], Why: f[4]})
	}
	return list, nil
}

// Why returns the explanation of a miss; false where there is none.
func (l Explained) Why(feed, kind, capture, missed string) (string, bool) {
	for i := range l {
		e := &l[i]
		if fits(e.Feed, feed) && fits(e.Kind, kind) && e.Capture == capture && (e.What == "*" || strings.Contains(missed, e.What)) {
			e.used = true
			return e.Why, true
		}
	}
	return "", false
}

func fits(pattern, s string) bool { return pattern == "*" || pattern == s }

// Unused returns the explanations that nothing was explained by.
func (l Explained) Unused() []Explanation {
	var out []Explanation
	for _, e := range l {
		if !e.used {
			out = append(out, e)
		}
	}
	return out
}
