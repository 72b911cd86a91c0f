package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"decoynet/bench/figure"
	"decoynet/bench/load"
	"decoynet/bench/subject"
	"decoynet/deception"
	"decoynet/internal/lab"
)

// crowd is a number of decoy addresses on one node.
type crowd struct {
	name      string
	segments  int
	addresses int // in each segment
	claim     deception.Claim
}

// crowds are what is compared. A /16 that is asked for address by address, at a
// pace that a production network can bear, takes minutes; networks of that size
// exist for decoys only.
var crowds = []crowd{
	{"one", 1, 1, deception.ClaimUnchecked},
	{"thousand", 1, 1000, deception.ClaimUnchecked},
	{"sixteen", 1, 65536, deception.ClaimUnchecked},
	{"segments", 256, 256, deception.ClaimUnchecked},
	{"segments-probed", 256, 256, deception.ClaimProbe},
}

const (
	crowdParallel = 32
	crowdTargets  = 4096 // decoys that connections are spread over, at random
	crowdReady    = 90 * time.Second
	changeEvery   = 5 // changes of one decoy in a round
)

// decoysSuite shows what decoys cost: nothing but their place in a table.
func decoysSuite() suite {
	s := suite{
		duration: 2 * time.Second, rounds: 5, run: measureDecoys, peers: []string{"one"},
		metrics: []figure.Metric{
			{Name: "addresses", Unit: "", What: "decoy addresses, each with 10 ports; besides, one decoy with all 65,535"},
			{Name: "ready", Unit: "s", What: "from the start of the process until `decoynet status` says ready"},
			{Name: "rss", Unit: "MB", What: "resident memory then"},
			{Name: "descriptors", Unit: "", What: "open then"},
			{Name: "change", Unit: "ms", What: "`decoynet reload` after the ports of one decoy changed, its process's start included"},
			{Name: "connections", Unit: "1/s", What: fmt.Sprintf("connect, the service speaks first, close; %d at a time, to random decoys", crowdParallel)},
			{Name: "failed", Unit: "connections", What: "that got no first byte"},
		},
	}
	for _, c := range crowds {
		s.subjects = append(s.subjects, c.name)
		s.targets = append(s.targets,
			figure.Target{Subject: c.name, Metric: "ready", AtMost: true, Value: 5},
			figure.Target{Subject: c.name, Metric: "rss", AtMost: true, Value: 150},
			figure.Target{Subject: c.name, Metric: "descriptors", AtMost: true, Value: 600},
			figure.Target{Subject: c.name, Metric: "change", AtMost: true, Value: 100})
		if c.name != "one" {
			s.targets = append(s.targets, figure.Target{Subject: c.name, Metric: "connections", Value: 0.95, RatioTo: "one"})
		}
	}
	return s
}

// crowdSite is a node with decoys, and what is around it.
type crowdSite struct {
	crowd
	lan                        *lab.Switch
	gateway, service, intruder *lab.Machine
	binary, self               string
	process                    *lab.Process
	prefix                     netip.Prefix // of all its segments
	address                    netip.Addr   // the intruder's
	targets                    []netip.Addr
	changes                    int
}

func measureDecoys(ctx context.Context, b *bench) (err error) {
	l, binary, self, err := b.laboratory()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	var up []*crowdSite
	for i, c := range crowds {
		if b.subjects != "" && !strings.Contains(","+b.subjects+",", ","+c.name+",") {
			continue
		}
		if b.quick && c.segments > 1 {
			c.segments = 8
		}
		fmt.Fprintf(b.log, "bringing up %s\n", c.name)
		b.report.Subjects = append(b.report.Subjects, c.name)
		s, err := newCrowdSite(l, i, c, binary, self)
		if err == nil {
			err = s.start(ctx, b)
		}
		if err != nil {
			return b.abandon(c.name, err)
		}
		up = append(up, s)
	}
	for b.round = range b.rounds {
		fmt.Fprintf(b.log, "round %d of %d\n", b.round+1, b.rounds)
		for i := range up {
			s := up[(i+b.round)%len(up)]
			if err := errors.Join(s.takeChange(ctx, b), s.takeConnections(ctx, b)); err != nil {
				return b.abandon(s.name, err)
			}
		}
		if b.round+1 < b.rounds {
			for _, s := range up {
				if err := s.restart(ctx, b); err != nil {
					return b.abandon(s.name, err)
				}
			}
		}
	}
	return writeDecoysPlot(b)
}

