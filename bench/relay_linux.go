package main

import (
	"context"
	"fmt"
	"time"

	"decoynet/bench/figure"
	"decoynet/bench/load"
	"decoynet/bench/subject"
)

// The figures' other parameters.
const (
	connectTimeout = 10 * time.Second // of one connection; then it has failed
	warmUp         = 200 * time.Millisecond
	settle         = 100 * time.Millisecond // for the gateway to close what the client closed
	movedParallel  = 32
	idleFlows      = 4000
	idleOpenWithin = 20 * time.Second
	idleSettle     = time.Second
)

// relaySuite is the one machine's job: decoys on a LAN, services behind.
var relaySuite = suite{
	subjects: []string{"routed", "kernel", "kernel-aliases", "sk_lookup", "tproxy", "relay-aliases", "haproxy", "haproxy-auto", "nginx", "snat-rule"},
	duration: 1500 * time.Millisecond,
	peers:    []string{"haproxy", "haproxy-auto", "routed"},
	metrics:  relayMetrics(),
	targets:  relayTargets(),
	groups: []group{
		{name: "idle", take: takeIdle, fits: hasProcess},
		{name: "connections", take: takeConnections(parallels...)},
		{name: "moved", take: takeMoved, fits: unbounded},
		{name: "streams", take: takeStreams(streamCounts...), fits: unbounded},
	},
}

// parallels are the numbers of connections at a time.
var parallels = []int{32, 512}

// connectionMetrics are those of takeConnections.
func connectionMetrics(parallels ...int) []figure.Metric {
	var m []figure.Metric
	for _, n := range parallels {
		at := fmt.Sprintf("_%d", n)
		what := fmt.Sprintf(", %d at a time to one decoy", n)
		m = append(m,
			figure.Metric{Name: "connections" + at, Unit: "1/s", What: "connect, the service speaks first, close" + what},
			figure.Metric{Name: "latency_p50" + at, Unit: "us", What: "connect to first byte, median" + what},
			figure.Metric{Name: "latency_p99" + at, Unit: "us", What: "connect to first byte, 99th percentile" + what},
			figure.Metric{Name: "cpu" + at, Unit: "s/1000", What: "CPU seconds of the gateway processes per 1,000 connections" + what},
			figure.Metric{Name: "cpu_user" + at, Unit: "s/1000", What: "of it in user space"},
			figure.Metric{Name: "cpu_system" + at, Unit: "s/1000", What: "of it in the kernel"},
			figure.Metric{Name: "failed" + at, Unit: "connections", What: "that got no first byte" + what},
		)
	}
	return m
}

// streamMetrics are those of takeStreams.
func streamMetrics(counts ...int) []figure.Metric {
	var m []figure.Metric
	for _, d := range directions {
		for _, n := range counts {
			m = append(m,
				figure.Metric{Name: streamMetric(d, n), Unit: "Gbit/s", What: fmt.Sprintf("%s over %d streams", d.what, n)},
				figure.Metric{Name: streamCPU(d, n), Unit: "s/GB", What: "CPU seconds of the gateway processes per GB of it"},
			)
		}
	}
	return m
}

func relayMetrics() []figure.Metric {
	m := connectionMetrics(parallels...)
	spread := fmt.Sprintf(", %d at a time over %d decoys", movedParallel, subject.Decoys)
	m = append(m,
		figure.Metric{Name: "moved_ports", Unit: "%", What: "connections whose source port the service saw changed" + spread},
		figure.Metric{Name: "connections_spread", Unit: "1/s", What: "the rate of it" + spread},
		figure.Metric{Name: "failed_spread", Unit: "connections", What: "that got no first byte" + spread},
	)
	m = append(m, streamMetrics(streamCounts...)...)
	return append(m,
		figure.Metric{Name: "idle_rss", Unit: "KB/flow", What: fmt.Sprintf("resident memory that %d idle flows add to a fresh gateway process", idleFlows)},
		figure.Metric{Name: "idle_rss_total", Unit: "MB", What: "resident memory with them"},
		figure.Metric{Name: "idle_descriptors", Unit: "1/flow", What: "descriptors that they add"},
		figure.Metric{Name: "idle_failed", Unit: "connections", What: "flows that could not be opened or got lost"},
	)
}

