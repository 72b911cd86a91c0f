package conntrack_test

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
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
	netnstest.Eventually(t, "the links are up", func() bool {
		_, err := netnstest.Try(t, l.intruder, "ping", "-c1", "-W1", "192.0.2.1")
		_, err2 := netnstest.Try(t, l.host, "ping", "-c1", "-W1", "10.1.0.1")
		return err == nil && err2 == nil
	})
	return l
}

// scenario is one way for a flow to go, at a port of its own.
type scenario struct {
	name string
	port uint16 // of the decoy, the service and the intruder, + 10,000
	udp  bool
	// serve is the service's part; nil where nothing listens.
	serve func(net.Conn)
	// visit is the intruder's.
	visit func(net.Conn)
	// Reasons with the rules' mark and by what the kernel tells alone.
	marked, plain      deception.EndReason
	inferred           bool // without the mark
	established        bool
	toService, toGuest uint64 // payload
}

func closeWithReset(c net.Conn) {
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
}

func drain(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

func echoLine(c net.Conn) {
	line, err := bufio.NewReader(c).ReadString('\n')
	if err == nil {
		_, _ = io.WriteString(c, line)
	}
}

const hello = "hello decoy\n" // 12 bytes

var scenarios = []scenario{
	{
		name: "client closes", port: 2001, established: true, toService: 12, toGuest: 12,
		serve:  func(c net.Conn) { echoLine(c); drain(c) },
		visit:  func(c net.Conn) { _, _ = io.WriteString(c, hello); _, _ = c.Read(make([]byte, 64)) },
		marked: deception.EndClientClosed, plain: deception.EndClientClosed,
	},
	{
		name: "service closes", port: 2002, established: true, toService: 12, toGuest: 12,
		serve:  echoLine,
		visit:  func(c net.Conn) { _, _ = io.WriteString(c, hello); drain(c) },
		marked: deception.EndServiceClosed, plain: deception.EndServiceClosed,
	},
	{
		name: "client resets", port: 2003, established: true, toService: 12, toGuest: 12,
		serve:  func(c net.Conn) { echoLine(c); drain(c) },
		visit:  func(c net.Conn) { _, _ = io.WriteString(c, hello); _, _ = c.Read(make([]byte, 64)); closeWithReset(c) },
		marked: deception.EndClientReset, plain: deception.EndClientReset, inferred: true,
	},
	{
		name: "service resets", port: 2004, established: true, toService: 12, toGuest: 12,
		serve:  func(c net.Conn) { echoLine(c); closeWithReset(c) },
		visit:  func(c net.Conn) { _, _ = io.WriteString(c, hello); drain(c) },
		marked: deception.EndServiceReset,
		// The kernel does not tell whose reset it was.
		plain: deception.EndClientReset, inferred: true,
	},
	{
		name: "service refuses", port: 2005,
		marked: deception.EndRefused, plain: deception.EndRefused, inferred: true,
	},
	{
		name: "half-closed by the client", port: 2006, established: true, toService: 12, toGuest: 200000,
		serve: func(c net.Conn) {
			drain(c)
			time.Sleep(50 * time.Millisecond)
			_, _ = c.Write(make([]byte, 200000))
		},
		visit:  func(c net.Conn) { _, _ = io.WriteString(c, hello); _ = c.(*net.TCPConn).CloseWrite(); drain(c) },
		marked: deception.EndClientClosed, plain: deception.EndClientClosed,
	},
	{
		name: "idle", port: 2007, established: true, toService: 12, toGuest: 12,
		serve: func(c net.Conn) { echoLine(c); time.Sleep(4 * time.Second); closeWithReset(c) },
		visit: func(c net.Conn) {
			_, _ = io.WriteString(c, hello)
			_, _ = c.Read(make([]byte, 64))
			time.Sleep(4 * time.Second)
			closeWithReset(c)
		},
		marked: deception.EndIdle, plain: deception.EndIdle,
	},
	{
		name: "datagrams answered", port: 2008, udp: true, established: true, toService: 12, toGuest: 12,
		serve:  echoLine,
		visit:  func(c net.Conn) { _, _ = io.WriteString(c, hello); _, _ = c.Read(make([]byte, 64)) },
		marked: deception.EndIdle, plain: deception.EndIdle,
	},
	{
		name: "datagram refused", port: 2009, udp: true, toService: 12,
		visit:  func(c net.Conn) { _, _ = io.WriteString(c, hello); _, _ = c.Read(make([]byte, 64)) },
		marked: deception.EndRefused, plain: deception.EndIdle,
	},
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
	d := net.Dialer{Timeout: time.Second, Control: reuse}
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

// visitAll plays the intruder in all scenarios, one after the other but for the slow
// ones, so that a recording reads well.
func (l *lab) visitAll() {
	var wg sync.WaitGroup
	for _, s := range scenarios {
		wg.Go(func() {
			c, err := l.dial(s)
			if err != nil {
				return // refused
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
	netnstest.Run(t, l.seg, "sysctl", "-qw", "net.netfilter.nf_conntrack_udp_timeout=1", "net.netfilter.nf_conntrack_udp_timeout_stream=1")
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
	l.visitAll()
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
		if peer := fmt.Sprintf("%s:%d", intruderAddr, s.port+10000); s.serve != nil && l.peers[peer] == 0 {
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
