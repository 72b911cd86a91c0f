package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/lab"
)

var (
	at1007 = net.JoinHostPort(decoy4, "1007")
	at1008 = net.JoinHostPort(decoy4, "1008")
	at3007 = net.JoinHostPort(decoy4, "3007")
)

// Through two machines of ours the service sees the intruder's own address and
// port, over TCP and UDP, IPv4 and IPv6, whichever family the hop has.
func TestHopKeepsTheSource(t *testing.T) {
	w := newWorld(t)
	w.startBoth()
	for _, egress := range []string{egressAt, egressAt6} {
		if egress != egressAt {
			// The egress moves to another address while it runs, its ingress follows.
			w.write("vm1.json", vm1State(egress, "fd00:23::1/128"))
			w.write("hq.json", hqState(egress))
		}
		w.ingress.hears("that it reaches "+egress, func(said word) bool {
			return slices.ContainsFunc(said.Links, func(l LinkStatus) bool { return l.Egress == egress && l.Connected })
		})
		for _, decoy := range []string{decoy4, decoy6} {
			at := net.JoinHostPort(decoy, "1007")
			t.Run(fmt.Sprintf("TCP %s by %s", decoy, egress), func(t *testing.T) { w.wantTCP(t, at) })
			t.Run(fmt.Sprintf("UDP %s by %s", decoy, egress), func(t *testing.T) { w.wantUDP(t, at) })
		}
	}
	for _, said := range w.egress.words() {
		if said.Started != nil || said.Ended != nil {
			t.Errorf("the egress recorded a session: %+v", said)
		}
	}
}

// wantTCP has a megabyte echoed, then half-closes.
func (w *world) wantTCP(t *testing.T, at string) {
	c := w.dial(w.client, "tcp", at)
	text := strings.Repeat("0123456789", 100_000)
	go io.WriteString(c, text)
	line, err := c.r.ReadString('\n')
	if err != nil || line != peerLine(c.local) {
		t.Fatalf("the service said %q (%v), want %q", line, err, peerLine(c.local))
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c.r, got); err != nil || string(got) != text {
		t.Fatalf("echo of %d bytes: %v", len(text), err)
	}
	if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(c.r); err != nil || len(rest) != 0 {
		t.Fatalf("after the half-close: %d bytes, %v", len(rest), err)
	}
	s := w.ingress.ended(c.local)
	if s.Reason != deception.EndClientClosed || s.SourceNAT != c.local || s.SourceMode != deception.SourceKept ||
		s.SourceBytes != uint64(len(text)) || s.DestinationBytes != uint64(len(text)+len(line)) {
		t.Errorf("session: %+v", s)
	}
	if err := w.tcp.WaitPeer(t.Context(), patience, c.local); err != nil {
		t.Error(err)
	}
}

// wantUDP asks with datagrams from empty to such as are sent in fragments.
func (w *world) wantUDP(t *testing.T, at string) {
	c := w.dial(w.client, "udp", at)
	for _, size := range []int{0, 1, 1400, 20000} {
		text := strings.Repeat("u", size)
		want := peerLine(c.local) + text
		if got := ask(t, c, text); got != want {
			t.Fatalf("datagram of %d bytes: %d bytes came back that begin %.40q; want %d", size, len(got), got, len(want))
		}
	}
	if err := w.udp.WaitPeer(t.Context(), patience, c.local); err != nil {
		t.Error(err)
	}
}

// ask sends a datagram, again now and then, until an answer comes.
func ask(t *testing.T, c *conn, text string) string {
	t.Helper()
	b := make([]byte, 65536)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
		if n, err := c.Conn.Read(b); err == nil {
			return string(b[:n])
		}
	}
	t.Fatalf("no answer within %s", patience)
	return ""
}

