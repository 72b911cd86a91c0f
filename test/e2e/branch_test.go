//go:build linux

package e2e

import (
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
	"syscall"
	"testing"
	"time"

	"decoynet/internal/lab"
)

// branchDocument names two machines: the office's gateway, which is also the
// controller's, and a business server of the branch.
const branchDocument = `
node: hq
controller: {node: hq, listen: 0.0.0.0:7443, urls: ["https://192.0.2.5:7443"]}
nodes: [{name: hq}, {name: crm-1}]
gateways:
  - {name: gw1, node: hq, listen: 0.0.0.0:7444}
segments:
  - name: office
    node: hq
    parent: eth0
    subnets: [{prefix: 192.0.2.0/24, gateway: 192.0.2.1}]
zones:
  - name: linux
    node: hq
    subnet: [10.1.0.0/24, "fd00:1::/64"]
    link: br-linux
services:
  - {name: web, zone: linux, address: [10.1.0.2, "fd00:1::2"], ports: [80, 443]}
  - {name: redis, zone: linux, address: [10.1.0.3, "fd00:1::3"], ports: [6379]}
  - {name: ssh, zone: linux, address: [10.1.0.4, "fd00:1::4"], ports: [22]}
  - {name: snmp, zone: linux, address: [10.1.0.5, "fd00:1::5"], ports: [161/udp]}
  - {name: script, zone: linux, address: [10.1.0.5, "fd00:1::5"], ports: [9000]}
decoys:
  - name: office-web
    segment: office
    addresses: [192.0.2.100-192.0.2.110]
    bind: [{ports: [80], service: web}]
  - name: crm
    segment: host
    node: crm-1
    addresses: [any]
    bind:
      - {ports: [80, 443], service: web}
      - {ports: [2222], service: ssh, target: 22}
      - {ports: [6379], service: redis}
      - {ports: [161/udp], service: snmp}
      - {ports: [9000], service: script}
`

// branch is an office with a branch office, whose server runs an agent.
type branch struct {
	*office
	lab.Branch
	script    *puppet
	agentData string
	agent     *lab.Process
}

func newBranch(t *testing.T) *branch {
	t.Helper()
	o := newOffice(t)
	b := &branch{office: o, agentData: filepath.Join(t.TempDir(), "agent")}
	var err error
	b.Branch, err = o.AddBranch(t.Context(), o.Gateway.Lab())
	check(t, err)
	b.script = newPuppet(t, o.Linux, 9000)
	return b
}

// in returns the branch as a subtest sees it.
func (b *branch) in(t *testing.T) *branch {
	view := *b
	view.office = b.office.in(t)
	return &view
}

// unprivileged runs a program as nobody, with the one capability that a
// business server's owner will grant.
func unprivileged(args ...string) []string {
	return append([]string{
		"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
		"--inh-caps=-all,+net_bind_service", "--ambient-caps=-all,+net_bind_service", "--bounding-set=-all,+net_bind_service", "--",
	}, args...)
}

// agentRun runs a subcommand on the branch's server as the agent's user.
func (b *branch) agentRun(args ...string) (string, error) {
	all := unprivileged(append(append([]string{binary}, args...), "--data", b.agentData)...)
	return b.Server.Run(b.t.Context(), all[0], all[1:]...)
}

// prepareAgent lets the agent's user have its data directory and the binary.
func (b *branch) prepareAgent() {
	b.t.Helper()
	check(b.t, os.MkdirAll(b.agentData, 0o700))
	check(b.t, os.Chown(b.agentData, 65534, 65534))
	for dir := filepath.Dir(b.agentData); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		check(b.t, os.Chmod(dir, 0o755))
	}
	check(b.t, os.Chmod(filepath.Dir(binary), 0o755))
}

// join enrols the branch's server with the command that the controller prints,
// and what the branch's network needs besides.
func (b *branch) join(args ...string) {
	b.t.Helper()
	b.prepareAgent()
	_, err := b.agentRun(append(b.joinCommand("crm-1"), args...)...)
	check(b.t, err)
}

// joinCommand has the controller make a join token and returns the command to
// paste on the node, without the program's name.
func (o *office) joinCommand(node string, args ...string) []string {
	o.t.Helper()
	out, err := o.decoynet(append([]string{"token", "create", "--node", node, "-o", "json"}, args...)...)
	check(o.t, err)
	var token struct{ Command string }
	check(o.t, json.Unmarshal([]byte(out), &token))
	words := strings.Fields(token.Command)
	if len(words) < 3 || words[0] != "decoynet" || words[1] != "join" {
		o.t.Fatalf("the command to paste is %q", token.Command)
	}
	return words[1:]
}

