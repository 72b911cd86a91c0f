package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"decoynet/deception"
	"decoynet/internal/lab"
)

// ErrFailed is returned by Run, wrapped, where any server saw a wrong address or
// anything else was not as it should be.
var ErrFailed = errors.New("the demo has failed")

// Options say how the demo is to be played.
type Options struct {
	Binary string    // the program decoynet
	Out    io.Writer // for a person
	Colour bool
	Name   string // of the lab (default: one that is free)
	// Keep keeps the lab up afterwards, until the context ends.
	Keep bool

	// For the tests of the judgement: prepare is called before decoynet is started,
	// spoil when it is up, and patience is for how long records may be late.
	prepare  func(context.Context, *Stage) error
	spoil    func(context.Context, *Stage) error
	patience time.Duration
}

// Summary is the demo's outcome for other programs.
type Summary struct {
	OK          bool            `json:"ok"`
	Interrupted bool            `json:"interrupted,omitempty"`
	Seconds     float64         `json:"seconds"` // until the judgement
	Steering    string          `json:"steering"`
	Decoys      int             `json:"decoys"`             // addresses
	Accepted    int             `json:"accepted"`           // connections that decoys accepted
	Sessions    int             `json:"sessions"`           // that decoynet recorded
	Suricata    string          `json:"suricata,omitempty"` // its version, where there is one
	Alerts      int             `json:"alerts"`
	Steps       []StepSummary   `json:"steps"`
	Servers     []ServerSummary `json:"servers"`
	Checks      []CheckSummary  `json:"checks"`
}

// StepSummary is one step of the attack.
type StepSummary struct {
	Name    string  `json:"name"`
	OK      bool    `json:"ok"`
	Says    string  `json:"says"`
	Seconds float64 `json:"seconds"`
}

// ServerSummary is one server's verdict.
type ServerSummary struct {
	Server  string `json:"server"`
	Service string `json:"service"`
	OK      bool   `json:"ok"`
	Peers   int    `json:"peers"`         // entries of its own log that are intruders'
	Matched int    `json:"matched"`       // of them, those that have their session
	Checks  int    `json:"health_checks"` // entries that are decoynet's own checks
	// Sessions are those of the service, also where the server logged nothing:
	// a connection without a request, for a web server.
	Sessions int      `json:"sessions"`
	Faults   []string `json:"faults,omitempty"`
}

// CheckSummary is one of the other verdicts.
type CheckSummary struct {
	Name   string   `json:"name"`
	OK     bool     `json:"ok"`
	Says   string   `json:"says"`
	Faults []string `json:"faults,omitempty"`
}

// show is one run of the demo.
type show struct {
	Options
	screen  *screen
	plan    *plan
	stage   *Stage
	scene   scene
	cards   []*witness // of the intruder in the office, and of the one in the branch
	attacks []*attack  // likewise
	worker  *colleague // in the office
	clerk   *colleague // in the branch
	contested
	detects bool              // Suricata looks on
	blind   []string          // why it did not, or not as it should
	before  map[string]string // snapshots of the machines, by name
	log     string            // decoynet's, when it has ended
	summary Summary
}

// Run plays the demo. It returns an error that wraps ErrFailed where the
// judgement is bad, and the context's where that has ended first. Whatever it
// returns, nothing of the demo is left.
func Run(ctx context.Context, o Options) (Summary, error) {
	if o.Name == "" {
		o.Name = fmt.Sprintf("demo-%d", os.Getpid())
	}
	if o.patience == 0 {
		o.patience = recordPatience
	}
	s := &show{Options: o, before: map[string]string{}}
	s.screen = &screen{w: o.Out, colour: o.Colour, began: time.Now()}
	s.summary.OK = true
	var err error
	if s.plan, err = readPlan(Document, branchHosts()); err != nil {
		return s.summary, err
	}
	s.summary.Decoys = len(s.plan.addresses(""))
	if os.Geteuid() != 0 {
		return s.summary, lab.ErrPrivilege
	}
	if err := checkTools(); err != nil {
		return s.summary, err
	}
	before, err := hostState(ctx, o.Name)
	if err != nil {
		return s.summary, fmt.Errorf("look at the host: %w", err)
	}
	err = s.play(ctx)
	kept := errors.Is(err, errKept)
	if kept {
		err = nil
	}
	s.screen.finish()
	s.summary.Interrupted = ctx.Err() != nil && !kept
	if s.summary.Interrupted {
		s.screen.say("\ninterrupted")
		err = context.Cause(ctx)
	}
	err = errors.Join(err, s.strike(before))
	return s.outcome(err)
}

// errKept is the end of a lab that was kept up.
var errKept = errors.New("the person has seen enough")

