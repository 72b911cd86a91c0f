package suricata

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"decoynet/deception"
)

// checkTimeout bounds a test; 50,000 rules take some 30 s of one processor.
const checkTimeout = 5 * time.Minute

// systemRounds is how often rules of the system are tried again without those that
// Suricata refused: it names all that are wrong by themselves at once, but may find
// more once those that hid them are gone.
const systemRounds = 3

// Check has Suricata read the rules that want asks for, in a directory of its own,
// and changes nothing. Without any of the document it checks decoynet's and the
// system's. The error is a *RulesError where rules are wrong.
func Check(ctx context.Context, binary string, want *deception.Inspect) (Report, error) {
	b, err := Find(ctx, binary)
	if err != nil {
		return Report{}, err
	}
	dir, err := os.MkdirTemp("", "decoynet-rules-")
	if err != nil {
		return Report{}, fmt.Errorf("check rules: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	h, err := openHome(dir)
	if err != nil {
		return Report{}, fmt.Errorf("check rules: %w", err)
	}
	defer h.close()
	begin := time.Now()
	set, err := h.candidate(ctx, &b, want)
	r := set.report()
	r.Millis = float64(time.Since(begin).Microseconds()) / 1000
	return r, err
}

func (s *ruleset) report() Report {
	if s == nil {
		return Report{}
	}
	return Report{Files: s.files, Rules: len(s.rules), Problems: s.problems}
}

// candidate gathers the rules and has Suricata test them. They are in the file
// named candidateRules then, unless there is an error.
func (h *home) candidate(ctx context.Context, b *Binary, want *deception.Inspect) (*ruleset, error) {
	set, err := gather(want)
	if err != nil {
		return set, err
	}
	for round := 0; ; round++ {
		if err := h.write(set, b, want, candidateRules, candidateConfig); err != nil {
			return set, err
		}
		found, err := h.test(ctx, b)
		if err == nil {
			err = aboutConfiguration(found)
		}
		if err != nil {
			return set, err
		}
		again, refused := set.judge(found, round < systemRounds)
		if refused {
			return set, &RulesError{set.problems}
		}
		if !again {
			return set, nil
		}
	}
}

// aboutConfiguration returns what Suricata finds wrong where it is no rule.
func aboutConfiguration(found []complaint) error {
	var messages []string
	for _, c := range found {
		if c.error && c.line > 0 {
			return nil
		}
		if c.error {
			messages = append(messages, c.message)
		}
	}
	if len(messages) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrConfiguration, strings.Join(messages, "; "))
}

// judge adds what Suricata found to the set's problems. The system's bad rules are
// left out, after which it is to be tested again. refused: another rule is wrong.
func (s *ruleset) judge(found []complaint, mayDrop bool) (again, refused bool) {
	drop := make(map[int]bool)
	for _, c := range found {
		p := RuleProblem{Place: Place{File: "suricata"}, SID: c.sid, Message: c.message, Ignored: !c.error}
		from := fromUs
		if i := s.lineOf(c); i >= 0 {
			r := &s.rules[i]
			p.Place, p.SID, from = r.place, uint32(r.sid), r.origin
			if c.error && from == fromSystem && mayDrop {
				p.Ignored, drop[i] = true, true
				p.Message += "; this rule of the system is left out"
			}
		}
		// A warning is heard again in the next round.
		if c.error || len(drop) == 0 {
			s.problems = append(s.problems, p)
		}
		refused = refused || !p.Ignored
	}
	s.without(drop)
	return len(drop) > 0 && !refused, refused
}

// lineOf returns which rule a complaint is about, or -1.
func (s *ruleset) lineOf(c complaint) int {
	if c.line > 0 && c.line <= len(s.rules) {
		return c.line - 1
	}
	if c.sid != 0 {
		for i := range s.rules {
			if uint32(s.rules[i].sid) == c.sid {
				return i
			}
		}
	}
	return -1
}

// test has Suricata read the candidate and returns what it complains about. The
// error says that it could not be asked.
func (h *home) test(ctx context.Context, b *Binary) ([]complaint, error) {
	ctx, stop := context.WithTimeoutCause(ctx, checkTimeout, fmt.Errorf("not done after %v", checkTimeout))
	defer stop()
	p, err := h.start(b, "-T", "-c", filepath.Join(root, candidateConfig), "-l", filepath.Join(root, childDir))
	if err != nil {
		return nil, fmt.Errorf("test rules: %w", err)
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		p.kill()
		<-p.done
		return nil, fmt.Errorf("test rules: %w", context.Cause(ctx))
	}
	found := complaints(p.output.String())
	if p.err != nil {
		for _, c := range found {
			if c.error {
				return found, nil
			}
		}
		return nil, fmt.Errorf("test rules: suricata ended with %w: %s", p.err, shorten(lastLine(p.output.String())))
	}
	return found, nil
}
