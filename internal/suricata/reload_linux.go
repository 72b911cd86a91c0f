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

// prepare makes configuration and rules ready for a start. A set that is refused
// leaves the last good one in its place; where there is none, Suricata starts
// with decoynet's own rules. whole: no rules are to be loaded later.
func (s *Suricata) prepare(b *Binary, want *deception.Inspect) (whole bool, err error) {
	set, err := gather(want)
	if err == nil && len(set.rules) > s.cfg.Few {
		return false, s.early(b, want)
	}
	if err := s.lockRules(s.ctx); err != nil {
		return false, err
	}
	defer s.unlockRules()
	if err == nil {
		err = s.home.try(s.ctx, b, want, set)
	}
	var refused *RulesError
	switch {
	case err == nil:
		if err := s.home.promote(set, b, want); err != nil {
			return false, err
		}
		s.accepted(set.report())
		return true, nil
	case s.ctx.Err() != nil:
		return false, err
	case set != nil && !errors.As(err, &refused):
		return false, err // not the rules' fault: disk, configuration
	}
	s.refuse(err)
	return s.fallBack(b, want)
}

// fallBack starts with the rules that were good last, or with our own.
func (s *Suricata) fallBack(b *Binary, want *deception.Inspect) (whole bool, err error) {
	if info, err := os.Stat(s.home.file(liveRules)); err == nil && info.Size() > int64(s.cfg.Few)*usualRule {
		return false, s.early(b, want)
	} else if err == nil {
		if err := s.home.replace(liveConfig, configure(b, want, liveRules)); err != nil {
			return false, err
		}
		return true, s.home.ensureClasses()
	}
	return true, s.early(b, want)
}

// Reload reads all rules again, has Suricata test them and exchanges them in the
// running one. Where they are refused, those that are loaded stay, and the error
// is a *RulesError. Once they have passed, the end of ctx does not stop it halfway.
func (s *Suricata) Reload(ctx context.Context) (Report, error) {
	want, on := s.wanted()
	if !on {
		return Report{}, errors.New("reload rules: decoynet runs no suricata here")
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(s.ctx, stop)()
	if err := s.lockRules(ctx); err != nil {
		return Report{}, err
	}
	defer s.unlockRules()
	defer s.loading(nil)
	begin := time.Now()
	b, err := Find(ctx, s.cfg.Binary)
	if err != nil {
		return Report{}, err
	}
	set, err := s.tested(ctx, &b, &want)
	r := set.report()
	if err == nil {
		r.Restart, err = s.room(&r)
	}
	if err != nil {
		if ctx.Err() == nil {
			s.refuse(err)
		}
		return r, err
	}
	if err := s.home.promote(set, &b, &want); err != nil {
		return r, err
	}
	s.forgive()
	if r.Restart {
		s.cfg.Log.Warn("there is no room for two sets of rules; suricata is started anew", "needs", r.PeakBytes, "free", s.cfg.Memory())
		s.restart()
	} else {
		r.Live, err = s.exchange(s.ctx, &set.trial)
	}
	r.Millis = millis(time.Since(begin))
	if err != nil {
		return r, err
	}
	if r.Live {
		s.accepted(r)
	}
	s.cfg.Log.Info("rules loaded", "rules", r.Rules, "files", r.Files, "live", r.Live)
	return r, nil
}

// exchange has the running Suricata take the live file of rules. Where it cannot,
// it is started anew.
func (s *Suricata) exchange(ctx context.Context, t *trial) (live bool, err error) {
	s.mu.Lock()
	p := s.process
	if p != nil {
		s.exchanging = t.Sum
		s.status.Loading = &Loading{Step: LoadingExchange, Rules: t.Report.Rules, Since: time.Now()}
	}
	s.mu.Unlock()
	if p == nil {
		return false, nil // it takes them when it starts
	}
	ctx, stop := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not done after %v", patience))
	defer stop()
	if _, err = command(ctx, s.home.child(""), "reload-rules"); err == nil {
		err = s.loaded(ctx)
	}
	if err == nil {
		s.mu.Lock()
		s.exchanging = ""
		s.mu.Unlock()
		return true, nil
	}
	if ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return false, err
	}
	select {
	case <-p.done:
		return false, fmt.Errorf("suricata ended while it loaded the rules: %w", err)
	case <-time.After(answerTimeout):
	}
	s.cfg.Log.Warn("rules cannot be exchanged in the running suricata; it is started anew", "error", err)
	s.restart()
	return false, nil
}

// restart has attend end the process and run begin anew.
func (s *Suricata) restart() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
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
	if err := h.keepDocuments(set); err != nil {
		return err
	}
	if err := h.remember(set); err != nil {
		return err
	}
	return h.removeFiles(set)
}

// removeFiles removes copies that no rule names any more. A Suricata that still has
// rules of before read theirs when it loaded them.
func (h *home) removeFiles(set *ruleset) error {
	entries, err := os.ReadDir(h.file(filesDir))
	if err != nil {
		return fmt.Errorf("list files of rules: %w", err)
	}
	for _, e := range entries {
		name := filesDir + "/" + e.Name()
		if set.attached[name] != "" {
			continue
		}
		if err := os.Remove(h.file(name)); err != nil {
			return fmt.Errorf("remove a file of rules of before: %w", err)
		}
	}
	return nil
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
