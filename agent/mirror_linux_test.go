package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decoynet/config"
	"decoynet/deception"
	"decoynet/internal/capture"
	"decoynet/internal/capture/capturetest"
	"decoynet/internal/health"
	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/route"
	"decoynet/internal/lab/labtest"
	"decoynet/internal/relay"
)

const mirrorDocument = `
node: gw
segments:
  - {name: office, parent: eth0, claim: unchecked, subnets: [{prefix: 192.0.2.0/24, gateway: 192.0.2.1}, {prefix: "2001:db8:2::/64"}]}
zones:
  - {name: linux, subnet: [10.1.0.0/24, "fd00:1::/64"], link: br-linux}
services:
  - {name: web, zone: linux, address: [10.1.0.2, "fd00:1::2"], ports: [80]}
  - {name: redis, zone: linux, address: [10.1.0.3, "fd00:1::3"], ports: [6379]}
  - {name: snmp, zone: linux, address: [10.1.0.5, "fd00:1::5"], ports: [161/udp]}
decoys:
  - name: office-decoys
    segment: office
    path: kernel
    idle: 5s
    addresses: [192.0.2.100-192.0.2.199, "2001:db8:2::100-2001:db8:2::10f"]
    bind: [{ports: [80], service: web}, {ports: [161/udp], service: snmp}]
  - name: relayed
    segment: office
    addresses: [192.0.2.200]
    bind: [{ports: [80], service: web}]
`

// nobody takes no flow.
type nobody struct{}

func (nobody) Accept(*relay.Flow) bool             { return false }
func (nobody) Open(*relay.Flow, bool) (int, error) { return -1, errors.New("nobody") }
func (nobody) Opened(*relay.Flow)                  {}
func (nobody) Close(*relay.Flow)                   {}

// mirrorRole is an agent with a mirror on the office's gateway, until its input
// ends. What was fed and recorded is then in the directory of the environment.
func mirrorRole() (err error) {
	ctx, dir := context.Background(), os.Getenv(roleVar+"_DIR")
	doc, err := config.Parse("document", []byte(mirrorDocument))
	if err != nil {
		return err
	}
	records := capturetest.NewRecordings()
	mirror := capture.NewMirror(capture.MirrorConfig{Node: "gw", Feed: records})
	engine, err := relay.New(nobody{}, relay.Config{Loops: 1})
	if err != nil {
		return err
	}
	a, err := New(Config{Node: "gw", Engine: engine, Recorder: records, Mirror: mirror, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	host, err := netns.Current()
	if err != nil {
		return err
	}
	open := func(health.Port) bool { return true }
	if err := a.Apply(ctx, &doc.State, deception.NewTable(&doc.State), open); err != nil {
		return err
	}
	if _, err := route.Apply(ctx, host, a.HostRoutes()); err != nil {
		return err
	}
	for end := time.Now().Add(20 * time.Second); !a.Status()[0].Ready; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("the segment is not ready: %+v", a.Status())
		}
	}
	fmt.Println("ready")
	_, _ = io.ReadAll(os.Stdin)
	// The kernel tells of an end a good second after the last packet.
	for end := time.Now().Add(20 * time.Second); !records.Settled() && time.Now().Before(end); {
		time.Sleep(50 * time.Millisecond)
	}
	fmt.Fprintf(os.Stderr, "%+v\n", mirror.Stats())
	err = errors.Join(a.Close(ctx), engine.Close(ctx))
	mirror.Close()
	return errors.Join(err, host.Close(), records.Dump(dir))
}

// What intruders and decoys of the kernel path say is shown to Suricata under the
// session that connection tracking makes a record of.
func TestMirror(t *testing.T) {
	_, office := labtest.Office(t)
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), capturetest.Patience)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	role := office.Gateway.Command(ctx, self)
	role.Env = append(os.Environ(), roleVar+"=mirror", roleVar+"_DIR="+dir)
	stop, log := startRole(t, role)
	client := func(args ...string) {
		t.Helper()
		if out, err := office.Intruder.Run(ctx, "curl", append([]string{"-sS", "-m", "10", "--retry", "20", "--retry-connrefused"}, args...)...); err != nil || !strings.Contains(out, "machine linux") {
			t.Errorf("curl %v: %q, %v", args, out, err)
		}
	}
	client("http://192.0.2.100/", "http://192.0.2.100/again", "-A", "evil/1.0")
	client("http://[2001:db8:2::101]/", "-d", strings.Repeat("x", 100_000))
	for range 5 {
		samePort(t, office.Intruder.DialFrom)
	}
	talkUDP(t, office.Intruder.DialFrom)
	stop()
	t.Log(log())
	wantMirrored(t, dir)
}

func startRole(t *testing.T, role *exec.Cmd) (stop func(), log func() string) {
	t.Helper()
	input, err1 := role.StdinPipe()
	output, err2 := role.StdoutPipe()
	var said strings.Builder
	role.Stderr = &said
	if err := errors.Join(err1, err2, role.Start()); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 64)
	if n, err := output.Read(line); err != nil || !strings.HasPrefix(string(line[:n]), "ready") {
		t.Fatalf("the agent says %q, %v: %s %v", line[:n], err, said.String(), role.Wait())
	}
	return func() {
		input.Close()
		if err := role.Wait(); err != nil {
			t.Fatalf("the agent ends: %v: %s", err, said.String())
		}
	}, said.String
}

type dialFrom = func(context.Context, string, net.Addr, string) (net.Conn, error)

// samePort begins one flow after another from one port: each ends with a reset, and
// so leaves the port free.
func samePort(t *testing.T, dial dialFrom) {
	t.Helper()
	conn, err := dial(t.Context(), "tcp", &net.TCPAddr{Port: 4711}, "192.0.2.102:80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: decoy\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 4096)); err != nil || n < 100 {
		t.Fatalf("%d bytes, %v", n, err)
	}
	_ = conn.(*net.TCPConn).SetLinger(0)
}

func talkUDP(t *testing.T, dial dialFrom) {
	t.Helper()
	conn, err := dial(t.Context(), "udp", &net.UDPAddr{Port: 4712}, "192.0.2.103:161")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write([]byte("who is there")); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1500)); err != nil {
		t.Fatal(err)
	}
}

func wantMirrored(t *testing.T, dir string) {
	t.Helper()
	sessions, err := capturetest.Sessions(dir)
	if err != nil {
		t.Fatal(err)
	}
	requests, flows := 0, map[deception.SessionID]bool{}
	for _, e := range capturetest.Suricata(t, filepath.Join(dir, "fed.pcap"), false) {
		if e.Kind == "anomaly" && !capturetest.SentAgain[e.Anomaly.Event] {
			t.Errorf("Suricata does not like it: %s", e.Line)
		}
		if e.Kind != "http" {
			continue
		}
		requests++
		id, _ := capturetest.SessionOf(t, e)
		flows[id] = true
		s, ok := sessions[id]
		source := netip.AddrPortFrom(netip.MustParseAddr(e.Source), uint16(e.SourcePort))
		destination := netip.AddrPortFrom(netip.MustParseAddr(e.Destination), uint16(e.DestinationPort))
		if !ok || s.Source != source || s.Destination != destination || s.Service != "web" || s.Path != deception.PathKernel {
			t.Errorf("session %+v, %v for %s", s, ok, e.Line)
		}
	}
	if requests != 8 || len(flows) != 7 || len(sessions) != 8 {
		t.Errorf("%d requests in %d flows, %d sessions; want 8, 7, 8 (one of UDP)", requests, len(flows), len(sessions))
	}
}
