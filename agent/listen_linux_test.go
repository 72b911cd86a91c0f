package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"decoynet/deception"
)

// Every address of the machine is the decoy's, in both families, and the
// gateway hears who came and where to.
func TestListenAtAnyAddress(t *testing.T) {
	s := newSite(t, 0)
	s.mustApply(t, "crm any 445,3389,161/udp")
	for _, addr := range []string{"127.0.0.1", "192.0.2.7", "192.0.2.8", "::1", "2001:db8::7"} {
		conn, greeting := dial(t, net.JoinHostPort(addr, "445"))
		if want := told("tcp", conn); greeting != want {
			t.Errorf("the service was told %q, want %q", greeting, want)
		}
		if _, err := io.WriteString(conn, "hello\n"); err != nil {
			t.Fatal(err)
		}
		if got := readLine(t, conn); got != "hello\n" {
			t.Errorf("echo %q", got)
		}
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("read %d, %v; want the service's FIN", n, err)
		}
	}
	eventually(t, "all flows ended", func() bool { return s.courier.Status().Flows == 0 })
	if got := s.records.ended(); len(got) > 0 {
		t.Errorf("the agent recorded sessions that the gateway records: %v", got)
	}
	h := s.up.headers[0]
	if h.Node != "crm-1" || h.Segment != "host" || h.Decoy != "crm" || h.Service != "win" || h.Session[6]>>4 != 7 {
		t.Errorf("header %+v", h)
	}
}

// Answers come from the address that was contacted: a connected socket takes no
// other's.
func TestDatagramsAreAnsweredFromTheDecoyAddress(t *testing.T) {
	s := newSite(t, 0)
	s.mustApply(t, "crm any 161/udp", "erp 192.0.2.7,2001:db8::7 162/udp")
	linkLocal := linkLocalAddr(t)
	for _, at := range []string{"127.0.0.1:161", "192.0.2.7:161", "192.0.2.8:161", "[::1]:161", "[2001:db8::7]:161", "192.0.2.7:162", "[2001:db8::7]:162", linkLocal} {
		conn, err := net.Dial("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for _, text := range []string{"one", "", strings.Repeat("x", 60000)} {
			want := strings.ReplaceAll(told("udp", conn), "%eth0", "") + text
			if got := ask(t, conn, text); got != want {
				t.Errorf("%s: %.60q of %d bytes, want %.60q of %d", at, got, len(got), want, len(want))
			}
		}
	}
	if n := s.courier.Status().UDPFlows; n != 8 {
		t.Errorf("%d flows for 8 exchanges", n)
	}
	s.mustApply(t, "crm any 1161/udp")
	eventually(t, "flows of closed ports ended", func() bool { return s.courier.Status().UDPFlows == 0 })
}

func linkLocalAddr(t *testing.T) string {
	t.Helper()
	addrs, err := localAddresses()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if a.Zone() == "eth0" {
			return "[" + a.String() + "]:161"
		}
	}
	t.Fatalf("no link-local address among %v", addrs)
	return ""
}

