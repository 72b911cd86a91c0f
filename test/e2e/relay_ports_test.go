//go:build linux

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/internal/lab"
)

// testLowPorts comes from privileged ports, also from those of the services
// themselves, and from one that a listener of the gateway's own machine holds.
func (o *relayOffice) testLowPorts() {
	for i, addr := range oneEach {
		// Others for the other family: curl's sockets are dual-stack, and the
		// ones before lie in TIME_WAIT.
		for _, port := range [][]int{{22, 80, 1023}, {1, 443, 1020}}[i] {
			_, from := o.curl("http://"+at(addr, 80)+"/", "--local-port", fmt.Sprint(port))
			if int(from.Port()) != port {
				o.t.Fatalf("curl came from %s, told to take port %d", from, port)
			}
			o.wantPeer(o.Web, from)
			if s := o.ended(from); s.sourceNAT() != from || s.SourceMode != "kept" {
				o.t.Errorf("session of %s: seen as %s, %s", from, s.sourceNAT(), s.SourceMode)
			}
		}
	}
	// A wildcard listener takes its port from all transparent sockets of its
	// namespace: the connection works, from another port, and says so.
	for i, addr := range oneEach {
		port := 1021 + i
		l, err := o.Gateway.Listen(o.t.Context(), "tcp", fmt.Sprintf(":%d", port))
		check(o.t, err)
		body, from := o.curl("http://"+at(addr, 80)+"/", "--local-port", fmt.Sprint(port))
		check(o.t, l.Close())
		s := o.ended(from)
		want := fmt.Sprintf("peer %s %d\n", s.SourceNATIP, s.SourceNATPort)
		if s.SourceMode != "port_moved" || s.sourceNAT() == from || s.sourceNAT().Addr() != from.Addr() || !strings.HasSuffix(body, want) {
			o.t.Errorf("session of %s: %s, seen as %s; the server itself says %q", from, s.SourceMode, s.sourceNAT(), body)
		}
		o.wantPeer(o.Web, s.sourceNAT())
	}
}

// testPortReuse closes a connection and opens the next one from the same port at
// once, fifty times, with either side closing first: TIME_WAIT sockets lie on
// the way at the intruder, in the segment, or towards the service.
func (o *relayOffice) testPortReuse() {
	const rounds = 50
	port := uint16(25000) // below those that the kernel gives to others
	for _, serviceFirst := range []bool{false, true} {
		for _, addr := range oneEach {
			port++
			moved := o.reusePort(netip.AddrPortFrom(o.ownAddr(addr), port), addr, rounds, serviceFirst)
			o.t.Logf("service closes first %v, %s: %d of %d ports moved", serviceFirst, addr, moved, rounds)
			// With timestamps a TIME_WAIT towards the service may be taken over;
			// only a socket that is still closing at that very moment may not.
			if moved > rounds/10 {
				o.t.Errorf("%d of %d ports moved", moved, rounds)
			}
		}
	}
	// A service without timestamps (RFC 7323) leaves a TIME_WAIT that may not be
	// taken over: the connection works from another port.
	const few = 6
	o.Linux.Sysctl("net.ipv4.tcp_timestamps", "0")
	moved := o.reusePort(netip.AddrPortFrom(lab.OfficeIntruder.V4, 25010), oneEach[0], few, false)
	o.Linux.Sysctl("net.ipv4.tcp_timestamps", "1")
	o.t.Logf("service without timestamps: %d of %d ports moved", moved, few)
	if moved == 0 {
		o.t.Error("no port was moved, so the case was not met")
	}
	// A scanner without timestamps meets its own TIME_WAIT at the decoy.
	o.Intruder.Sysctl("net.ipv4.tcp_timestamps", "0")
	moved = o.reusePort(netip.AddrPortFrom(lab.OfficeIntruder.V4, 25011), oneEach[0], few, true)
	o.Intruder.Sysctl("net.ipv4.tcp_timestamps", "1")
	if moved > 0 {
		o.t.Errorf("intruder without timestamps: %d of %d ports moved", moved, few)
	}
	check(o.t, o.LAN.Machine().Lab().Err())
}

