package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"decoynet/bench/figure"
	"decoynet/bench/load"
	"decoynet/bench/subject"
)

// TestMain lets the test binary play the parts that the benchmark starts itself
// for.
func TestMain(m *testing.M) {
	if handled, err := runRole(os.Args[1:]); handled {
		exit(err)
	}
	os.Exit(m.Run())
}

func network(t *testing.T) *subject.Network {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	n, err := subject.NewNetwork(self)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func up(t *testing.T, n *subject.Network, s subject.Subject) *subject.Instance {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	in, err := subject.Up(ctx, n, s)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// masqueraded is routing that hides the intruder behind the gateway.
func masqueraded() subject.Subject {
	s := subject.Routed()
	routed := s.Prepare
	s.Name = "masqueraded"
	s.Prepare = func(site *subject.Site) subject.Setup {
		setup := routed(site)
		setup.Gateway = append(setup.Gateway,
			"nft add table ip hide",
			"nft add chain ip hide post '{ type nat hook postrouting priority srcnat; }'",
			"nft add rule ip hide post oifname br-linux masquerade")
		return setup
	}
	return s
}

// portMoving is routing that keeps the address and moves the port.
func portMoving() subject.Subject {
	s := masqueraded()
	hide := s.Prepare
	s.Name = "moving"
	s.Prepare = func(site *subject.Site) subject.Setup {
		setup := hide(site)
		setup.Gateway[len(setup.Gateway)-1] = "nft add rule ip hide post oifname br-linux ip protocol tcp snat to 10.77.0.2:300-999"
		return setup
	}
	return s
}

// TestWrongSourceVoids runs the same load over plain routing, over routing
// behind a masquerade and over routing that moves ports.
func TestWrongSourceVoids(t *testing.T) {
	n := network(t)
	ins := []*subject.Instance{up(t, n, subject.Routed()), up(t, n, masqueraded()), up(t, n, portMoving())}
	b := &bench{
		options: options{duration: 300 * time.Millisecond, decoys: subject.Decoys, closes: "client"},
		report:  &figure.Report{Metrics: relaySuite.metrics, Peers: relaySuite.peers, Subjects: []string{"routed", "masqueraded", "moving"}},
		log:     io.Discard,
	}
	for _, in := range ins {
		if err := takeMoved(context.Background(), b, in); err != nil {
			t.Fatal(err)
		}
	}
	rows := map[string]figure.Row{}
	for _, r := range b.report.Rows() {
		rows[r.Name+" "+r.Metric] = r
	}
	if r := rows["routed connections_spread"]; r.Void != "" || r.Median == nil || *r.Median < 100 {
		t.Errorf("connections/s, routed: %+v, want a hundred at least", r)
	}
	if r := rows["routed moved_ports"]; r.Median == nil || *r.Median != 0 {
		t.Errorf("moved ports, routed: %+v, want 0 %%", r)
	}
	for _, metric := range []string{"connections_spread", "moved_ports"} {
		if r := rows["masqueraded "+metric]; r.Void == "" || r.Median != nil {
			t.Errorf("%s behind a masquerade: %+v, want a void figure", metric, r)
		}
	}
	if r := rows["moving moved_ports"]; r.Void != "" || r.Median == nil || *r.Median != 100 {
		t.Errorf("moved ports where all are moved: %+v, want 100 %%", r)
	}
}

// TestLoads runs every kind of load over plain routing.
func TestLoads(t *testing.T) {
	in := up(t, network(t), subject.Routed())
	ctx := context.Background()
	spec := load.Spec{Targets: in.Site.Targets(3), Parallel: 4, Duration: 300 * time.Millisecond, Timeout: 2 * time.Second}
	for _, kind := range []load.Kind{load.Download, load.Upload} {
		spec.Kind = kind
		r, err := in.Site.Load(ctx, spec, nil)
		if err != nil {
			t.Fatal(err)
		}
		if r.Bytes < 1<<20 || r.Failures() != 0 || r.Done != 4 {
			t.Errorf("%s: %+v, want megabytes over 4 streams", kind, r)
		}
	}
	spec.Kind, spec.ServerCloses = load.Connect, true
	r, err := in.Site.Load(ctx, spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.Done < 50 || r.Failures() != 0 || r.WrongSource != 0 || r.P50 <= 0 || r.P99 < r.P50 {
		t.Errorf("connections that the service closes: %+v", r)
	}
	testHold(ctx, t, in)
	testRefused(ctx, t, in)
}

func testHold(ctx context.Context, t *testing.T, in *subject.Instance) {
	spec := load.Spec{Kind: load.Hold, Targets: in.Site.Targets(1), Parallel: 200, Duration: 10 * time.Second, Timeout: 2 * time.Second}
	established := -1
	r, err := in.Site.Load(ctx, spec, func(load.Result) error {
		// The second witness: the service's own kernel.
		out, err := in.Site.Service.Run(ctx, "ss", "-Htn", "state", "established", "sport", "=", ":80")
		established = lines(out)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.Served != 200 || r.Failures() != 0 || established != 200 {
		t.Errorf("held: %+v, the service has %d connections; want 200 of both", r, established)
	}
}

func lines(s string) int {
	n := 0
	for _, c := range s {
		if c == '\n' {
			n++
		}
	}
	return n
}

// testRefused shows that what fails is counted by its error's name.
func testRefused(ctx context.Context, t *testing.T, in *subject.Instance) {
	_, err := in.Site.Gateway.Run(ctx, "nft",
		"add table ip no; add chain ip no f { type filter hook forward priority 0; }; add rule ip no f tcp dport 80 reject with tcp reset")
	if err != nil {
		t.Fatal(err)
	}
	spec := load.Spec{Kind: load.Connect, Targets: in.Site.Targets(1), Parallel: 2, Duration: 200 * time.Millisecond, Timeout: time.Second}
	r, err := in.Site.Load(ctx, spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.Done != 0 || r.Failed["ECONNREFUSED"] == 0 || r.Failed["ECONNREFUSED"] != r.Failures() {
		t.Errorf("refused connections: %+v, want ECONNREFUSED only", r)
	}
}

// short runs a suite once, very short, and returns its rows by subject and
// metric. None may be void: configurations must work, and no service may be shown
// a wrong source.
func short(t *testing.T, o options) map[string]figure.Row {
	t.Helper()
	dir := t.TempDir()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(said(log.Name()))
		}
	})
	o.quick, o.rounds, o.decoys, o.closes, o.out = true, 1, 100, "client", dir
	if err := run(context.Background(), o, log); err != nil {
		t.Fatal(err)
	}
	var file struct{ Rows []figure.Row }
	b, err := os.ReadFile(filepath.Join(dir, o.only+".json"))
	if err == nil {
		err = json.Unmarshal(b, &file)
	}
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]figure.Row{}
	for _, r := range file.Rows {
		if r.Void != "" {
			t.Errorf("%s of %s is void: %s", r.Metric, r.Name, r.Void)
		}
		got[r.Name+" "+r.Metric] = r
	}
	return got
}

// wantFigures holds that each subject has a figure above zero for each metric.
func wantFigures(t *testing.T, got map[string]figure.Row, subjects []string, metrics ...string) {
	t.Helper()
	for _, s := range subjects {
		for _, m := range metrics {
			if r := got[s+" "+m]; r.Median == nil || *r.Median <= 0 {
				t.Errorf("%s of %s: %+v, want a figure", m, s, r)
			}
		}
	}
}

// TestPeersKeepTheSource runs the peers of the relay suite.
func TestPeersKeepTheSource(t *testing.T) {
	got := short(t, options{only: "relay", subjects: "routed,haproxy,nginx,snat-rule", figures: "connections,streams"})
	wantFigures(t, got, []string{"routed", "haproxy", "nginx"}, "connections_32", "connections_512", "throughput_down_1", "throughput_up_64")
	wantFigures(t, got, []string{"snat-rule"}, "connections_32")
	for _, p := range []string{"routed", "haproxy", "nginx", "snat-rule"} {
		if r, process := got[p+" cpu_32"]; process != (p != "routed") {
			t.Errorf("CPU of %s: %+v; every subject with a gateway process has one", p, r)
		}
	}
}

// build makes decoynet's binary.
func build(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "decoynet")
	cmd := exec.Command("go", "build", "-o", binary, "decoynet/cmd/decoynet")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build decoynet: %v\n%s", err, out)
	}
	return binary
}

