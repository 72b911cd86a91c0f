package survey

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"

	"decoynet/internal/kernel/netns"
)

// listTimeout bounds what iptables-legacy takes to list a table.
const listTimeout = 10 * time.Second

// match reads a match of iptables in a rule of nftables.
func (d *decoder) match(e *expr.Match) {
	switch info := e.Info.(type) {
	case *xt.Comment:
		return
	case *xt.ConntrackMtinfo1:
		d.conntrack(info.ConntrackMtinfoBase, uint16(info.StateMask))
	case *xt.ConntrackMtinfo2:
		d.conntrack(info.ConntrackMtinfoBase, info.StateMask)
	case *xt.ConntrackMtinfo3:
		d.conntrack(info.ConntrackMtinfoBase, info.StateMask)
	default:
		if e.Name != "comment" {
			d.rule.Opaque = true
		}
	}
}

// conntrack reads -m conntrack --ctstate. The bits of the mask are those of enum
// ip_conntrack_info, shifted by one (XT_CONNTRACK_STATE_BIT).
func (d *decoder) conntrack(info xt.ConntrackMtinfoBase, mask uint16) {
	if info.MatchFlags&^uint16(xt.ConntrackState|xt.ConntrackStateAlias) != 0 {
		d.rule.Opaque = true
		return
	}
	c := Condition{Key: State, Not: info.InvertFlags&uint16(xt.ConntrackState) != 0}
	for bit, name := range map[uint16]string{1: "invalid", 2: "established", 4: "related", 8: "new", 64: "untracked"} {
		if mask&bit != 0 {
			c.Values = append(c.Values, name)
		}
	}
	slices.Sort(c.Values)
	d.condition(c)
}

// targetVerdict tells what a target of iptables does that is no verdict of its
// own in nftables.
func targetVerdict(name string) Verdict {
	switch name {
	case "REJECT", "DROP":
		return Drop
	case "ACCEPT":
		return Accept
	case "RETURN":
		return Return
	case "LOG", "NFLOG", "MARK", "CONNMARK", "TCPMSS", "CLASSIFY", "DSCP", "TOS", "TTL", "AUDIT", "SET":
		return Continue
	}
	return Unknown
}

// legacyFilters reads iptables-legacy by its own program: the kernel's format is
// not stable in detail. Where the namespace has no such rules the program is not
// run, for running it would make the table.
func legacyFilters(ns *netns.NS) ([]Chain, error) {
	var out []Chain
	var errs []error
	for _, f := range []struct{ family, names, program string }{
		{"ip", "/proc/thread-self/net/ip_tables_names", "iptables-legacy-save"},
		{"ip6", "/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy-save"},
	} {
		var text []byte
		err := ns.Do(func() error {
			names, err := os.ReadFile(f.names)
			if errors.Is(err, fs.ErrNotExist) || err == nil && !slices.Contains(strings.Fields(string(names)), "filter") {
				return nil
			}
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(context.Background(), listTimeout)
			defer cancel()
			cmd := exec.CommandContext(ctx, f.program, "-t", "filter")
			cmd.WaitDelay = time.Second
			text, err = cmd.Output()
			return err
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("read the rules of %s: %w", f.program, err))
			continue
		}
		out = append(out, parseSave(f.family, string(text))...)
	}
	return out, errors.Join(errs...)
}

// parseSave reads the filter table as iptables-save writes it.
func parseSave(family, text string) []Chain {
	var out []Chain
	index := map[string]int{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if declared, ok := strings.CutPrefix(line, ":"); ok {
			words := strings.Fields(declared)
			if len(words) < 2 {
				continue
			}
			c := Chain{Family: family, Table: "filter", Name: words[0], Drop: words[1] == "DROP", Legacy: true}
			if words[0] == "INPUT" || words[0] == "FORWARD" {
				c.Hook = strings.ToLower(words[0])
			}
			index[words[0]] = len(out)
			out = append(out, c)
			continue
		}
		words := splitQuoted(line)
		if len(words) < 2 || words[0] != "-A" {
			continue
		}
		if i, ok := index[words[1]]; ok {
			out[i].Rules = append(out[i].Rules, parseRule(words[2:], index))
		}
	}
	return out
}

// parseRule reads the arguments of a rule. An option that is not known makes it
// opaque, as do its arguments.
func parseRule(words []string, chains map[string]int) Rule {
	var r Rule
	not := false
	for i := 0; i < len(words); i++ {
		word := words[i]
		if word == "!" {
			not = true
			continue
		}
		argument := ""
		if i+1 < len(words) {
			argument = words[i+1]
		}
		switch word {
		case "-i":
			r.Conditions = append(r.Conditions, Condition{InputLink, not, []string{wildcard(argument)}})
		case "-o":
			r.Conditions = append(r.Conditions, Condition{OutputLink, not, []string{wildcard(argument)}})
		case "-p":
			r.Conditions = append(r.Conditions, Condition{Transport, not, []string{argument}})
		case "--ctstate", "--state":
			r.Conditions = append(r.Conditions, Condition{State, not, strings.Split(strings.ToLower(argument), ",")})
		case "-m", "--comment", "--reject-with", "--log-prefix", "--log-level":
		case "-j", "-g":
			r.Verdict = targetVerdict(argument)
			if _, ok := chains[argument]; ok {
				r.Verdict, r.Target = Jump, argument
				if word == "-g" {
					r.Verdict = Goto
				}
			}
		default:
			r.Opaque = true
			not = false
			continue
		}
		not = false
		i++ // past the argument
	}
	return r
}

// wildcard writes iptables' + as a Condition does.
func wildcard(name string) string {
	if head, ok := strings.CutSuffix(name, "+"); ok {
		return head + "*"
	}
	return name
}

// splitQuoted splits at blanks outside of double quotes.
func splitQuoted(line string) []string {
	var out []string
	var word strings.Builder
	quoted, escaped := false, false
	flush := func() {
		if word.Len() > 0 {
			out = append(out, word.String())
			word.Reset()
		}
	}
	for _, r := range line {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\':
			escaped = true
		case r == '"':
			quoted = !quoted
		case r == ' ' && !quoted:
			flush()
		default:
			word.WriteRune(r)
		}
	}
	flush()
	return out
}
