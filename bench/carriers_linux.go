package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"decoynet/bench/carrier"
	"decoynet/bench/certs"
	"decoynet/bench/figure"
	"decoynet/bench/subject"
	"decoynet/internal/lab"
	"decoynet/internal/pki"
)

// The carriers' other parameters.
const (
	carrierIdle     = 2000 // flows
	carrierSkip     = 300 * time.Millisecond
	carrierLongSkip = 2 * time.Second // over the long way, where finding the pace takes round trips
	carrierLongTime = 3 * time.Second
	carrierPort     = 7444
	carrierClient   = "agent"
)

// carriersSuite compares the ways in which flows could be carried between agent
// and ingress gateway, each end a process on a machine of its own.
func carriersSuite() suite {
	s := suite{duration: time.Second, rounds: 3, run: measureCarriers}
	for _, k := range carrier.Kinds {
		s.subjects = append(s.subjects, k.Name)
	}
	s.peers = s.subjects[1:]
	for _, j := range carrierJobs {
		s.metrics = append(s.metrics, j.metrics...)
	}
	for _, name := range []string{"long_down", "long_up"} {
		s.targets = append(s.targets, figure.Target{Subject: "tunnel", Metric: name, Value: 0.8, RatioTo: "tls"})
	}
	return s
}

// carrierJob takes some figures by one load.
type carrierJob struct {
	load     carrier.Load
	parallel int
	long     bool // over the long way
	metrics  []figure.Metric
	values   func(carrier.Result) []float64 // of the metrics, in order
}

var carrierJobs = []carrierJob{
	openJob(32), openJob(512), stallJob(32),
	streamJob(carrier.Down, 1), streamJob(carrier.Down, 64), streamJob(carrier.Up, 1), streamJob(carrier.Up, 64),
	idleJob(), longJob(carrier.Down), longJob(carrier.Up),
}

func openJob(n int) carrierJob {
	at, what := fmt.Sprintf("_%d", n), fmt.Sprintf(", %d at a time", n)
	return carrierJob{load: carrier.Open, parallel: n, metrics: []figure.Metric{
		{Name: "flows" + at, Unit: "1/s", What: "open, request and answer of 100 bytes, FIN both ways" + what},
		{Name: "flow_p50" + at, Unit: "us", What: "open to answer, median" + what},
		{Name: "flow_p99" + at, Unit: "us", What: "open to answer, 99th percentile" + what},
		{Name: "flow_cpu" + at, Unit: "s/1000", What: "CPU seconds of both ends per 1,000 flows" + what},
	}, values: func(r carrier.Result) []float64 {
		return []float64{r.PerSecond(), micros(r.P50), micros(r.P99), r.CPU.Seconds() * 1000 / float64(r.Flows)}
	}}
}

func stallJob(n int) carrierJob {
	what := fmt.Sprintf(" beside a flow that nobody reads, %d at a time", n)
	return carrierJob{load: carrier.Stall, parallel: n, metrics: []figure.Metric{
		{Name: "stalled_flows", Unit: "1/s", What: "flows" + what},
		{Name: "stalled_p99", Unit: "us", What: "open to answer, 99th percentile," + what},
	}, values: func(r carrier.Result) []float64 { return []float64{r.PerSecond(), micros(r.P99)} }}
}

func streamJob(l carrier.Load, n int) carrierJob {
	at, what := fmt.Sprintf("%s_%d", l, n), fmt.Sprintf("%s, %d at a time", l, n)
	return carrierJob{load: l, parallel: n, metrics: []figure.Metric{
		{Name: "stream_" + at, Unit: "Gbit/s", What: "bulk data " + what},
		{Name: "stream_cpu_" + at, Unit: "s/GB", What: "CPU seconds of both ends per GB, " + what},
	}, values: func(r carrier.Result) []float64 {
		return []float64{r.GbitPerSecond(), r.CPU.Seconds() * 1e9 / float64(r.Bytes)}
	}}
}

func idleJob() carrierJob {
	return carrierJob{load: carrier.Idle, parallel: carrierIdle, metrics: []figure.Metric{
		{Name: "idle_rss", Unit: "KB/flow", What: fmt.Sprintf("resident memory of both ends that %d idle flows add", carrierIdle)},
	}, values: func(r carrier.Result) []float64 { return []float64{float64(r.RSS) / 1024 / float64(r.Flows)} }}
}

func longJob(l carrier.Load) carrierJob {
	return carrierJob{load: l, parallel: 1, long: true, metrics: []figure.Metric{
		{Name: "long_" + string(l), Unit: "Gbit/s", What: fmt.Sprintf("bulk data %s by one flow over a round trip of %v", l, 2*longDelay)},
	}, values: func(r carrier.Result) []float64 { return []float64{r.GbitPerSecond()} }}
}

// carrierSite is an agent's machine and a gateway's, with a short way and a long
// one between them.
type carrierSite struct {
	lab            *lab.Lab
	client, server *lab.Machine
	road           *subject.RoadProcess
	self           string
}

