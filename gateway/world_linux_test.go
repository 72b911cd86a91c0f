package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/lab"
	"decoynet/internal/lab/labtest"
)

// patience is how long a test waits for what should come soon.
const patience = 20 * time.Second

// world is two hosts of ours: "hq", where the intruder's network is, and "vm1",
// behind which the services are.
//
//	client --- lan --- hq --- bridge --- vm1 --- zone --- web
//	                           |
//	                        stranger
type world struct {
	t                              *testing.T
	lab                            *lab.Lab
	client, hq, vm1, stranger, web *lab.Machine
	tcp, udp                       *lab.Server
	egressState, ingressState      string // files
	ingress, egress                *gatewayProcess
}

const (
	decoy4, decoy6     = "192.0.2.10", "2001:db8::10"
	egressAt           = "172.16.23.2:7445"
	egressAt6          = "[fd00:23::2]:7445"
	foreignAt          = "172.16.23.2:7446"
	service4, service6 = "10.1.0.2", "fd00:1::2"
)

func addrPortOf(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func newWorld(t *testing.T) *world {
	t.Helper()
	l := labtest.New(t)
	w := &world{t: t, lab: l}
	lan, bridge, zone := l.Switch("lan"), l.Switch("bridge"), l.Switch("zone")
	w.client, w.hq, w.vm1, w.stranger, w.web = l.Machine("client"), l.Machine("hq"), l.Machine("vm1"), l.Machine("stranger"), l.Machine("web")
	w.client.Plug(lan, "eth0", "192.0.2.66/24", "2001:db8::66/64")
	w.hq.Plug(lan, "eth0", decoy4+"/24", decoy6+"/64")
	w.hq.Plug(bridge, "eth1", "172.16.23.1/24", "fd00:23::1/64")
	w.vm1.Plug(bridge, "eth0", "172.16.23.2/24", "fd00:23::2/64")
	w.stranger.Plug(bridge, "eth0", "172.16.23.66/24", "fd00:23::66/64")
	w.vm1.Plug(zone, "eth1", "10.1.0.1/24", "fd00:1::1/64")
	w.web.Plug(zone, "eth0", service4+"/24", service6+"/64")
	w.web.Route("default", "10.1.0.1")
	w.web.Route("default", "fd00:1::1")
	labtest.Built(t, l)
	var err error
	if w.tcp, err = lab.TCPPeer(t.Context(), w.web, lab.Listen{Ports: []uint16{7}}); err != nil {
		t.Fatal(err)
	}
	if w.udp, err = lab.UDPEcho(t.Context(), w.web, lab.Listen{}); err != nil {
		t.Fatal(err)
	}
	w.egressState = w.write("vm1.json", vm1State(egressAt, "172.16.23.1/32", "fd00:23::1/128"))
	w.ingressState = w.write("hq.json", hqState(egressAt))
	return w
}

func (w *world) write(name string, state *deception.State) string {
	w.t.Helper()
	text, err := json.Marshal(state)
	if err != nil {
		w.t.Fatal(err)
	}
	file := filepath.Join(w.lab.Dir(), name)
	if err := os.WriteFile(file+".new", text, 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		w.t.Fatal(err)
	}
	return file
}

func tcpPort(n uint16) deception.PortRange { return deception.Port(deception.TCP, n) }
func udpPort(n uint16) deception.PortRange { return deception.Port(deception.UDP, n) }

func services(zone string) []deception.Service {
	return []deception.Service{{
		Name: zone + "-echo", Zone: zone, Addr4: netip.MustParseAddr(service4), Addr6: netip.MustParseAddr(service6),
		Ports: []deception.PortRange{tcpPort(7), udpPort(161)},
	}}
}

// vm1State is the part of the egress's machine.
func vm1State(listen string, from ...string) *deception.State {
	egress := &deception.Egress{Node: "vm1", Listen: netip.MustParseAddrPort(listen)}
	for _, p := range from {
		egress.From = append(egress.From, netip.MustParsePrefix(p))
	}
	return &deception.State{
		Node: "vm1", Nodes: []deception.Node{{Name: "vm1"}},
		Zones: []deception.Zone{{
			Name: "linux", Node: "vm1", Link: "eth1", Egress: egress,
			Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:1::/64")},
		}},
		Services: services("linux"),
	}
}

// hqState is the part of the ingress's machine. Each decoy address has port 1007
// and 1008 for the service behind our egress, 3007 behind a foreign one.
func hqState(egress string) *deception.State {
	far := func(name, at string) deception.Zone {
		return deception.Zone{Name: name, Node: "vm1", Egress: &deception.Egress{Node: "vm1", Listen: netip.MustParseAddrPort(at)}}
	}
	var bind []deception.Binding
	for _, b := range []struct {
		service string
		port    uint16
	}{{"linux-echo", 1007}, {"linux-echo", 1008}, {"foreign-echo", 3007}} {
		bind = append(bind,
			deception.Binding{Ports: []deception.PortRange{tcpPort(b.port)}, Service: b.service, Target: 7},
			deception.Binding{Ports: []deception.PortRange{udpPort(b.port)}, Service: b.service, Target: 161})
	}
	return &deception.State{
		Node: "hq", Nodes: []deception.Node{{Name: "hq"}},
		Segments: []deception.Segment{{Name: "office", Node: "hq"}},
		Zones:    []deception.Zone{far("linux", egress), far("foreign", foreignAt)},
		Services: append(services("linux"), services("foreign")...),
		Decoys: []deception.Decoy{{
			Name: "office-echo", Segment: "office", Node: "hq", Path: deception.PathRelay, Idle: time.Hour,
			Addresses: []deception.AddrRange{single(decoy4), single(decoy6)}, Bind: bind,
		}},
	}
}

func single(a string) deception.AddrRange {
	return deception.AddrRange{From: netip.MustParseAddr(a), To: netip.MustParseAddr(a)}
}

// gatewayProcess is this test binary as one machine's gateway.
type gatewayProcess struct {
	*lab.Process
	t *testing.T
}

func (w *world) start(m *lab.Machine, role, state string) *gatewayProcess {
	w.t.Helper()
	cmd := m.Command(context.Background(), fmt.Sprintf("/proc/%d/exe", os.Getpid()))
	cmd.Env = append(cmd.Env, roleVar+"="+role, roleVar+"_STATE="+state)
	p, err := m.StartCommand(cmd)
	if err != nil {
		w.t.Fatal(err)
	}
	g := &gatewayProcess{p, w.t}
	g.hears("that it is up", func(said word) bool { return said.Applied })
	return g
}

func (w *world) startBoth() {
	w.t.Helper()
	w.startEgress()
	w.startIngress()
}

func (w *world) startEgress() {
	w.t.Helper()
	w.egress = w.start(w.vm1, "egress", w.egressState)
	w.egress.hears("that it listens", func(said word) bool { return len(said.Egress) == 1 && said.Egress[0].Listening })
}

func (w *world) startIngress() {
	w.t.Helper()
	w.ingress = w.start(w.hq, "ingress", w.ingressState)
}

// words returns what the process has said so far.
func (g *gatewayProcess) words() []word {
	g.t.Helper()
	var out []word
	for line := range strings.Lines(g.Log()) {
		var w word
		if strings.HasPrefix(line, "{") && json.Unmarshal([]byte(line), &w) == nil {
			out = append(out, w)
		}
	}
	return out
}

// hears waits for a word that match wants.
func (g *gatewayProcess) hears(what string, match func(word) bool) word {
	g.t.Helper()
	return g.hearsAfter(0, what, match)
}

// hearsAfter does so without the first ones.
func (g *gatewayProcess) hearsAfter(skip int, what string, match func(word) bool) word {
	g.t.Helper()
	var found word
	err := lab.Eventually(g.t.Context(), patience, func() error {
		for _, w := range g.words()[skip:] {
			if match(w) {
				found = w
				return nil
			}
		}
		return fmt.Errorf("%s has not said %s", g.LogPath(), what)
	})
	if err != nil {
		g.t.Fatalf("%v\n%s", err, g.Log())
	}
	return found
}

// ended waits for the end of the flow that came from source.
func (g *gatewayProcess) ended(source netip.AddrPort) *deception.Session {
	g.t.Helper()
	return g.hears("the end of the flow from "+source.String(), func(w word) bool {
		return w.Ended != nil && w.Ended.Source == source
	}).Ended
}

// conn is a client's connection with a reader for lines.
type conn struct {
	net.Conn
	r     *bufio.Reader
	local netip.AddrPort
}

func (w *world) dial(m *lab.Machine, network, address string) *conn {
	w.t.Helper()
	c, err := w.tryDial(m, network, address)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) tryDial(m *lab.Machine, network, address string) (*conn, error) {
	c, err := m.Dial(w.t.Context(), network, address)
	if err != nil {
		return nil, err
	}
	return w.wrap(c), nil
}

// wrap bounds every wait on the connection and closes it with the test.
func (w *world) wrap(c net.Conn) *conn {
	w.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return &conn{c, bufio.NewReader(c), netip.MustParseAddrPort(c.LocalAddr().String())}
}

// peerLine is what the service says to whom it sees.
func peerLine(a netip.AddrPort) string { return fmt.Sprintf("peer %s %d\n", a.Addr(), a.Port()) }

// wantEcho wants the service to name the client itself, then to echo.
func (c *conn) wantEcho(t *testing.T, text string) {
	t.Helper()
	line, err := c.r.ReadString('\n')
	if err != nil || line != peerLine(c.local) {
		t.Fatalf("the service said %q (%v), want %q", line, err, peerLine(c.local))
	}
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c.r, got); err != nil || string(got) != text {
		t.Fatalf("echo of %d bytes: %d, %v", len(text), len(bytes.TrimRight(got, "\x00")), err)
	}
}

// wantReset wants the connection to end by a reset, after any bytes.
func (c *conn) wantReset(t *testing.T) {
	t.Helper()
	if b, err := io.ReadAll(c.r); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the client saw %q, then %v; want a reset", b, err)
	}
}