// reusePort makes so many connections from one port, one after the other, and
// counts those that the service saw coming from another one.
func (o *relayOffice) reusePort(from netip.AddrPort, addr string, rounds int, serviceFirst bool) (moved int) {
	o.t.Helper()
	seen := map[netip.AddrPort]bool{}
	var closing []*net.TCPConn
	for round := range rounds {
		client, err := o.tryDial(from, at(addr, 9000))
		for range 100 {
			if !errors.Is(err, unix.EADDRNOTAVAIL) {
				break
			}
			time.Sleep(time.Millisecond) // the intruder's own kernel waits for the last ACK
			client, err = o.tryDial(from, at(addr, 9000))
		}
		if err != nil {
			o.t.Fatalf("round %d from %s, service closes first %v: %v", round, from, serviceFirst, err)
		}
		service := o.script.take(o.t)
		say(o.t, client, service, fmt.Sprintf("round %d", round))
		if peer := remoteAddr(service); peer != from {
			moved++
			seen[peer] = true
		}
		if serviceFirst {
			check(o.t, service.CloseWrite())
			wantEnd(o.t, client, io.EOF)
			check(o.t, client.Close())
			closing = append(closing, service) // the next connection does not wait for it
			continue
		}
		check(o.t, client.CloseWrite())
		wantEnd(o.t, service, io.EOF)
		check(o.t, service.Close())
		wantEnd(o.t, client, io.EOF)
		check(o.t, client.Close())
	}
	for _, service := range closing {
		wantEnd(o.t, service, io.EOF)
		check(o.t, service.Close())
	}
	// What the record says of moved ports is what the service saw.
	eventually(o.t, 5*time.Second, func() error {
		list, err := o.records("--source", from.Addr().String(), "--service", "script")
		if err != nil {
			return err
		}
		found, asSeen := 0, 0
		for _, s := range list {
			if s.source() != from || s.EndReason == "" {
				continue
			}
			found++
			if s.SourceMode == "port_moved" && s.sourceNAT().Addr() == from.Addr() && seen[s.sourceNAT()] {
				asSeen++
			}
		}
		if found != rounds || asSeen != moved {
			return fmt.Errorf("%d sessions of %s are on record, %d of them moved as seen; want %d and %d", found, from, asSeen, rounds, moved)
		}
		return nil
	})
	return moved
}

// portDocument has a thousand decoys of two services, one of which has an alias
// address for each of them.
const portDocument = `
node: gw
segments:
  - name: office
    parent: eth0
    steering: %s
    subnets: [{prefix: 198.18.0.0/16}, {prefix: "2001:db8:2::/64"}]
zones:
  - {name: linux, subnet: [10.1.0.0/24, "fd00:1::/64"], link: br-linux}
services:
  - {name: plain, zone: linux, address: [10.1.0.2, "fd00:1::2"], ports: [7]}
  - name: aliased
    zone: linux
    address: [10.1.0.3, "fd00:1::3"]
    ports: [7]
    aliases: [10.1.128.0/22, "fd00:1:0:8000::/118"]
    netns: linux
decoys:
  - name: thousand
    segment: office
    addresses: [198.18.1.0-198.18.4.231, "2001:db8:2::1:0-2001:db8:2::1:3e7", 198.18.0.1, "2001:db8:2::1"]
    bind:
      - {ports: [7], service: plain}
      - {ports: [8], service: aliased, target: 7}
`

// TestOneSourcePort uses one port of the intruder's towards a thousand decoys of
// one service at once. All connections work; without aliases the service cannot
// tell them apart by their addresses, so all but one get another port.
func TestOneSourcePort(t *testing.T) {
	for _, steering := range steerings {
		t.Run(steering, func(t *testing.T) {
			t.Parallel()
			o := newOffice(t)
			// The way of an intruder who is a router away: all frames go to one
			// neighbour. As neighbours of his own a thousand decoys would fill
			// the kernel's table, which all of a machine's namespaces share.
			for _, args := range []string{
				"address add 198.18.0.66/24 dev eth0", "route add 198.18.0.0/16 via 198.18.0.1",
				"-6 route add 2001:db8:2::1:0/112 via 2001:db8:2::1",
			} {
				_, err := o.Intruder.Run(t.Context(), "ip", strings.Fields(args)...)
				check(t, err)
			}
			server, err := lab.TCPPeer(t.Context(), o.Linux, lab.Listen{})
			check(t, err)
			o.Gateway.ShowNetns("linux", o.Linux)
			o.document(fmt.Sprintf(portDocument, steering))
			o.up()
			for _, c := range []struct {
				service string
				port    int
				from    string
			}{
				{"plain", 7, "198.18.0.66"},
				{"plain", 7, "2001:db8:2::66"},
				{"aliased", 8, "198.18.0.66"},
				{"aliased", 8, "2001:db8:2::66"},
			} {
				t.Run(c.service+" from "+c.from, func(t *testing.T) {
					o.in(t).wantThousand(server, c.service, netip.MustParseAddr(c.from), c.port)
				})
			}
			o.down()
		})
	}
}

