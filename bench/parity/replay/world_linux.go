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
type World struct {
	Plan    *Plan
	Lab     *lab.Lab
	Gateway *lab.Machine
	Service *lab.Machine
	Clients []*lab.Machine // one a segment
	Data    string         // decoynet's data directory
	binary  string
	daemon  *lab.Process
	actor   *actor
}

// NewWorld builds the network and starts the service. decoynet does not run yet.
func NewWorld(ctx context.Context, plan *Plan, binary string) (*World, error) {
	l, err := lab.New("")
	if err != nil {
		return nil, err
	}
	w := &World{Plan: plan, Lab: l, binary: binary}
	w.Gateway, w.Service = l.Machine("gw"), l.Machine("service")
	w.Data = filepath.Join(w.Gateway.Dir(), "data")
	zone := w.Gateway.Bridge("br-zone", zoneGateway+"/24", zoneGateway6+"/64")
	w.Service.Plug(zone, "eth0", service+"/24", service6+"/64")
	w.Service.Route("default", zoneGateway)
	w.Service.Route("default", zoneGateway6)
	for n := range plan.segments {
		w.addClient(n)
	}
	// One capture after the other has the same addresses and ports.
	for _, m := range append([]*lab.Machine{w.Gateway, w.Service}, w.Clients...) {
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

// Start runs decoynet by the plan's document and waits until it is ready. env are
// further variables of its environment.
func (w *World) Start(ctx context.Context, inspect string, env ...string) error {
	file := filepath.Join(w.Gateway.Dir(), "decoynet.yaml")
	if err := os.WriteFile(file, []byte(w.Plan.Document(inspect)), 0o600); err != nil {
		return fmt.Errorf("write the document: %w", err)
	}
	cmd := w.Gateway.Command(context.Background(), w.binary, "up", "-c", file, "--data", w.Data)
	cmd.Env = append(cmd.Env, env...)
	var err error
	if w.daemon, err = w.Gateway.StartCommand(cmd); err != nil {
		return fmt.Errorf("start decoynet: %w", err)
	}
	err = lab.Eventually(ctx, 30*time.Second, func() error {
		select {
		case <-w.daemon.Done():
			return fmt.Errorf("it has ended")
		default:
		}
		status, err := w.Status(ctx)
		if err != nil || status["ready"] != true {
			return fmt.Errorf("not ready: %v %w", status["problems"], err)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("start decoynet: %w\n%s", err, strings.TrimSpace(w.daemon.Log()))
	}
	return nil
}

// Status returns what decoynet says of itself.
func (w *World) Status(ctx context.Context) (map[string]any, error) {
	out, err := w.Gateway.Run(ctx, w.binary, "status", "--data", w.Data, "-o", "json")
	if err != nil {
		return nil, err
	}
	var status map[string]any
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		return nil, fmt.Errorf("read decoynet's status: %w", err)
	}
	return status, nil
}

// Log returns what decoynet has said.
func (w *World) Log() string { return w.daemon.Log() }

// Stop ends decoynet in order.
func (w *World) Stop(ctx context.Context) error {
	if w.daemon == nil {
		return nil
	}
	err := w.daemon.Stop(ctx)
	w.daemon = nil
	return err
}

// Close ends everything and removes it.
func (w *World) Close() error { return errors.Join(w.actor.close(), w.Lab.Close()) }