// relayTargets are the figures to reach, each a ratio within one run.
func relayTargets() []figure.Target {
	var t []figure.Target
	for _, s := range []string{"sk_lookup", "tproxy", "relay-aliases"} {
		for _, n := range parallels {
			at := fmt.Sprintf("_%d", n)
			t = append(t,
				figure.Target{Subject: s, Metric: "connections" + at, Value: 1.0, RatioTo: "haproxy"},
				figure.Target{Subject: s, Metric: "latency_p99" + at, AtMost: true, Value: 1.2, RatioTo: "haproxy"},
				figure.Target{Subject: s, Metric: "cpu" + at, AtMost: true, Value: 1.25, RatioTo: "haproxy"},
			)
		}
		for _, d := range directions {
			t = append(t, figure.Target{Subject: s, Metric: streamMetric(d, 1), Value: 1.1, RatioTo: "haproxy"})
		}
		moved := 0.2
		if s == "relay-aliases" {
			moved = 0
		}
		t = append(t,
			figure.Target{Subject: s, Metric: "moved_ports", AtMost: true, Value: moved},
			figure.Target{Subject: s, Metric: "idle_rss", AtMost: true, Value: 24},
		)
	}
	t = append(t, figure.Target{Subject: "kernel-aliases", Metric: "moved_ports", AtMost: true, Value: 0})
	for _, n := range parallels {
		t = append(t, figure.Target{Subject: "kernel", Metric: fmt.Sprintf("connections_%d", n), Value: 0.9, RatioTo: "routed"})
	}
	for _, d := range directions {
		t = append(t, figure.Target{Subject: "kernel", Metric: streamMetric(d, 1), Value: 0.9, RatioTo: "routed"})
	}
	return t
}

func hasProcess(in *subject.Instance) bool { return in.Run != nil && unbounded(in) }

func unbounded(in *subject.Instance) bool { return in.Parallel == 0 }

// connect is the load of all connection figures.
func (b *bench) connect(in *subject.Instance, parallel, decoys int) load.Spec {
	if in.Parallel > 0 {
		parallel = min(parallel, in.Parallel)
	}
	if b.quick {
		parallel = min(parallel, quickParallel)
	}
	return load.Spec{
		Kind: load.Connect, Targets: in.Site.Targets(decoys), Parallel: parallel,
		Duration: b.duration, Timeout: connectTimeout, ServerCloses: b.closes == "service",
	}
}

// warm lets neighbours and caches be filled.
func warm(ctx context.Context, in *subject.Instance, spec load.Spec) error {
	spec.Duration = warmUp
	_, err := in.Site.Load(ctx, spec, nil)
	return err
}

func takeConnections(parallels ...int) func(context.Context, *bench, *subject.Instance) error {
	return func(ctx context.Context, b *bench, in *subject.Instance) error {
		for _, n := range parallels {
			if in.Parallel > 0 && n != parallels[0] {
				continue
			}
			if err := b.takeConnectionsAt(ctx, in, n); err != nil {
				return err
			}
		}
		return nil
	}
}

func (b *bench) takeConnectionsAt(ctx context.Context, in *subject.Instance, n int) error {
	spec := b.connect(in, n, 1)
	if err := warm(ctx, in, spec); err != nil {
		return err
	}
	time.Sleep(settle)
	before, process, err := in.Usage()
	if err != nil {
		return err
	}
	r, err := in.Site.Load(ctx, spec, nil)
	if err != nil {
		return err
	}
	time.Sleep(settle)
	after, _, err := in.Usage()
	if err != nil {
		return err
	}
	at := fmt.Sprintf("_%d", n)
	b.record(in, "connections"+at, r.PerSecond())
	b.record(in, "latency_p50"+at, micros(r.P50))
	b.record(in, "latency_p99"+at, micros(r.P99))
	b.record(in, "failed"+at, float64(r.Failures()))
	metrics := []string{"connections" + at, "latency_p50" + at, "latency_p99" + at}
	if process {
		user, system := after.User-before.User, after.System-before.System
		per := 1000 / float64(r.Served)
		b.record(in, "cpu"+at, (user+system).Seconds()*per)
		b.record(in, "cpu_user"+at, user.Seconds()*per)
		b.record(in, "cpu_system"+at, system.Seconds()*per)
		metrics = append(metrics, "cpu"+at, "cpu_user"+at, "cpu_system"+at)
	}
	b.judge(in, r, metrics...)
	return nil
}

// judge voids figures that were taken with a wrong source, and tells why
// connections failed.
func (b *bench) judge(in *subject.Instance, r load.Result, metrics ...string) {
	if r.WrongSource > 0 {
		why := fmt.Sprintf("round %d: %d connections of %d showed the service a wrong source (%s)", b.round+1, r.WrongSource, r.Served, r.WrongSeen)
		for _, m := range metrics {
			b.report.Void(in.Name, m, why)
		}
	}
	if len(r.Failed) > 0 || r.Exhausted > 0 {
		fmt.Fprintf(b.log, "  %s: failed %v, out of source ports %d\n", in.Name, r.Failed, r.Exhausted)
	}
}

