package lab_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"decoynet/internal/lab"
	"decoynet/internal/lab/labtest"
)

// office builds the office with a route from the intruder into the zone, and
// with aliases for the services: AnyIP in their machine, as decoynet makes them.
func office(t *testing.T, ctx context.Context) (*lab.Lab, lab.Topology) {
	t.Helper()
	l, top := labtest.Office(t)
	gw4, gw6 := lab.OfficeGateway.V4.String(), lab.OfficeGateway.V6.String()
	for _, p := range []netip.Prefix{lab.OfficeZone4, lab.OfficeAlias4} {
		top.Intruder.Route(p.String(), gw4)
	}
	for _, p := range []netip.Prefix{lab.OfficeZone6, lab.OfficeAlias6} {
		top.Intruder.Route(p.String(), gw6)
	}
	top.Gateway.Route(lab.OfficeAlias4.String(), lab.OfficeWeb.V4.String())
	top.Gateway.Route(lab.OfficeAlias6.String(), lab.OfficeWeb.V6.String())
	labtest.Built(t, l)
	run(t, ctx, top.Linux, "ip", "route", "add", "local", lab.OfficeAlias4.String(), "dev", "lo")
	run(t, ctx, top.Linux, "ip", "route", "add", "local", lab.OfficeAlias6.String(), "dev", "lo")
	return l, top
}

var (
	alias4 = netip.MustParseAddr("10.1.200.1")
	alias6 = netip.MustParseAddr("fd00:1:0:8000::1")
)

// places returns where a service answers: its own addresses, and aliases.
func places(p lab.Pair) []netip.Addr { return []netip.Addr{p.V4, p.V6, alias4, alias6} }

// dial connects from the intruder and returns its end as it knows it.
func dial(t *testing.T, ctx context.Context, m *lab.Machine, network string, to netip.AddrPort) (net.Conn, netip.AddrPort) {
	t.Helper()
	conn, err := m.Dial(ctx, network, to.String())
	if err != nil {
		t.Fatal(err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = conn.Close() }) // some are closed by the test
	return conn, netip.MustParseAddrPort(conn.LocalAddr().String())
}

// witness checks the server's own log: the newest contact is of this peer and,
// where the log tells it, came to this address.
func witness(t *testing.T, ctx context.Context, s *lab.Server, peer, local netip.AddrPort) {
	t.Helper()
	if err := s.WaitPeer(ctx, 5*time.Second, peer); err != nil {
		t.Error(err)
		return
	}
	contacts, err := s.Contacts()
	if err != nil {
		t.Fatal(err)
	}
	last := contacts[len(contacts)-1]
	if last.Peer != peer || (last.Local.IsValid() && last.Local != local) {
		t.Errorf("%s logged %v, want %s at %s", s.Name(), last, peer, local)
	}
}

func TestOfficeServersNameTheirPeers(t *testing.T) {
	ctx := within(t, 40*time.Second)
	began := time.Now()
	_, top := office(t, ctx)
	t.Logf("office up in %v", time.Since(began))

	for _, at := range places(lab.OfficeWeb) {
		for _, port := range []uint16{80, 443} {
			to := netip.AddrPortFrom(at, port)
			conn, self := dial(t, ctx, top.Intruder, "tcp", to)
			if port == 443 {
				conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
			}
			want := fmt.Sprintf("machine linux\nserver %s %d\npeer %s %d\n", at, port, self.Addr(), self.Port())
			if got := get(t, conn); got != want {
				t.Errorf("nginx answered %q, want %q", got, want)
			}
			witness(t, ctx, top.Web, self, to)
		}
	}
	for _, at := range places(lab.OfficeRedis) {
		to := netip.AddrPortFrom(at, 6379)
		conn, self := dial(t, ctx, top.Intruder, "tcp", to)
		if _, err := io.WriteString(conn, "PING\r\n"); err != nil {
			t.Fatal(err)
		}
		if got := read(t, conn, len("+PONG\r\n")); got != "+PONG\r\n" {
			t.Errorf("redis answered %q", got)
		}
		witness(t, ctx, top.Redis, self, to)
	}
	for _, at := range places(lab.OfficeSSH) {
		to := netip.AddrPortFrom(at, 22)
		conn, self := dial(t, ctx, top.Intruder, "tcp", to)
		if got := read(t, conn, 8); got != "SSH-2.0-" {
			t.Errorf("sshd greeted with %q", got)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		witness(t, ctx, top.SSH.Server, self, to)
	}
	for _, at := range places(lab.OfficeUDP) {
		to := netip.AddrPortFrom(at, 161)
		conn, self := dial(t, ctx, top.Intruder, "udp", to) // connected: takes answers from there only
		if _, err := io.WriteString(conn, "hello"); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("peer %s %d\nhello", self.Addr(), self.Port())
		if got := read(t, conn, len(want)); got != want {
			t.Errorf("udp answered %q, want %q", got, want)
		}
		witness(t, ctx, top.UDP, self, to)
	}
	if peers, err := top.ProductionWeb.Peers(); len(peers) != 0 || err != nil {
		t.Errorf("production was disturbed: %v, %v", peers, err)
	}
	conn, self := dial(t, ctx, top.Intruder, "tcp", netip.AddrPortFrom(lab.OfficeProduction.V4, 80))
	get(t, conn)
	witness(t, ctx, top.ProductionWeb, self, netip.AddrPortFrom(lab.OfficeProduction.V4, 80))
}

func get(t *testing.T, conn net.Conn) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}}
	response, err := client.Get("http://decoy/")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func read(t *testing.T, r io.Reader, n int) string {
	t.Helper()
	b := make([]byte, n)
	got, err := io.ReadAtLeast(r, b, n)
	if err != nil {
		t.Error(err)
	}
	return string(b[:got])
}