// play runs the demo up to the judgement.
func (s *show) play(ctx context.Context) error {
	s.screen.say("%s", s.screen.paint(bold, "decoynet demo")+": an office and a branch office in namespaces of this machine, decoys in both, an")
	s.screen.say("intruder in each, and what the real servers behind the decoys then say whom they saw.")
	s.screen.title("Set up")
	if err := s.setUp(ctx); err != nil {
		return err
	}
	s.screen.title("The branch office's business server becomes a node")
	if err := s.becomeNode(ctx); err != nil {
		return err
	}
	s.screen.title("Who looks on")
	if err := s.lookOn(ctx); err != nil {
		return err
	}
	var err error
	if s.scene, err = s.stage.scene(ctx, s.plan); err != nil {
		return err
	}
	s.screen.title("The network")
	s.screen.say("%s", strings.TrimRight(draw(s.scene), "\n"))

	s.screen.title("The intruder at work")
	if err := s.attackAll(ctx, "", s.attacks[0].steps()); err != nil {
		return err
	}
	s.screen.title("The other one, in the branch office")
	if err := s.attackAll(ctx, "branch: ", s.attacks[1].branchSteps()); err != nil {
		return err
	}
	if err := s.judge(ctx); err != nil {
		return err
	}
	if !s.Keep {
		return nil
	}
	if failed := s.failed(); len(failed) > 0 {
		s.screen.say("\n%s: %s", s.screen.paint(red, "FAIL"), strings.Join(failed, ", "))
	} else {
		s.pass()
	}
	s.screen.title("The network stays up until Ctrl-C")
	s.screen.say("%s", strings.TrimRight(s.stage.Usage(), "\n"))
	select {
	case <-ctx.Done():
		return errKept
	case <-s.stage.Done():
		return fmt.Errorf("decoynet has ended; it said:\n%s", s.stage.Log())
	}
}

func (s *show) setUp(ctx context.Context) error {
	var err error
	s.stage, err = NewStage(ctx, StageConfig{Name: s.Name, Binary: s.Binary, Progress: s.screen.note})
	if err != nil {
		return err
	}
	s.worker = work(context.WithoutCancel(ctx), s.stage.Gateway, netip.AddrPortFrom(lab.OfficeProduction.V4, 80))
	s.clerk = work(context.WithoutCancel(ctx), s.stage.Branch.Router, netip.AddrPortFrom(lab.BranchServer.V4, crmPort))
	s.screen.step("note how the machines are configured")
	if err := s.stage.Settle(ctx); err != nil {
		return fmt.Errorf("wait for the network to settle: %w", err)
	}
	if s.before, err = s.snapshots(ctx); err != nil {
		return err
	}
	s.screen.result("to compare with afterwards", nil)
	for m, at := range s.intruders() {
		card, err := watchCard(m, "eth0", at.V4, at.V6)
		if err != nil {
			return err
		}
		s.cards = append(s.cards, card)
		s.attacks = append(s.attacks, &attack{stage: s.stage, from: m, plan: s.plan, card: card})
	}
	s.screen.step("start decoynet on gw")
	if err := s.misprint(); err != nil {
		return err
	}
	if s.prepare != nil {
		if err := s.prepare(ctx, s.stage); err != nil {
			return err
		}
	}
	if err := s.stage.upGateway(ctx); err != nil {
		return err
	}
	if s.spoil != nil {
		if err := s.spoil(ctx, s.stage); err != nil {
			return err
		}
	}
	st, err := s.stage.status(ctx)
	if err != nil {
		return err
	}
	for _, g := range st.Segments {
		s.summary.Steering = g.Steering
		s.screen.result(fmt.Sprintf("%d decoy addresses, steering by %s", g.Addresses, g.Steering), nil)
	}
	return nil
}

// intruders yields where each sits, the one in the office first.
func (s *show) intruders() iter.Seq2[*lab.Machine, lab.Pair] {
	return func(yield func(*lab.Machine, lab.Pair) bool) {
		_ = yield(s.stage.Intruder, lab.OfficeIntruder) && yield(s.stage.Branch.Intruder, lab.BranchIntruder)
	}
}

// stepPatience bounds one step of the attack.
const stepPatience = 30 * time.Second

// attackAll takes every step, also after one that failed. The summary names it
// with the place in front.
func (s *show) attackAll(ctx context.Context, place string, steps []attackStep) error {
	for _, step := range steps {
		s.screen.step(step.name)
		began := time.Now()
		limited, cancel := context.WithTimeout(ctx, stepPatience)
		says, err := step.do(limited)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.screen.result(says, err)
		sum := StepSummary{Name: place + step.name, OK: err == nil, Says: says, Seconds: time.Since(began).Seconds()}
		if err != nil {
			sum.Says, s.summary.OK = err.Error(), false
		}
		s.summary.Steps = append(s.summary.Steps, sum)
	}
	return nil
}

// recordPatience is how long records may be behind what has happened: the kernel
// tells of a finished connection when its own timeout has passed.
const recordPatience = 10 * time.Second

// alertPatience is how long alerts are waited for that need not be there.
const alertPatience = 3 * time.Second

