package conntrack_test

import (
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/kernel/conntrack"
	"decoynet/internal/kernel/firewall"
	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/netns/netnstest"
)

var record = flag.Bool("record", false, "write testdata anew from what this kernel tells")

const (
	decoyAddr    = "192.0.2.100"
	intruderAddr = "192.0.2.9"
	serviceAddr  = "10.1.0.2"
	patience     = 10 * time.Second
)

// lab is an intruder, a segment's namespace and a host that is the service too.
type lab struct {
	intruder, seg, host *netns.NS

	mu    sync.Mutex     // guards peers
	peers map[string]int // whom the service saw, how often
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{
		intruder: netnstest.New(t, "int"), seg: netnstest.New(t, "seg"), host: netnstest.New(t, "host"),
		peers: map[string]int{},
	}
	for _, pair := range []struct {
		a, b         *netns.NS
		aName, bName string
	}{{l.intruder, l.seg, "eth0", "lan0"}, {l.host, l.seg, "dnv-1", "up0"}} {
		netnstest.IP(t, pair.a, "link set lo up")
		netnstest.IP(t, pair.b, "link set lo up")
		netnstest.IP(t, pair.a, "link add "+pair.aName+" type veth peer name "+pair.bName+" netns "+pair.b.Name())
		netnstest.IP(t, pair.a, "link set "+pair.aName+" up")
		netnstest.IP(t, pair.b, "link set "+pair.bName+" up")
	}
	netnstest.IP(t, l.intruder, "addr add 192.0.2.9/24 dev eth0")
	netnstest.IP(t, l.seg, "addr add 192.0.2.1/24 dev lan0")
	netnstest.IP(t, l.seg, "route add local 192.0.2.100/32 dev lo")
	netnstest.IP(t, l.seg, "addr add 10.1.0.1/24 dev up0")
	netnstest.IP(t, l.host, "addr add 10.1.0.2/24 dev dnv-1")
	netnstest.IP(t, l.host, "route add default via 10.1.0.1")
	netnstest.Run(t, l.seg, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	// The neighbour table is the whole machine's, and another test may have filled
	// it; permanent entries always find room.
	for _, n := range []struct {
		ns      *netns.NS
		dev     string
		peer    *netns.NS
		peerDev string
		addrs   []string
	}{
		{l.intruder, "eth0", l.seg, "lan0", []string{"192.0.2.1", decoyAddr}},
		{l.seg, "lan0", l.intruder, "eth0", []string{intruderAddr}},
		{l.seg, "up0", l.host, "dnv-1", []string{serviceAddr}},
		{l.host, "dnv-1", l.seg, "up0", []string{"10.1.0.1"}},
	} {
		mac := strings.TrimSpace(netnstest.Run(t, n.peer, "cat", "/sys/class/net/"+n.peerDev+"/address"))
		for _, a := range n.addrs {
			netnstest.IP(t, n.ns, "neigh replace "+a+" dev "+n.dev+" lladdr "+mac+" nud permanent")
		}
	}
	netnstest.Eventually(t, "the links are up", func() bool {
		_, err := netnstest.Try(t, l.intruder, "ping", "-c1", "-W1", "192.0.2.1")
		_, err2 := netnstest.Try(t, l.host, "ping", "-c1", "-W1", "10.1.0.1")
		return err == nil && err2 == nil
	})
	return l
}

func (l *lab) redirects() []firewall.Redirect {
	var out []firewall.Redirect
	for _, s := range scenarios {
		r := firewall.Redirect{
			Transport: deception.TCP,
			Decoy:     netip.AddrPortFrom(netip.MustParseAddr(decoyAddr), s.port),
			Service:   netip.AddrPortFrom(netip.MustParseAddr(serviceAddr), s.port),
		}
		if s.udp {
			r.Transport = deception.UDP
		}
		out = append(out, r)
	}
	return out
}

// serve starts the services of all scenarios.
func (l *lab) serve(t *testing.T) {
	t.Helper()
	for _, s := range scenarios {
		addr := fmt.Sprintf("%s:%d", serviceAddr, s.port)
		switch {
		case s.serve == nil:
		case s.udp:
			l.listenUDP(t, addr)
		default:
			l.listenTCP(t, addr, s.serve)
		}
	}
}

func (l *lab) saw(peer net.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.peers[peer.String()]++
}

func (l *lab) listenTCP(t *testing.T, addr string, serve func(net.Conn)) {
	t.Helper()
	var ln net.Listener
	must(t, l.host.Do(func() (err error) {
		lc := net.ListenConfig{}
		lc.SetMultipathTCP(false)
		ln, err = lc.Listen(context.Background(), "tcp", addr)
		return err
	}))
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				l.saw(c.RemoteAddr())
				_ = c.SetDeadline(time.Now().Add(patience))
				serve(c)
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); conns.Wait() })
}

