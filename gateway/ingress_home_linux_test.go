package gateway

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
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/health"
	"decoynet/internal/kernel/firewall"
	"decoynet/internal/kernel/route"
	"decoynet/internal/lab"
	"decoynet/internal/lab/labtest"
	"decoynet/internal/pki"
	"decoynet/internal/proxyheader"
	"decoynet/internal/tunnel"
)

func init() { roles["home"] = homeProcess }

// homeWord is what such a process says beside word.
type homeWord struct {
	Ingress *IngressStatus `json:",omitempty"`
}

// homeProcess is an ingress gateway whose zone is behind a link of its own: state
// and peers stand in files, the identity in a directory beside them.
func homeProcess(file string) error {
	say := &speaker{last: map[string]string{}}
	identity, err := pki.LoadIdentity(filepath.Join(filepath.Dir(file), "hq.identity"))
	if err != nil {
		return err
	}
	zones, err := NewZones()
	if err != nil {
		return err
	}
	var ingress *Ingress
	checker := health.New(health.Config{Interval: 200 * time.Millisecond, Mark: firewall.MarkSelf, Changed: func() { ingress.NoteHealth() }})
	fed, err := testFeed("home")
	if err != nil {
		return err
	}
	g := New(Config{Node: "hq", Recorder: say, Suspect: checker.Suspect, Feed: FeedTo(fed)})
	ingress = NewIngress(g, IngressConfig{Identity: identity, Up: checker.Up})
	err = everyTurn(func(ctx context.Context) error {
		state, err := readState(file)
		if err != nil {
			return nil // it is being written
		}
		peers := map[string]uint32{}
		if text, err := os.ReadFile(file + ".peers"); err != nil || json.Unmarshal(text, &peers) != nil {
			return nil
		}
		errs := []error{zones.Apply(ctx, state)}
		_, err = route.Apply(ctx, zones.Host(), HostRoutes(state))
		errs = append(errs, err)
		checker.Watch(ctx, health.PortsOf(state))
		g.SetState(state, deception.NewTable(state))
		errs = append(errs, ingress.Apply(ctx, state, peers))
		say.sayNew("applied", word{Applied: true})
		st := ingress.Status()
		line, _ := json.Marshal(homeWord{Ingress: &st})
		say.mu.Lock()
		defer say.mu.Unlock()
		if say.last["ingress"] != string(line) {
			say.last["ingress"] = string(line)
			fmt.Println(string(line))
		}
		return errors.Join(errs...)
	})
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	checker.Close()
	return errors.Join(err, ingress.Close(ctx), zones.Close(ctx), closeFeed(fed))
}

// home is an ingress gateway, a service behind it, and agents that this test
// plays, at the far end of a network:
//
//	branch --- wan --- hq --- zone --- web
type home struct {
	t               *testing.T
	lab             *lab.Lab
	branch, hq, web *lab.Machine
	tcp, udp        *lab.Server
	ca              *pki.CA
	stateFile       string
	process         *gatewayProcess
	generations     map[string]uint32
	port            uint16 // of the last intruder

	mu      sync.Mutex // guards notices
	notices []string
}

const homeAt = "203.0.113.1:7444"

