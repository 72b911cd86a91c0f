//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"decoynet/internal/lab"
)

// chainDocument has services on another machine, vm1, which agents in other
// networks reach through the gateway, and the office's own decoys too.
const chainDocument = `
node: hq
controller: {node: hq, listen: 0.0.0.0:7443, urls: ["https://192.0.2.5:7443"]}
nodes: [{name: hq}, {name: crm-1}, {name: vm1}]
gateways:
  - {name: gw1, node: hq, listen: 0.0.0.0:7444}
segments:
  - name: office
    node: hq
    parent: eth0
    subnets:
      - {prefix: 192.0.2.0/24, gateway: 192.0.2.1}
      - {prefix: "2001:db8:2::/64"}
zones:
  - name: win
    subnet: [10.2.0.0/24, "fd00:2::/64"]
    egress: {node: vm1, listen: 172.16.23.2:7445, from: 172.16.23.1}
services:
  - {name: files, zone: win, address: [10.2.0.2, "fd00:2::2"], ports: [80, 9000, 161/udp]}
decoys:
  - name: office-files
    segment: office
    addresses: [192.0.2.100-192.0.2.110, "2001:db8:2::100"]
    bind:
      - {ports: [80, 9000, 161/udp], service: files}
  - name: crm
    segment: host
    node: crm-1
    addresses: [any]
    bind:
      - {ports: [80, 9000, 161/udp], service: files}
`

// inner is the network that the gateways and the machines of zones share.
type inner struct {
	*lab.Switch
	vm1, win, stranger *lab.Machine
	web, udp           *lab.Server
	script             *puppet
}

// addInner hangs vm1 with a zone behind it on a network of gw's own, in which
// there is somebody else, too.
func (b *branch) addInner() *inner {
	b.t.Helper()
	l := b.Gateway.Lab()
	n := &inner{vm1: l.Machine("vm1"), win: l.Machine("win"), stranger: l.Machine("stranger")}
	n.Switch = b.Gateway.Bridge("br-inner", "172.16.23.1/24")
	n.vm1.Plug(n.Switch, "eth0", "172.16.23.2/24")
	n.vm1.Route("default", "172.16.23.1")
	n.vm1.Forward()
	n.stranger.Plug(n.Switch, "eth0", "172.16.23.9/24")
	zone := n.vm1.Bridge("br-win", "10.2.0.1/24", "fd00:2::1/64")
	n.win.Plug(zone, "eth0", "10.2.0.2/24", "fd00:2::2/64")
	n.win.Route("default", "10.2.0.1")
	n.win.Route("default", "fd00:2::1")
	check(b.t, l.Err())
	var err error
	n.web, err = lab.Nginx(b.t.Context(), n.win, lab.Listen{Ports: []uint16{80}})
	check(b.t, err)
	n.udp, err = lab.UDPEcho(b.t.Context(), n.win, lab.Listen{})
	check(b.t, err)
	n.script = newPuppet(b.t, n.win, 9000)
	b.script = n.script
	return n
}

// TestChain has flows of a branch and of the office reach services behind
// another machine, with the intruder's own address and port all the way.
func TestChain(t *testing.T) {
	t.Parallel()
	b := newBranch(t)
	n := b.addInner()
	b.document(chainDocument)
	b.start()
	eventually(t, 20*time.Second, func() error { _, err := b.nodes(); return err })
	vm1 := b.newMember(n.vm1, "vm1")
	vm1.waitReady()
	b.join()
	b.startAgent()
	b.waitAgent()
	b.waitReady(20 * time.Second)

	for _, p := range b.places() {
		b.waitMet(p)
	}
	for _, part := range []struct {
		name string
		test func(*branch, *inner, *member)
	}{
		{"Flows", (*branch).testChainFlows},
		{"Stranger", (*branch).testStranger},
		{"EgressKilled", (*branch).testEgressKilled},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.test(b.in(t), n, vm1) }) {
			return
		}
	}
}

// place is where an intruder meets a decoy.
type place struct {
	from *lab.Machine
	at   netip.Addr
	node string
}

func (b *branch) places() []place {
	return []place{
		{b.Branch.Intruder, lab.BranchServer.V4, "crm-1"},
		{b.Branch.Intruder, lab.BranchServer.V6, "crm-1"},
		{b.office.Intruder, netip.MustParseAddr("192.0.2.100"), "hq"},
		{b.office.Intruder, netip.MustParseAddr("2001:db8:2::100"), "hq"},
	}
}