// newCrowdSite builds a site of its own LAN, so that the intruder's routes say
// which one is meant.
func newCrowdSite(l *lab.Lab, i int, c crowd, binary, self string) (*crowdSite, error) {
	s := &crowdSite{crowd: c, binary: binary, self: self, prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(64 + 4*i), 0, 0}), 14)}
	s.gateway, s.service, s.intruder = l.Machine("gw-"+c.name), l.Machine("service-"+c.name), l.Machine("intruder-"+c.name)
	s.address = deception.LastAddr(s.prefix).Prev()
	for _, setting := range [][2]string{
		{"net.ipv4.ip_local_port_range", "1024 65535"}, {"net.ipv4.tcp_tw_reuse", "1"}, {"net.ipv4.tcp_max_tw_buckets", "2000000"},
	} {
		s.intruder.Sysctl(setting[0], setting[1])
	}
	zone := s.gateway.Bridge("br-linux", "172.31.0.1/24")
	s.service.Plug(zone, "eth0", "172.31.0.2/24", "172.31.0.3/24")
	s.service.Route("default", "172.31.0.1")
	if err := l.Err(); err != nil {
		return nil, err
	}
	if c.segments == 1 { // a LAN, which others may be on, too
		s.lan = l.Switch("lan-" + c.name)
		s.gateway.Plug(s.lan, "lan0")
		s.intruder.Plug(s.lan, "lan0")
	}
	if err := s.wire(); err != nil {
		return nil, err
	}
	_, err := subject.Role(s.service, self, "serve")
	return s, err
}

// wire gives each segment a wire of its own to the intruder, as a VLAN is one:
// the kernel of the test machines has no VLAN devices, and on one shared wire
// every broadcast would come by all segments.
func (s *crowdSite) wire() error {
	var here, there strings.Builder
	fmt.Fprintf(&there, "ip addr add %s/32 dev lo\n", s.address)
	if s.lan == nil {
		intruder := path.Base(path.Dir(path.Dir(s.intruder.NetnsPath()))) // /proc/PID/ns/net
		for i := range s.segments {
			fmt.Fprintf(&here, "ip link add lan%[1]d type veth peer name lan%[1]d netns %[2]s\nip link set lan%[1]d up\n", i, intruder)
			fmt.Fprintf(&there, "ip link set lan%d up\n", i)
		}
	}
	if _, err := s.gateway.Run(context.Background(), "sh", "-ec", here.String()); err != nil {
		return err
	}
	_, err := s.intruder.Run(context.Background(), "sh", "-ec", there.String())
	return err
}

// subnet returns the network of a segment: the whole prefix where it is the only
// one, else a /23 of it.
func (s *crowdSite) subnet(segment int) netip.Prefix {
	if s.segments == 1 {
		return s.prefix
	}
	return netip.PrefixFrom(deception.Nth(s.prefix.Addr(), uint64(segment)<<9), 23)
}

// document writes the node's document. Every change moves a port of one decoy.
func (s *crowdSite) document() (string, error) {
	var segments, decoys strings.Builder
	for i := range s.segments {
		subnet := s.subnet(i)
		from := deception.Nth(subnet.Addr(), 16)
		fmt.Fprintf(&segments, "  - {name: s%d, parent: lan%d, claim: %s, subnets: [{prefix: %s, gateway: %s}]}\n", i, i, s.claim, subnet, deception.Nth(subnet.Addr(), 2))
		extra := 9000
		if i == 0 {
			extra += s.changes
		}
		fmt.Fprintf(&decoys, "  - {name: d%d, segment: s%d, addresses: [%s-%s], bind: [{ports: [80, 81, 82, 83, 84], service: bench}, {ports: [8080], service: bench, target: 80}, "+
			"{ports: [8081], service: bench, target: 81}, {ports: [8082], service: bench, target: 82}, {ports: [8083], service: bench, target: 83}, {ports: [%d], service: bench, target: 84}]}\n",
			i, i, from, deception.Nth(from, uint64(s.addresses)-1), extra)
	}
	file := filepath.Join(s.gateway.Dir(), "decoynet.yaml")
	text := fmt.Sprintf(`segments:
%szones:
  - {name: linux, subnet: 172.31.0.0/24, link: br-linux}
services:
  - {name: bench, zone: linux, address: 172.31.0.2, ports: [80, 81, 82, 83, 84]}
  - {name: all, zone: linux, address: 172.31.0.3, ports: [1-65535]}
decoys:
%s  - {name: all-ports, segment: s0, addresses: [%s], bind: [{ports: [1-65535], service: all}]}
`, &segments, &decoys, deception.Nth(s.subnet(0).Addr(), 3))
	return file, os.WriteFile(file, []byte(text), 0o644)
}