func newHome(t *testing.T) *home {
	t.Helper()
	l := labtest.New(t)
	h := &home{t: t, lab: l, generations: map[string]uint32{"crm-1": 1, "erp-1": 1}, port: 40000}
	wan, zone := l.Switch("wan"), l.Switch("zone")
	h.branch, h.hq, h.web = l.Machine("branch"), l.Machine("hq"), l.Machine("web")
	h.branch.Plug(wan, "eth0", "203.0.113.66/24")
	h.hq.Plug(wan, "eth0", "203.0.113.1/24")
	h.hq.Plug(zone, "eth1", "10.1.0.1/24", "fd00:1::1/64")
	h.web.Plug(zone, "eth0", service4+"/24", service6+"/64")
	h.web.Route("default", "10.1.0.1")
	h.web.Route("default", "fd00:1::1")
	labtest.Built(t, l)
	var err error
	if h.tcp, err = lab.TCPPeer(t.Context(), h.web, lab.Listen{Ports: []uint16{7}}); err != nil {
		t.Fatal(err)
	}
	if h.udp, err = lab.UDPEcho(t.Context(), h.web, lab.Listen{}); err != nil {
		t.Fatal(err)
	}
	if h.ca, err = pki.NewCA(); err != nil {
		t.Fatal(err)
	}
	if err := h.identity("hq", 1).Save(filepath.Join(l.Dir(), "hq.identity")); err != nil {
		t.Fatal(err)
	}
	h.stateFile = filepath.Join(l.Dir(), "hq.json")
	h.write(h.stateFile, homeState())
	h.write(h.stateFile+".peers", h.generations)
	return h
}

func (h *home) identity(node string, generation uint32) *pki.Identity {
	h.t.Helper()
	key, csr, err := pki.NewRequest()
	if err != nil {
		h.t.Fatal(err)
	}
	der, err := h.ca.SignNode(csr, node, generation, time.Hour, time.Now())
	if err != nil {
		h.t.Fatal(err)
	}
	i, err := pki.NewIdentity(pki.IdentityConfig{Key: key, Certificate: der, CA: h.ca.Certificate().Raw, Controllers: []string{"https://controller.example:7443"}})
	if err != nil {
		h.t.Fatal(err)
	}
	return i
}

func (h *home) write(file string, v any) {
	h.t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(file+".new", text, 0o600), os.Rename(file+".new", file)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *home) start() {
	h.t.Helper()
	w := &world{t: h.t, lab: h.lab}
	h.process = w.start(h.hq, "home", h.stateFile)
	h.status("that it listens", func(s IngressStatus) bool { return s.Listening })
}

