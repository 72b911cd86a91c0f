// Package subject brings up what the benchmarks compare: one gateway machine
// for each way of leading an intruder's connections to a service, side by side
// on one LAN.
//
//	intruder --- LAN switch --- eth0 gateway br-linux --- service
//
// Every subject has a gateway machine and a service machine of its own, so that
// one's conntrack, routes and rules are not in another's way. Only the intruder
// and the switch are shared, and an idle subject costs them nothing.
package subject

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"decoynet/bench/load"
	"decoynet/internal/lab"
)

// Decoys is how many decoy addresses every subject has.
const Decoys = 100

// Names inside a gateway machine.
const (
	uplink   = "eth0"
	zoneLink = "br-linux"
)

// intruderAddr is what every subject has to show to its service.
const intruderAddr = "10.77.0.2/16"

// intruderSettings make one address able to run at full speed for minutes: a
// source port may be used again after a second, and no closed connection is
// forgotten early, which would let the kernel reuse a port that the gateway has
// not yet closed.
var intruderSettings = [][2]string{
	{"net.ipv4.ip_local_port_range", "1024 65535"},
	{"net.ipv4.tcp_tw_reuse", "1"},
	{"net.ipv4.tcp_max_tw_buckets", "2000000"},
}

// Network is the LAN with the intruder on it.
type Network struct {
	self     string // the command that runs a role of this program in a process of its own
	lab      *lab.Lab
	lan      *lab.Switch
	intruder *lab.Machine
	sites    byte
}

// Site is one subject's share of the network.
type Site struct {
	Gateway     *lab.Machine
	Service     *lab.Machine
	DecoyPrefix netip.Prefix // on the LAN
	Zone        netip.Prefix // behind the gateway
	ZoneGateway netip.Addr
	ServiceAddr netip.Addr
	Aliases     netip.Prefix // further addresses that the service may have
	network     *Network
}

// NewNetwork builds the LAN and the intruder. self is this program's file; run
// with the arguments "load", "serve" or "snat" it plays that part.
func NewNetwork(self string) (*Network, error) {
	l, err := lab.New("")
	if err != nil {
		return nil, fmt.Errorf("open a lab: %w", err)
	}
	n := &Network{self: self, lab: l, lan: l.Switch("lan"), intruder: l.Machine("intruder")}
	n.intruder.Plug(n.lan, uplink, intruderAddr)
	for _, s := range intruderSettings {
		n.intruder.Sysctl(s[0], s[1])
	}
	if err := l.Err(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return n, nil
}

// Close ends everything and removes it.
func (n *Network) Close() error { return n.lab.Close() }

// AddSite builds the machines of one more subject and starts its service.
func (n *Network) AddSite(ctx context.Context, name string) (*Site, error) {
	n.sites++
	i := n.sites
	s := &Site{
		network:     n,
		DecoyPrefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 100 + i, 0}), 24),
		Zone:        netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 88, i, 0}), 24),
		ZoneGateway: netip.AddrFrom4([4]byte{10, 88, i, 1}),
		ServiceAddr: netip.AddrFrom4([4]byte{10, 88, i, 2}),
		Aliases:     netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, i, 0}), 24),
	}
	// Machine names are host names: no underscore.
	name = strings.ReplaceAll(name, "_", "-")
	s.Gateway = n.lab.Machine("gw-" + name)
	s.Gateway.Plug(n.lan, uplink, fmt.Sprintf("10.77.1.%d/16", i))
	zone := s.Gateway.Bridge(zoneLink, s.ZoneGateway.String()+"/24")
	s.Service = n.lab.Machine("service-" + name)
	s.Service.Plug(zone, uplink, s.ServiceAddr.String()+"/24")
	s.Service.Route("default", s.ZoneGateway.String())
	if err := n.lab.Err(); err != nil {
		return nil, err
	}
	if err := shell(ctx, s.Gateway, plainBridge); err != nil {
		return nil, err
	}
	return s, s.serve()
}

// plainBridge keeps bridged frames from the IP packet filter's hooks, as on a
// machine that has not loaded br_netfilter; here it may be built in.
const plainBridge = `for f in /proc/sys/net/bridge/bridge-nf-call-*tables; do
	if [ -e $f ]; then echo 0 > $f; fi
done`

// shell runs lines on the machine, up to the first that fails.
func shell(ctx context.Context, m *lab.Machine, lines ...string) error {
	if len(lines) == 0 {
		return nil
	}
	_, err := m.Run(ctx, "sh", "-ec", strings.Join(lines, "\n"))
	return err
}

// serve starts the service and waits until it listens.
func (s *Site) serve() error {
	cmd := s.Service.Command(context.Background(), s.network.self, "serve")
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	defer r.Close()
	cmd.Stdout = w
	p, err := s.Service.StartCommand(cmd)
	w.Close() // the service's own copy stays open
	if err != nil {
		return fmt.Errorf("start the service: %w", err)
	}
	if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
		return fmt.Errorf("wait for the service: %w: %s", err, p.Log())
	}
	return nil
}

// Targets returns the first count decoy addresses.
func (s *Site) Targets(count int) []netip.Addr {
	targets := make([]netip.Addr, count)
	a := s.DecoyPrefix.Addr()
	for i := range targets {
		a = a.Next()
		targets[i] = a
	}
	return targets
}

// Load runs a load from the intruder's machine. While the flows of a Hold load
// stand, held is called.
func (s *Site) Load(ctx context.Context, spec load.Spec, held func(load.Result) error) (load.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, spec.Duration+spec.Timeout+30*time.Second)
	defer cancel()
	arg, err := json.Marshal(spec)
	if err != nil {
		return load.Result{}, fmt.Errorf("encode the load: %w", err)
	}
	cmd := s.network.intruder.Command(ctx, s.network.self, "load", string(arg))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return load.Result{}, fmt.Errorf("make a pipe: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return load.Result{}, fmt.Errorf("make a pipe: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return load.Result{}, fmt.Errorf("start the load: %w", err)
	}
	result, err := follow(spec, json.NewDecoder(out), in, held)
	in.Close()
	if waitErr := cmd.Wait(); waitErr != nil {
		err = errors.Join(fmt.Errorf("generate load: %w", waitErr), err)
	}
	return result, err
}

// follow reads what the load's process reports: one Result, two for a Hold.
func follow(spec load.Spec, results *json.Decoder, in io.Closer, held func(load.Result) error) (load.Result, error) {
	var heldErr error
	if spec.Kind == load.Hold {
		var r load.Result
		if err := results.Decode(&r); err != nil {
			return r, fmt.Errorf("read the load's report: %w", err)
		}
		if held != nil {
			heldErr = held(r)
		}
		in.Close()
	}
	var r load.Result
	if err := results.Decode(&r); err != nil {
		return r, errors.Join(heldErr, fmt.Errorf("read the load's report: %w", err))
	}
	return r, heldErr
}

// ForgetNeighbours empties the intruder's neighbour table. The kernel limits
// the number of entries for all namespaces together; the decoys of all subjects
// would make it collect garbage in the midst of a figure.
func (n *Network) ForgetNeighbours(ctx context.Context) error {
	_, err := n.intruder.Run(ctx, "ip", "neigh", "flush", "dev", uplink)
	return err
}
