package suricata

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"time"

	"decoynet/deception"
)

// A public set of rules takes Suricata a minute to read and another to test. For that
// long it would see nothing after each start, a crash included, and the feed's
// queue would overflow. So it starts with few rules, which it has read within a
// second, and takes the whole set while it works.

// fewRules are read within a second or two: so many are loaded before the first flow.
const fewRules = 2000

// usualRule is a rule's length, by which many are told from few without reading them.
const usualRule = 500

// early has Suricata start with decoynet's rules, and with those of the document
// that were good last if they are few.
func (s *Suricata) early(b *Binary, want *deception.Inspect) error {
	set := &ruleset{classes: ownClasses}
	seen := make(map[uint64]Place)
	if err := set.path(s.home.file(documentRules), fromUser, seen); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the document's rules of before: %w", err)
	}
	if err := set.own(seen); err != nil {
		return err
	}
	if err := s.home.ensureClasses(); err != nil {
		return err
	}
	if err := s.home.replaceBy(earlyRules, set); err != nil {
		return err
	}
	if err := s.home.replace(liveConfig, configure(b, want, earlyRules)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Rules, s.status.RulesSince = set.report(), time.Now()
	return nil
}

// keepDocuments keeps the document's rules of a tested set for the next start.
func (h *home) keepDocuments(set *ruleset) error {
	own := &ruleset{}
	for i := range set.rules {
		if set.rules[i].origin == fromUser {
			own.rules = append(own.rules, set.rules[i])
		}
	}
	if len(own.rules) > fewRules {
		own.rules = nil
	}
	return h.replaceBy(documentRules, own)
}

// settle loads the whole set into a Suricata that has begun with few rules. Where it
// is refused, that is the set that was good last.
func (s *Suricata) settle(ctx context.Context, b *Binary, want *deception.Inspect) {
	if err := s.answers(ctx); err != nil {
		return // it ended: the next start settles
	}
	s.works() // it answers nothing while it reads more
	if err := s.lockRules(ctx); err != nil {
		return
	}
	defer s.unlockRules()
	defer s.loading(nil)
	set, err := s.tested(ctx, b, want)
	if err == nil {
		err = s.fits(&set.trial)
	}
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		s.refuse(err)
		s.resume(ctx, b, want)
		return
	}
	if err := s.home.promote(set, b, want); err != nil {
		s.refuse(err)
		return
	}
	if live, err := s.exchange(ctx, &set.trial); err == nil && live {
		s.accepted(set.report())
		s.cfg.Log.Info("rules loaded", "rules", len(set.rules), "files", set.files)
	}
}

// resume loads the rules that were good last, if there are any.
func (s *Suricata) resume(ctx context.Context, b *Binary, want *deception.Inspect) {
	last := s.home.lastTrial()
	if _, err := os.Stat(s.home.file(liveRules)); err != nil || s.fits(&last) != nil {
		return
	}
	if err := s.home.replace(liveConfig, configure(b, want, liveRules)); err != nil {
		s.cfg.Log.Warn("rules of before cannot be loaded", "error", err)
		return
	}
	if live, err := s.exchange(ctx, &last); err == nil && live {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.status.Rules, s.status.RulesSince = last.Report, time.Now()
	}
}

// fits refuses a set for which there is no room in a Suricata with few rules, or of
// which it has died.
func (s *Suricata) fits(t *trial) error {
	if err := s.deadly(t); err != nil {
		return err
	}
	if restart, err := s.room(&t.Report); err != nil || !restart {
		return err
	}
	return s.noRoom(&t.Report)
}

// tested gathers the rules and has them tested, as candidate does, and shows so.
func (s *Suricata) tested(ctx context.Context, b *Binary, want *deception.Inspect) (*ruleset, error) {
	set, err := gather(want)
	if err != nil {
		return nil, err
	}
	s.loading(&Loading{Step: LoadingTest, Rules: len(set.rules), Since: time.Now()})
	return set, s.home.try(ctx, b, want, set)
}

// answers waits until the process listens to commands.
func (s *Suricata) answers(ctx context.Context) error {
	for {
		if _, err := command(ctx, s.home.child(""), "uptime"); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// room tells whether there is memory for a set beside the one that is loaded, or
// instead of it, after a restart.
func (s *Suricata) room(r *Report) (restart bool, err error) {
	free := s.cfg.Memory()
	if r.PeakBytes <= free {
		return false, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil && r.PeakBytes <= free+residentBytes(s.process.pid) {
		return true, nil
	}
	return false, s.noRoom(r)
}

func (s *Suricata) noRoom(r *Report) error {
	return fmt.Errorf("%w: Suricata takes %d MB for %d rules, and %d MB are free; give the machine more, or load fewer rules",
		ErrMemory, r.PeakBytes>>20, r.Rules, s.cfg.Memory()>>20)
}

// mostDeaths is how often Suricata may die of one set before that is left alone.
const mostDeaths = 2

// deadly refuses a set that Suricata has died of: it would each time anew.
func (s *Suricata) deadly(t *trial) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.Sum != s.killer || s.deaths < mostDeaths {
		return nil
	}
	return fmt.Errorf("suricata died %d times while it loaded these %d rules; `decoynet rules reload` tries once more", s.deaths, t.Report.Rules)
}

// died takes note of an end in the middle of an exchange.
func (s *Suricata) died() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exchanging == "" {
		return
	}
	if s.killer != s.exchanging {
		s.killer, s.deaths = s.exchanging, 0
	}
	s.deaths++
}

// forgive has a set tried once more of which Suricata died.
func (s *Suricata) forgive() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.killer, s.deaths = "", 0
}

// lockRules waits until no other set of rules is tested or exchanged.
func (s *Suricata) lockRules(ctx context.Context) error {
	select {
	case s.rules <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait until other rules are loaded: %w", ctx.Err())
	}
}

func (s *Suricata) unlockRules() { <-s.rules }

// loading shows what is done with a set of rules; nil: nothing.
func (s *Suricata) loading(l *Loading) {
	s.mu.Lock()
	before := s.status.Loading
	s.status.Loading = l
	s.mu.Unlock()
	if l == nil && before != nil && before.Rules > s.cfg.Few {
		debug.FreeOSMemory() // a large set was in memory: the kernel would have it back minutes later
	}
}