func TestSSHLogin(t *testing.T) {
	ctx := within(t, 40*time.Second)
	l := labtest.New(t)
	m := l.Machine("m")
	labtest.Built(t, l)
	ssh, err := lab.SSHD(ctx, m, lab.Listen{Ports: []uint16{2222}})
	if err != nil {
		t.Fatal(err)
	}
	args := ssh.ClientArgs(netip.MustParseAddrPort("[::1]:2222"))
	out := run(t, ctx, m, "ssh", append(args, "id -un; echo ${SSH_CLIENT%% *}; hostname")...)
	if out != "demo\n::1\nm\n" {
		t.Errorf("logged in by key: %q", out)
	}
	// By password, as an intruder would who has guessed it.
	ask := filepath.Join(t.TempDir(), "ask")
	if err := os.WriteFile(ask, []byte("#!/bin/sh\necho "+ssh.Password+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := m.Command(ctx, "ssh", "-F", "none", "-p", "2222", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "PubkeyAuthentication=no", "-o", "NumberOfPasswordPrompts=1", ssh.User+"@127.0.0.1", "whoami")
	cmd.Env = append(cmd.Env, "SSH_ASKPASS="+ask, "SSH_ASKPASS_REQUIRE=force")
	if out, err := cmd.Output(); string(out) != "demo\n" {
		t.Errorf("logged in by password: %q, %v", out, err)
	}
	if text := must(os.ReadFile("/etc/passwd")); strings.Contains(string(text), "demo:") {
		t.Error("the host has the account")
	}
}

func TestServersRestartOnTheirPorts(t *testing.T) {
	ctx := within(t, 60*time.Second)
	l := labtest.New(t)
	m := l.Machine("m")
	labtest.Built(t, l)
	var servers []*lab.Server
	for _, start := range []func() (*lab.Server, error){
		func() (*lab.Server, error) { return lab.Nginx(ctx, m, lab.Listen{Ports: []uint16{1001}}) },
		func() (*lab.Server, error) { return lab.Redis(ctx, m, lab.Listen{Ports: []uint16{1002}}) },
		func() (*lab.Server, error) {
			s, err := lab.SSHD(ctx, m, lab.Listen{Ports: []uint16{1003}})
			return s.Server, err
		},
		func() (*lab.Server, error) { return lab.TCPPeer(ctx, m, lab.Listen{Ports: []uint16{1004}}) },
	} {
		s, err := start()
		if err != nil {
			t.Fatal(err)
		}
		servers = append(servers, s)
	}
	for i, s := range servers {
		address := fmt.Sprintf("127.0.0.1:%d", 1001+i)
		for range 2 {
			// Connections that the server closes last, or first, stay in
			// TIME_WAIT and must not keep the port from being opened again.
			conn, err := m.Dial(ctx, "tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Stop(ctx); err != nil {
				t.Error(err)
			}
			if c, err := m.Dial(ctx, "tcp", address); err == nil || !strings.Contains(err.Error(), syscall.ECONNREFUSED.Error()) {
				t.Errorf("%s stopped, dialed: %v, %v", s.Name(), c, err)
			}
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
			if err := s.Start(ctx); err != nil {
				t.Fatal(err)
			}
		}
		conn, err := m.Dial(ctx, "tcp", address)
		if err != nil {
			t.Errorf("%s started again: %v", s.Name(), err)
			continue
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	// A port that is taken is an error, not somebody else's server.
	if s, err := lab.Nginx(ctx, m, lab.Listen{Ports: []uint16{1002}}); err == nil {
		t.Errorf("started on a port that is taken: %v", s)
	}
	if s, err := lab.TCPPeer(ctx, m, lab.Listen{Ports: []uint16{1002}}); err == nil {
		t.Errorf("started on a port that is taken: %v", s)
	}
	// One address each leaves the port free at the other.
	for _, at := range []string{"127.0.0.8", "127.0.0.9"} {
		if _, err := lab.Redis(ctx, m, lab.Listen{Addrs: []string{at}, Ports: []uint16{1005}}); err != nil {
			t.Error(err)
		}
	}
}

func TestTCPPeerHalfClose(t *testing.T) {
	ctx := within(t, 20*time.Second)
	l := labtest.New(t)
	m := l.Machine("m")
	labtest.Built(t, l)
	s, err := lab.TCPPeer(ctx, m, lab.Listen{})
	if err != nil {
		t.Fatal(err)
	}
	conn, self := dial(t, ctx, m, "tcp", netip.MustParseAddrPort("[::1]:7"))
	greeting := fmt.Sprintf("peer %s %d\n", self.Addr(), self.Port())
	if got := read(t, conn, len(greeting)); got != greeting {
		t.Errorf("spoke first: %q, want %q", got, greeting)
	}
	sent := strings.Repeat("0123456789", 100_000)
	go func() {
		_, _ = io.WriteString(conn, sent) // a failure shows at the reader
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	if string(got) != sent || err != nil {
		t.Errorf("after half-close: %d bytes of %d, %v", len(got), len(sent), err)
	}
	peers, err := s.Peers()
	if !slices.Equal(peers, []netip.AddrPort{self}) || err != nil {
		t.Errorf("peers %v, %v, want %s", peers, err, self)
	}
}
