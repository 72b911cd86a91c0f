package conntrack_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/kernel/conntrack"
	"decoynet/internal/kernel/firewall"
	"decoynet/internal/kernel/netns/netnstest"
)

// One intruder's port towards two decoys of one service: the kernel moves one
// of them, and the session holds what the service saw.
func TestMovedPortIsKnown(t *testing.T) {
	l := newLab(t)
	decoy := netip.MustParseAddr(decoyAddr)
	service := netip.MustParseAddrPort(serviceAddr + ":3000")
	if _, err := firewall.ApplyKernelPath(context.Background(), l.host, l.seg, firewall.KernelPath{
		Index: 1, HostLink: "dnv-1", Redirects: []firewall.Redirect{
			{Transport: deception.TCP, Decoy: netip.AddrPortFrom(decoy, 3001), Service: service},
			{Transport: deception.TCP, Decoy: netip.AddrPortFrom(decoy, 3002), Service: service},
		},
	}); err != nil {
		t.Fatal(err)
	}
	l.listenTCP(t, service.String(), echoLine)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var mu sync.Mutex
	tracker, starts := conntrack.NewTracker(), []conntrack.Flow{}
	listener, err := conntrack.Listen(ctx, l.seg, func(e conntrack.Event) {
		mu.Lock()
		defer mu.Unlock()
		for _, f := range tracker.Observe(nil, e) {
			if f.Started() {
				starts = append(starts, f.Flow)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, port := range []uint16{3001, 3002} {
		c, err := l.from(13000, netip.AddrPortFrom(decoy, port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, hello); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 64)); err != nil {
			t.Fatal(err)
		}
	}
	netnstest.Eventually(t, "both flows are known", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(starts) == 2
	})
	cancel()
	must(t, listener.Wait())
	var modes []string
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range starts {
		modes = append(modes, f.SourceMode().String())
		if got := f.Source.String(); got != intruderAddr+":13000" {
			t.Errorf("source %s", got)
		}
		if l.peers[f.SourceNAT.String()] != 1 {
			t.Errorf("on record is %s, the service saw %v", f.SourceNAT, l.peers)
		}
	}
	slices.Sort(modes)
	if !slices.Equal(modes, []string{"kept", "port_moved"}) {
		t.Errorf("source modes %v", modes)
	}
}

// from dials from a given port of the intruder.
func (l *lab) from(port uint16, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{Timeout: time.Second, Control: reuse, LocalAddr: &net.TCPAddr{IP: net.ParseIP(intruderAddr), Port: int(port)}}
	d.SetMultipathTCP(false)
	var c net.Conn
	err := l.intruder.Do(func() (err error) {
		c, err = d.Dial("tcp", to.String())
		return err
	})
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(patience))
	}
	return c, err
}

// A listener that is held up while the socket overflows misses beginnings, says
// so, and gets every end.
func TestNoEndIsLost(t *testing.T) {
	const flows = 400
	l := newLab(t)
	l.hasten(t)
	if _, err := firewall.ApplyKernelPath(context.Background(), l.host, l.seg, firewall.KernelPath{
		Index: 1, HostLink: "dnv-1", Redirects: []firewall.Redirect{{
			Transport: deception.UDP, Decoy: netip.MustParseAddrPort(decoyAddr + ":3003"), Service: netip.MustParseAddrPort(serviceAddr + ":3003"),
		}},
	}); err != nil {
		t.Fatal(err)
	}
	netnstest.Run(t, l.seg, "sysctl", "-qw", "net.netfilter.nf_conntrack_udp_timeout=1")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hold := make(chan struct{})
	ended := map[uint16]int{}
	var mu sync.Mutex
	restore := conntrack.SetReceiveBuffer(32 << 10)
	listener, err := conntrack.Listen(ctx, l.seg, func(e conntrack.Event) {
		<-hold
		if e.Type == conntrack.EventDestroy && e.Status&conntrack.StatusDstNAT != 0 {
			mu.Lock()
			defer mu.Unlock()
			ended[e.Orig.Src.Port()]++
		}
	})
	restore()
	if err != nil {
		t.Fatal(err)
	}
	must(t, l.intruder.Do(func() error {
		for i := range flows {
			c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(intruderAddr), Port: 20000 + i}, &net.UDPAddr{IP: net.ParseIP(decoyAddr), Port: 3003})
			if err != nil {
				return err
			}
			_, err = c.Write([]byte(hello))
			_ = c.Close()
			if err != nil {
				return err
			}
		}
		return nil
	}))
	time.Sleep(1500 * time.Millisecond) // until they have expired
	must(t, conntrack.Sweep(l.seg))
	close(hold)
	var seen string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		mu.Lock()
		n := len(ended)
		seen = fmt.Sprintf("%d of %d", n, flows)
		mu.Unlock()
		if n == flows {
			break
		}
	}
	cancel()
	must(t, listener.Wait())
	if listener.Lost() == 0 {
		t.Error("nothing was lost: the test proves nothing")
	}
	if len(ended) != flows {
		t.Errorf("%s ends came", seen)
	}
	for port, n := range ended {
		if n != 1 {
			t.Errorf("port %d ended %d times", port, n)
		}
	}
}

func TestDumpAgreesWithTheKernel(t *testing.T) {
	l := newLab(t)
	l.hasten(t)
	if _, err := firewall.ApplyKernelPath(context.Background(), l.host, l.seg, firewall.KernelPath{
		Index: 1, HostLink: "dnv-1", Redirects: l.redirects(),
	}); err != nil {
		t.Fatal(err)
	}
	l.serve(t)
	c, err := l.dial(scenarios[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, hello); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 64)); err != nil {
		t.Fatal(err)
	}
	var found []conntrack.Event
	netnstest.Eventually(t, "the last acknowledgement has passed", func() bool {
		dump, err := conntrack.Dump(l.seg)
		if err != nil {
			t.Fatal(err)
		}
		found = slices.DeleteFunc(dump, func(e conntrack.Event) bool { return e.Transport != deception.TCP })
		return len(found) == 1 && found[0].OrigCount.Packets == 4
	})
	e := found[0]
	shown := netnstest.Run(t, l.seg, "conntrack", "-L", "-p", "tcp", "-o", "id")
	want := fmt.Sprintf("src=%s dst=%s sport=%d dport=%d packets=%d bytes=%d src=%s dst=%s sport=%d dport=%d packets=%d bytes=%d",
		e.Orig.Src.Addr(), e.Orig.Dst.Addr(), e.Orig.Src.Port(), e.Orig.Dst.Port(), e.OrigCount.Packets, e.OrigCount.Bytes,
		e.Reply.Src.Addr(), e.Reply.Dst.Addr(), e.Reply.Src.Port(), e.Reply.Dst.Port(), e.ReplyCount.Packets, e.ReplyCount.Bytes)
	if !strings.Contains(shown, want) || !strings.Contains(shown, fmt.Sprintf("id=%d", e.ID)) || !strings.Contains(shown, "[ASSURED]") {
		t.Errorf("conntrack shows\n%swant %s id=%d", shown, want, e.ID)
	}
	if e.TCPState != conntrack.TCPEstablished || e.Status&conntrack.StatusAssured == 0 || e.Start.IsZero() || time.Since(e.Start) > patience {
		t.Errorf("%+v", e)
	}
}
