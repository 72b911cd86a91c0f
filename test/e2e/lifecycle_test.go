//go:build linux

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"decoynet/internal/lab"
)

// bothPathsDocument uses everything that leaves something in the kernel: both
// families, both paths, aliases in a service's namespace.
const bothPathsDocument = `
node: gw
segments:
  - name: office
    parent: eth0
    subnets:
      - {prefix: 192.0.2.0/24, gateway: 192.0.2.1}
      - {prefix: "2001:db8:2::/64"}
zones:
  - {name: linux, subnet: [10.1.0.0/24, "fd00:1::/64"], link: br-linux}
services:
  - {name: web, zone: linux, address: [10.1.0.2, "fd00:1::2"], ports: [80, 443], aliases: [10.1.128.0/24, "fd00:1:0:8000::/112"], netns: linux}
  - {name: redis, zone: linux, address: 10.1.0.3, ports: [6379]}
decoys:
  - name: relayed
    segment: office
    addresses: [192.0.2.100-192.0.2.120, "2001:db8:2::100-2001:db8:2::10f"]
    bind: [{ports: [80, 443], service: web}]
  - name: redirected
    segment: office
    path: kernel
    addresses: [192.0.2.200-192.0.2.220]
    bind: [{ports: [80], service: web}, {ports: [6379], service: redis}]
`

// snapshots of every machine that decoynet could touch.
func (o *office) snapshots() map[string]string {
	o.t.Helper()
	all := map[string]string{}
	for _, m := range []*lab.Machine{o.Gateway, o.Linux, o.Production, o.Intruder} {
		text, err := m.Snapshot(o.t.Context())
		check(o.t, err)
		all[m.Name()] = text
	}
	return all
}

// wantUnchanged compares every machine with how it was.
func (o *office) wantUnchanged(before map[string]string) {
	o.t.Helper()
	eventually(o.t, 5*time.Second, func() error {
		if diff := cmp.Diff(before, o.snapshots()); diff != "" {
			return fmt.Errorf("machines differ from before (-before +after):\n%s", diff)
		}
		return nil
	})
}

// wantWeb has the intruder fetch a page from each decoy address.
func (o *office) wantWeb(addrs ...string) {
	o.t.Helper()
	for _, a := range addrs {
		url := "http://" + a + "/"
		out, err := o.Intruder.Run(o.t.Context(), "curl", "-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", url)
		if err != nil || out != "200" {
			o.t.Fatalf("curl %s: %q, %v", url, out, err)
		}
	}
}

func newBothPaths(t *testing.T) *office {
	t.Helper()
	o := newOffice(t)
	o.Gateway.ShowNetns("linux", o.Linux)
	o.document(bothPathsDocument)
	return o
}

var bothPathsWeb = []string{"192.0.2.100", "192.0.2.120", "[2001:db8:2::10f]", "192.0.2.200", "192.0.2.220"}

// SIGTERM leaves every machine as it was, down to routes, rules, tables,
// sysctls, namespaces and BPF links.
func TestTermLeavesNothing(t *testing.T) {
	o := newBothPaths(t)
	before := o.settled()
	o.up()
	o.wantWeb(bothPathsWeb...)
	if diff := cmp.Diff(before, o.snapshots()); diff == "" {
		t.Fatal("snapshots do not see decoynet's objects, so they prove nothing")
	}
	began := time.Now()
	o.down()
	t.Logf("clean end took %s", time.Since(began).Round(time.Millisecond))
	o.wantUnchanged(before)
}

// settled returns the snapshots once nothing changes by itself any more:
// link-local addresses come up a moment after their links.
func (o *office) settled() map[string]string {
	o.t.Helper()
	o.wantWeb(lab.OfficeProduction.V4.String()) // so that the two know each other already
	return o.atRest()
}

// atRest returns the snapshots once they stay the same.
func (o *office) atRest() map[string]string {
	o.t.Helper()
	last := o.snapshots()
	eventually(o.t, 15*time.Second, func() error {
		time.Sleep(2 * time.Second)
		now := o.snapshots()
		diff := cmp.Diff(last, now)
		last = now
		if diff != "" {
			return fmt.Errorf("machines do not come to rest:\n%s", diff)
		}
		return nil
	})
	return last
}