// thousand are the decoys of portDocument, of the family of like.
func thousand(like netip.Addr) []netip.Addr {
	first := netip.MustParseAddr("198.18.1.0")
	if like.Is6() {
		first = netip.MustParseAddr("2001:db8:2::1:0")
	}
	var out []netip.Addr
	for a := first; len(out) < 1000; a = a.Next() {
		out = append(out, a)
	}
	return out
}

func (o *office) wantThousand(server *lab.Server, service string, from netip.Addr, port int) {
	source := netip.AddrPortFrom(from, uint16(20000+port))
	// What the server told each client, as netip.AddrPort, by decoy.
	said := map[netip.Addr]netip.AddrPort{}
	var mu sync.Mutex // guards said and conns
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	began := time.Now()
	var clients sync.WaitGroup
	todo := make(chan netip.Addr, 1000)
	for _, decoy := range thousand(from) {
		todo <- decoy
	}
	close(todo)
	for range 16 {
		clients.Go(func() {
			for decoy := range todo {
				if o.t.Failed() {
					return
				}
				conn, peer, err := o.askPeer(source, netip.AddrPortFrom(decoy, uint16(port)))
				if err != nil {
					o.t.Errorf("decoy %s: %v", decoy, err)
					continue
				}
				mu.Lock()
				said[decoy] = peer
				conns = append(conns, conn)
				mu.Unlock()
			}
		})
	}
	clients.Wait()
	o.t.Logf("1000 connections from one port took %s", time.Since(began).Round(time.Millisecond))
	if st, err := o.status(); err != nil || st.Relay.Flows != len(conns) || len(conns) != 1000 {
		o.t.Errorf("%d connections stand, decoynet counts %d (%v)", len(conns), st.Relay.Flows, err)
	}
	// All at once still work.
	for _, c := range conns {
		say(o.t, c, c, "ping")
	}
	moved := o.compareThousand(server, service, source, said)
	o.t.Logf("%d of %d source ports moved", moved, len(said))
	switch {
	case service == "aliased" && moved != 0:
		o.t.Errorf("%d ports moved, with an alias for each decoy", moved)
	case service == "plain" && moved != 999:
		o.t.Errorf("%d ports moved; one could be kept", moved)
	}
}

// askPeer connects from the port and reads whom the server sees.
func (o *office) askPeer(from, to netip.AddrPort) (net.Conn, netip.AddrPort, error) {
	conn, err := o.tryDial(from, to.String())
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	// No more than the line may be read: an echo comes after it.
	line, err := bufio.NewReaderSize(conn, 64).ReadString('\n')
	var ip string
	var port uint16
	if err == nil {
		_, err = fmt.Sscanf(line, "peer %s %d\n", &ip, &port)
	}
	if err != nil {
		return nil, netip.AddrPort{}, errors.Join(fmt.Errorf("the server said %q: %w", line, err), conn.Close())
	}
	return conn, addrPort(ip, port), nil
}

// compareThousand compares the sessions on record with what the server told
// each client and with its log, and counts the moved ports.
func (o *office) compareThousand(server *lab.Server, service string, source netip.AddrPort, said map[netip.Addr]netip.AddrPort) (moved int) {
	o.t.Helper()
	var list []record
	eventually(o.t, 10*time.Second, func() error {
		var err error
		list, err = o.records("--running", "--service", service, "--source", source.Addr().String())
		if err == nil && len(list) != len(said) {
			err = fmt.Errorf("%d sessions run on record, want %d", len(list), len(said))
		}
		return err
	})
	logged := map[lab.Contact]bool{}
	contacts, err := server.Contacts()
	check(o.t, err)
	for _, c := range contacts {
		logged[c] = true
	}
	for _, s := range list {
		peer, ok := said[s.dest().Addr()]
		if !ok || s.source() != source || s.sourceNAT() != peer {
			o.t.Errorf("session %s -> %s was seen as %s, the server says %s", s.source(), s.dest(), s.sourceNAT(), peer)
		}
		if !logged[lab.Contact{Peer: s.sourceNAT(), Local: s.destNAT()}] {
			o.t.Errorf("the server's log has no contact of %s at %s", s.sourceNAT(), s.destNAT())
		}
		mode := "kept"
		if peer != source {
			moved++
			mode = "port_moved"
		}
		if s.SourceMode != mode || peer.Addr() != source.Addr() {
			o.t.Errorf("session %s -> %s: source mode %s, seen as %s", s.source(), s.dest(), s.SourceMode, peer)
		}
	}
	return moved
}
