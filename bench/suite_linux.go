package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"decoynet/bench/figure"
	"decoynet/bench/subject"
)

// defaultRounds is how often everything is measured.
const defaultRounds = 5

// suite is one table and one JSON file.
type suite struct {
	subjects []string // the default ones, in the table's order
	duration time.Duration
	rounds   int           // 0: defaultRounds
	delay    time.Duration // of the way between a subject's two machines, in each direction
	peers    []string
	metrics  []figure.Metric
	targets  []figure.Target
	groups   []group
	// run takes the figures of a suite that compares no gateways, instead of the
	// groups.
	run func(ctx context.Context, b *bench) error
}

// group takes some figures of one subject.
type group struct {
	name string
	// take measures one subject in one round.
	take func(ctx context.Context, b *bench, in *subject.Instance) error
	// fits tells whether the subject can be measured so; nil is every one.
	fits func(in *subject.Instance) bool
}

// suites holds all of them by name: the names that make bench BENCH=... takes.
var suites = map[string]suite{
	"relay":     relaySuite,
	"endurance": enduranceSuite,
	"tunnel":    tunnelSuite,
	"hop":       hopSuite,
	"delay":     delaySuite,
	"carriers":  carriersSuite(),
	"scale":     scaleSuite(),
	"decoys":    decoysSuite(),
	"sensing":   sensingSuite(),
	"feed":      feedSuite(),
	"alerts":    alertsSuite(),
	"rules":     rulesSuite(),
}

// usualSuites are run where none is named.
var usualSuites = []string{"relay", "tunnel", "hop", "delay", "carriers", "scale", "decoys", "sensing", "feed", "alerts"}

func suiteNames() []string { return slices.Sorted(maps.Keys(suites)) }

func groupNames() []string {
	var names []string
	for _, suite := range suiteNames() {
		for _, g := range suites[suite].groups {
			if !slices.Contains(names, g.name) {
				names = append(names, g.name)
			}
		}
	}
	return names
}

// quickDuration is that of a measurement with -quick where none is given.
const quickDuration = 300 * time.Millisecond

// quickParallel bounds the connections at a time with -quick.
const quickParallel = 64

// bench is one run of a suite.
type bench struct {
	options
	groups []group
	report *figure.Report
	round  int
	log    io.Writer
}

// record adds a sample of the current round.
func (b *bench) record(in *subject.Instance, metric string, value float64) {
	b.sample(in.Name, metric, value)
}

func (b *bench) sample(name, metric string, value float64) {
	b.report.Add(b.round, name, metric, value)
	if b.verbose {
		fmt.Fprintf(b.log, "  %-15s %-22s %.4g\n", name, metric, value)
	}
}

func run(ctx context.Context, o options, out io.Writer) error {
	s, ok := suites[o.only]
	if !ok {
		return fmt.Errorf("unknown suite %q; one of %s", o.only, strings.Join(suiteNames(), ", "))
	}
	if o.closes != "client" && o.closes != "service" {
		return fmt.Errorf("-close %q: client or service", o.closes)
	}
	if o.rounds == 0 {
		o.rounds = cmp.Or(s.rounds, defaultRounds)
	}
	if o.rounds < 1 || o.decoys < 1 || o.decoys > subject.Decoys {
		return fmt.Errorf("-rounds %d -decoys %d: at least one of each, and %d decoys at most", o.rounds, o.decoys, subject.Decoys)
	}
	switch {
	case o.duration == 0 && o.quick:
		o.duration = quickDuration
	case o.duration == 0:
		o.duration = s.duration
	}
	if o.quick {
		o.rounds = 1
	}
	b := &bench{options: o, log: out}
	b.report = &figure.Report{Metrics: s.metrics, Peers: s.peers, Targets: s.targets}
	measure := s.run
	if measure == nil {
		subjects, err := choose(o, s, out)
		if err != nil {
			return err
		}
		if b.groups, err = chooseGroups(s.groups, o.figures); err != nil {
			return err
		}
		measure = func(ctx context.Context, b *bench) error { return b.measure(ctx, subjects) }
	}
	start := time.Now()
	failed := measure(ctx, b)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := b.report.WriteTable(out); err != nil {
		return errors.Join(failed, err)
	}
	path, err := b.report.WriteFile(o.out, o.only, map[string]any{
		"rounds": o.rounds, "duration": o.duration.String(), "close": o.closes, "decoys": o.decoys, "cpus": runtime.NumCPU(),
		"kernel": kernelRelease(), "taken": start.UTC().Format(time.RFC3339), "took": time.Since(start).Round(time.Second).String(),
	})
	if err == nil {
		fmt.Fprintf(out, "\nfigures: %s\n", path)
	}
	return errors.Join(failed, err)
}