// judge collects all records and says what is to be said about them.
func (s *show) judge(ctx context.Context) error {
	s.screen.step("read the logs, decoynet's sessions and alerts")
	var lost error
	for _, card := range s.cards {
		lost = errors.Join(lost, card.settle())
	}
	var e evidence
	var servers []serverVerdict
	var alerts alertVerdict
	var accepted int
	var faults []string
	began := time.Now()
	err := lab.Eventually(ctx, s.patience, func() (err error) {
		if e, err = s.collect(ctx); err != nil {
			return err
		}
		servers = judgeServers(e)
		accepted, faults = judgeSessions(e)
		_, _, all := judgeOutpost(e, branchOutpost())
		all = append(all, faults...)
		for _, v := range servers {
			all = append(all, v.Faults...)
		}
		if s.detects {
			alerts = judgeAlerts(e, servers)
			all = append(all, alerts.Faults...)
			if alerts.Detected < alerts.Connections && time.Since(began) < alertPatience {
				all = append(all, "alerts are missing")
			}
		}
		if len(all) > 0 {
			return errors.New(all[0])
		}
		return nil
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if e.Plan == nil {
		return fmt.Errorf("read the records: %w", err)
	}
	entries := 0
	for _, v := range e.Servers {
		entries += len(v.Contacts)
	}
	s.screen.result(fmt.Sprintf("%d log entries, %d sessions, %d alerts", entries, len(e.Sessions), len(e.Alerts)), nil)
	s.summary.Accepted, s.summary.Sessions = accepted, len(e.Sessions)
	s.tell(e, servers)
	s.screen.title("Verdict")
	for _, v := range servers {
		s.server(v)
	}
	s.others(ctx, e, accepted, alerts, faults, lost)
	s.summary.Seconds = time.Since(s.screen.began).Seconds()
	return nil
}

// collect reads the witnesses.
func (s *show) collect(ctx context.Context) (evidence, error) {
	e := evidence{
		Card:   s.cards[0].seen().with(s.cards[1].seen()),
		Visits: slices.Concat(s.attacks[0].visits, s.attacks[1].visits),
	}
	var err error
	if e.Sessions, err = s.stage.sessions(ctx); err != nil {
		return e, err
	}
	if s.detects {
		if e.Alerts, err = s.stage.alerts(ctx); err != nil {
			return e, err
		}
	}
	for _, v := range []struct {
		server    *lab.Server
		service   string
		transport deception.Transport
	}{
		{s.stage.Web, "web", deception.TCP},
		{s.stage.Redis, "redis", deception.TCP},
		{s.stage.SSH.Server, "ssh", deception.TCP},
		{s.stage.UDP, "snmp", deception.UDP},
	} {
		contacts, err := v.server.Contacts()
		if err != nil {
			return e, err
		}
		one := server{Name: v.server.Name(), Service: v.service, Transport: v.transport}
		one.Checks = []netip.Addr{lab.OfficeZoneGateway.V4, lab.OfficeZoneGateway.V6}
		for _, c := range contacts {
			one.Contacts = append(one.Contacts, contact(c))
		}
		e.Servers = append(e.Servers, one)
	}
	e.Plan = s.plan
	return e, nil
}

// tell lists what everybody has recorded.
func (s *show) tell(e evidence, servers []serverVerdict) {
	s.oneConnection(servers)
	s.screen.title("Sessions, and the servers' own logs")
	for _, v := range servers {
		s.screen.listing(v)
	}
	if len(e.Alerts) > 0 {
		s.screen.title("What Suricata says of them")
		s.screen.alerts(e)
	}
}

// oneConnection follows the first visit to the web server from hand to hand.
func (s *show) oneConnection(servers []serverVerdict) {
	for _, v := range servers {
		if v.Service != "web" || len(v.Rows) == 0 || v.Rows[0].Session == nil {
			continue
		}
		r := v.Rows[0]
		log, err := os.ReadFile(s.stage.Web.LogPath())
		if err != nil {
			log = []byte(err.Error())
		}
		logged := s.screen.paint(red, "has no such line")
		for line := range strings.Lines(string(log)) {
			if strings.HasPrefix(line, fmt.Sprintf("%s %d ", r.Source.Addr(), r.Source.Port())) {
				logged = s.screen.paint(green, strings.TrimSpace(line))
				break
			}
		}
		s.screen.title("One connection, as each of them has it")
		s.screen.say("  %-21s %s -> %s", r.Tool+" itself", r.Source, r.Destination)
		s.screen.say("  %-21s %s -> %s", "decoynet's session", r.Session.Source, r.Session.Destination)
		s.screen.say("  %-21s %s -> %s, which stands for this decoy", "  as passed on", r.Session.Seen.Source, r.Session.Seen.Destination)
		s.screen.say("  %-21s %s", "nginx's access log", logged)
	}
}

// snapshots returns the configuration of the machines that decoynet may change
// and of the one that it must not.
func (s *show) snapshots(ctx context.Context) (map[string]string, error) {
	var group errgroup.Group
	machines := []*lab.Machine{s.stage.Gateway, s.stage.Linux, s.stage.Production, s.stage.Branch.Server}
	texts := make([]string, len(machines))
	for i, m := range machines {
		group.Go(func() (err error) {
			texts[i], err = m.Snapshot(ctx)
			return err
		})
	}
	err := group.Wait()
	out := map[string]string{}
	for i, m := range machines {
		out[m.Name()] = texts[i]
	}
	return out, err
}
