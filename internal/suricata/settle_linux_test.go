package suricata

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/lab/publicset"
)

// few is what is loaded before a start in these tests, large more than that.
const few = 200

var large = publicset.Options{Rules: 4 * few, Broken: 2}

// settled waits until the whole set is in force.
func (s *subject) settled(t *testing.T, starts uint64) {
	t.Helper()
	until(t, time.Minute, "the whole set is loaded", func() bool {
		st := s.Status()
		return st.Starts == starts && st.State == Running && st.Loading == nil && st.Rules.Rules > few
	})
}

// beginLarge starts a Suricata with a large set of the system, and few rules of the document.
func beginLarge(t *testing.T, cfg Config, rules ...string) *subject {
	t.Helper()
	publicRules(t, large)
	cfg.Few = few
	s := begin(t, cfg)
	if err := s.Apply(t.Context(), &deception.Inspect{Suricata: deception.SuricataManaged, SystemRules: true, Rules: rules}); err != nil {
		t.Fatal(err)
	}
	return s
}

// With a large set Suricata works with decoynet's rules at once, and takes the others
// as it goes; after a crash it does not test them again, and has the document's too.
func TestLargeSetIsLoadedLater(t *testing.T) {
	binary, runs := counted(t)
	s := beginLarge(t, Config{Binary: binary}, ruleFile(t, needle))
	until(t, 30*time.Second, "the large set is on its way", func() bool { l := s.Status().Loading; return l != nil && l.Rules > large.Rules })
	marker := say{true, publicset.Marker + " needle"}
	first := s.visit("early", 4000, marker)
	s.has(t, first, 14200001)
	starts := s.Status().Starts
	s.settled(t, starts)
	tests := runs("-T")
	source := s.visit("late", 4000, marker)
	s.has(t, source, publicset.FirstSID)
	s.has(t, source, 1000001)
	if r := s.Status().Rules; len(r.Problems) < large.Broken || r.Rules < large.Rules+140 {
		t.Errorf("%d rules, %d problems", r.Rules, len(r.Problems))
	}

	kill(t, s.Status().PID, syscall.SIGKILL)
	until(t, 30*time.Second, "it was started anew", func() bool { return s.Status().Starts == starts+1 })
	again := s.visit("anew", 4000, marker)
	s.has(t, again, 14200001)
	s.has(t, again, 1000001)
	s.settled(t, starts+1)
	s.has(t, s.visit("anew and late", 4000, marker), publicset.FirstSID)
	if n := runs("-T"); n != tests {
		t.Errorf("the set was tested %d times more", n-tests)
	}
}

// A set for which there is no memory is refused, and says what it takes. Where there
// is enough for one set only, Suricata is started anew.
func TestLargeSetNeedsMemory(t *testing.T) {
	free := make(chan uint64, 1)
	free <- 1 << 20
	s := beginLarge(t, Config{Memory: func() uint64 { n := <-free; free <- n; return n }})
	until(t, time.Minute, "the set is refused", func() bool { return strings.Contains(s.Status().RulesError, "1 MB are free") })
	if st := s.Status(); st.State != Running || st.Rules.Rules > few {
		t.Fatalf("status %+v", st)
	}
	if _, err := s.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "too little memory") {
		t.Fatalf("reload: %v", err)
	}
	<-free
	free <- 1 << 40
	if r, err := s.Reload(t.Context()); err != nil || !r.Live {
		t.Fatalf("reload: %+v, %v", r, err)
	}
	<-free
	need := s.Status().Rules.PeakBytes
	free <- need - min(need, residentBytes(s.Status().PID)/2)
	starts := s.Status().Starts
	if r, err := s.Reload(t.Context()); err != nil || r.Live || !r.Restart {
		t.Fatalf("reload with half the room: %+v, %v", r, err)
	}
	<-free
	free <- 1 << 40 // the one before has gone
	s.settled(t, starts+1)
}

// Who dies of a set twice does not try it a third time.
func TestDeadlySetIsLeftAlone(t *testing.T) {
	s := beginLarge(t, Config{BackoffMost: 300 * time.Millisecond})
	for range mostDeaths {
		pid := 0
		until(t, time.Minute, "the set is being loaded", func() bool {
			st := s.Status()
			pid = st.PID
			return st.Loading != nil && st.Loading.Step == LoadingExchange && pid != 0
		})
		kill(t, pid, syscall.SIGKILL)
		until(t, time.Minute, "it was started anew", func() bool { now := s.Status().PID; return now != 0 && now != pid })
	}
	until(t, time.Minute, "the set is left alone", func() bool { return strings.Contains(s.Status().RulesError, fmt.Sprintf("died %d times", mostDeaths)) })
	s.has(t, s.visit("own", 4000, say{true, publicset.Marker}), 14200001)
	if r, err := s.Reload(t.Context()); err != nil || !r.Live || s.Status().RulesError != "" {
		t.Fatalf("reload: %+v, %v", r, err)
	}
}

// To stop waits neither for a test nor for a long exchange, and Suricata tells of what
// it knows.
func TestStopWhileRulesAreLoaded(t *testing.T) {
	for _, step := range []string{LoadingTest, LoadingExchange} {
		t.Run(step, func(t *testing.T) {
			s := beginLarge(t, Config{})
			client, server := addresses("open", 4000)
			source := client.Addr().String()
			frames := conversation(client, server, say{true, "anything"})
			for _, f := range frames[:len(frames)-3] { // it does not end
				s.feed.frames <- f
			}
			until(t, time.Minute, "the step", func() bool { l := s.Status().Loading; return l != nil && l.Step == step })
			if step == LoadingTest {
				s.has(t, source, 14200001)
			}
			begin := time.Now()
			if err := s.Close(t.Context()); err != nil {
				t.Error(err)
			}
			t.Logf("closed after %v", time.Since(begin))
			flows := 0
			for _, e := range events(t, s.EVE()) {
				if e.Type == "flow" && e.Source == source {
					flows++
				}
			}
			if flows != 1 { // it is told of a flow that runs when Suricata ends in good order
				t.Errorf("%d records of the flow that ran", flows)
			}
			if st := s.Status(); st.PID != 0 || st.Failures != 0 {
				t.Errorf("status %+v", st)
			}
		})
	}
}

// A refused large set leaves the last good one in force, over a restart as well.
func TestLargeSetIsRefused(t *testing.T) {
	own := ruleFile(t, needle)
	s := beginLarge(t, Config{}, own)
	until(t, time.Minute, "the whole set is loaded", func() bool { return s.Status().Rules.Rules > few })
	write(t, own, needle+"alert nothing\n")
	kill(t, s.Status().PID, syscall.SIGKILL)
	until(t, time.Minute, "the set is refused, that of before loaded", func() bool {
		st := s.Status()
		return strings.Contains(st.RulesError, own+":2") && st.Rules.Rules > few && st.Loading == nil && st.State == Running
	})
	s.has(t, s.visit("kept", 4000, say{true, publicset.Marker}), publicset.FirstSID)
	if !slices.Contains(s.kinds(), deception.EventRulesRefused) {
		t.Errorf("events %v", s.kinds())
	}
}