// choose returns the subjects to measure. Those of decoynet are left out, with
// a word, where its binary is missing.
func choose(o options, s suite, out io.Writer) ([]subject.Subject, error) {
	binary, missing := absolute(o.decoynet)
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	all := map[string]subject.Subject{}
	for _, p := range append(subject.Peers(), subject.Ours(binary)...) {
		p.Layout.Delay = s.delay
		all[p.Name] = p
	}
	for _, f := range subject.Feeds {
		all[f.Name] = subject.Fed(self, f)
	}
	names := s.subjects
	if o.subjects != "" {
		names = strings.Split(o.subjects, ",")
	}
	var chosen []subject.Subject
	for _, name := range names {
		p, ok := all[name]
		if !ok {
			return nil, fmt.Errorf("unknown subject %q; one of %s", name, strings.Join(slices.Sorted(maps.Keys(all)), ", "))
		}
		if missing != nil && p.Ours {
			fmt.Fprintf(out, "%s is left out: %v\n", name, missing)
			continue
		}
		chosen = append(chosen, p)
	}
	return chosen, nil
}

func chooseGroups(all []group, names string) ([]group, error) {
	if names == "" {
		return all, nil
	}
	var chosen []group
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(all, func(g group) bool { return g.name == name })
		if i < 0 {
			return nil, fmt.Errorf("unknown figures %q in this suite", name)
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

// measure brings all subjects up and lets them take turns. A subject that
// fails is left out from then on, its figures void; the others go on.
func (b *bench) measure(ctx context.Context, subjects []subject.Subject) (err error) {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	n, err := subject.NewNetwork(self)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	var up []*subject.Instance
	var failures []error
	for _, s := range subjects {
		fmt.Fprintf(b.log, "bringing up %s\n", s.Name)
		b.report.Subjects = append(b.report.Subjects, s.Name)
		in, err := subject.Up(ctx, n, s)
		if err != nil {
			failures = append(failures, b.abandon(s.Name, err))
			continue
		}
		up = append(up, in)
	}
	for b.round = range b.rounds {
		for _, g := range b.groups {
			fmt.Fprintf(b.log, "round %d of %d: %s\n", b.round+1, b.rounds, g.name)
			up, failures = b.turn(ctx, n, g, up, failures)
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	return errors.Join(failures...)
}

// abandon voids all figures of a subject.
func (b *bench) abandon(name string, err error) error {
	fmt.Fprintf(b.log, "%s is given up: %v\n", name, err)
	for _, m := range b.report.Metrics {
		b.report.Void(name, m.Name, "the subject failed")
	}
	return fmt.Errorf("%s: %w", name, err)
}

// turn measures every subject once. Each round begins with another one, so
// that what a figure leaves behind (connections in TIME_WAIT) falls on all.
func (b *bench) turn(ctx context.Context, n *subject.Network, g group, up []*subject.Instance, failures []error) ([]*subject.Instance, []error) {
	var still []*subject.Instance
	for i := range up {
		in := up[(i+b.round)%len(up)]
		if g.fits == nil || g.fits(in) {
			err := n.ForgetNeighbours(ctx)
			if err == nil {
				err = g.take(ctx, b, in)
			}
			if err != nil {
				failures = append(failures, b.abandon(in.Name, fmt.Errorf("measure %s: %w", g.name, err)))
				continue
			}
		}
		still = append(still, in)
	}
	// The order of the table, from which the next turn counts.
	slices.SortFunc(still, func(x, y *subject.Instance) int {
		return slices.Index(b.report.Subjects, x.Name) - slices.Index(b.report.Subjects, y.Name)
	})
	return still, failures
}