// status waits until the process has said a status that match wants.
func (h *home) status(what string, match func(IngressStatus) bool) {
	h.t.Helper()
	err := lab.Eventually(h.t.Context(), patience, func() error {
		var last IngressStatus
		for line := range strings.Lines(h.process.Log()) {
			var w homeWord
			if strings.HasPrefix(line, "{") && json.Unmarshal([]byte(line), &w) == nil && w.Ingress != nil {
				last = *w.Ingress
			}
		}
		if !match(last) {
			return fmt.Errorf("status is not %s: %+v", what, last)
		}
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

// homeState is hq's part: decoys of two agents, and a port whose service is down.
func homeState() *deception.State {
	decoy := func(name, node string, bind ...deception.Binding) deception.Decoy {
		return deception.Decoy{Name: name, Node: node, Segment: deception.HostSegment, Any: true, Idle: time.Hour, Path: deception.PathRelay, Bind: bind}
	}
	to := func(service string, target uint16, ports ...deception.PortRange) deception.Binding {
		return deception.Binding{Service: service, Ports: ports, Target: target}
	}
	services := append(services("linux"), deception.Service{
		Name: "four", Zone: "linux", Addr4: netip.MustParseAddr(service4), Ports: []deception.PortRange{tcpPort(7), tcpPort(8)},
	})
	return &deception.State{
		Node: "hq", Nodes: []deception.Node{{Name: "hq"}},
		Gateways: []deception.Gateway{{Name: "gw1", Node: "hq", Listen: netip.MustParseAddrPort(homeAt)}},
		Zones: []deception.Zone{{
			Name: "linux", Node: "hq", Link: "eth1",
			Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:1::/64")},
		}},
		Services: services,
		Decoys: []deception.Decoy{
			decoy("crm", "crm-1", to("linux-echo", 7, tcpPort(1007)), to("linux-echo", 161, udpPort(1161)), to("four", 7, tcpPort(4007)), to("four", 8, tcpPort(4008))),
			decoy("erp", "erp-1", to("linux-echo", 7, tcpPort(2007))),
		},
	}
}

// agent returns the tunnel client of a node, dialing from the branch.
func (h *home) agent(node string, generation uint32) *tunnel.Client {
	h.t.Helper()
	identity := h.identity(node, generation)
	c := tunnel.NewClient(tunnel.ClientConfig{
		TLS: identity.GatewayTLS, Explain: pki.Explain,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			return h.branch.Dial(ctx, network, address)
		},
		Told: func(_ string, message []byte) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.notices = append(h.notices, string(message))
		},
	})
	c.SetGateways([]deception.Gateway{{Name: "gw1", Node: "hq", Listen: netip.MustParseAddrPort(homeAt)}})
	h.t.Cleanup(c.Close)
	return c
}

// flow is an intruder's as the agent on node brings it, from a port of its own.
func (h *home) flow(node, destination string) proxyheader.Header {
	h.port++
	to := netip.MustParseAddrPort(destination)
	from := netip.MustParseAddr("198.51.100.66")
	if to.Addr().Is6() {
		from = netip.MustParseAddr("2001:db8:66::66")
	}
	return proxyheader.Header{
		Transport: deception.TCP, Source: netip.AddrPortFrom(from, h.port), Destination: to,
		Session: deception.NewSessionID(time.Now()), Node: node, Segment: deception.HostSegment, Decoy: "crm", Service: "linux-echo",
	}
}

// open brings a flow.
func (h *home) open(c *tunnel.Client, f proxyheader.Header) *tunnelConn {
	h.t.Helper()
	header, err := f.Append(nil)
	if err != nil {
		h.t.Fatal(err)
	}
	return h.openRaw(c, header, f)
}

func (h *home) openRaw(c *tunnel.Client, header []byte, f proxyheader.Header) *tunnelConn {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), patience)
	defer cancel()
	s, err := c.Open(ctx, header, f.Transport == deception.UDP)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := s.SetReadDeadline(time.Now().Add(patience)); err != nil {
		h.t.Fatal(err)
	}
	return &tunnelConn{Stream: s, f: f, r: bufio.NewReader(s), t: h.t}
}

// tunnelConn is the agent's end of a flow.
type tunnelConn struct {
	*tunnel.Stream
	f proxyheader.Header
	r *bufio.Reader
	t *testing.T
}

// wantEcho wants the service to name the intruder, then to echo.
func (c *tunnelConn) wantEcho() {
	c.t.Helper()
	if c.f.Transport == deception.UDP {
		if _, err := c.Write([]byte("ask")); err != nil {
			c.t.Fatal(err)
		}
		b := make([]byte, 1000)
		n, err := c.Read(b)
		if want := peerLine(c.f.Source) + "ask"; err != nil || string(b[:n]) != want {
			c.t.Fatalf("the service said %q (%v), want %q", b[:n], err, want)
		}
		return
	}
	line, err := c.r.ReadString('\n')
	if err != nil || line != peerLine(c.f.Source) {
		c.t.Fatalf("the service said %q (%v), want %q", line, err, peerLine(c.f.Source))
	}
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		c.t.Fatal(err)
	}
	if line, err = c.r.ReadString('\n'); err != nil || line != "hello\n" {
		c.t.Fatalf("echo %q, %v", line, err)
	}
}

// wantEnd wants the stream to end by a reset with the reason.
func (c *tunnelConn) wantEnd(want deception.EndReason) {
	c.t.Helper()
	_, err := io.Copy(io.Discard, c.r)
	var reset *tunnel.ResetError
	if !errors.As(err, &reset) || reset.Reason != want {
		c.t.Errorf("flow to %s ended with %v, want %q", c.f.Destination, err, want)
	}
}

func (h *home) sessionOf(f proxyheader.Header) *deception.Session {
	h.t.Helper()
	return h.process.ended(f.Source)
}
