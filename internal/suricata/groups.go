package suricata

import "strings"

// widen has a rule take the opposite of a group of addresses for any address: all
// groups are `any` here (see suricata.yaml.tmpl), and Suricata refuses what is left
// of `!any`, which is nothing. Who writes `!$HOME_NET` means a stranger's side of the
// network's edge, and a decoy has strangers on both.
func widen(text string) (string, bool) {
	open := strings.IndexByte(text, '(')
	if open < 0 || !strings.Contains(text[:open], "$") || !strings.Contains(text[:open], "!") {
		return text, false
	}
	fields := headFields(text[:open])
	if len(fields) != 7 { // action, protocol, addresses, ports, direction, addresses, ports
		return text, false
	}
	changed := false
	for _, i := range []int{2, 5} {
		if wide := widenAddresses(fields[i], false); wide != fields[i] {
			fields[i], changed = wide, true
		}
		if fields[i] == "" {
			fields[i] = "any"
		}
	}
	if !changed {
		return text, false
	}
	return strings.Join(fields, " ") + " " + text[open:], true
}

// widenAddresses leaves out the negated groups of an expression; "" is what is left
// of one that consists of nothing else.
func widenAddresses(expression string, negated bool) string {
	expression = strings.TrimSpace(expression)
	if rest, ok := strings.CutPrefix(expression, "!"); ok {
		if rest = widenAddresses(rest, !negated); rest == "" {
			return ""
		}
		return "!" + rest
	}
	if name, ok := strings.CutPrefix(expression, "$"); ok {
		if negated && isGroup(name) {
			return ""
		}
		return expression
	}
	if !strings.HasPrefix(expression, "[") || !strings.HasSuffix(expression, "]") {
		return expression
	}
	var kept []string
	for _, part := range listParts(expression[1 : len(expression)-1]) {
		if part = widenAddresses(part, negated); part != "" {
			kept = append(kept, part)
		}
	}
	if len(kept) == 0 {
		return ""
	}
	return "[" + strings.Join(kept, ",") + "]"
}

func isGroup(name string) bool {
	if name == "HOME_NET" || name == "EXTERNAL_NET" {
		return true
	}
	for _, s := range servers {
		if s == name {
			return true
		}
	}
	return false
}

// headFields are the words before a rule's options; there may be spaces in lists.
func headFields(head string) []string {
	var out []string
	depth, start := 0, -1
	for i := 0; i < len(head); i++ {
		c := head[i]
		switch c {
		case '[':
			depth++
		case ']':
			depth--
		}
		space := (c == ' ' || c == '\t') && depth <= 0
		if space && start >= 0 {
			out, start = append(out, head[start:i]), -1
		} else if !space && start < 0 {
			start = i
		}
	}
	if start >= 0 {
		out = append(out, head[start:])
	}
	return out
}

// listParts splits a list at its own commas, not at those of lists in it.
func listParts(list string) []string {
	var out []string
	depth, start := 0, 0
	for i := 0; i < len(list); i++ {
		switch list[i] {
		case '[':
			depth++
		case ']':
			depth--
		case ',':
			if depth == 0 {
				out, start = append(out, list[start:i]), i+1
			}
		}
	}
	return append(out, list[start:])
}
