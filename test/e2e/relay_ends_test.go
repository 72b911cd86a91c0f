//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/internal/lab"
)

// ends shows the segments that end a connection: FIN and RST of both families.
const ends = "tcp[tcpflags] & (tcp-rst|tcp-fin) != 0 or (ip6[6] == 6 and ip6[53] & 5 != 0)"

// testHalfClose has each side end its direction first and the other go on for
// long: what is said after the first FIN still arrives.
func (o *relayOffice) testHalfClose() {
	const size = 1 << 20
	for _, addr := range oneEach {
		client, service := o.pair(at(addr, 9000))
		sendAll(o.t, client, service, 64) // the intruder's request, and its end
		sendAll(o.t, service, client, size)
		s := o.wantReason(localAddr(client), "client_closed")
		wantBytes(o.t, s, 64, size)

		client, service = o.pair(at(addr, 9000))
		sendAll(o.t, service, client, 64)
		sendAll(o.t, client, service, size)
		s = o.wantReason(localAddr(client), "service_closed")
		wantBytes(o.t, s, size, 64)
	}
	// nc -N half-closes as programs in the field do.
	done := make(chan string, 1)
	go func() {
		conn := <-o.script.conns
		all, err := io.ReadAll(conn)
		_, err2 := fmt.Fprintf(conn, "you said %s", all)
		done <- fmt.Sprint(errors.Join(err, err2, conn.Close()))
	}()
	out := o.runInput("attack at dawn", "nc", "-n", "-N", "-w", "5", oneEach[0], "9000")
	if said := <-done; out != "you said attack at dawn" || said != "<nil>" {
		o.t.Errorf("nc -N got %q, the service says %s", out, said)
	}
}

func wantBytes(t *testing.T, s record, up, down int64) {
	t.Helper()
	if s.SourceBytes != up || s.DestBytes != down {
		t.Errorf("the session of %s has %d/%d bytes on record, want %d/%d", s.source(), s.SourceBytes, s.DestBytes, up, down)
	}
}

// testReset resets flows in all the states they can be in. The peer must see a
// reset, on the wire and in its socket, and never an orderly end.
func (o *relayOffice) testReset() {
	zone := o.capture(o.Gateway, "br-linux", ends)
	lan := o.capture(o.Intruder, "eth0", ends)
	for _, c := range []struct {
		name      string
		byService bool
		before    func(t *testing.T, client, service *net.TCPConn)
	}{
		{"client, idle flow", false, nil},
		{"service, idle flow", true, nil},
		{"client, after the service's half-close", false, func(t *testing.T, client, service *net.TCPConn) {
			check(t, service.CloseWrite())
			wantEnd(t, client, io.EOF)
		}},
		{"service, after the client's half-close", true, func(t *testing.T, client, service *net.TCPConn) {
			check(t, client.CloseWrite())
			wantEnd(t, service, io.EOF)
		}},
		{"client, while it is sent more than it reads", false, func(t *testing.T, client, service *net.TCPConn) { stall(t, service) }},
		{"service, while it is sent more than it reads", true, func(t *testing.T, client, service *net.TCPConn) { stall(t, client) }},
	} {
		for _, addr := range oneEach {
			client, service := o.pair(at(addr, 9000))
			say(o.t, client, service, "who are you")
			say(o.t, service, client, "nobody")
			if c.before != nil {
				c.before(o.t, client, service)
			}
			own, reason := localAddr(client), "client_reset"
			from, to := client, service
			if c.byService {
				from, to, reason = service, client, "service_reset"
			}
			check(o.t, from.SetLinger(0))
			check(o.t, from.Close())
			wantEnd(o.t, to, unix.ECONNRESET)
			o.wantReason(own, reason)
			if o.t.Failed() {
				o.t.Fatalf("%s, at %s", c.name, addr)
			}
			if c.byService {
				lan.want("> "+dotted(own)+":", "Flags [R")
				if !strings.Contains(c.name, "half-close") {
					lan.none("> "+dotted(own)+":", "Flags [F")
				}
			} else {
				zone.want(" "+dotted(own)+" >", "Flags [R")
				if !strings.Contains(c.name, "half-close") {
					zone.none(" "+dotted(own)+" >", "Flags [F")
				}
			}
		}
	}
}