// startAgent starts decoynet on the branch's server, without a document.
func (b *branch) startAgent() {
	b.t.Helper()
	all := unprivileged(binary, "up", "--data", b.agentData, "-v")
	var err error
	b.agent, err = b.Server.Start(all[0], all[1:]...)
	check(b.t, err)
	agent := b.agent
	b.t.Cleanup(func() {
		if b.t.Failed() {
			b.t.Logf("the agent said:\n%s", agent.Log())
		}
	})
}

func (b *branch) waitAgent() {
	b.t.Helper()
	eventually(b.t, 20*time.Second, func() error {
		st, err := b.agentStatus()
		if err == nil && !st.Ready {
			err = fmt.Errorf("agent not ready: %v", st.Problems)
		}
		return err
	})
}

func (b *branch) agentStatus() (st nodeStatus, err error) {
	out, err := b.agentRun("status", "-o", "json")
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal([]byte(out), &st)
}

// TestBranch has the intruder of a branch office talk to real servers at the
// office through the branch's own business server.
func TestBranch(t *testing.T) {
	t.Parallel()
	b := newBranch(t)
	b.document(branchDocument)
	b.up()
	b.join()
	b.startAgent()
	b.waitAgent()
	for _, part := range []struct {
		name string
		test func(*branch)
	}{
		{"Web", (*branch).testWeb},
		{"SSH", (*branch).testSSH},
		{"UDP", (*branch).testUDP},
		{"Ends", (*branch).testEnds},
		{"Nodes", (*branch).testNodes},
		{"Packets", (*branch).testPackets},
		{"Inspected", (*branch).testInspected},
		{"Unprivileged", (*branch).testUnprivileged},
		{"AgentKilled", (*branch).testAgentKilled},
		{"ControllerAway", (*branch).testControllerAway},
		{"Revoked", (*branch).testRevoked},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.test(b.in(t)) }) {
			return
		}
	}
}

// testWeb: curl in the branch, nginx at the office names the intruder.
func (b *branch) testWeb() {
	for _, target := range []netip.Addr{lab.BranchServer.V4, lab.BranchServer.V6} {
		url := fmt.Sprintf("http://%s/", netip.AddrPortFrom(target, 80))
		out, err := b.Branch.Intruder.Run(b.t.Context(), "curl", "-sS", "--max-time", "10", "-w", "\n%{local_ip} %{local_port}", url)
		check(b.t, err)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		var ip string
		var port uint16
		if _, err := fmt.Sscan(lines[len(lines)-1], &ip, &port); err != nil {
			b.t.Fatalf("curl printed %q", out)
		}
		source := addrPort(ip, port)
		check(b.t, b.office.Web.WaitPeer(b.t.Context(), 5*time.Second, source))
		s := b.ended(source)
		if s.Node != "crm-1" || s.Segment != "host" || s.Decoy != "crm" || s.Service != "web" || s.dest() != netip.AddrPortFrom(target, 80) || s.sourceNAT() != source {
			b.t.Errorf("recorded %+v", s)
		}
	}
}

func (b *branch) testSSH() {
	args := append(b.office.SSH.ClientArgs(netip.AddrPortFrom(lab.BranchServer.V4, 2222)), "echo $SSH_CLIENT")
	out, err := b.Branch.Intruder.Run(b.t.Context(), "ssh", args...)
	check(b.t, err)
	if !strings.HasPrefix(out, lab.BranchIntruder.V4.String()+" ") {
		b.t.Errorf("sshd saw %q", out)
	}
}

func (b *branch) testUDP() {
	for _, target := range []netip.Addr{lab.BranchServer.V4, lab.BranchServer.V6} {
		conn, err := b.Branch.Intruder.Dial(b.t.Context(), "udp", netip.AddrPortFrom(target, 161).String())
		check(b.t, err)
		local := netip.MustParseAddrPort(conn.LocalAddr().String())
		check(b.t, conn.SetDeadline(time.Now().Add(5*time.Second)))
		buf := make([]byte, 2048)
		for _, said := range []string{"hello", strings.Repeat("x", 1400)} {
			_, err = conn.Write([]byte(said))
			check(b.t, err)
			n, err := conn.Read(buf)
			check(b.t, err)
			want := fmt.Sprintf("peer %s %d\n%s", local.Addr(), local.Port(), said)
			if string(buf[:n]) != want {
				b.t.Errorf("answer %.80q, want %.80q", buf[:n], want)
			}
		}
		check(b.t, conn.Close())
	}
}

// testNodes: the controller's list tells the truth about both.
func (b *branch) testNodes() {
	eventually(b.t, 10*time.Second, func() error {
		nodes, err := b.nodes()
		if err != nil {
			return err
		}
		for _, name := range []string{"hq", "crm-1"} {
			n := nodes[name]
			if n.Condition != "converged" || n.RevisionHeld == "" || n.RevisionHeld != n.RevisionWanted || n.Version == "" || n.LastSeen.IsZero() {
				return fmt.Errorf("node %s: %+v", name, n)
			}
		}
		if rtt := nodes["crm-1"].RoundTripMillis; rtt <= 0 || rtt > 1000 {
			return fmt.Errorf("round trip of crm-1: %v ms", rtt)
		}
		return nil
	})
}