// The server's addresses at the ends of the two ways.
const (
	shortAddr = "10.66.0.2"
	longAddr  = "10.67.0.2"
)

func newCarrierSite(self string) (*carrierSite, error) {
	l, err := lab.New("")
	if err != nil {
		return nil, fmt.Errorf("open a lab: %w", err)
	}
	s := &carrierSite{lab: l, self: self, client: l.Machine(carrierClient), server: l.Machine(carrier.ServerNode)}
	short, near, far := l.Switch("short"), l.Switch("near"), l.Switch("far")
	s.client.Plug(short, "eth0", "10.66.0.1/24")
	s.server.Plug(short, "eth0", shortAddr+"/24")
	s.client.Plug(near, "eth1", "10.67.0.1/24")
	s.server.Plug(far, "eth1", longAddr+"/24")
	s.client.Sysctl("net.ipv4.tcp_tw_reuse", "1")
	s.road, err = subject.NewRoad(l.Machine("road"), near, far, longDelay, self)
	ca, caErr := pki.NewCA()
	if err := errors.Join(err, caErr); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	for _, m := range []*lab.Machine{s.client, s.server} {
		if err := certs.Issue(ca, m.Name(), m.Dir()); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return s, nil
}

func measureCarriers(ctx context.Context, b *bench) (err error) {
	kinds := carrier.Kinds
	if b.subjects != "" {
		kinds = nil
		for name := range strings.SplitSeq(b.subjects, ",") {
			k, err := carrier.Find(name)
			if err != nil {
				return err
			}
			kinds = append(kinds, k)
		}
	}
	jobs, err := chooseCarrierJobs(b.figures)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	s, err := newCarrierSite(self)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.lab.Close()) }()
	for _, k := range kinds {
		b.report.Subjects = append(b.report.Subjects, k.Name)
	}
	var failures []error
	for b.round = range b.rounds {
		for _, j := range jobs {
			fmt.Fprintf(b.log, "round %d of %d: %s, %d at a time\n", b.round+1, b.rounds, j.metrics[0].Name, j.parallel)
			for i := range kinds {
				k := kinds[(i+b.round)%len(kinds)]
				if err := s.take(ctx, b, k, j); err != nil {
					failures = append(failures, fmt.Errorf("%s, %s: %w", k.Name, j.metrics[0].Name, err))
					for _, m := range j.metrics {
						b.report.Void(k.Name, m.Name, fmt.Sprintf("round %d: %v", b.round+1, err))
					}
				}
				if ctx.Err() != nil {
					return ctx.Err()
				}
			}
		}
	}
	return errors.Join(failures...)
}

// chooseCarrierJobs takes names of metrics, or their beginnings.
func chooseCarrierJobs(names string) ([]carrierJob, error) {
	if names == "" {
		return carrierJobs, nil
	}
	var chosen []carrierJob
	for name := range strings.SplitSeq(names, ",") {
		before := len(chosen)
		for _, j := range carrierJobs {
			if slices.ContainsFunc(j.metrics, func(m figure.Metric) bool { return strings.HasPrefix(m.Name, name) }) {
				chosen = append(chosen, j)
			}
		}
		if len(chosen) == before {
			return nil, fmt.Errorf("unknown figures %q; names of this suite's metrics, or their beginnings", name)
		}
	}
	return chosen, nil
}

// take runs one load between fresh processes.
func (s *carrierSite) take(ctx context.Context, b *bench, k carrier.Kind, j carrierJob) error {
	p, err := subject.Role(s.server, s.self, "carry-serve", k.Name, fmt.Sprintf("0.0.0.0:%d", carrierPort), s.server.Dir())
	if err != nil {
		return err
	}
	defer func() { _ = p.Kill() }()
	spec := carrier.Spec{
		Carrier: k.Name, Address: fmt.Sprintf("%s:%d", shortAddr, carrierPort), Identity: s.client.Dir(), Server: p.PID(),
		Load: j.load, Parallel: j.parallel, Skip: carrierSkip, Duration: b.duration,
	}
	if j.long {
		spec.Address, spec.Skip, spec.Duration = fmt.Sprintf("%s:%d", longAddr, carrierPort), carrierLongSkip, carrierLongTime
	}
	if b.quick {
		spec.Skip, spec.Duration, spec.Parallel = carrierSkip, b.duration, min(spec.Parallel, quickParallel)
	}
	arg, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("encode the load: %w", err)
	}
	before := s.road.Lost()
	ctx, cancel := context.WithTimeout(ctx, spec.Skip+spec.Duration+time.Minute)
	defer cancel()
	out, err := s.client.Run(ctx, s.self, "carry-load", string(arg))
	if err != nil {
		return fmt.Errorf("%w%s", err, p.Log())
	}
	var r carrier.Result
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return fmt.Errorf("read the load's report: %w", err)
	}
	if lost := s.road.Lost(); lost != before {
		return errors.New(strings.TrimSpace(strings.TrimPrefix(lost, before)))
	}
	for i, v := range j.values(r) {
		b.sample(k.Name, j.metrics[i].Name, v)
	}
	return nil
}
