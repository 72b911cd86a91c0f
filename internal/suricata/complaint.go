package suricata

import (
	"regexp"
	"strconv"
	"strings"
)

var (
	ruleError = regexp.MustCompile(`error parsing signature "(?s:.*)" from file (.+) at line (\d+)$`)
	duplicate = regexp.MustCompile(`Duplicate signature `)
	aboutSID  = regexp.MustCompile(`\b(?:sid:? ?|signature (?:sid )?)(\d+)\b`)
)

// maxMessage bounds what is kept of one line that Suricata prints; rules are in
// them, and those can be of any length.
const maxMessage = 500

// complaint is what Suricata says is wrong.
type complaint struct {
	line    int // of the file of rules, from 1; 0 where it is about none
	sid     uint32
	message string
	error   bool // not a warning
}

// complaints reads what Suricata prints. It names the matter first and the rule's
// line after it.
func complaints(output string) []complaint {
	var out []complaint
	var because []string
	for line := range strings.Lines(output) {
		line = strings.TrimRight(line, "\n")
		level, text, ok := strings.Cut(line, ": ")
		if !ok || (level != "E" && level != "W" && level != "Error" && level != "Warning") {
			continue
		}
		if _, rest, ok := strings.Cut(text, ": "); ok { // the part of Suricata that says so
			text = rest
		}
		if m := ruleError.FindStringSubmatch(text); m != nil {
			n, _ := strconv.Atoi(m[2]) // it is digits
			if len(because) == 0 {
				because = []string{"this is no rule that Suricata can read"}
			}
			out = append(out, complaint{line: n, message: strings.Join(because, "; "), error: true})
			because = nil
			continue
		}
		if duplicate.MatchString(text) {
			text = "a rule with the same sid is there already"
		}
		text = shorten(text)
		if level[0] == 'W' {
			c := complaint{message: text}
			if m := aboutSID.FindStringSubmatch(text); m != nil {
				n, _ := strconv.ParseUint(m[1], 10, 32)
				c.sid = uint32(n)
			}
			out = append(out, c)
			continue
		}
		because = append(because, text)
	}
	for _, text := range because {
		if !strings.Contains(text, "Loading signatures failed") && !strings.Contains(text, "no rules were loaded") {
			out = append(out, complaint{message: text, error: true})
		}
	}
	return out
}

func shorten(text string) string {
	if len(text) > maxMessage {
		return strings.ToValidUTF8(text[:maxMessage], "") + " ..."
	}
	return text
}
