package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"decoynet/bench/figure"
	"decoynet/bench/fleet"
	"decoynet/bench/subject"
	"decoynet/internal/lab"
)

// The fleet's size, and how many sessions all of it records in a second.
const (
	fleetAgents = 500
	fleetRate   = 10000
	fleetSkip   = 3 * time.Second // until as many sessions arrive as are recorded
	quickAgents = 20
	quickSkip   = 300 * time.Millisecond
)

// fleetSubject is the only one of the suite.
const fleetSubject = "controller"

// scaleSuite is one controller and a fleet of agents.
func scaleSuite() suite {
	return suite{
		subjects: []string{fleetSubject}, duration: 10 * time.Second, rounds: 3, run: measureScale,
		metrics: []figure.Metric{
			{Name: "enrolments", Unit: "1/s", What: "tokens made and used"},
			{Name: "first_converged", Unit: "s", What: fmt.Sprintf("from the start of %d agents until all have converged", fleetAgents)},
			{Name: "converged", Unit: "s", What: fmt.Sprintf("from `apply` until all of %d agents have converged", fleetAgents)},
			{Name: "steady_sessions", Unit: "1/s", What: fmt.Sprintf("committed to SQLite while the agents record %d/s", fleetRate)},
			{Name: "steady_backlog", Unit: "s", What: "of recording that waits on the agents' disks at the end of it"},
			{Name: "steady_cpu", Unit: "s/1000", What: "CPU seconds of the controller per 1,000 of them"},
			{Name: "flood_sessions", Unit: "1/s", What: "committed to SQLite while every agent always has some waiting"},
			{Name: "flood_cpu", Unit: "s/1000", What: "CPU seconds of the controller per 1,000 of them"},
			{Name: "controller_rss", Unit: "MB", What: "resident memory of the controller after all converged, before records"},
			{Name: "controller_rss_flood", Unit: "MB", What: "after a flood of records"},
			{Name: "controller_descriptors", Unit: "", What: "of the controller, with all agents connected"},
		},
		targets: []figure.Target{
			{Subject: fleetSubject, Metric: "converged", AtMost: true, Value: 3},
			{Subject: fleetSubject, Metric: "steady_sessions", Value: 0.99 * fleetRate},
			{Subject: fleetSubject, Metric: "flood_sessions", Value: fleetRate},
		},
	}
}

// fleetSpec travels to the agents' process as JSON.
type fleetSpec struct {
	fleet.Config
	Rate           int // sessions a second
	Skip, Duration time.Duration
}

// fleetAnswer is what it says after its start, and after each command.
type fleetAnswer struct {
	Enrolled, Converged time.Duration
	Delivery            fleet.Delivery
}

// runFleet is the agents' process. It starts them, then does what the lines of
// its standard input say, and ends with them.
func runFleet(ctx context.Context, args []string) (err error) {
	var spec fleetSpec
	if len(args) != 1 {
		return errors.New("fleet: takes its description as JSON")
	}
	if err := json.Unmarshal([]byte(args[0]), &spec); err != nil {
		return fmt.Errorf("fleet: %w", err)
	}
	f, err := fleet.Open(spec.Config)
	if err != nil {
		return fmt.Errorf("fleet: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		err = errors.Join(err, f.Wait())
	}()
	out := json.NewEncoder(os.Stdout)
	var said fleetAnswer
	if said.Enrolled, said.Converged, err = f.Start(ctx); err != nil {
		return fmt.Errorf("fleet: %w", err)
	}
	if err := out.Encode(said); err != nil {
		return err
	}
	commands := bufio.NewScanner(os.Stdin)
	for version := 2; commands.Scan(); version++ {
		var said fleetAnswer
		switch commands.Text() {
		case "apply":
			said.Converged, err = f.Apply(ctx, version)
		case "steady":
			said.Delivery, err = f.Steady(ctx, spec.Rate, spec.Skip, spec.Duration)
		case "flood":
			said.Delivery, err = f.Flood(ctx, spec.Skip, spec.Duration)
		}
		if err != nil {
			return fmt.Errorf("fleet: %s: %w", commands.Text(), err)
		}
		if err := out.Encode(said); err != nil {
			return err
		}
	}
	return commands.Err()
}

// fleetSite is a controller's machine and one that all agents are on.
type fleetSite struct {
	lab        *lab.Lab
	controller *lab.Process
	agents     *lab.Process
	commands   io.WriteCloser
	answers    *json.Decoder
}

// answerWithin bounds each step of the fleet.
const answerWithin = 3 * time.Minute

func newFleetSite(ctx context.Context, b *bench) (s *fleetSite, err error) {
	l, binary, self, err := b.laboratory()
	if err != nil {
		return nil, err
	}
	s = &fleetSite{lab: l}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	lan, hq, agents := l.Switch("lan"), l.Machine("hq"), l.Machine("agents")
	hq.Plug(lan, "eth0", "10.66.0.2/24")
	agents.Plug(lan, "eth0", "10.66.0.1/24")
	data := filepath.Join(hq.Dir(), "data")
	s.controller, err = hq.Start(binary, "controller", "--data", data, "--listen", "10.66.0.2:7443", "--url", "https://10.66.0.2:7443")
	if err != nil {
		return nil, err
	}
	word := filepath.Join(data, "admin.token")
	if err := lab.Eventually(ctx, time.Minute, func() error {
		_, err := os.Stat(word)
		return err
	}); err != nil {
		return nil, fmt.Errorf("wait for the controller: %w: %s", err, s.controller.Log())
	}
	spec := fleetSpec{
		Config: fleet.Config{Data: data, Store: filepath.Join(data, "decoynet.db"), Dir: filepath.Join(agents.Dir(), "nodes"), Agents: fleetAgents},
		Rate:   fleetRate, Skip: fleetSkip, Duration: b.duration,
	}
	if b.quick {
		spec.Agents, spec.Rate, spec.Skip = quickAgents, fleetRate/10, quickSkip
	}
	return s, s.startAgents(agents, self, spec)
}

func (s *fleetSite) startAgents(m *lab.Machine, self string, spec fleetSpec) error {
	arg, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("describe the fleet: %w", err)
	}
	cmd := m.Command(context.Background(), self, "fleet", string(arg))
	in, err1 := cmd.StdinPipe()
	r, w, err2 := os.Pipe()
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("make pipes: %w", err)
	}
	defer w.Close() // the process's own copy stays open
	cmd.Stdout = w
	s.commands, s.answers = in, json.NewDecoder(r)
	s.agents, err = m.StartCommand(cmd)
	return err
}

