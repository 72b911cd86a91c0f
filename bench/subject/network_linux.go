// Package subject brings up what the benchmarks compare: one gateway machine
// for each way of leading an intruder's connections to a service, side by side
// on one LAN; or two machines, with a way between them that may be long.
//
//	intruder --- LAN switch --- eth0 gateway br-linux --- service
//	intruder --- LAN switch --- eth0 front eth1 --- eth1 gateway br-linux --- service
//
// Every subject has gateway machines and a service machine of its own, so that
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
	"net"
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
	transit  = "eth1"
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
	Front       *lab.Machine // takes the intruder's connections; the gateway where it does so itself
	Gateway     *lab.Machine // the one that the service is behind
	Service     *lab.Machine
	DecoyPrefix netip.Prefix // on the LAN
	// Where front and gateway are two machines: their addresses between them.
	FrontAddr, GatewayAddr netip.Addr
	Zone                   netip.Prefix // behind the gateway
	ZoneGateway            netip.Addr
	ServiceAddr            netip.Addr
	Aliases                netip.Prefix // further addresses that the service may have
	targets                []netip.Addr
	road                   *RoadProcess // nil where the way between the machines is short
	network                *Network
}

// NewNetwork builds the LAN and the intruder. self is this program's file; run
// with the arguments "load", "serve", "snat" or "road" it plays that part.
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
func (n *Network) AddSite(ctx context.Context, name string, layout Layout) (*Site, error) {
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
	lanAddr := netip.AddrFrom4([4]byte{10, 77, 1, i})
	s.Gateway = n.lab.Machine("gw-" + name)
	s.Front = s.Gateway
	if layout.Front {
		s.Front = n.lab.Machine("front-" + name)
		s.FrontAddr, s.GatewayAddr = netip.AddrFrom4([4]byte{10, 66, i, 1}), netip.AddrFrom4([4]byte{10, 66, i, 2})
		if err := n.connect(s, name, layout.Delay); err != nil {
			return nil, err
		}
	}
	s.Front.Plug(n.lan, uplink, lanAddr.String()+"/16")
	s.targets = []netip.Addr{lanAddr}
	if !layout.Own {
		s.targets = decoysIn(s.DecoyPrefix)
	}
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

// connect lays the way between front and gateway.
func (n *Network) connect(s *Site, name string, delay time.Duration) error {
	near := n.lab.Switch("transit-" + name)
	far := near
	if delay > 0 {
		far = n.lab.Switch("far-" + name)
	}
	s.Front.Plug(near, transit, s.FrontAddr.String()+"/24")
	s.Gateway.Plug(far, transit, s.GatewayAddr.String()+"/24")
	if delay == 0 {
		return n.lab.Err()
	}
	var err error
	s.road, err = NewRoad(n.lab.Machine("road-"+name), near, far, delay, n.self)
	return err
}

// RoadLost returns what the way between front and gateway lost so far, "" if
// nothing.
func (s *Site) RoadLost() string {
	if s.road == nil {
		return ""
	}
	return s.road.Lost()
}

// RoadProcess is a long way between two segments.
type RoadProcess struct{ process *lab.Process }

// Lost returns what the road lost so far, "" if nothing.
func (r *RoadProcess) Lost() string { return strings.TrimSpace(r.process.Log()) }

// NewRoad makes a machine the way between two segments, which carries every
// frame with a delay. self is this program's file.
func NewRoad(m *lab.Machine, near, far *lab.Switch, delay time.Duration, self string) (*RoadProcess, error) {
	m.Sysctl("net.ipv6.conf.all.disable_ipv6", "1")
	m.Sysctl("net.ipv6.conf.default.disable_ipv6", "1")
	m.Plug(near, "eth0")
	m.Plug(far, "eth1")
	if err := m.Lab().Err(); err != nil {
		return nil, err
	}
	p, err := Role(m, self, "road", "eth0", "eth1", delay.String())
	return &RoadProcess{p}, err
}

func decoysIn(p netip.Prefix) []netip.Addr {
	decoys := make([]netip.Addr, Decoys)
	a := p.Addr()
	for i := range decoys {
		a = a.Next()
		decoys[i] = a
	}
	return decoys
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
	_, err := Role(s.Service, s.network.self, "serve")
	return err
}

// Role starts a part that this program, the file self, plays on a machine, and
// waits until it says that it is ready.
func Role(m *lab.Machine, self string, args ...string) (*lab.Process, error) {
	cmd := m.Command(context.Background(), self, args...)
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	defer r.Close()
	cmd.Stdout = w
	p, err := m.StartCommand(cmd)
	w.Close() // the process's own copy stays open
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", args[0], err)
	}
	if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
		return nil, fmt.Errorf("wait for %s: %w: %s", args[0], err, p.Log())
	}
	return p, nil
}

// Targets returns the first count decoy addresses, or all where there are fewer.
func (s *Site) Targets(count int) []netip.Addr { return s.targets[:min(count, len(s.targets))] }

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

// Dial opens one TCP connection from the intruder's machine.
func (s *Site) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	return s.network.intruder.Dial(ctx, "tcp4", to.String())
}