func (l *lab) listenUDP(t *testing.T, addr string) {
	t.Helper()
	var pc net.PacketConn
	must(t, l.host.Do(func() (err error) {
		pc, err = net.ListenPacket("udp", addr)
		return err
	}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			l.saw(from)
			_, _ = pc.WriteTo(buf[:n], from)
		}
	}()
	t.Cleanup(func() { _ = pc.Close(); <-done })
}

func (l *lab) dial(s scenario) (net.Conn, error) {
	d := net.Dialer{Timeout: 700 * time.Millisecond, Control: reuse}
	d.SetMultipathTCP(false)
	network := "tcp"
	local := netip.AddrPortFrom(netip.MustParseAddr(intruderAddr), s.port+10000)
	d.LocalAddr = net.TCPAddrFromAddrPort(local)
	if s.udp {
		network, d.LocalAddr = "udp", net.UDPAddrFromAddrPort(local)
	}
	var c net.Conn
	err := l.intruder.Do(func() (err error) {
		c, err = d.Dial(network, net.JoinHostPort(decoyAddr, strconv.Itoa(int(s.port))))
		return err
	})
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(patience))
	}
	return c, err
}

func reuse(_, _ string, c syscall.RawConn) error {
	var sockErr error
	err := c.Control(func(fd uintptr) {
		sockErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	})
	return errors.Join(err, sockErr)
}

// visitAll plays the intruder in all scenarios at once.
func (l *lab) visitAll(t *testing.T) {
	var wg sync.WaitGroup
	for _, s := range scenarios {
		wg.Go(func() {
			if s.tool != nil {
				cmd, cancel := netnstest.Command(t, l.intruder, s.tool...)
				defer cancel()
				_ = cmd.Run() // the events show whether it did its work
				return
			}
			c, err := l.dial(s)
			if err != nil {
				return // refused, or no answer
			}
			defer c.Close()
			s.visit(c)
		})
	}
	wg.Wait()
}

// hasten makes what waits for datagrams and idle connections short.
func (l *lab) hasten(t *testing.T) {
	t.Helper()
	netnstest.Run(t, l.seg, "sysctl", "-qw", "net.netfilter.nf_conntrack_udp_timeout=1", "net.netfilter.nf_conntrack_udp_timeout_stream=1",
		"net.netfilter.nf_conntrack_tcp_timeout_syn_sent=1")
	netnstest.Run(t, l.host, "nft", fmt.Sprintf("table ip t { chain c { type filter hook input priority 0; tcp dport %d drop; udp dport %d drop; }; }", filteredPort, filteredPort+1))
}

// ends collects how flows ended, by the intruder's port.
type ends struct {
	mu      sync.Mutex // guards all
	tracker *conntrack.Tracker
	flows   map[uint16]conntrack.Flow
	started map[uint16]bool
}

func newEnds() *ends {
	return &ends{tracker: conntrack.NewTracker(), flows: map[uint16]conntrack.Flow{}, started: map[uint16]bool{}}
}

func (e *ends) observe(ev conntrack.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, f := range e.tracker.Observe(nil, ev) {
		port := f.Flow.Source.Port()
		if f.Started() {
			e.started[port] = true
			continue
		}
		e.flows[port] = f.Flow
	}
}

func (e *ends) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.flows)
}

