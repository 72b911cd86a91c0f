package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"decoynet/bench/figure"
	"decoynet/bench/load"
	"decoynet/bench/subject"
	"decoynet/deception"
	"decoynet/internal/lab"
)

// scan is something that touches the whole network, as fast as it can, until it
// is ended. None of it reaches a bound port.
type scan struct {
	name    string
	command []string // PREFIX, DECOY, SELF and ROUTER are filled in
	forged  bool
}

// scans are what is measured; the first is no scan at all.
var scans = []scan{
	{name: "quiet"},
	{name: "masscan", command: []string{
		"masscan", "PREFIX", "-p", "1000-1199", "--rate", "10000000", "--wait", "0", "--adapter", "eth0", "--adapter-ip", "SELF", "--adapter-port", "61000", "--router-mac", "ROUTER",
	}},
	{name: "nmap", command: []string{"nmap", "-n", "-Pn", "-sS", "-T5", "--min-rate", "100000", "--max-retries", "0", "-p", "1000-1199", "PREFIX"}},
	{name: "hping3", command: []string{"hping3", "--flood", "-S", "-p", "22", "DECOY"}},
	{name: "hping3-forged", command: []string{"hping3", "--flood", "-S", "-p", "22", "--rand-source", "DECOY"}, forged: true},
}

// sensingSuite shows what it costs to see scans: the same scan and the same load,
// with decoynet listening and with its ears closed.
func sensingSuite() suite {
	s := suite{
		duration: 2 * time.Second, rounds: 5, run: measureSensing,
		metrics: []figure.Metric{
			{Name: "frames", Unit: "1/s", What: "sent by the scanner, with nothing else to do"},
			{Name: "sensed", Unit: "%", What: "of its SYNs, by the count of nftables at its card"},
			{Name: "dropped", Unit: "%", What: "of its SYNs: decoynet had no room for them, and says so"},
			{Name: "cores", Unit: "", What: "processor time of decoynet for that, less what it takes with its ears closed"},
			{Name: "frames_load", Unit: "1/s", What: "sent by the scanner while connections are relayed"},
			{Name: "connections", Unit: "1/s", What: fmt.Sprintf("relayed meanwhile: connect, the service speaks first, close; %d at a time, to one decoy", crowdParallel)},
			{Name: "connections_deaf", Unit: "1/s", What: "the same with its ears closed, in turn"},
			{Name: "kept", Unit: "", What: "connections over connections_deaf, in the same round"},
			{Name: "failed", Unit: "connections", What: "that got no first byte, listening"},
			{Name: "rss", Unit: "MB", What: "resident memory of decoynet after it"},
			{Name: "told", Unit: "%", What: "contacts that the probes add up to in the end, of the frames that were sensed, but for those of the connections"},
		},
	}
	for _, c := range scans {
		s.subjects = append(s.subjects, c.name)
		s.targets = append(s.targets,
			figure.Target{Subject: c.name, Metric: "kept", Value: 0.9},
			figure.Target{Subject: c.name, Metric: "cores", AtMost: true, Value: 0.5},
			figure.Target{Subject: c.name, Metric: "rss", AtMost: true, Value: 150})
	}
	return s
}

// sensingSite is a node with a /16 of decoys, an intruder who connects, and a
// scanner on the same network.
type sensingSite struct {
	*crowdSite
	scanner *lab.Machine
	self    netip.Addr // the scanner's
	fill    *strings.Replacer
	ears    *ears
	// connections is how many were served while decoynet listened: it saw their
	// SYNs, too, and they are sessions.
	connections uint64
}

func measureSensing(ctx context.Context, b *bench) (err error) {
	l, binary, self, err := b.laboratory()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	s, err := newSensingSite(ctx, b, l, binary, self)
	if err != nil {
		return err
	}
	defer s.ears.close()
	var chosen []scan
	for _, c := range scans {
		if b.subjects == "" || strings.Contains(","+b.subjects+",", ","+c.name+",") {
			chosen = append(chosen, c)
			b.report.Subjects = append(b.report.Subjects, c.name)
		}
	}
	for b.round = range b.rounds {
		fmt.Fprintf(b.log, "round %d of %d\n", b.round+1, b.rounds)
		for i := range chosen {
			c := chosen[(i+b.round)%len(chosen)]
			if err := s.take(ctx, b, c); err != nil {
				return b.abandon(c.name, err)
			}
		}
	}
	return s.takeTold(ctx, b)
}