type nodeLine struct {
	Name            string    `json:"name"`
	Condition       string    `json:"condition"`
	Version         string    `json:"version"`
	RevisionWanted  string    `json:"revision_wanted"`
	RevisionHeld    string    `json:"revision_held"`
	Problems        []string  `json:"problems"`
	LastSeen        time.Time `json:"last_seen"`
	RoundTripMillis float64   `json:"round_trip_ms"`
}

func (b *branch) nodes() (map[string]nodeLine, error) {
	out, err := b.decoynet("get", "nodes", "-o", "json")
	if err != nil {
		return nil, err
	}
	all := map[string]nodeLine{}
	for line := range strings.Lines(out) {
		var n nodeLine
		if err := json.Unmarshal([]byte(line), &n); err != nil {
			return nil, err
		}
		all[n.Name] = n
	}
	return all, nil
}

// maxAgentRSS is what an idle agent may hold, in KB.
const maxAgentRSS = 30 << 10

func (b *branch) testUnprivileged() {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.agent.PID()))
	check(b.t, err)
	var rss int
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			_, _ = fmt.Sscan(rest, &rss)
		}
		if rest, ok := strings.CutPrefix(line, "CapEff:"); ok && strings.TrimSpace(rest) != "0000000000000400" {
			b.t.Errorf("the agent's capabilities are %s", rest)
		}
		if rest, ok := strings.CutPrefix(line, "Uid:"); ok && !strings.HasPrefix(strings.TrimSpace(rest), "65534") {
			b.t.Errorf("the agent runs as %s", rest)
		}
	}
	b.t.Logf("agent: %d KB resident", rss)
	if rss == 0 || rss > maxAgentRSS {
		b.t.Errorf("the agent holds %d KB, at most %d are promised", rss, maxAgentRSS)
	}
}

// curl asks the web decoy of the branch's server once; it fails as curl does.
func (b *branch) curl() error {
	ctx, cancel := context.WithTimeout(b.t.Context(), 15*time.Second)
	defer cancel()
	_, err := b.Branch.Intruder.Run(ctx, "curl", "-sS", "-o", "/dev/null", "--max-time", "10", fmt.Sprintf("http://%s/", lab.BranchServer.V4))
	return err
}

func (b *branch) testAgentKilled() {
	check(b.t, b.agent.Kill())
	b.startAgent()
	b.waitAgent()
	check(b.t, b.curl())
}

// converse connects the branch's intruder to the puppet behind the server.
func (b *branch) converse() (client, service *net.TCPConn, source netip.AddrPort) {
	b.t.Helper()
	b.script.drain()
	c, err := b.Branch.Intruder.Dial(b.t.Context(), "tcp", netip.AddrPortFrom(lab.BranchServer.V4, 9000).String())
	check(b.t, err)
	client = c.(*net.TCPConn)
	b.t.Cleanup(func() { client.Close() })
	service = b.script.take(b.t)
	source = netip.MustParseAddrPort(client.LocalAddr().String())
	if seen := service.RemoteAddr().String(); seen != source.String() {
		b.t.Errorf("the service sees %s, the intruder is %s", seen, source)
	}
	return client, service, source
}

// testEnds: whoever ends a connection, and how, the other side and the record
// are told the same.
func (b *branch) testEnds() {
	for _, c := range []struct {
		name, reason string
		end          func(client, service *net.TCPConn)
	}{
		{"client closes", "client_closed", func(client, service *net.TCPConn) {
			check(b.t, client.CloseWrite())
			endsBy(b.t, service, io.EOF)
			check(b.t, service.Close())
			endsBy(b.t, client, io.EOF)
		}},
		{"service closes", "service_closed", func(client, service *net.TCPConn) {
			check(b.t, service.CloseWrite())
			endsBy(b.t, client, io.EOF)
			_, err := client.Write([]byte("last words"))
			check(b.t, err)
			check(b.t, client.Close())
			endsBy(b.t, service, io.EOF)
		}},
		{"client resets", "client_reset", func(client, service *net.TCPConn) {
			check(b.t, client.SetLinger(0))
			check(b.t, client.Close())
			endsBy(b.t, service, syscall.ECONNRESET)
		}},
		{"service resets", "service_reset", func(client, service *net.TCPConn) {
			check(b.t, service.SetLinger(0))
			check(b.t, service.Close())
			endsBy(b.t, client, syscall.ECONNRESET)
		}},
	} {
		client, service, source := b.converse()
		exchange(b.t, client, service)
		c.end(client, service)
		if s := b.ended(source); s.EndReason != c.reason || s.SourceBytes < 4 || s.DestBytes < 4 {
			b.t.Errorf("%s: recorded as %s with %d and %d bytes", c.name, s.EndReason, s.SourceBytes, s.DestBytes)
		}
	}
}