// start brings decoynet up and notes what that took.
func (s *crowdSite) start(ctx context.Context, b *bench) error {
	file, err := s.document()
	if err != nil {
		return fmt.Errorf("write the document: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, crowdReady)
	defer cancel()
	began := time.Now()
	if s.process, err = s.gateway.Start(s.binary, "up", "-c", file, "--data", s.data()); err != nil {
		return err
	}
	macs, err := s.awaitReady(ctx)
	if err != nil {
		return err
	}
	b.sample(s.name, "ready", time.Since(began).Seconds())
	time.Sleep(time.Second) // for the garbage of the start to be given back
	u, err := subject.UsageOf(s.process.PID())
	if err != nil {
		return fmt.Errorf("%w: %s", err, s.process.Log())
	}
	b.sample(s.name, "rss", float64(u.RSS)/1e6)
	b.sample(s.name, "descriptors", float64(u.Descriptors))
	b.sample(s.name, "addresses", float64(s.segments*s.addresses))
	return s.lead(ctx, macs)
}

func (s *crowdSite) data() string { return filepath.Join(s.gateway.Dir(), "data") }

// awaitReady returns the segments' MAC addresses.
func (s *crowdSite) awaitReady(ctx context.Context) (map[string]string, error) {
	var status struct {
		Ready    bool
		Problems []string
		Segments []struct{ Name, MAC string }
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-s.process.Done():
			cancel() // it will say nothing any more
		case <-ctx.Done():
		}
	}()
	err := lab.Eventually(ctx, crowdReady, func() error {
		out, err := s.gateway.Command(ctx, s.binary, "status", "--data", s.data(), "-o", "json").Output()
		if err == nil {
			err = json.Unmarshal(out, &status)
		}
		if err == nil && !status.Ready {
			err = fmt.Errorf("not ready: %v", status.Problems)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("wait for decoynet: %w: %s", err, s.process.Log())
	}
	macs := map[string]string{}
	for _, g := range status.Segments {
		macs[g.Name] = g.MAC
	}
	return macs, nil
}

// lead gives the intruder one next hop a segment, as a router would have one
// cache entry for each decoy: the kernel bounds the neighbour entries of all
// namespaces together, so tens of thousands cannot be had here.
func (s *crowdSite) lead(ctx context.Context, macs map[string]string) error {
	var script strings.Builder
	for i := range s.segments {
		hop, subnet := deception.Nth(s.subnet(i).Addr(), 1), s.subnet(i)
		if s.segments == 1 {
			subnet = netip.PrefixFrom(s.prefix.Addr(), 15) // the intruder itself is in the other half
		}
		// It is the gateway of every segment, too, since it is in none of their subnets.
		fmt.Fprintf(&script, "ip neigh replace %[1]s dev lan%[2]d lladdr %[3]s nud permanent\nip addr replace %[4]s/32 dev lan%[2]d\nip route replace %[5]s via %[1]s dev lan%[2]d onlink src %[6]s\n",
			hop, i, macs[fmt.Sprintf("s%d", i)], deception.Nth(s.subnet(i).Addr(), 2), subnet, s.address)
	}
	if _, err := s.intruder.Run(ctx, "sh", "-ec", script.String()); err != nil {
		return err
	}
	s.targets = nil
	for range min(crowdTargets, s.segments*s.addresses) {
		from := deception.Nth(s.subnet(rand.IntN(s.segments)).Addr(), 16)
		s.targets = append(s.targets, deception.Nth(from, rand.Uint64N(uint64(s.addresses))))
	}
	return nil
}

func (s *crowdSite) restart(ctx context.Context, b *bench) error {
	if err := s.process.Stop(ctx); err != nil {
		return err
	}
	b.round++ // the start's figures belong to the next round
	defer func() { b.round-- }()
	return s.start(ctx, b)
}

// takeChange measures how long one changed decoy takes.
func (s *crowdSite) takeChange(ctx context.Context, b *bench) error {
	var took []time.Duration
	for range changeEvery {
		s.changes++
		if _, err := s.document(); err != nil {
			return fmt.Errorf("write the document: %w", err)
		}
		began := time.Now()
		if _, err := s.gateway.Run(ctx, s.binary, "reload", "--data", s.data()); err != nil {
			return err
		}
		took = append(took, time.Since(began))
	}
	var sum time.Duration
	for _, d := range took {
		sum += d
	}
	b.sample(s.name, "change", float64(sum.Microseconds())/1000/float64(len(took)))
	return nil
}

func (s *crowdSite) takeConnections(ctx context.Context, b *bench) error {
	spec := load.Spec{Kind: load.Connect, Targets: s.targets, Parallel: crowdParallel, Duration: warmUp, Timeout: connectTimeout}
	if _, err := s.load(ctx, spec); err != nil {
		return err
	}
	spec.Duration = b.duration
	r, err := s.load(ctx, spec)
	if err != nil {
		return err
	}
	b.sample(s.name, "connections", r.PerSecond())
	b.sample(s.name, "failed", float64(r.Failures()))
	if r.WrongSource > 0 {
		b.report.Void(s.name, "connections", fmt.Sprintf("round %d: %d connections showed the service a wrong source (%s)", b.round+1, r.WrongSource, r.WrongSeen))
	}
	if len(r.Failed) > 0 {
		fmt.Fprintf(b.log, "  %s: failed %v\n", s.name, r.Failed)
	}
	return nil
}

func (s *crowdSite) load(ctx context.Context, spec load.Spec) (r load.Result, err error) {
	arg, err := json.Marshal(spec)
	if err != nil {
		return r, fmt.Errorf("encode the load: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, spec.Duration+spec.Timeout+30*time.Second)
	defer cancel()
	cmd := s.intruder.Command(ctx, s.self, "load", string(arg))
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	if err != nil {
		return r, fmt.Errorf("generate load: %w", err)
	}
	return r, nil
}