func newSensingSite(ctx context.Context, b *bench, l *lab.Lab, binary, self string) (*sensingSite, error) {
	site, err := newCrowdSite(l, 0, crowd{"sixteen", 1, 65536 - 256, deception.ClaimUnchecked}, binary, self)
	if err != nil {
		return nil, err
	}
	s := &sensingSite{crowdSite: site, scanner: l.Machine("scanner"), self: site.address.Prev()}
	s.scanner.Plug(s.lan, "eth0", netip.PrefixFrom(s.self, s.prefix.Bits()).String())
	// Its way to the decoys leads over one of them, so that one question by ARP is
	// all it takes: a neighbour entry for each would be the neighbour table's test.
	whole := netip.PrefixFrom(s.prefix.Addr(), 16)
	s.scanner.Route(whole.String(), deception.Nth(s.prefix.Addr(), 3).String())
	if err := l.Err(); err != nil {
		return nil, err
	}
	// masscan resets what answers it: its card's own counter counts more than SYNs.
	const syns = `add table netdev bench
add counter netdev bench syns
add chain netdev bench out { type filter hook egress device "eth0" priority 0; }
add rule netdev bench out tcp flags & (syn | ack | rst) == syn counter name syns`
	if _, err := s.scanner.Run(ctx, "nft", syns); err != nil {
		return nil, err
	}
	if err := s.start(ctx, b); err != nil {
		return nil, err
	}
	mac, err := s.gateway.InSegment("decoynet-s0").Run(ctx, "cat", "/sys/class/net/lan0/address")
	if err != nil {
		return nil, err
	}
	decoy := deception.Nth(s.prefix.Addr(), 1000)
	s.targets = []netip.Addr{decoy.Next()}
	s.fill = strings.NewReplacer("PREFIX", whole.String(), "DECOY", decoy.String(), "SELF", s.self.String(), "ROUTER", strings.TrimSpace(mac))
	s.ears, err = earsOf(s.process.PID())
	return s, err
}

// turns is how often connections are counted with open ears, and as often with
// closed ones, while one scan goes on. The turns are short and by pairs in either
// order, so that neither side has the better part of a machine that grows busier
// or less busy meanwhile.
const turns = 6

// take measures one scan: alone, with open ears and with closed ones, and then
// together with connections.
func (s *sensingSite) take(ctx context.Context, b *bench, c scan) error {
	var alone [2]window // by deaf
	for _, deaf := range []int{0, 1} {
		var err error
		if alone[deaf], err = s.alone(ctx, b, c, deaf == 1); err != nil {
			return err
		}
	}
	b.sample(c.name, "cores", alone[0].cores-alone[1].cores)
	if c.command != nil {
		b.sample(c.name, "frames", alone[0].rate)
		b.sample(c.name, "sensed", 100*float64(alone[0].sensed)/float64(alone[0].syns))
		b.sample(c.name, "dropped", 100*float64(alone[0].dropped)/float64(alone[0].syns))
	}
	if err := s.together(ctx, b, c); err != nil {
		return err
	}
	u, err := subject.UsageOf(s.process.PID())
	if err != nil {
		return err
	}
	b.sample(c.name, "rss", float64(u.RSS)/1e6)
	return nil
}

// window is what was measured for a while.
type window struct {
	load        load.Result
	cores, rate float64 // of decoynet; frames/s of the scanner
	counts              // from before the scan until after it
}

// counts are of frames: SYNs of the scanner, what decoynet sensed, what it had no
// room for.
type counts struct{ syns, sensed, dropped uint64 }

// alone measures a scan from its beginning to its end.
func (s *sensingSite) alone(ctx context.Context, b *bench, c scan, deaf bool) (w window, err error) {
	if err := s.ears.listen(!deaf); err != nil {
		return w, err
	}
	before, err := s.count(ctx)
	if err != nil {
		return w, err
	}
	stop, err := s.begin(ctx, c)
	if err != nil {
		return w, err
	}
	err = s.measure(ctx, &w, func() error { time.Sleep(b.duration); return nil })
	if err := errors.Join(err, stop()); err != nil {
		return w, err
	}
	time.Sleep(300 * time.Millisecond) // for the ring's last block
	after, err := s.count(ctx)
	w.counts = counts{after.syns - before.syns, after.sensed - before.sensed, after.dropped - before.dropped}
	return w, err
}

