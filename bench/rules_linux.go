package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"decoynet/bench/figure"
	"decoynet/bench/subject"
	"decoynet/internal/lab"
	"decoynet/internal/lab/publicset"
)

const (
	rulesEvery = 100 * time.Millisecond // between two flows
	// rulesLimit bounds each step; on a busy machine a set takes minutes.
	rulesLimit = 12 * time.Minute
	rulesQuiet = 10 * time.Second
	quickRules = 3000
)

// rulesSuite shows what a public set of rules costs: a start, a reload and a crash
// with flows all the while. It runs the program as it is: one subject, no peer.
func rulesSuite() suite {
	const flows = "of an intruder's flows, ten a second, of which no alert was shown: "
	return suite{
		subjects: []string{"decoynet"}, rounds: 1, run: measureRules,
		metrics: []figure.Metric{
			{Name: "rules", Unit: "rules", What: "loaded, with decoynet's own"},
			{Name: "start_own", Unit: "s", What: "from `up` until Suricata analyses with decoynet's rules"},
			{Name: "start_whole", Unit: "s", What: "from `up` until the whole set is in force, tested before"},
			{Name: "start_missing", Unit: "flows", What: flows + "from ready until the set is in force"},
			{Name: "reload", Unit: "s", What: "a `rules reload` of a changed set, test included"},
			{Name: "reload_missing", Unit: "flows", What: flows + "during the reload"},
			{Name: "crash_own", Unit: "s", What: "from SIGKILL of Suricata until it analyses with decoynet's rules"},
			{Name: "crash_whole", Unit: "s", What: "from SIGKILL of Suricata until the whole set is in force"},
			{Name: "crash_missing", Unit: "flows", What: flows + "from the kill until the set is in force"},
			{Name: "ends", Unit: "times", What: "that Suricata was ended as hung, or ended by itself, before the kill"},
			{Name: "suricata_own", Unit: "MB", What: "resident memory of Suricata with decoynet's rules"},
			{Name: "suricata_test", Unit: "MB", What: "of the one that tests, at most"},
			{Name: "suricata_whole", Unit: "MB", What: "with the whole set"},
			{Name: "suricata_reload", Unit: "MB", What: "at most, while one set is exchanged for another"},
			{Name: "decoynet_peak", Unit: "MB", What: "of decoynet itself, at most"},
			{Name: "decoynet_cpu", Unit: "s", What: "processor time of decoynet until the set is in force, relays included"},
			{Name: "contact_quiet", Unit: "ms", What: "an intruder's question and answer, median, nothing else going on"},
			{Name: "contact_busy", Unit: "ms", What: "the same while a set is tested and exchanged"},
		},
		targets: []figure.Target{
			{Subject: "decoynet", Metric: "start_missing", AtMost: true, Value: 0},
			{Subject: "decoynet", Metric: "reload_missing", AtMost: true, Value: 0},
			{Subject: "decoynet", Metric: "ends", AtMost: true, Value: 0},
		},
	}
}

const rulesDocument = `
node: gw
segments: [{name: office, parent: eth0, subnets: [{prefix: 192.0.2.0/24}], claim: unchecked}]
zones: [{name: linux, subnet: [10.1.0.0/24, "fd00:1::/64"], link: br-linux}]
services: [{name: echo, zone: linux, address: 10.1.0.5, ports: [9000]}]
decoys: [{name: decoys, segment: office, addresses: [192.0.2.100-192.0.2.249], bind: [{ports: [9000], service: echo}]}]
inspect: {system-rules: false, rules: [%s]}
`

func measureRules(ctx context.Context, b *bench) error {
	binary, err := absolute(b.decoynet)
	if err != nil {
		return err
	}
	b.report.Subjects = append(b.report.Subjects, "decoynet")
	for b.round = range b.rounds {
		if err := measureRulesOnce(ctx, b, binary); err != nil {
			return b.abandon("decoynet", err)
		}
	}
	return nil
}

// rulesSite is an office with an intruder who never rests.
type rulesSite struct {
	alertsSite
	file string // of the rules
	many int    // of which there are at least so many

	mu       sync.Mutex // guards the rest
	contacts map[pair]*contact
	alerts   map[pair]bool
	peak     map[string]float64 // resident MB, at most, since the last reset
}

