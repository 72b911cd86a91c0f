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

// systemRounds is how often rules of the system are tried again without those that
// Suricata refused: it names all that are wrong by themselves at once, but may find
// more once those that hid them are gone.
const systemRounds = 5

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
	r.Millis = millis(time.Since(begin))
	return r, err
}

func (s *ruleset) report() Report {
	if s == nil {
		return Report{}
	}
	return Report{
		Files: s.files, Rules: len(s.rules), Widened: s.widened, Problems: s.list, MoreProblems: s.more,
		PeakBytes: s.trial.Report.PeakBytes,
	}
}

// candidate gathers the rules and has Suricata test them.
func (h *home) candidate(ctx context.Context, b *Binary, want *deception.Inspect) (*ruleset, error) {
	set, err := gather(want)
	if err != nil {
		return set, err
	}
	return set, h.try(ctx, b, want, set)
}

// try has Suricata test a set, unless it has passed before. It is in the file named
// candidateRules then. The error is a *RulesError where rules are wrong.
func (h *home) try(ctx context.Context, b *Binary, want *deception.Inspect, set *ruleset) error {
	if h.passed(set, b) {
		return h.write(set, b, want, candidateRules, candidateConfig)
	}
	t := trial{Sum: set.trial.Sum}
	begin := time.Now()
	most := uint64(0)
	for round := 0; ; round++ {
		if err := h.write(set, b, want, candidateRules, candidateConfig); err != nil {
			return err
		}
		found, peak, err := h.test(ctx, b)
		if err == nil {
			err = aboutConfiguration(found)
		}
		if err != nil {
			return err
		}
		most = max(most, peak)
		dropped, refused := set.judge(found, round < systemRounds)
		if refused {
			return set.refusal()
		}
		t.Dropped = append(t.Dropped, dropped...)
		if len(dropped) == 0 {
			break
		}
	}
	t.Report = set.report()
	t.Report.PeakBytes, t.Report.Millis = most, millis(time.Since(begin))
	set.trial = t
	return nil
}

func (s *ruleset) refusal() error {
	e := &RulesError{Problems: s.list}
	if s.fatal >= keptProblems {
		e.More = s.more
	}
	return e
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

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
func (s *ruleset) judge(found []complaint, mayDrop bool) (dropped []Place, refused bool) {
	drop := make(map[int]bool)
	find := s.finder()
	refused = s.fatal > 0 // since it was gathered
	var reservations []RuleProblem
	for _, c := range found {
		p := RuleProblem{Place: Place{File: "suricata"}, SID: c.sid, Message: c.message, Ignored: !c.error}
		if i := find(c); i >= 0 {
			r := &s.rules[i]
			p.Place, p.SID = r.place, uint32(r.sid)
			if c.error && r.origin == fromSystem && mayDrop {
				p.Ignored, drop[i] = true, true
				p.Message += "; this rule of the system is left out"
				dropped = append(dropped, p.Place)
			}
		}
		if !c.error {
			reservations = append(reservations, p)
			continue
		}
		s.note(p)
		refused = refused || !p.Ignored
	}
	if len(drop) == 0 || refused { // else they are heard again in the next round
		for _, p := range reservations {
			s.note(p)
		}
	}
	s.without(drop)
	return dropped, refused
}

// finder returns a function that tells which rule a complaint is about, or -1.
func (s *ruleset) finder() func(complaint) int {
	var bySID map[uint32]int
	return func(c complaint) int {
		if c.line > 0 && c.line <= len(s.rules) {
			return c.line - 1
		}
		if c.sid == 0 {
			return -1
		}
		if bySID == nil {
			bySID = make(map[uint32]int, len(s.rules))
			for i := len(s.rules) - 1; i >= 0; i-- {
				bySID[uint32(s.rules[i].sid)] = i
			}
		}
		if i, ok := bySID[c.sid]; ok {
			return i
		}
		return -1
	}
}

// test has Suricata read the candidate and returns what it complains about, and how
// much memory it took. The error says that it could not be asked.
func (h *home) test(ctx context.Context, b *Binary) (found []complaint, peak uint64, err error) {
	p, err := h.start(b, "-T", "-c", filepath.Join(root, candidateConfig), "-l", filepath.Join(root, childDir), "--data-dir", filepath.Join(root, childDir, dataDir))
	if err != nil {
		return nil, 0, fmt.Errorf("test rules: %w", err)
	}
	p.expendable()
	if err := p.finish(ctx); err != nil {
		return nil, 0, fmt.Errorf("test rules: %w", err)
	}
	found = complaints(p.output.String())
	if p.err == nil {
		return found, p.peak(), nil
	}
	for _, c := range found {
		if c.error {
			return found, p.peak(), nil
		}
	}
	if p.killed() {
		return nil, 0, fmt.Errorf("test rules: suricata was killed when it had %d MB; %s", p.peak()>>20, memoryAdvice())
	}
	return nil, 0, fmt.Errorf("test rules: suricata ended with %w: %s", p.err, shorten(lastLine(p.output.String())))
}
