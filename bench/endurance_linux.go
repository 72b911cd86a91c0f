package main

import (
	"context"
	"fmt"
	"time"

	"decoynet/bench/figure"
	"decoynet/bench/subject"
)

// enduranceParallel is the number of connections at a time.
const enduranceParallel = 32

// enduranceSuite runs one intruder address at full speed for so long that its
// source ports come round many times.
var enduranceSuite = suite{
	subjects: []string{"sk_lookup", "haproxy", "tproxy", "nginx", "relay-aliases", "kernel"},
	duration: 5 * time.Minute,
	rounds:   1,
	peers:    []string{"haproxy"},
	metrics: []figure.Metric{
		{Name: "failed", Unit: "connections", What: "that got no first byte, over all decoys"},
		{Name: "served", Unit: "connections", What: "over all decoys"},
		{Name: "connections", Unit: "1/s", What: "over all decoys"},
		{Name: "latency_max", Unit: "us", What: "connect to first byte, the slowest of all"},
		{Name: "moved_ports", Unit: "%", What: "connections whose source port the service saw changed"},
	},
	targets: []figure.Target{
		{Subject: "sk_lookup", Metric: "failed", AtMost: true},
		{Subject: "tproxy", Metric: "failed", AtMost: true},
		{Subject: "relay-aliases", Metric: "failed", AtMost: true},
		{Subject: "kernel", Metric: "failed", AtMost: true},
	},
	groups: []group{{name: "endurance", take: takeEndurance, fits: unbounded}},
}

func takeEndurance(ctx context.Context, b *bench, in *subject.Instance) error {
	fmt.Fprintf(b.log, "  %s for %v\n", in.Name, b.duration)
	r, err := in.Site.Load(ctx, b.connect(in, enduranceParallel, b.decoys), nil)
	if err != nil {
		return err
	}
	b.record(in, "failed", float64(r.Failures()))
	b.record(in, "served", float64(r.Served))
	b.record(in, "connections", r.PerSecond())
	b.record(in, "latency_max", micros(r.Max))
	b.record(in, "moved_ports", 100*float64(r.MovedPorts)/float64(r.Served))
	b.judge(in, r, "failed", "served", "connections", "latency_max", "moved_ports")
	return nil
}