// After kill -9 the next start adopts what stands: flows of the kernel path live
// on throughout, and the sessions of the dead process are ended as lost. Cleanup
// removes all of it.
func TestKillAndAdopt(t *testing.T) {
	o := newBothPaths(t)
	before := o.settled()
	o.up()
	o.wantWeb(bothPathsWeb...)

	redirected, relayed := o.keepOpen("192.0.2.200:6379"), o.keepOpen("192.0.2.100:80")
	check(t, relayed.alive)
	check(t, redirected.ping())
	eventually(t, 5*time.Second, func() error {
		if n := len(o.sessions("--running", "--service", "web")); n != 1 {
			return fmt.Errorf("%d running web sessions are recorded, want 1", n)
		}
		return nil
	})
	check(t, o.process.Kill())
	check(t, redirected.ping())

	began := time.Now()
	o.start()
	o.waitReady(10 * time.Second)
	took := time.Since(began)
	t.Logf("ready again %s after kill -9", took.Round(time.Millisecond))
	if took > 2*time.Second {
		t.Errorf("start after kill -9 took %s, more than 2 s", took)
	}
	check(t, redirected.ping())
	o.wantWeb(bothPathsWeb...)
	lost := 0
	for _, s := range o.sessions() {
		if s["decoynet.end_reason"] == "lost" {
			lost++
		}
	}
	if lost == 0 {
		t.Error("no session of the killed process is recorded as lost")
	}

	check(t, o.process.Kill())
	out, err := o.decoynet("cleanup")
	check(t, err)
	t.Log(strings.TrimSpace(out))
	o.wantUnchanged(before)
	out, err = o.decoynet("cleanup")
	check(t, err)
	if strings.TrimSpace(out) != "0 objects removed" {
		t.Errorf("second cleanup: %s", out)
	}
}

// session is a connection that a test holds open.
type session struct {
	conn  net.Conn
	r     *bufio.Reader
	alive error
}

func (o *office) keepOpen(address string) *session {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), 5*time.Second)
	defer cancel()
	conn, err := o.Intruder.Dial(ctx, "tcp", address)
	if err != nil {
		return &session{alive: err}
	}
	o.t.Cleanup(func() { conn.Close() })
	return &session{conn: conn, r: bufio.NewReader(conn)}
}

// ping has redis at the other end answer.
func (s *session) ping() error {
	if s.alive != nil {
		return s.alive
	}
	if err := s.conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := fmt.Fprint(s.conn, "PING\r\n"); err != nil {
		return err
	}
	line, err := s.r.ReadString('\n')
	if err == nil && line != "+PONG\r\n" {
		err = fmt.Errorf("redis said %q", line)
	}
	return err
}

// A second decoynet is refused, with a message that says why, and does not harm
// the first.
func TestSecondUpIsRefused(t *testing.T) {
	o := newBothPaths(t)
	o.up()
	for name, data := range map[string]string{"same data": o.data, "other data": t.TempDir()} {
		out, err := o.Gateway.Run(t.Context(), binary, "up", "-c", o.file, "--data", data)
		if err == nil {
			t.Fatalf("%s: a second up ran: %s", name, out)
		}
		want := "already runs on data directory"
		if data != o.data {
			want = "another decoynet runs on this machine"
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: refused with %q, want %q in it", name, err, want)
		}
	}
	if _, err := o.decoynet("cleanup"); err == nil {
		t.Error("cleanup took the running decoynet's objects away")
	}
	o.wantWeb(bothPathsWeb...)
}

// Without a capability the first line says which.
func TestMissingCapability(t *testing.T) {
	o := newBothPaths(t)
	cmd := o.Gateway.Command(t.Context(), "setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin",
		binary, "up", "-c", o.file, "--data", o.data)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("up without CAP_NET_ADMIN: %v", err)
	}
	want := "missing CAP_NET_ADMIN; run as root, or give the unit these in AmbientCapabilities\n"
	if string(out) != want {
		t.Errorf("said %q, want %q", out, want)
	}
}

// An invalid document is refused with exit code 2, by check and by up alike.
func TestInvalidDocument(t *testing.T) {
	o := newOffice(t)
	o.document("segments:\n  - name: office\n    parrent: eth0\n")
	for _, args := range [][]string{{"check", "-c", o.file}, {"up", "-c", o.file, "--data", o.data}} {
		out, err := o.Gateway.Command(t.Context(), binary, args...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 {
			t.Errorf("%v: %v, want exit code 2", args, err)
		}
		if want := o.file + `:3:5: unknown key "parrent"`; !strings.Contains(string(out), want) {
			t.Errorf("%v said %q, want %q in it", args, out, want)
		}
	}
}

func (s *session) reader() { s.r = bufio.NewReader(s.conn) }

// fileConn makes a net.Conn of a connected socket and takes it over.
func fileConn(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	return net.FileConn(f)
}
