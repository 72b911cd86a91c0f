package main

import (
	"fmt"
	"time"

	"decoynet/bench/figure"
)

// tunnelSuite is two hops with TLS: from the intruder's network over an agent to
// the ingress gateway and the service.
var tunnelSuite = suite{
	subjects: []string{"tunnel", "haproxy-tls", "haproxy-direct"},
	duration: 1500 * time.Millisecond,
	peers:    []string{"haproxy-tls", "haproxy-direct"},
	metrics:  append(connectionMetrics(parallels...), streamMetrics(streamCounts...)...),
	targets:  chainTargets("tunnel", "haproxy-tls", 1.5, true),
	groups: []group{
		{name: "connections", take: takeConnections(parallels...)},
		{name: "streams", take: takeStreams(streamCounts...)},
	},
}

// hopSuite is two hops without TLS: from the ingress gateway to the egress
// gateway of a zone on another machine.
var hopSuite = suite{
	subjects: []string{"hop", "haproxy-mmproxy"},
	duration: 1500 * time.Millisecond,
	peers:    []string{"haproxy-mmproxy"},
	metrics:  append(connectionMetrics(parallels...), streamMetrics(streamCounts...)...),
	targets:  chainTargets("hop", "haproxy-mmproxy", 1.3, false),
	groups:   tunnelSuite.groups,
}

// chainTargets: connections per second to reach and, where whole, a p99 and a
// throughput no worse than the peer's.
func chainTargets(name, peer string, connections float64, whole bool) []figure.Target {
	var t []figure.Target
	for _, n := range parallels {
		at := fmt.Sprintf("_%d", n)
		t = append(t, figure.Target{Subject: name, Metric: "connections" + at, Value: connections, RatioTo: peer})
		if whole {
			t = append(t, figure.Target{Subject: name, Metric: "latency_p99" + at, AtMost: true, Value: 1, RatioTo: peer})
		}
	}
	if !whole {
		return t
	}
	for _, d := range directions {
		for _, n := range streamCounts {
			t = append(t, figure.Target{Subject: name, Metric: streamMetric(d, n), Value: 1, RatioTo: peer})
		}
	}
	return t
}

// The delay of a long way, in each direction, and how many connections are
// opened over it at a time.
const (
	longDelay    = 50 * time.Millisecond
	longParallel = 32
)

// delaySuite is the tunnel's job over a round trip of 100 ms. HAProxy has a TLS
// connection of its own for each flow there: what one reaches is the measure.
var delaySuite = suite{
	subjects: []string{"tunnel", "haproxy-tls"},
	duration: 5 * time.Second,
	delay:    longDelay,
	peers:    []string{"haproxy-tls"},
	metrics:  append(connectionMetrics(longParallel), streamMetrics(1)...),
	targets: []figure.Target{
		{Subject: "tunnel", Metric: streamMetric(directions[0], 1), Value: 0.8, RatioTo: "haproxy-tls"},
		{Subject: "tunnel", Metric: streamMetric(directions[1], 1), Value: 0.8, RatioTo: "haproxy-tls"},
		{Subject: "tunnel", Metric: fmt.Sprintf("latency_p50_%d", longParallel), AtMost: true, Value: 1, RatioTo: "haproxy-tls"},
	},
	groups: []group{
		{name: "connections", take: takeConnections(longParallel)},
		{name: "streams", take: takeStreams(1)},
	},
}