// ask sends a datagram until an answer comes: the first ones may be lost.
func ask(t testing.TB, conn net.Conn, text string) string {
	t.Helper()
	b := make([]byte, 70000)
	for range 20 {
		if _, err := conn.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(within / 20)); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(b)
		if err == nil {
			return string(b[:n])
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
	t.Fatalf("no answer from %s", conn.RemoteAddr())
	return ""
}

// What is sent to everybody is for no decoy.
func TestBroadcastsAreNobodys(t *testing.T) {
	s := newSite(t, 0)
	s.mustApply(t, "crm any 137/udp")
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(192, 0, 2, 7)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, to := range []string{"192.0.2.255:137", "255.255.255.255:137", "192.0.2.7:137"} { // the last one is for it
		at, err := net.ResolveUDPAddr("udp4", to)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.WriteTo([]byte("who"), at); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the last one carried", func() bool { return s.courier.Status().Opened > 0 })
	if got := s.courier.Status().Opened; got != 1 {
		t.Errorf("%d flows, want that to the machine alone", got)
	}
}

func refused(t testing.TB, at string) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", at, within)
	if err == nil {
		conn.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial %s: %v, want connection refused", at, err)
	}
}

// Only the addresses that the decoy names are taken; one that the machine does
// not have is reported, and taken when it does.
func TestListenAtAddresses(t *testing.T) {
	s := newSite(t, 0)
	err := s.apply(t, nil, "crm 192.0.2.7,192.0.2.77 445", "erp 2001:db8::7 80")
	if err == nil || !strings.Contains(err.Error(), "192.0.2.77") || !strings.Contains(err.Error(), "does not have that address") {
		t.Errorf("Apply = %v", err)
	}
	dial(t, "192.0.2.7:445")
	dial(t, "[2001:db8::7]:80")
	refused(t, "192.0.2.8:445")
	refused(t, "127.0.0.1:445")
	refused(t, "[::1]:80")
	if st := s.Status(); st.Ready || len(st.Problems) != 1 {
		t.Errorf("status %+v", st)
	}
	ip(t, "addr", "add", "192.0.2.77/24", "dev", "eth0")
	defer ip(t, "addr", "del", "192.0.2.77/24", "dev", "eth0")
	eventually(t, "the new address is taken", func() bool { return s.Status().Ready })
	dial(t, "192.0.2.77:445")
	if got := s.records.of(deception.EventPortInUse); len(got) > 0 {
		t.Errorf("events %v", got)
	}
}

func ip(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %v: %v: %s", args, err, out)
	}
}

// A port that somebody else has at one address is open at all others. Who has it
// is named, keeps it, and is followed when he goes. The same for UDP.
func TestPortInUseAtOneAddress(t *testing.T) {
	s := newSite(t, 0)
	own, err := net.Listen("tcp4", "192.0.2.7:8080")
	if err != nil {
		t.Fatal(err)
	}
	ownUDP, err := net.ListenPacket("udp4", "192.0.2.7:8080")
	if err != nil {
		t.Fatal(err)
	}
	err = s.apply(t, nil, "crm any 8080,8080/udp,8081")
	wantBy := fmt.Sprintf("(pid %d)", os.Getpid())
	if err == nil || strings.Count(err.Error(), "in use on 192.0.2.7 by ") != 2 || !strings.Contains(err.Error(), wantBy) {
		t.Errorf("Apply = %v; want 192.0.2.7 and %s for both transports", err, wantBy)
	}
	for _, at := range []string{"127.0.0.1:8080", "192.0.2.8:8080", "[::1]:8080", "192.0.2.7:8081"} {
		dial(t, at)
	}
	go func() {
		for {
			conn, err := own.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "production\n")
			conn.Close()
		}
	}()
	if _, text := dial(t, "192.0.2.7:8080"); text != "production\n" {
		t.Errorf("the machine's own service lost a connection: %q", text)
	}
	udp, err := net.Dial("udp", "192.0.2.8:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	ask(t, udp, "x")
	time.Sleep(4 * s.cfg.retry) // several attempts
	if got := s.records.of(deception.EventPortInUse); len(got) != 2 {
		t.Errorf("events %+v, want one for each transport", got)
	}
	own.Close()
	ownUDP.Close()
	eventually(t, "the free ports are taken", func() bool { return s.Status().Ready })
	dial(t, "192.0.2.7:8080")
	got := s.records.of(deception.EventPortTaken)
	if len(got) != 2 || got[0].Decoy != "crm" || got[0].Node != "crm-1" || got[0].Destination.Port() != 8080 {
		t.Errorf("events %+v", got)
	}
}

// A service that listens at one address of the loopback network, as resolvers
// do, is in nobody's way.
func TestPortInUseAtAnAddressThatNoInterfaceHas(t *testing.T) {
	s := newSite(t, 0)
	own, err := net.Listen("tcp4", "127.0.0.53:53")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	s.mustApply(t, "crm any 53")
	dial(t, "127.0.0.1:53")
	dial(t, "192.0.2.7:53")
	if st := s.Status(); !st.Ready {
		t.Errorf("status %+v", st)
	}
}