func measureRulesOnce(ctx context.Context, b *bench, binary string) (err error) {
	l, top, err := lab.Office(ctx, "", nil)
	if err != nil {
		return fmt.Errorf("build the office: %w", err)
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	s := &rulesSite{alertsSite: alertsSite{Topology: top, binary: binary, data: filepath.Join(top.Gateway.Dir(), "data")}}
	s.contacts, s.alerts, s.peak = map[pair]*contact{}, map[pair]bool{}, map[string]float64{}
	service, err := s.Linux.Listen(ctx, "tcp", fmt.Sprintf(":%d", alertsPort))
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	defer service.Close()
	go answerAll(service)
	set := publicset.Whole()
	set.Broken = 0 // they would refuse a set of the document
	if b.quick {
		set.Rules, set.Disabled = quickRules, 0
	}
	s.many = set.Rules
	if err := s.writeRules(set); err != nil {
		return err
	}
	return s.run(ctx, b)
}

func (s *rulesSite) writeRules(set publicset.Options) (err error) {
	s.file = filepath.Join(s.Gateway.Dir(), "public.rules")
	f, err := os.Create(s.file)
	if err != nil {
		return fmt.Errorf("write rules: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return publicset.Write(f, set)
}

// rulesState is what the status says.
type rulesState struct {
	Ready    bool
	PID      int
	Services []struct{ Ports []struct{ Up bool } }
	Inspect  struct {
		Suricata struct {
			State  string
			PID    int
			Starts uint64
			// Failures are ends that nobody asked for.
			Failures uint64
			Loading  *struct{ Step string }
			Rules    struct {
				Rules int
				Peak  uint64 `json:"peak_bytes"`
			}
		}
	}
}

// state asks for the status and notes how much memory is taken.
func (s *rulesSite) state(ctx context.Context) (rulesState, error) {
	var st rulesState
	out, err := s.Gateway.Command(ctx, s.binary, "status", "--data", s.data, "-o", "json").Output()
	if err == nil {
		err = json.Unmarshal(out, &st)
	}
	if err != nil {
		return st, err
	}
	for name, pid := range map[string]int{"decoynet": st.PID, "suricata": st.Inspect.Suricata.PID} {
		s.peak[name] = max(s.peak[name], residentMB(pid))
	}
	return st, nil
}

// until waits for a state and returns how long that took.
func (s *rulesSite) until(ctx context.Context, begin time.Time, what string, met func(*rulesState) bool) (rulesState, float64, error) {
	var st rulesState
	err := lab.Eventually(ctx, rulesLimit, func() error {
		var err error
		if st, err = s.state(ctx); err == nil && !met(&st) {
			err = fmt.Errorf("suricata is %q with %d rules", st.Inspect.Suricata.State, st.Inspect.Suricata.Rules.Rules)
		}
		return err
	})
	if err != nil {
		return st, 0, fmt.Errorf("wait until %s: %w: %s", what, err, s.process.Log())
	}
	return st, time.Since(begin).Seconds(), nil
}

func (s *rulesSite) whole(st *rulesState) bool {
	r := &st.Inspect.Suricata
	return r.State == "running" && r.Loading == nil && r.Rules.Rules >= s.many
}

// run takes all figures, one after the other.
func (s *rulesSite) run(ctx context.Context, b *bench) (err error) {
	document := filepath.Join(s.Gateway.Dir(), "decoynet.yaml")
	if err := os.WriteFile(document, fmt.Appendf(nil, rulesDocument, s.file), 0o600); err != nil {
		return fmt.Errorf("write the document: %w", err)
	}
	begin := time.Now()
	if s.process, err = s.Gateway.Start(s.binary, "up", "-c", document, "--data", s.data); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.process.Stop(context.WithoutCancel(ctx))) }()
	up := func(st *rulesState) bool { return st.Ready && len(st.Services) > 0 && st.Services[0].Ports[0].Up }
	if _, _, err := s.until(ctx, begin, "decoynet is ready", up); err != nil {
		return err
	}
	stop, err := s.watch(ctx, time.Hour, func(a shown) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.alerts[pair{a.Port, a.Decoy}] = true
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var intruder sync.WaitGroup
	intruder.Go(func() { s.knock(ctx) })
	defer func() {
		cancel()
		intruder.Wait()
		err = errors.Join(err, stop())
	}()
	for _, step := range []func(context.Context, *bench) error{
		func(ctx context.Context, b *bench) error { return s.start(ctx, b, begin) }, s.reload, s.crash,
	} {
		if err := step(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// knock has the intruder ask one decoy after the other.
func (s *rulesSite) knock(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	tick := time.NewTicker(rulesEvery)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		decoy := fmt.Sprintf("192.0.2.%d", 100+i%150)
		all.Go(func() {
			c, port := s.ask(ctx, decoy)
			s.mu.Lock()
			defer s.mu.Unlock()
			s.contacts[pair{port, decoy}] = c
		})
	}
}

// ask is one flow, and when its answer was there.
func (s *rulesSite) ask(ctx context.Context, decoy string) (*contact, uint16) {
	c, port := s.contact(ctx, decoy)
	c.seen = time.Now()
	return c, port
}

// flows are those since begin: how many had no alert in the end, and how long the
// median took.
func (s *rulesSite) flows(begin time.Time) (missing int, median float64, err error) {
	time.Sleep(alertsGrace)
	s.mu.Lock()
	defer s.mu.Unlock()
	var took []time.Duration
	for p, c := range s.contacts {
		if c.asked.Before(begin) || time.Since(c.asked) < alertsGrace {
			continue
		}
		if c.failure != nil {
			return 0, 0, fmt.Errorf("contact a decoy: %w", c.failure)
		}
		took = append(took, c.seen.Sub(c.asked))
		if !s.alerts[p] {
			missing++
		}
	}
	if len(took) == 0 {
		return 0, 0, errors.New("no flow was made")
	}
	slices.Sort(took)
	return missing, micros(took[len(took)/2]) / 1000, nil
}

func (s *rulesSite) start(ctx context.Context, b *bench, begin time.Time) error {
	first := time.Now()
	st, own, err := s.until(ctx, begin, "suricata runs", func(st *rulesState) bool { return st.Inspect.Suricata.State == "running" })
	if err != nil {
		return err
	}
	b.sample("decoynet", "suricata_own", residentMB(st.Inspect.Suricata.PID))
	b.sample("decoynet", "start_own", own)
	st, whole, err := s.until(ctx, begin, "the whole set is in force", s.whole)
	if err != nil {
		return err
	}
	used, err := subject.Alone(st.PID)
	if err != nil {
		return err
	}
	b.sample("decoynet", "decoynet_cpu", (used.User + used.System).Seconds())
	b.sample("decoynet", "start_whole", whole)
	b.sample("decoynet", "rules", float64(st.Inspect.Suricata.Rules.Rules))
	b.sample("decoynet", "suricata_test", float64(st.Inspect.Suricata.Rules.Peak)/1e6)
	missing, _, err := s.flows(first)
	b.sample("decoynet", "start_missing", float64(missing))
	if err != nil {
		return err
	}
	b.sample("decoynet", "suricata_whole", residentMB(st.Inspect.Suricata.PID))
	quiet := time.Now()
	time.Sleep(rulesQuiet)
	_, median, err := s.flows(quiet)
	b.sample("decoynet", "contact_quiet", median)
	return err
}

func (s *rulesSite) reload(ctx context.Context, b *bench) error {
	f, err := os.OpenFile(s.file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("change the rules: %w", err)
	}
	_, err = fmt.Fprintln(f, `alert tcp any any -> any any (msg:"added"; content:"added later"; sid:1000001;)`)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("change the rules: %w", err)
	}
	begin := time.Now()
	delete(s.peak, "suricata")
	done := make(chan error, 1)
	go func() {
		out, err := s.Gateway.Command(ctx, s.binary, "rules", "reload", "--data", s.data).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("reload: %w: %s", err, out)
		}
		done <- err
	}()
	for reloaded := false; !reloaded; {
		select {
		case err := <-done:
			if err != nil {
				return err
			}
			reloaded = true
		case <-time.After(100 * time.Millisecond):
			_, _ = s.state(ctx) // memory is looked at
		}
	}
	b.sample("decoynet", "reload", time.Since(begin).Seconds())
	b.sample("decoynet", "suricata_reload", s.peak["suricata"])
	missing, median, err := s.flows(begin)
	b.sample("decoynet", "reload_missing", float64(missing))
	b.sample("decoynet", "contact_busy", median)
	return err
}

func (s *rulesSite) crash(ctx context.Context, b *bench) error {
	st, err := s.state(ctx)
	if err != nil {
		return err
	}
	begin := time.Now()
	starts := st.Inspect.Suricata.Starts
	b.sample("decoynet", "ends", float64(st.Inspect.Suricata.Failures))
	if err := syscall.Kill(st.Inspect.Suricata.PID, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill suricata: %w", err)
	}
	_, own, err := s.until(ctx, begin, "suricata runs again", func(st *rulesState) bool {
		return st.Inspect.Suricata.State == "running" && st.Inspect.Suricata.Starts > starts
	})
	if err != nil {
		return err
	}
	_, whole, err := s.until(ctx, begin, "the whole set is in force again", s.whole)
	if err != nil {
		return err
	}
	b.sample("decoynet", "crash_own", own)
	b.sample("decoynet", "crash_whole", whole)
	missing, _, err := s.flows(begin)
	b.sample("decoynet", "crash_missing", float64(missing))
	b.sample("decoynet", "decoynet_peak", s.peak["decoynet"])
	return err
}

// residentMB is 0 where the process has gone.
func residentMB(pid int) float64 {
	u, _ := subject.Alone(pid)
	return float64(u.RSS) / 1e6
}