// wantEnd waits for a connection to end as said: io.EOF, or an error number.
func wantEnd(t *testing.T, conn *net.TCPConn, want error) {
	t.Helper()
	check(t, conn.SetDeadline(time.Now().Add(5*time.Second)))
	_, err := io.Copy(io.Discard, conn)
	if err == nil {
		err = io.EOF
	}
	if !errors.Is(err, want) {
		t.Errorf("the connection of %s ended with %v, want %v", conn.LocalAddr(), err, want)
	}
}

// stall writes until nothing on the way to the peer takes more.
func stall(t *testing.T, conn *net.TCPConn) {
	t.Helper()
	block := make([]byte, 1<<20)
	for range 1000 {
		check(t, conn.SetWriteDeadline(time.Now().Add(150*time.Millisecond)))
		if _, err := conn.Write(block); err != nil {
			if errors.Is(err, unix.ECONNRESET) {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("the peer does not read, but a gigabyte was taken")
}

// testIdle leaves flows alone through a decoy with `idle: 2s`. A byte in
// between puts the end off.
func (o *relayOffice) testIdle() {
	type flow struct {
		client, service *net.TCPConn
		last            time.Time
	}
	var flows []flow
	for _, addr := range []string{"192.0.2.200", "2001:db8:2::200"} {
		client, service := o.pair(at(addr, 9000))
		flows = append(flows, flow{client: client, service: service})
	}
	datagrams := o.udp("192.0.2.200:161")
	time.Sleep(1500 * time.Millisecond)
	for i := range flows {
		say(o.t, flows[i].service, flows[i].client, "still there?")
		flows[i].last = time.Now()
	}
	for _, f := range flows {
		wantEnd(o.t, f.client, unix.ECONNRESET)
		took := time.Since(f.last)
		wantEnd(o.t, f.service, unix.ECONNRESET)
		// Looked at once a second; and a busy machine gets some time more.
		if took < 1900*time.Millisecond || took > 5*time.Second {
			o.t.Errorf("a flow with 2 s of idle time was ended after %s", took)
		}
		o.t.Logf("ended %s after the last byte", took.Round(time.Millisecond))
		wantBytes(o.t, o.wantReason(localAddr(f.client), "idle"), 0, int64(len("still there?")))
	}
	own := localAddr(datagrams)
	if s := o.wantReason(own, "idle"); s.Transport != "udp" || s.SourceBytes != int64(len("who is there")) {
		o.t.Errorf("the UDP session is on record as %+v", s)
	}
}

// testServiceDown stops and starts services: the decoys' ports follow. One
// service is down from the start, and its ports were never open.
func (o *relayOffice) testServiceDown() {
	for _, addr := range both {
		if !o.refused(at(addr, 8000)) {
			o.t.Errorf("%s is not refused, and its service has never run", at(addr, 8000))
		}
	}
	late, err := lab.TCPPeer(o.t.Context(), o.Linux, lab.Listen{Ports: []uint16{8000}})
	check(o.t, err)
	for _, addr := range oneEach {
		o.t.Logf("%s open %s after its service has come up", at(addr, 8000), o.waitOpen(addr, 8000))
	}

	check(o.t, errors.Join(late.Stop(o.t.Context()), o.Redis.Stop(o.t.Context()), o.UDP.Stop(o.t.Context())))
	stopped := time.Now()
	// First without anybody at the door, whose being refused is itself noticed.
	eventually(o.t, 8*time.Second, func() error {
		up, err := o.portsUp()
		if err == nil && (up["redis"] || up["snmp"] || up["late"]) {
			err = fmt.Errorf("services that are up: %v", up)
		}
		return err
	})
	o.t.Logf("three services that were stopped are known to be down after %s", time.Since(stopped).Round(time.Millisecond))
	for _, addr := range both {
		eventually(o.t, 3*time.Second, func() error {
			if !o.refused(at(addr, 6379)) || !o.refused(at(addr, 8000)) {
				return fmt.Errorf("ports of %s are open while their services are down", addr)
			}
			return nil
		})
		wantUnreachable(o.t, o.office, at(addr, 161))
		o.curl("http://" + at(addr, 80) + "/") // others are not concerned
	}

	check(o.t, errors.Join(o.Redis.Start(o.t.Context()), o.UDP.Start(o.t.Context())))
	for _, addr := range oneEach {
		o.t.Logf("%s open %s after the service has come back", at(addr, 6379), o.waitOpen(addr, 6379))
		eventually(o.t, 8*time.Second, func() error {
			_, err := o.tryDatagram(at(addr, 161))
			return err
		})
	}
	// And once more with intruders who keep knocking.
	check(o.t, o.Redis.Stop(o.t.Context()))
	o.t.Logf("%s refused %s after the service has stopped", at(oneEach[0], 6379), o.waitPort(oneEach[0], 6379, false))
	check(o.t, o.Redis.Start(o.t.Context()))
	for _, addr := range oneEach {
		o.waitOpen(addr, 6379)
	}
}

// tryDatagram sends one to a decoy and waits for the answer.
func (o *office) tryDatagram(address string) (string, error) {
	conn, err := o.Intruder.Dial(o.t.Context(), "udp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := conn.Write([]byte("anybody?")); err != nil {
		return "", err
	}
	b := make([]byte, 1500)
	n, err := conn.Read(b)
	return string(b[:n]), err
}

// wantUnreachable wants an ICMP port unreachable, as a closed port gives it. The
// kernel limits how many of those it sends to one host, so some are asked for.
func wantUnreachable(t *testing.T, o *office, address string) {
	t.Helper()
	eventually(t, 5*time.Second, func() error {
		if _, err := o.tryDatagram(address); !errors.Is(err, unix.ECONNREFUSED) {
			return fmt.Errorf("a datagram to %s met %v, want %v", address, err, unix.ECONNREFUSED)
		}
		return nil
	})
}

// portsUp tells of each service whether any of its ports is up.
func (o *office) portsUp() (map[string]bool, error) {
	st, err := o.status()
	if err != nil {
		return nil, err
	}
	up := map[string]bool{}
	for _, s := range st.Services {
		for _, p := range s.Ports {
			up[s.Name] = up[s.Name] || p.Up
		}
	}
	return up, nil
}

// testServiceKilled kills a server in the middle of flows: they end, and the
// port is refused.
func (o *relayOffice) testServiceKilled() {
	for _, addr := range oneEach {
		server, err := o.Linux.Start("socat", "TCP6-LISTEN:8001,fork,reuseaddr,ipv6only=0", "PIPE")
		check(o.t, err)
		// A decoy's port may still be open from the last round, and nobody behind it.
		eventually(o.t, 5*time.Second, func() error {
			if out, err := o.Linux.Run(o.t.Context(), "ss", "-Hltn", "sport = :8001"); err != nil || out == "" {
				return fmt.Errorf("the server does not listen yet (%v)", err)
			}
			return nil
		})
		o.waitOpen(addr, 8001)
		conn := o.dial(at(addr, 8001))
		say(o.t, conn, conn, "echo")
		check(o.t, server.Kill())
		check(o.t, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
			o.t.Errorf("the server was killed, and the intruder's read met %v", err)
		}
		check(o.t, conn.Close())
		wantBytes(o.t, o.wantReason(localAddr(conn), "service_closed", "service_reset"), 4, 4)
		o.t.Logf("%s refused %s after the server was killed", at(addr, 8001), o.waitPort(addr, 8001, false))
	}
}