func takeMoved(ctx context.Context, b *bench, in *subject.Instance) error {
	spec := b.connect(in, movedParallel, b.decoys)
	if err := warm(ctx, in, spec); err != nil {
		return err
	}
	r, err := in.Site.Load(ctx, spec, nil)
	if err != nil {
		return err
	}
	b.record(in, "moved_ports", 100*float64(r.MovedPorts)/float64(r.Served))
	b.record(in, "connections_spread", r.PerSecond())
	b.record(in, "failed_spread", float64(r.Failures()))
	b.judge(in, r, "moved_ports", "connections_spread")
	return nil
}

// direction is a way that bytes go.
type direction struct {
	kind load.Kind
	name string
	what string
}

var (
	directions   = []direction{{load.Download, "down", "the service sends"}, {load.Upload, "up", "the intruder sends"}}
	streamCounts = []int{1, 64}
)

func streamMetric(d direction, n int) string { return fmt.Sprintf("throughput_%s_%d", d.name, n) }

func streamCPU(d direction, n int) string { return fmt.Sprintf("cpu_%s_%d", d.name, n) }

func takeStreams(counts ...int) func(context.Context, *bench, *subject.Instance) error {
	return func(ctx context.Context, b *bench, in *subject.Instance) error {
		for _, n := range counts {
			for _, d := range directions {
				if err := b.takeStreamsAt(ctx, in, d, n); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

func (b *bench) takeStreamsAt(ctx context.Context, in *subject.Instance, d direction, n int) error {
	spec := load.Spec{Kind: d.kind, Targets: in.Site.Targets(1), Parallel: n, Duration: b.duration, Timeout: connectTimeout}
	before, process, err := in.Usage()
	if err != nil {
		return err
	}
	r, err := in.Site.Load(ctx, spec, nil)
	if err != nil {
		return err
	}
	b.record(in, streamMetric(d, n), r.GbitPerSecond())
	if process {
		after, _, err := in.Usage()
		if err != nil {
			return err
		}
		b.record(in, streamCPU(d, n), (after.User+after.System-before.User-before.System).Seconds()*1e9/float64(r.Bytes))
	}
	if r.Failures() > 0 {
		b.report.Void(in.Name, streamMetric(d, n), fmt.Sprintf("round %d: streams broke: %v", b.round+1, r.Failed))
	}
	if lost := in.Site.RoadLost(); lost != "" {
		b.report.Void(in.Name, streamMetric(d, n), fmt.Sprintf("round %d: %s", b.round+1, lost))
	}
	return nil
}

// takeIdle measures a fresh process: one that has been through a load before
// keeps memory that idle flows then need not ask for.
func takeIdle(ctx context.Context, b *bench, in *subject.Instance) error {
	if err := in.Stop(ctx); err != nil {
		return err
	}
	if err := in.Start(ctx); err != nil {
		return err
	}
	time.Sleep(idleSettle)
	before, _, err := in.Usage()
	if err != nil {
		return err
	}
	var with subject.Usage
	spec := load.Spec{
		// To one decoy: over several, some of so many flows share a source port,
		// which not every subject can keep for both.
		Kind: load.Hold, Targets: in.Site.Targets(1), Parallel: idleFlows,
		Duration: idleOpenWithin, Timeout: connectTimeout,
	}
	r, err := in.Site.Load(ctx, spec, func(load.Result) error {
		time.Sleep(idleSettle)
		with, _, err = in.Usage()
		return err
	})
	if err != nil {
		return err
	}
	flows := float64(r.Served)
	b.record(in, "idle_rss", (float64(with.RSS)-float64(before.RSS))/1024/flows)
	b.record(in, "idle_rss_total", float64(with.RSS)/1e6)
	b.record(in, "idle_descriptors", float64(with.Descriptors-before.Descriptors)/flows)
	b.record(in, "idle_failed", float64(r.Failures()))
	b.judge(in, r, "idle_rss", "idle_rss_total", "idle_descriptors")
	if missing := idleFlows - int(r.Served); missing > 0 {
		b.report.Void(in.Name, "idle_rss", fmt.Sprintf("round %d: %d flows of %d did not stand", b.round+1, missing, idleFlows))
	}
	return nil
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
