package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/bench/figure"
	"decoynet/bench/subject"
)

// The loads of flows that are looked at one by one.
const (
	mixedRate   = 100e6 // bit/s of payload
	mixedFor    = 20 * time.Second
	latencyRate = 200 // flows/s
	latencyFor  = 10 * time.Second
)

// feedSuite shows what it costs to feed what is relayed to Suricata, and what
// Suricata makes of it. Suricata has a processor for itself; intruder, gateway and
// service share the other one, so that what the feed takes is taken from them, and
// what Suricata takes is not.
func feedSuite() suite {
	s := suite{
		duration: 1500 * time.Millisecond, peers: []string{"off"}, run: measureFeed,
		metrics: connectionMetrics(parallels...),
		groups: []group{
			{name: "connections", take: takeConnections(parallels...)},
			{name: "streams", take: takeStreams(1)},
			{name: "lost", take: takeLost, fits: func(in *subject.Instance) bool { return in.Name != "off" }},
			{name: "mixed", take: takeMixed, fits: analysed},
			{name: "latency", take: takeLatency, fits: analysed},
		},
	}
	s.metrics = append(s.metrics, streamMetrics(1)...)
	s.metrics = append(s.metrics,
		figure.Metric{Name: "not_whole", Unit: "%", What: "flows of the figures above that Suricata was not shown whole, because it did not keep up with this load"},
		figure.Metric{Name: "mixed_rate", Unit: "Mbit/s", What: fmt.Sprintf("payload of mixed flows of 2 KB to 8 MB, HTTP and opaque, over %s", mixedFor)},
		figure.Metric{Name: "mixed_flows", Unit: "flows", What: "of them"},
		figure.Metric{Name: "mixed_lost", Unit: "flows", What: "of them, not shown whole"},
		figure.Metric{Name: "mixed_asked", Unit: "%", What: "of them for which the alert of the question is in eve.json"},
		figure.Metric{Name: "mixed_answered", Unit: "%", What: "and that of the answer"},
		figure.Metric{Name: "alert_p50", Unit: "ms", What: fmt.Sprintf("from the intruder's write to the alert in eve.json at %d flows/s, median", latencyRate)},
		figure.Metric{Name: "alert_p99", Unit: "ms", What: "the same, 99th percentile"},
		figure.Metric{Name: "alert_missing", Unit: "flows", What: "without an alert"},
	)
	for _, f := range subject.Feeds {
		s.subjects = append(s.subjects, f.Name)
		if f.Suricata && f.Depth != 0 { // without a limit, a stream is more than Suricata takes
			s.targets = append(s.targets, feedTargets(f)...)
		}
	}
	return s
}

func feedTargets(f subject.Feed) []figure.Target {
	connections, stream := 0.8, 0.6
	if f.Stopped {
		connections, stream = 0.95, 0.95
	}
	var t []figure.Target
	for _, n := range parallels {
		t = append(t, figure.Target{Subject: f.Name, Metric: fmt.Sprintf("connections_%d", n), Value: connections, RatioTo: "off"})
	}
	for _, d := range directions {
		t = append(t, figure.Target{Subject: f.Name, Metric: streamMetric(d, 1), Value: stream, RatioTo: "off"})
	}
	if f.Stopped {
		return t
	}
	return append(t,
		figure.Target{Subject: f.Name, Metric: "mixed_lost", AtMost: true, Value: 0},
		figure.Target{Subject: f.Name, Metric: "mixed_asked", Value: 100},
		figure.Target{Subject: f.Name, Metric: "mixed_answered", Value: 100},
		figure.Target{Subject: f.Name, Metric: "alert_p99", AtMost: true, Value: 1000},
		figure.Target{Subject: f.Name, Metric: "alert_missing", AtMost: true, Value: 0})
}

// analysed tells whether Suricata looks at what the subject relays.
func analysed(in *subject.Instance) bool { return in.Name != "off" && in.Name != "stopped" }

// takeLost tells how many flows were lost since the subject was brought up, by
// loads that are as fast as can be.
func takeLost(_ context.Context, b *bench, in *subject.Instance) error {
	st, err := subject.StatsOf(in.Site)
	if err != nil {
		return err
	}
	b.record(in, "not_whole", 100*float64(st.Lost)/float64(st.Flows))
	return nil
}

// measureFeed keeps everything that it starts, but for Suricata, on the first
// processor.
func measureFeed(ctx context.Context, b *bench) (err error) {
	s := feedSuite()
	subjects, err := choose(b.options, s, b.log)
	if err != nil {
		return err
	}
	if b.groups, err = chooseGroups(s.groups, b.figures); err != nil {
		return err
	}
	if runtime.NumCPU() <= subject.SuricataCPU {
		return errors.New("the figures of the feed need two processors, one of them for Suricata")
	}
	var all, first unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return fmt.Errorf("ask for processors: %w", err)
	}
	first.Set(0)
	if err := pin(&first); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pin(&all)) }()
	return b.measure(ctx, subjects)
}

// pin has all threads of this program, and what they start, run on some
// processors only.
func pin(cpus *unix.CPUSet) error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("list threads: %w", err)
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err == nil {
			err = unix.SchedSetaffinity(tid, cpus)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("keep a thread on its processor: %w", err)
		}
	}
	return nil
}