// An own service that has the port everywhere keeps it everywhere, whichever way
// it was asked for.
func TestPortInUseEverywhere(t *testing.T) {
	for network, at := range map[string]string{"tcp4": "0.0.0.0:9090", "tcp": "[::]:9090"} {
		t.Run(at, func(t *testing.T) {
			s := newSite(t, 0)
			own, err := net.Listen(network, at)
			if err != nil {
				t.Fatal(err)
			}
			defer own.Close()
			err = s.apply(t, nil, "crm any 9090", "erp 192.0.2.7 9090")
			if err == nil || !strings.Contains(err.Error(), "in use on every IPv4 address") {
				t.Errorf("Apply = %v", err)
			}
			if network == "tcp4" && strings.Contains(err.Error(), "IPv6") {
				t.Errorf("IPv6 is free: %v", err)
			}
			own.Close()
			eventually(t, "the port is taken", func() bool { return s.Status().Ready })
			dial(t, "192.0.2.7:9090")
		})
	}
}

// Ports are open as far as up says, and connections that run outlive it.
func TestPortsFollowHealth(t *testing.T) {
	s := newSite(t, 0)
	down := map[string]bool{"445 false": true}
	up := func(_ *deception.Decoy, _ deception.Transport, port uint16, ipv6 bool) bool {
		return !down[fmt.Sprint(port, ipv6)]
	}
	if err := s.apply(t, up, "crm any 445-446"); err != nil {
		t.Fatal(err)
	}
	refused(t, "127.0.0.1:445")
	dial(t, "[::1]:445")
	conn, _ := dial(t, "127.0.0.1:446")
	down = map[string]bool{"446 false": true}
	if err := s.Refresh(t.Context(), up); err != nil {
		t.Fatal(err)
	}
	refused(t, "127.0.0.1:446")
	dial(t, "127.0.0.1:445")
	if _, err := io.WriteString(conn, "still here\n"); err != nil || readLine(t, conn) != "still here\n" {
		t.Errorf("a running connection: %v", err)
	}
	// The same again changes nothing: a socket that is open stays.
	before := fmt.Sprintf("%p", s.endpoints[sortedKeys(s.endpoints)[0]])
	if err := s.Refresh(t.Context(), up); err != nil || fmt.Sprintf("%p", s.endpoints[sortedKeys(s.endpoints)[0]]) != before {
		t.Errorf("repeated: %v", err)
	}
}

// Flows of a decoy that is gone, or leads elsewhere now, are ended.
func TestFlowsOfRemovedDecoysEnd(t *testing.T) {
	s := newSite(t, 0)
	s.mustApply(t, "crm any 445", "erp any 80")
	gone, _ := dial(t, "127.0.0.1:445")
	stays, _ := dial(t, "127.0.0.1:80")
	s.mustApply(t, "erp any 80")
	wantReset(t, gone)
	refused(t, "127.0.0.1:445")
	if _, err := io.WriteString(stays, "x\n"); err != nil || readLine(t, stays) != "x\n" {
		t.Errorf("the other decoy's flow: %v", err)
	}
}

func wantReset(t testing.TB, conn net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, conn); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read until %v, want a reset", err)
	}
}

// A decoy that names an address comes before one at any.
func TestTheDecoyWithTheAddressComesFirst(t *testing.T) {
	s := newSite(t, 0)
	s.mustApply(t, "crm any 445", "erp 192.0.2.8 445")
	for _, at := range []string{"192.0.2.7:445", "192.0.2.8:445"} {
		dial(t, at)
	}
	var got []string
	for _, h := range s.up.headers {
		got = append(got, h.Decoy)
	}
	if !slices.Equal(got, []string{"crm", "erp"}) {
		t.Errorf("decoys %v", got)
	}
	s.mustApply(t, "erp 192.0.2.8 445") // from a socket for all to one for an address
	dial(t, "192.0.2.8:445")
	refused(t, "192.0.2.7:445")
}

func TestApplyAfterClose(t *testing.T) {
	s := newSite(t, 0)
	s.mustApply(t, "crm any 445")
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	if err := s.Listen.Close(ctx); err != nil {
		t.Fatal(err)
	}
	refused(t, "127.0.0.1:445")
	if err := s.apply(t, nil, "crm any 445"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Apply after Close: %v", err)
	}
}