// testChainFlows: TCP and UDP, both families, through the tunnel and from a
// segment; the servers' own logs name the intruder.
func (b *branch) testChainFlows(n *inner, _ *member) {
	for _, p := range b.places() {
		out, err := p.from.Run(b.t.Context(), "curl", "-sS", "--max-time", "10", "-o", "/dev/null", "-w", "%{local_ip} %{local_port}",
			fmt.Sprintf("http://%s/", netip.AddrPortFrom(p.at, 80)))
		check(b.t, err)
		var ip string
		var port uint16
		if _, err := fmt.Sscan(out, &ip, &port); err != nil {
			b.t.Fatalf("curl printed %q", out)
		}
		source := addrPort(ip, port)
		check(b.t, n.web.WaitPeer(b.t.Context(), 5*time.Second, source))
		s := b.ended(source)
		if s.Node != p.node || s.Service != "files" || s.dest() != netip.AddrPortFrom(p.at, 80) || s.sourceNAT() != source || s.SourceMode != "kept" {
			b.t.Errorf("recorded %+v", s)
		}
		b.wantEcho(p.from, netip.AddrPortFrom(p.at, 161))
	}
}

// testStranger: the egress serves the gateways that the document names, and
// tells of others that come.
func (b *branch) testStranger(n *inner, vm1 *member) {
	conn, err := n.stranger.Dial(b.t.Context(), "tcp", "172.16.23.2:7445")
	if err == nil {
		check(b.t, conn.SetDeadline(time.Now().Add(5*time.Second)))
		// The reset shows at the first call after it came, and at no later one.
		_, reset := io.WriteString(conn, "PROXY TCP4 198.51.100.66 10.2.0.2 4711 80\r\nGET / HTTP/1.0\r\n\r\n")
		answer, err := io.ReadAll(conn)
		if len(answer) > 0 || err == nil && reset == nil || errors.Is(err, syscall.EAGAIN) {
			b.t.Errorf("the egress answered a stranger with %q, %v", answer, err)
		}
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			b.t.Errorf("the egress keeps a stranger's connection")
		}
		_ = conn.Close()
	}
	b.wantEvent("peer-refused", func(e event) bool { return e.Node == "vm1" && e.SourceIP == "172.16.23.9" })
	st, err := vm1.status()
	check(b.t, err)
	if len(st.Egress) != 1 || st.Egress[0].Refused["peer"] != 1 {
		b.t.Errorf("status of the egress: %+v", st.Egress)
	}
}

// testEgressKilled: kill -9 of the egress in mid-flow resets both ends, the
// session says so, and a new start mends all.
func (b *branch) testEgressKilled(_ *inner, vm1 *member) {
	for _, p := range []place{b.places()[0], b.places()[2]} {
		client, service := b.meet(p)
		check(b.t, vm1.process.Kill())
		began := time.Now()
		endsBy(b.t, client, syscall.ECONNRESET)
		endsBy(b.t, service, syscall.ECONNRESET)
		b.t.Logf("%s: both ends were reset after %v", p.node, time.Since(began).Round(time.Millisecond))
		if s := b.ended(localAddr(client)); s.EndReason != "gateway_lost" || s.SourceBytes != 4 || s.DestBytes != 4 {
			b.t.Errorf("the flow that was cut is recorded as %+v", s)
		}
		vm1.start()
		vm1.waitReady()
		began = time.Now()
		b.waitMet(p)
		client, _ = b.meet(p)
		check(b.t, client.Close())
		b.t.Logf("%s: back %v after the start", p.node, time.Since(began).Round(time.Millisecond))
	}
}

// waitMet waits until the web server answers through the decoy.
func (b *branch) waitMet(p place) {
	b.t.Helper()
	eventually(b.t, 20*time.Second, func() error {
		_, err := p.from.Run(b.t.Context(), "curl", "-sS", "--max-time", "5", "-o", "/dev/null", fmt.Sprintf("http://%s/", netip.AddrPortFrom(p.at, 80)))
		return err
	})
}

// meet connects an intruder to the puppet and has both say a word.
func (b *branch) meet(p place) (client, service *net.TCPConn) {
	b.t.Helper()
	b.script.drain()
	var conn net.Conn
	eventually(b.t, 10*time.Second, func() (err error) {
		conn, err = p.from.Dial(b.t.Context(), "tcp", netip.AddrPortFrom(p.at, 9000).String())
		return err
	})
	client = conn.(*net.TCPConn)
	b.t.Cleanup(func() { _ = client.Close() })
	service = b.script.take(b.t)
	if remoteAddr(service) != localAddr(client) {
		b.t.Errorf("the service sees %s, the intruder is %s", remoteAddr(service), localAddr(client))
	}
	exchange(b.t, client, service)
	return client, service
}