// answer waits for what the fleet says next.
func (s *fleetSite) answer(ctx context.Context) (a fleetAnswer, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	// Its end is the end of what it says.
	defer context.AfterFunc(ctx, func() { _ = s.agents.Kill() })()
	if err := s.answers.Decode(&a); err != nil {
		return a, fmt.Errorf("the agents' process: %w: %s", errors.Join(ctx.Err(), err), s.agents.Log())
	}
	return a, nil
}

func (s *fleetSite) ask(ctx context.Context, command string) (fleetAnswer, error) {
	if _, err := fmt.Fprintln(s.commands, command); err != nil {
		return fleetAnswer{}, fmt.Errorf("tell the agents' process: %w: %s", err, s.agents.Log())
	}
	return s.answer(ctx)
}

func measureScale(ctx context.Context, b *bench) (err error) {
	fmt.Fprintln(b.log, "bringing up a controller and its agents")
	b.report.Subjects = []string{fleetSubject}
	s, err := newFleetSite(ctx, b)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.lab.Close()) }()
	first, err := s.answer(ctx)
	if err != nil {
		return err
	}
	agents := fleetAgents
	if b.quick {
		agents = quickAgents
	}
	b.sample(fleetSubject, "enrolments", float64(agents)/first.Enrolled.Seconds())
	b.sample(fleetSubject, "first_converged", first.Converged.Seconds())
	u, err := subject.UsageOf(s.controller.PID())
	if err != nil {
		return fmt.Errorf("%w: %s", err, s.controller.Log())
	}
	b.sample(fleetSubject, "controller_rss", float64(u.RSS)/1e6)
	b.sample(fleetSubject, "controller_descriptors", float64(u.Descriptors))
	for b.round = range b.rounds {
		fmt.Fprintf(b.log, "round %d of %d\n", b.round+1, b.rounds)
		if err := s.takeRound(ctx, b); err != nil {
			return fmt.Errorf("%w\nthe controller: %s", err, s.controller.Log())
		}
	}
	if err := s.commands.Close(); err != nil {
		return fmt.Errorf("end the agents' process: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	return errors.Join(s.agents.Wait(ctx), s.controller.Stop(ctx))
}

func (s *fleetSite) takeRound(ctx context.Context, b *bench) error {
	a, err := s.ask(ctx, "apply")
	if err != nil {
		return err
	}
	b.sample(fleetSubject, "converged", a.Converged.Seconds())
	for _, how := range []string{"steady", "flood"} {
		before, err := subject.UsageOf(s.controller.PID())
		if err != nil {
			return err
		}
		if a, err = s.ask(ctx, how); err != nil {
			return err
		}
		after, err := subject.UsageOf(s.controller.PID())
		if err != nil {
			return err
		}
		d := a.Delivery
		b.sample(fleetSubject, how+"_sessions", d.PerSecond())
		b.sample(fleetSubject, how+"_cpu", (after.User+after.System-before.User-before.System).Seconds()*1000/float64(d.Total))
		if how == "steady" {
			b.sample(fleetSubject, "steady_backlog", float64(d.Backlog)*d.Elapsed.Seconds()/float64(d.Recorded))
		} else {
			b.sample(fleetSubject, "controller_rss_flood", float64(after.RSS)/1e6)
		}
	}
	return nil
}
