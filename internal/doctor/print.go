package doctor

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// WriteJSON writes one finding a line.
func WriteJSON(w io.Writer, findings []Finding) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false) // commands hold && and quotes
	for _, f := range findings {
		if err := enc.Encode(f); err != nil {
			return fmt.Errorf("write findings: %w", err)
		}
	}
	return nil
}

// WriteText writes the findings for a person: one line for each, and below it,
// for notes and problems, why it matters and what mends it.
func WriteText(w io.Writer, findings []Finding) error {
	var b strings.Builder
	check, subject := 0, 0
	for _, f := range findings {
		check, subject = max(check, len(f.Check)), max(subject, min(len(f.Subject), 24))
	}
	count := map[Severity]int{}
	last := OK
	for _, f := range findings {
		count[f.Severity]++
		if f.Severity != last {
			b.WriteByte('\n')
			last = f.Severity
		}
		fmt.Fprintf(&b, "%-7s  %-*s  %-*s  %s\n", f.Severity, check, f.Check, subject, f.Subject, f.What)
		if f.Why != "" {
			fmt.Fprintf(&b, "%-7s  %s\n", "", f.Why)
		}
		if f.Fix == "" {
			continue
		}
		on := ""
		if f.On != "" {
			on = " (" + f.On + ")"
		}
		fmt.Fprintf(&b, "%-7s  fix%s: %s\n", "", on, f.Fix)
	}
	fmt.Fprintf(&b, "\n%d well, %s, %s\n", count[OK], plural(count[Note], "note"), plural(count[Problem], "problem"))
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write findings: %w", err)
	}
	return nil
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}