// One source port towards two decoy ports of one service: the egress moves the
// port and says so, since the ingress cannot know.
func TestHopReportsAMovedPort(t *testing.T) {
	w := newWorld(t)
	w.startBoth()
	first := w.dialAgain(t, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.66"), 40000), at1007)
	first.wantEcho(t, "one")
	c := w.dialAgain(t, first.local, at1008)
	var address string
	var port uint16
	if _, err := fmt.Fscanf(c, "peer %s %d\n", &address, &port); err != nil {
		t.Fatal(err)
	}
	if address != first.local.Addr().String() || port == first.local.Port() {
		t.Fatalf("the service saw %s port %d; want the intruder's address and another port than %s", address, port, first.local)
	}
	seen := w.egress.hears("what the service saw", func(said word) bool { return said.Seen != nil }).Seen
	started := w.ingress.hears("the second flow", func(said word) bool {
		return said.Started != nil && said.Started.Destination.Port() == 1008
	}).Started
	if seen.Session != started.ID || seen.SourceNAT.Port() != port || seen.SourceMode != deception.SourcePortMoved || seen.DestinationNAT != started.DestinationNAT {
		t.Errorf("reported %+v; session %s, port %d", seen, started.ID, port)
	}
}

// dialAgain dials from a port that may be in use towards somebody else.
func (w *world) dialAgain(t *testing.T, from netip.AddrPort, at string) *conn {
	t.Helper()
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(from), Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		})
		if err != nil {
			return err
		}
		return failed
	}}
	var c net.Conn
	err := w.client.Do(func() (err error) {
		c, err = dialer.DialContext(t.Context(), "tcp4", at)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return w.wrap(c)
}

// Killed, the egress resets what it carried, and its ports are known as down at
// once and as up when it is back.
func TestHopEgressKilled(t *testing.T) {
	w := newWorld(t)
	w.startBoth()
	w.ingress.hears("that all ports are up", allUp)
	c := w.dial(w.client, "tcp", at1007)
	c.wantEcho(t, "hello")
	if err := w.egress.Kill(); err != nil {
		t.Fatal(err)
	}
	c.wantReset(t)
	if s := w.ingress.ended(c.local); s.Reason != deception.EndGateway {
		t.Errorf("end reason = %q, want %q", s.Reason, deception.EndGateway)
	}
	before := len(w.ingress.words())
	w.ingress.hears("that no port is up", func(said word) bool {
		return len(said.Up) == 0 && len(said.Links) == 2 && !said.Links[0].Connected && said.Links[0].Err != ""
	})
	// A flow meanwhile: reset, and the record says whose fault it is.
	skip := len(w.ingress.words())
	if lost, err := w.tryDial(w.client, "tcp", at1007); err == nil {
		lost.wantReset(t)
	} else if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("without an egress the intruder saw %v; want a reset", err)
	}
	if said := w.ingress.hearsAfter(skip, "its end", func(said word) bool { return said.Ended != nil }); said.Ended.Reason != deception.EndGateway {
		t.Errorf("end reason = %q, want %q", said.Reason, deception.EndGateway)
	}
	w.startEgress()
	w.ingress.hearsAfter(before, "that all ports are up again", allUp)
	w.dial(w.client, "tcp", at1007).wantEcho(t, "back")
}

// allUp tells that all four ports behind our own egress are up.
func allUp(said word) bool { return len(said.Up) == 4 }