// together measures connections while a scan goes on.
func (s *sensingSite) together(ctx context.Context, b *bench, c scan) (err error) {
	stop, err := s.begin(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	spec := load.Spec{Kind: load.Connect, Targets: s.targets, Parallel: crowdParallel, Duration: b.duration / 4, Timeout: connectTimeout}
	var connections [2]float64 // by deaf
	var rate float64
	var failed, wrong uint64
	for i := range 2 * turns {
		deaf := (i + i/2 + b.round) % 2 // 0 1 1 0 0 1 1 0 ...
		if err := s.ears.listen(deaf == 0); err != nil {
			return err
		}
		var w window
		if err := s.measure(ctx, &w, func() (err error) { w.load, err = s.load(ctx, spec); return err }); err != nil {
			return err
		}
		if b.verbose {
			fmt.Fprintf(b.log, "  %s, turn %d, deaf %d: %.0f connections/s, %.0f frames/s\n", c.name, i+1, deaf, w.load.PerSecond(), w.rate)
		}
		connections[deaf] += w.load.PerSecond() / turns
		rate += w.rate / (2 * turns)
		wrong += w.load.WrongSource
		if deaf == 0 {
			failed += w.load.Failures()
			s.connections += w.load.Served
		}
	}
	b.sample(c.name, "connections", connections[0])
	b.sample(c.name, "connections_deaf", connections[1])
	b.sample(c.name, "kept", connections[0]/connections[1])
	b.sample(c.name, "failed", float64(failed))
	if c.command != nil {
		b.sample(c.name, "frames_load", rate)
	}
	if wrong > 0 {
		b.report.Void(c.name, "connections", fmt.Sprintf("round %d: %d connections showed the service a wrong source", b.round+1, wrong))
	}
	return nil
}

// begin starts a scan and returns when it is under way.
func (s *sensingSite) begin(ctx context.Context, c scan) (stop func() error, err error) {
	if c.command == nil {
		return func() error { return nil }, nil
	}
	args := make([]string, len(c.command))
	for i, a := range c.command {
		args[i] = s.fill.Replace(a)
	}
	before, err := s.sent(ctx)
	if err != nil {
		return nil, err
	}
	p, err := s.scanner.Start(args[0], args[1:]...)
	if err != nil {
		return nil, err
	}
	err = lab.Eventually(ctx, 20*time.Second, func() error {
		now, err := s.sent(ctx)
		if err == nil && now-before < 1000 {
			err = fmt.Errorf("%s does not send: %s", c.name, p.Log())
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(err, p.Kill())
	}
	return p.Kill, nil
}

// measure notes what decoynet and the scanner do while fn runs.
func (s *sensingSite) measure(ctx context.Context, w *window, fn func() error) error {
	before, err := subject.UsageOf(s.process.PID())
	if err != nil {
		return err
	}
	sent, err := s.sent(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := fn(); err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	after, err := subject.UsageOf(s.process.PID())
	if err != nil {
		return err
	}
	now, err := s.sent(ctx)
	w.cores = (after.User + after.System - before.User - before.System).Seconds() / took
	w.rate = float64(now-sent) / took
	return err
}

// count reads the counters of the scanner's card and of decoynet.
func (s *sensingSite) count(ctx context.Context) (c counts, err error) {
	var status struct {
		Sensing struct{ Sensed, Dropped uint64 }
	}
	out, err := s.gateway.Run(ctx, s.binary, "status", "--data", s.data(), "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &status)
	}
	if err != nil {
		return c, fmt.Errorf("read status: %w", err)
	}
	c.sensed, c.dropped = status.Sensing.Sensed, status.Sensing.Dropped
	list, err := s.scanner.Run(ctx, "nft", "list", "counter", "netdev", "bench", "syns")
	if err != nil {
		return c, err
	}
	if _, after, ok := strings.Cut(list, "packets "); !ok {
		return c, fmt.Errorf("read the scanner's counter: %q", list)
	} else if _, err := fmt.Sscan(after, &c.syns); err != nil {
		return c, fmt.Errorf("read the scanner's counter: %w", err)
	}
	return c, nil
}

// sent is how many frames the scanner's card has sent.
func (s *sensingSite) sent(ctx context.Context) (uint64, error) {
	out, err := s.scanner.Run(ctx, "cat", "/sys/class/net/eth0/statistics/tx_packets")
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(out), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read the scanner's counter: %w", err)
	}
	return n, nil
}

// takeTold ends decoynet, and with it all probes, and adds them up.
func (s *sensingSite) takeTold(ctx context.Context, b *bench) error {
	if err := s.ears.listen(true); err != nil {
		return err
	}
	all, err := s.count(ctx)
	if err != nil {
		return err
	}
	sensed := all.sensed - s.connections
	if err := s.process.Stop(ctx); err != nil {
		return err
	}
	out, err := s.gateway.Command(ctx, s.binary, "get", "probes", "--data", s.data(), "-o", "json", "--limit", "0").Output()
	if err != nil {
		return fmt.Errorf("list probes: %w", err)
	}
	var contacts, probes uint64
	for line := range bytes.Lines(out) {
		var p struct {
			Count uint64 `json:"decoynet.probe.count"`
		}
		if err := json.Unmarshal(line, &p); err != nil {
			return fmt.Errorf("read a probe: %w", err)
		}
		contacts, probes = contacts+p.Count, probes+1
	}
	fmt.Fprintf(b.log, "%d probes tell of %d contacts; %d frames were sensed\n", probes, contacts, sensed)
	b.report.Subjects = append(b.report.Subjects, "all")
	b.sample("all", "told", 100*float64(contacts)/float64(sensed))
	return nil
}
