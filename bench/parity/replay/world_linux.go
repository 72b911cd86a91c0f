package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"decoynet/internal/lab"
)

// World is the network that captures are played in, with decoynet running on its
// gateway machine:
//
//	client0 -- lan0 -- eth0 gw br-zone -- service
//	client1 -- lan1 -- eth1
//
// or on two, with a hop between them that has a PROXY header before each flow:
//
//	client0 -- lan0 -- eth0 gw br-hop -- up0 edge br-zone -- service
type World struct {
	Plan    *Plan
	Lab     *lab.Lab
	Gateway *Node
	Egress  *Node // nil: the gateway is one
	Service *lab.Machine
	Clients []*lab.Machine // one a segment
	binary  string
	actor   *actor
}

// Node is a machine that decoynet runs on.
type Node struct {
	*lab.Machine
	Data   string // decoynet's data directory
	name   string
	daemon *lab.Process
}

// NewWorld builds the network, with or without the hop, and starts the service.
// decoynet does not run yet.
func NewWorld(ctx context.Context, plan *Plan, binary string, hop bool) (*World, error) {
	l, err := lab.New("")
	if err != nil {
		return nil, err
	}
	w := &World{Plan: plan, Lab: l, binary: binary}
	w.Gateway, w.Service = newNode(l, ingressNode), l.Machine("service")
	behind := w.Gateway
	if hop {
		w.Egress = newNode(l, EgressNode)
		w.Egress.Plug(w.Gateway.Bridge("br-hop", linkIngress+"/24"), Link, linkEgress+"/24")
		behind = w.Egress
	}
	zone := behind.Bridge("br-zone", zoneGateway+"/24", zoneGateway6+"/64")
	w.Service.Plug(zone, "eth0", service+"/24", service6+"/64")
	w.Service.Route("default", zoneGateway)
	w.Service.Route("default", zoneGateway6)
	for n := range plan.segments {
		w.addClient(n)
	}
	// One capture after the other has the same addresses and ports.
	for _, m := range l.Machines() {
		m.Sysctl("net.ipv4.tcp_max_tw_buckets", "0")
	}
	err = l.Err()
	for _, m := range w.Clients {
		if err == nil {
			_, err = m.Run(ctx, "sh", "-ec", clientSetup)
		}
	}
	if err == nil {
		w.actor, err = newActor(ctx, w.Service)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("build the network: %w", err), l.Close())
	}
	return w, nil
}

// clientSetup has a machine take whatever comes in as its own, and look for every
// other address on its card.
const clientSetup = `
ip route add default dev eth0
ip -6 route add default dev eth0
ip rule add iif eth0 lookup 100
ip route add local default dev lo table 100
ip -6 rule add iif eth0 lookup 100
ip -6 route add local default dev lo table 100`

func (w *World) addClient(n int) {
	lan := w.Lab.Switch(fmt.Sprintf("lan%d", n))
	m := w.Lab.Machine(fmt.Sprintf("client%d", n))
	m.Plug(lan, "eth0", fmt.Sprintf("198.18.%d.1/24", n), fmt.Sprintf("fd00:18:%x::1/64", n))
	m.Sysctl("net.ipv4.conf.all.rp_filter", "0")
	m.Sysctl("net.ipv4.conf.eth0.rp_filter", "0")
	w.Gateway.Plug(lan, fmt.Sprintf("eth%d", n))
	w.Clients = append(w.Clients, m)
}

func newNode(l *lab.Lab, name string) *Node {
	m := l.Machine(name)
	return &Node{Machine: m, Data: filepath.Join(m.Dir(), "data"), name: name}
}

// Start runs decoynet by the plan's document on one or both machines, and waits
// until it is ready there. Each machine has its own section on analysis.
func (w *World) Start(ctx context.Context, atGateway, atEgress string) error {
	if w.Egress != nil {
		if err := w.up(w.Egress, atEgress); err != nil {
			return err
		}
	}
	if err := w.up(w.Gateway, atGateway); err != nil {
		return err
	}
	for _, n := range w.Nodes() {
		if err := w.awaitReady(ctx, n); err != nil {
			return fmt.Errorf("start decoynet on %s: %w\n%s", n.name, err, strings.TrimSpace(n.daemon.Log()))
		}
	}
	return nil
}

// Nodes lists the machines on which decoynet runs, in the order of a flow's way.
func (w *World) Nodes() []*Node {
	if w.Egress == nil {
		return []*Node{w.Gateway}
	}
	return []*Node{w.Gateway, w.Egress}
}

func (w *World) up(n *Node, inspect string) error {
	file := filepath.Join(n.Dir(), "decoynet.yaml")
	if err := os.WriteFile(file, []byte(w.Plan.Document(n.name, w.Egress != nil, inspect)), 0o600); err != nil {
		return fmt.Errorf("write the document: %w", err)
	}
	var err error
	if n.daemon, err = n.Start(w.binary, "up", "-c", file, "--data", n.Data); err != nil {
		return fmt.Errorf("start decoynet on %s: %w", n.name, err)
	}
	return nil
}

func (w *World) awaitReady(ctx context.Context, n *Node) error {
	return lab.Eventually(ctx, 30*time.Second, func() error {
		select {
		case <-n.daemon.Done():
			return errors.New("it has ended")
		default:
		}
		status, err := w.Status(ctx, n)
		if err != nil || !status.Ready {
			return fmt.Errorf("not ready: %v %w", status.Problems, err)
		}
		return status.down()
	})
}

// Status is a part of what decoynet says of itself.
type Status struct {
	Ready    bool
	Problems []string
	Inspect  any
	Services []struct {
		Name  string
		Ports []struct {
			Port  string
			Up    bool
			Error string
		}
	}
}

// down names a service that is not reached. An egress on another machine is
// asked a moment after everything else is ready, and decoys refuse until then.
func (s *Status) down() error {
	for _, service := range s.Services {
		for _, p := range service.Ports {
			if !p.Up && !strings.HasSuffix(p.Port, "/udp") { // datagrams are not played
				return fmt.Errorf("service %s, port %s: %s", service.Name, p.Port, p.Error)
			}
		}
	}
	return nil
}

// Status returns what decoynet says of itself on a machine.
func (w *World) Status(ctx context.Context, n *Node) (*Status, error) {
	out, err := n.Run(ctx, w.binary, "status", "--data", n.Data, "-o", "json")
	if err != nil {
		return &Status{}, err
	}
	var status Status
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		return &status, fmt.Errorf("read decoynet's status: %w", err)
	}
	return &status, nil
}

// Stop ends decoynet in order.
func (w *World) Stop(ctx context.Context) error {
	var errs []error
	for _, n := range w.Nodes() {
		if n.daemon != nil {
			errs = append(errs, n.daemon.Stop(ctx))
			n.daemon = nil
		}
	}
	return errors.Join(errs...)
}

// Close ends everything and removes it.
func (w *World) Close() error { return errors.Join(w.actor.close(), w.Lab.Close()) }