// A reset of the service itself is one of the service in the record; the ingress
// killed is a reset to the service.
func TestHopResets(t *testing.T) {
	w := newWorld(t)
	w.startBoth()
	w.ingress.hears("that all ports are up", allUp)
	listener, err := w.web.Listen(t.Context(), "tcp", net.JoinHostPort(service4, "8"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	accepted := make(chan *net.TCPConn, 2)
	go func() {
		for range 2 {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			accepted <- c.(*net.TCPConn)
		}
	}()
	here, there := hqState(egressAt), vm1State(egressAt, "172.16.23.1/32")
	here.Services[0].Ports = append(here.Services[0].Ports, tcpPort(8))
	there.Services[0].Ports = here.Services[0].Ports
	for i := range here.Decoys[0].Bind {
		if b := &here.Decoys[0].Bind[i]; b.Target == 7 {
			b.Target = 8
		}
	}
	w.write("vm1.json", there)
	w.write("hq.json", here)
	w.ingress.hears("that the fifth port is up", func(said word) bool { return len(said.Up) == 5 })
	for _, killed := range []bool{false, true} {
		c := w.dial(w.client, "tcp", at1007)
		var service *net.TCPConn
		select {
		case service = <-accepted:
		case <-time.After(patience):
			t.Fatal("no connection reached the service")
		}
		defer service.Close()
		if _, err := io.WriteString(c, "x"); err != nil {
			t.Fatal(err)
		}
		_ = service.SetDeadline(time.Now().Add(patience))
		if _, err := io.ReadFull(service, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if killed {
			if err := w.ingress.Kill(); err != nil {
				t.Fatal(err)
			}
			w.wrap(service).wantReset(t)
			continue
		}
		if err := service.SetLinger(0); err != nil {
			t.Fatal(err)
		}
		service.Close()
		c.wantReset(t)
		if s := w.ingress.ended(c.local); s.Reason != deception.EndServiceReset {
			t.Errorf("end reason = %q, want %q", s.Reason, deception.EndServiceReset)
		}
	}
}

// The ingress knows which services are up behind an egress of ours.
func TestHopHealth(t *testing.T) {
	w := newWorld(t)
	w.startBoth()
	w.ingress.hears("that all ports are up", allUp)
	before := len(w.ingress.words())
	if err := w.tcp.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.ingress.hearsAfter(before, "that the TCP ports are down", func(said word) bool {
		return said.Applied && len(said.Up) == 2 && said.Links[0].Connected && !strings.Contains(strings.Join(said.Up, " "), "tcp")
	})
	before = len(w.ingress.words())
	if err := w.tcp.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.ingress.hearsAfter(before, "that they are up again", allUp)
	st := w.egress.hears("that one ingress asks", func(said word) bool { return len(said.Egress) == 1 && said.Egress[0].Ingresses == 1 })
	if !slices.Equal(st.Egress[0].Zones, []string{"linux"}) || st.Egress[0].Listen != egressAt {
		t.Errorf("status: %+v", st.Egress[0])
	}
	// An egress that does not know this ingress: nothing is up, and the reason can be read.
	w.write("vm1.json", vm1State(egressAt, "172.16.23.99/32"))
	before = len(w.ingress.words())
	if err := w.egress.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.startEgress()
	w.ingress.hearsAfter(before, "why nothing is up", func(said word) bool {
		return said.Applied && len(said.Up) == 0 && strings.Contains(said.Links[0].Err, "egress.from")
	})
}

// An address in use is reported, and taken by itself when it is free.
func TestEgressPortInUse(t *testing.T) {
	w := newWorld(t)
	other, err := w.vm1.Listen(t.Context(), "tcp", egressAt)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	w.egress = w.start(w.vm1, "egress", w.egressState)
	w.egress.hears("what is wrong", func(said word) bool {
		return len(said.Egress) == 1 && !said.Egress[0].Listening && len(said.Egress[0].Problems) == 1 &&
			strings.Contains(said.Egress[0].Problems[0], "another program has the port")
	})
	other.Close()
	w.egress.hears("that it listens", func(said word) bool { return len(said.Egress) == 1 && said.Egress[0].Listening })
	w.startIngress()
	w.dial(w.client, "tcp", at1007).wantEcho(t, "free")
	// What is withdrawn ends, and with it the flows.
	c := w.dial(w.client, "tcp", at1007)
	c.wantEcho(t, "still")
	none := vm1State(egressAt)
	none.Zones[0].Egress = nil
	w.write("vm1.json", none)
	c.wantReset(t)
	err = lab.Eventually(t.Context(), patience, func() error {
		again, err := w.vm1.Listen(context.Background(), "tcp", egressAt)
		if err != nil {
			return err
		}
		return again.Close()
	})
	if err != nil {
		t.Errorf("the withdrawn egress still holds its port: %v", err)
	}
}
