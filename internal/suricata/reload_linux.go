package suricata

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"decoynet/deception"
)

// reloadTimeout bounds an exchange of rules. The feed flows on meanwhile.
const reloadTimeout = 3 * time.Minute

// prepare makes configuration and rules ready for a start. A set that is refused
// leaves the last good one in its place; where there is none, Suricata starts
// with decoynet's own rules.
func (s *Suricata) prepare(b *Binary, want *deception.Inspect) error {
	s.rules.Lock()
	defer s.rules.Unlock()
	set, err := s.home.candidate(s.ctx, b, want)
	var refused *RulesError
	switch {
	case err == nil:
		if err := s.home.promote(set, b, want); err != nil {
			return err
		}
		s.accepted(set.report())
		return nil
	case s.ctx.Err() != nil:
		return err
	case set != nil && !errors.As(err, &refused):
		return err // not the rules' fault: disk, configuration
	}
	s.refuse(err)
	return s.fallBack(b, want)
}

// fallBack starts with the rules that were good last, or with our own.
func (s *Suricata) fallBack(b *Binary, want *deception.Inspect) error {
	if _, err := os.Stat(s.home.file(liveRules)); err == nil {
		text := configure(b, want, liveRules)
		if err := s.home.replace(liveConfig, text); err != nil {
			return err
		}
		return s.home.ensureClasses()
	}
	own := *want
	own.Rules, own.SystemRules = nil, false
	set, err := s.home.candidate(s.ctx, b, &own)
	if err != nil {
		return err
	}
	if err := s.home.promote(set, b, want); err != nil {
		return err
	}
	s.mu.Lock()
	s.status.Rules, s.status.RulesSince = set.report(), time.Now()
	s.mu.Unlock()
	return nil
}

// Reload reads all rules again, has Suricata test them and exchanges them in the
// running one. Where they are refused, those that are loaded stay, and the error
// is a *RulesError.
func (s *Suricata) Reload(ctx context.Context) (Report, error) {
	want, on := s.wanted()
	if !on {
		return Report{}, errors.New("reload rules: decoynet runs no suricata here")
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(s.ctx, stop)()
	s.rules.Lock()
	defer s.rules.Unlock()
	begin := time.Now()
	b, err := Find(ctx, s.cfg.Binary)
	if err != nil {
		return Report{}, err
	}
	set, err := s.home.candidate(ctx, &b, &want)
	r := set.report()
	if err != nil {
		s.refuse(err)
		return r, err
	}
	if err := s.home.promote(set, &b, &want); err != nil {
		return r, err
	}
	r.Live, err = s.exchange(ctx)
	r.Millis = millis(time.Since(begin))
	if err != nil {
		return r, err
	}
	s.accepted(r)
	s.cfg.Log.Info("rules loaded", "rules", r.Rules, "files", r.Files, "live", r.Live)
	return r, nil
}

// exchange has the running Suricata take the live file of rules. Where it cannot,
// it is started anew.
func (s *Suricata) exchange(ctx context.Context) (live bool, err error) {
	s.mu.Lock()
	runs := s.process != nil
	s.mu.Unlock()
	if !runs {
		return false, nil // it takes them when it starts
	}
	ctx, stop := context.WithTimeoutCause(ctx, reloadTimeout, fmt.Errorf("not done after %v", reloadTimeout))
	defer stop()
	if _, err = command(ctx, s.home.child(""), "reload-rules"); err == nil {
		err = s.loaded(ctx)
	}
	if err == nil {
		return true, nil
	}
	if ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return false, err
	}
	s.cfg.Log.Warn("rules cannot be exchanged in the running suricata; it is started anew", "error", err)
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return false, nil
}

// loaded asks how many rules are in force.
func (s *Suricata) loaded(ctx context.Context) error {
	answer, err := command(ctx, s.home.child(""), "ruleset-stats")
	if err != nil {
		return err
	}
	var stats []struct {
		Failed int `json:"rules_failed"`
	}
	if err := json.Unmarshal(answer, &stats); err != nil {
		return fmt.Errorf("read the number of rules: %w", err)
	}
	for _, n := range stats {
		if n.Failed > 0 {
			return fmt.Errorf("%d rules that had passed the test failed", n.Failed)
		}
	}
	return nil
}

func (s *Suricata) accepted(r Report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Rules, s.status.RulesSince, s.status.RulesError = r, time.Now(), ""
}

// refuse takes note of rules that do not go live, and tells so once for each text.
func (s *Suricata) refuse(err error) {
	s.mu.Lock()
	news := s.status.RulesError != err.Error()
	s.status.RulesError = err.Error()
	s.mu.Unlock()
	if news {
		s.cfg.Log.Warn("rules are refused; those that were good last stay", "error", err)
		s.tell(deception.EventRulesRefused, "those that were good last stay in force: "+err.Error())
	}
}

// promote makes a tested set the one that Suricata starts with.
func (h *home) promote(set *ruleset, b *Binary, want *deception.Inspect) error {
	if err := h.write(set, b, want, liveRules, liveConfig); err != nil {
		return err
	}
	return h.remember(set)
}

// ensureClasses puts the files back that rules need, where somebody removed them.
func (h *home) ensureClasses() error {
	for name, text := range map[string]string{classesFile: ownClasses, referencesFile: ownReferences} {
		if _, err := os.Stat(h.file(name)); err == nil {
			continue
		}
		if err := h.replace(name, []byte(text)); err != nil {
			return err
		}
	}
	return nil
}