// check compares a scenario's end with what is expected of it.
func (e *ends) check(t *testing.T, s scenario, marked bool) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	f, ok := e.flows[s.port+10000]
	if !ok || !e.started[s.port+10000] {
		t.Errorf("%s: started %v, ended %v", s.name, e.started[s.port+10000], ok)
		return
	}
	want, inferred := s.marked, false
	if !marked {
		want, inferred = s.plain, s.inferred
	}
	if f.Reason != want || f.Inferred != inferred {
		t.Errorf("%s: ended by %s (inferred: %v), want %s (%v)", s.name, f.Reason, f.Inferred, want, inferred)
	}
	if f.Established != s.established {
		t.Errorf("%s: established %v", s.name, f.Established)
	}
	if got, want := f.Destination.String(), fmt.Sprintf("%s:%d", decoyAddr, s.port); got != want {
		t.Errorf("%s: decoy %s, want %s", s.name, got, want)
	}
	if got, want := f.DestinationNAT.String(), fmt.Sprintf("%s:%d", serviceAddr, s.port); got != want {
		t.Errorf("%s: service %s, want %s", s.name, got, want)
	}
	if f.SourceMode() != deception.SourceKept || f.Source.Addr().String() != intruderAddr {
		t.Errorf("%s: source %s, seen as %s", s.name, f.Source, f.SourceNAT)
	}
	toService, toGuest := f.Payload()
	if !near(toService, s.toService) || !near(toGuest, s.toGuest) {
		t.Errorf("%s: payload %d and %d, want about %d and %d (%+v %+v)", s.name, toService, toGuest, s.toService, s.toGuest, f.FromSource, f.FromDestination)
	}
	if d := f.End.Sub(f.Start); d < 0 || d > 10*time.Second {
		t.Errorf("%s: from %v to %v", s.name, f.Start, f.End)
	}
}

// near allows for the options that Payload cannot know.
func near(got, want uint64) bool { return got+40 >= want && got <= want+40 }

func TestEveryEnd(t *testing.T) {
	t.Run("marked", func(t *testing.T) {
		l := newLab(t)
		if _, err := firewall.ApplyKernelPath(context.Background(), l.host, l.seg, firewall.KernelPath{
			Index: 1, HostLink: "dnv-1", Idle: 2 * time.Second, Redirects: l.redirects(),
		}); err != nil {
			t.Fatal(err)
		}
		l.run(t, true)
	})
	t.Run("plain", func(t *testing.T) {
		l := newLab(t)
		must(t, conntrack.Tune(l.seg, conntrack.Tuning{Idle: 2 * time.Second}))
		netnstest.Run(t, l.seg, "nft", fmt.Sprintf(`table ip t { chain c { type nat hook prerouting priority -100; ip daddr %s dnat to %s; }; }`, decoyAddr, serviceAddr))
		l.run(t, false)
	})
}

func (l *lab) run(t *testing.T, marked bool) {
	l.hasten(t)
	l.serve(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	live := newEnds()
	listener, err := conntrack.Listen(ctx, l.seg, live.observe)
	if err != nil {
		t.Fatal(err)
	}
	var recording sync.WaitGroup
	if *record {
		l.record(t, ctx, &recording, map[bool]string{true: "marked", false: "plain"}[marked])
	}
	l.visitAll(t)
	deadline := time.Now().Add(patience)
	for live.count() < len(scenarios) && time.Now().Before(deadline) {
		time.Sleep(300 * time.Millisecond)
		// What is only idle is not asked for by the listener.
		if _, err := conntrack.Dump(l.seg); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	must(t, listener.Wait())
	recording.Wait()
	for _, s := range scenarios {
		live.check(t, s, marked)
		// The service's own word for it.
		l.mu.Lock()
		if peer := fmt.Sprintf("%s:%d", intruderAddr, s.port+10000); s.serve != nil && s.tool == nil && l.peers[peer] == 0 {
			t.Errorf("%s: the service did not see %s", s.name, peer)
		}
		l.mu.Unlock()
	}
	if listener.Lost() != 0 || listener.Malformed() != 0 {
		t.Errorf("%d events lost, %d malformed", listener.Lost(), listener.Malformed())
	}
}

// record writes the datagrams, one a line in hexadecimal.
func (l *lab) record(t *testing.T, ctx context.Context, wg *sync.WaitGroup, name string) {
	t.Helper()
	must(t, os.MkdirAll("testdata", 0o755))
	f, err := os.Create(filepath.Join("testdata", name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	wg.Go(func() {
		defer f.Close()
		err := conntrack.ReadRaw(ctx, l.seg, func() { close(ready) }, func(b []byte) { fmt.Fprintln(f, hex.EncodeToString(b)) })
		if err != nil {
			t.Error(err)
		}
	})
	<-ready
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
