package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/bench/subject"
	"decoynet/deception"
	"decoynet/gateway"
	"decoynet/internal/feed"
	"decoynet/internal/kernel/route"
	"decoynet/internal/relay"
	"decoynet/internal/suricata"
)

// discard is a recorder: what recording costs is in other figures.
type discard struct{}

func (discard) Started(*deception.Session)       {}
func (discard) Ended(*deception.Session)         {}
func (discard) Event(*deception.Event)           {}
func (discard) SourceSeen(*deception.SourceSeen) {}

// statsEvery is how often the role writes down what its feed says.
const statsEvery = 100 * time.Millisecond

// endWithin is how long each part of the role may take to end.
const endWithin = 5 * time.Second

// fedState is the document of the role's gateway.
func fedState(spec *subject.FedSpec) *deception.State {
	var ports []deception.PortRange
	for _, p := range spec.Ports {
		ports = append(ports, deception.Port(deception.TCP, uint16(p)))
	}
	return &deception.State{
		Node: "gw", Nodes: []deception.Node{{Name: "gw"}},
		Segments: []deception.Segment{{Name: "bench", Node: "gw"}},
		Zones:    []deception.Zone{{Name: "linux", Node: "gw", Link: spec.Link, Subnets: []netip.Prefix{spec.Zone}}},
		Services: []deception.Service{{Name: "bench", Zone: "linux", Addr4: spec.Service, Ports: ports}},
		Decoys: []deception.Decoy{{
			Name: "bench", Segment: "bench", Node: "gw", Path: deception.PathRelay, Idle: time.Hour,
			Addresses: []deception.AddrRange{{From: spec.From, To: spec.To}},
			Bind:      []deception.Binding{{Ports: ports, Service: "bench"}},
		}},
	}
}

// runFed is a gateway with its relay and its feed until ctx ends.
func runFed(ctx context.Context, args []string) (err error) {
	var spec subject.FedSpec
	if len(args) != 1 {
		return errors.New("fed: takes what to relay as JSON")
	}
	if err := json.Unmarshal([]byte(args[0]), &spec); err != nil {
		return fmt.Errorf("fed: %w", err)
	}
	runtime.GOMAXPROCS(runtime.NumCPU() + 2) // as decoynet does
	zones, err := gateway.NewZones()
	if err != nil {
		return fmt.Errorf("fed: %w", err)
	}
	state := fedState(&spec)
	if err := zones.Apply(ctx, state); err != nil {
		return fmt.Errorf("fed: %w", err)
	}
	if _, err := route.Apply(ctx, zones.Host(), gateway.HostRoutes(state)); err != nil {
		return fmt.Errorf("fed: %w", err)
	}
	var a analysis
	if spec.Dir != "" {
		if err := a.begin(ctx, &spec); err != nil {
			return fmt.Errorf("fed: %w", err)
		}
		defer func() { err = errors.Join(err, a.end()) }()
	}
	g := gateway.New(gateway.Config{Node: state.Node, Recorder: discard{}, Feed: gateway.FeedTo(a.feed)})
	g.SetState(state, deception.NewTable(state))
	engine, err := relay.New(g, relay.Config{Loops: runtime.NumCPU()})
	if err != nil {
		return fmt.Errorf("fed: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), endWithin)
		defer cancel()
		err = errors.Join(err, engine.Close(ctx), zones.Close(ctx))
	}()
	if err := listenEverywhere(engine, spec.Ports); err != nil {
		return fmt.Errorf("fed: %w", err)
	}
	return a.report(ctx, &spec)
}

// listenEverywhere takes connections to every address of the machine, so of every
// decoy: they are routed to it.
func listenEverywhere(engine *relay.Engine, ports []int) error {
	var fds []int
	for _, port := range ports {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		}
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet4{Port: port})
		}
		if err == nil {
			err = unix.Listen(fd, 4096)
		}
		if err != nil {
			return fmt.Errorf("listen at port %d: %w", port, err)
		}
		fds = append(fds, fd)
	}
	return engine.Add(&relay.Listener{Name: "bench"}, fds, nil)
}

// analysis is the gateway's feed with the Suricata at its end, as decoynet has it.
// The zero value feeds nobody.
type analysis struct {
	feed     *feed.Feed
	fifo     *feed.FIFO
	suricata *suricata.Suricata
}

func (a *analysis) begin(ctx context.Context, spec *subject.FedSpec) (err error) {
	a.suricata, err = suricata.New(suricata.Config{
		Dir: spec.Dir, Node: "gw", CPUs: []int{spec.CPU},
		HungAfter: time.Hour, // one that was stopped stays
	})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.end())
		}
	}()
	if a.fifo, err = feed.NewFIFO(a.suricata.FIFO(), nil); err != nil {
		return err
	}
	a.feed = feed.New(feed.Config{Lanes: runtime.NumCPU(), Depth: spec.Depth})
	a.feed.Add("fifo", a.fifo)
	return a.suricata.Apply(ctx, &deception.Inspect{
		Suricata: deception.SuricataManaged, FIFO: true, Depth: spec.Depth, Rules: []string{spec.Rules}, SystemRules: spec.System,
	})
}

func (a *analysis) end() error {
	var err error
	if a.feed != nil {
		a.suricata.Ending()
		err = a.feed.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), endWithin)
	defer cancel()
	return errors.Join(err, a.suricata.Close(ctx))
}

func (a *analysis) stats() subject.FedStats {
	if a.feed == nil {
		return subject.FedStats{}
	}
	s, su := a.feed.Stats(), a.suricata.Status()
	st := subject.FedStats{Flows: s.Flows, Lost: s.Lost, Reading: a.fifo.Stats().Reading, PID: su.PID, Problem: cmp.Or(su.Error, su.RulesError)}
	for _, o := range s.Outputs {
		st.Frames, st.Queued = st.Frames+o.Frames, st.Queued+o.Queued
	}
	return st
}

// report writes down what there is to say, until ctx ends.
func (a *analysis) report(ctx context.Context, spec *subject.FedSpec) error {
	tick := time.NewTicker(statsEvery)
	defer tick.Stop()
	for {
		text, err := json.Marshal(a.stats())
		if err == nil {
			err = os.WriteFile(spec.Stats+".new", text, 0o644)
		}
		if err == nil {
			err = os.Rename(spec.Stats+".new", spec.Stats)
		}
		if err != nil {
			return fmt.Errorf("write what the feed says: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