// exchange sends a word each way.
func exchange(t *testing.T, a, b *net.TCPConn) {
	t.Helper()
	for _, c := range []*net.TCPConn{a, b} {
		check(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	}
	for _, way := range [][2]*net.TCPConn{{a, b}, {b, a}} {
		_, err := way[0].Write([]byte("word"))
		check(t, err)
		buf := make([]byte, 4)
		_, err = io.ReadFull(way[1], buf)
		check(t, err)
	}
}

// endsBy reads until the connection ends, and checks how.
func endsBy(t *testing.T, c *net.TCPConn, want error) {
	t.Helper()
	check(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, err := io.Copy(io.Discard, c)
	if err == nil {
		err = io.EOF
	}
	if !errors.Is(err, want) {
		t.Errorf("the connection ended by %v, want %v", err, want)
	}
}

// testControllerAway: without the controller and its gateway, what the agent
// sees is spooled, also through a kill -9, and is in the store once when they
// are back.
func (b *branch) testControllerAway() {
	client, _, cut := b.converse()
	check(b.t, b.process.Kill())
	endsBy(b.t, client, syscall.ECONNRESET)
	var sources []netip.AddrPort
	for range 5 {
		c, err := b.Branch.Intruder.Dial(b.t.Context(), "tcp", netip.AddrPortFrom(lab.BranchServer.V4, 80).String())
		check(b.t, err)
		sources = append(sources, netip.MustParseAddrPort(c.LocalAddr().String()))
		endsBy(b.t, c.(*net.TCPConn), syscall.ECONNRESET)
		check(b.t, c.Close())
	}
	eventually(b.t, 10*time.Second, func() error {
		st, err := b.agentStatus()
		if err == nil && st.Recording.Waiting < len(sources) {
			err = fmt.Errorf("%d records wait in the spool", st.Recording.Waiting)
		}
		return err
	})
	check(b.t, b.agent.Kill())
	b.startAgent() // runs by its last snapshot
	eventually(b.t, 20*time.Second, func() error {
		st, err := b.agentStatus()
		if err == nil && len(st.Listen.Ports) == 0 {
			err = errors.New("the agent runs no snapshot")
		}
		return err
	})
	b.up()
	b.waitAgent()
	for _, source := range sources {
		if s := b.ended(source); s.EndReason != "gateway_lost" || s.Node != "crm-1" || s.Decoy != "crm" {
			b.t.Errorf("recorded %+v", s)
		}
	}
	if s := b.ended(cut); s.EndReason != "gateway_lost" || s.Service != "script" {
		b.t.Errorf("the flow that was cut is recorded as %+v", s)
	}
	list, err := b.records()
	check(b.t, err)
	seen := map[string]int{}
	for _, s := range list {
		seen[s.ID]++
		if seen[s.ID] > 1 {
			b.t.Errorf("session %s is recorded %d times", s.ID, seen[s.ID])
		}
	}
	check(b.t, b.curl())
}

// testRevoked: a revoked node is cut off within five seconds, its tunnel and
// running flows included, and does not come back.
func (b *branch) testRevoked() {
	client, _, _ := b.converse()
	_, err := b.decoynet("node", "revoke", "crm-1")
	check(b.t, err)
	began := time.Now()
	endsBy(b.t, client, syscall.ECONNRESET)
	b.t.Logf("cut off after %v", time.Since(began))
	if time.Since(began) > 5*time.Second {
		b.t.Errorf("the tunnel of a revoked node lived for %v", time.Since(began))
	}
	if err := b.curl(); err == nil {
		b.t.Error("a revoked node's decoy still leads to the service")
	}
	eventually(b.t, 10*time.Second, func() error {
		nodes, err := b.nodes()
		if err == nil && nodes["crm-1"].Condition != "revoked" {
			err = fmt.Errorf("crm-1 is %s", nodes["crm-1"].Condition)
		}
		return err
	})
	eventually(b.t, 20*time.Second, func() error {
		st, err := b.agentStatus()
		if err == nil && !strings.Contains(strings.Join(st.Problems, "\n"), "revoked") {
			err = fmt.Errorf("the agent says %v", st.Problems)
		}
		return err
	})
	out, err := b.decoynet("get", "audit", "-o", "json")
	check(b.t, err)
	for _, want := range []string{"RevokeNode", "CreateJoinToken", "Enrol"} {
		if !strings.Contains(out, want) {
			b.t.Errorf("the audit log has no %s:\n%s", want, out)
		}
	}
}