// TestChains runs the suites of two machines, decoynet and its peers.
func TestChains(t *testing.T) {
	binary := build(t)
	for _, suite := range []string{"tunnel", "hop"} {
		t.Run(suite, func(t *testing.T) {
			got := short(t, options{only: suite, decoynet: binary})
			wantFigures(t, got, suites[suite].subjects, "connections_32", "cpu_32", "throughput_down_1", "throughput_up_64")
			wantFigures(t, got, []string{suite}, "connections_512")
		})
	}
	t.Run("delay", func(t *testing.T) {
		// Long enough for HAProxy's handshakes on a machine that is busy.
		got := short(t, options{only: "delay", figures: "connections", decoynet: binary, duration: 3 * time.Second})
		for _, s := range delaySuite.subjects {
			r := got[s+" latency_p50_32"]
			if trip := micros(2 * longDelay); r.Median == nil || *r.Median < trip {
				t.Errorf("latency of %s over the long way: %+v, want %.0f us at least", s, r, trip)
			}
		}
	})
}

// TestCarriers runs every kind of load over every carrier; over the long way just
// so long that something arrives.
func TestCarriers(t *testing.T) {
	got := short(t, options{only: "carriers", figures: "flows_32,stalled_flows,stream_down_64,stream_up_1,idle_rss,long_down"})
	wantFigures(t, got, suites["carriers"].subjects, "flows_32", "stalled_flows", "stream_down_64", "stream_up_1", "idle_rss", "long_down")
}

// TestScale runs a small fleet. That the store has every session once is what its
// deliveries check by themselves.
func TestScale(t *testing.T) {
	// Long enough for a commit on a machine that is busy.
	got := short(t, options{only: "scale", decoynet: build(t), duration: 2 * time.Second})
	wantFigures(t, got, []string{fleetSubject}, "enrolments", "converged", "steady_sessions", "flood_sessions", "controller_rss", "controller_descriptors")
}

func said(path string) string {
	b, err := os.ReadFile(path)
	return fmt.Sprint(string(b), err)
}
