//go:build linux

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/internal/lab"
)

const kernelDocument = `
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
  - {name: web, zone: linux, address: [10.1.0.2, "fd00:1::2"], ports: [80]%[1]s}
  - {name: redis, zone: linux, address: [10.1.0.3, "fd00:1::3"], ports: [6379]%[2]s}
  - {name: snmp, zone: linux, address: [10.1.0.5, "fd00:1::5"], ports: [161/udp]%[3]s}
decoys:
  - name: office-decoys
    segment: office
    path: kernel
    idle: 1m
    addresses: [192.0.2.100-192.0.2.199, "2001:db8:2::100-2001:db8:2::10f"]
    bind:
      - {ports: [80], service: web}
      - {ports: [6379], service: redis}
      - {ports: [161/udp], service: snmp}
  - name: relayed
    segment: office
    addresses: [192.0.2.200]
    bind: [{ports: [6379], service: redis}]
`

// kernelOffice runs the document with aliases for every service, or with none.
func kernelOffice(t *testing.T, aliases bool) *office {
	t.Helper()
	o := newOffice(t)
	o.Gateway.ShowNetns("linux", o.Linux)
	pools := []any{"", "", ""}
	if aliases {
		for i := range pools {
			pools[i] = fmt.Sprintf(`, aliases: [10.1.%d.0/24, "fd00:1:0:%x::/112"], netns: linux`, 128+i, 0x8000+i)
		}
	}
	o.document(fmt.Sprintf(kernelDocument, pools...))
	o.up()
	return o
}

// The kernel path leads TCP and UDP of both families to the service under the
// intruder's own address; the sessions say what the service's log says.
func TestKernelPath(t *testing.T) {
	for _, aliases := range []bool{false, true} {
		t.Run(fmt.Sprintf("aliases=%v", aliases), func(t *testing.T) {
			t.Parallel()
			o := kernelOffice(t, aliases)
			o.wantWeb("192.0.2.100", "192.0.2.199", "[2001:db8:2::10f]")
			for _, decoy := range []string{"192.0.2.101", "2001:db8:2::101"} {
				s := o.keepOpen(net.JoinHostPort(decoy, "6379"))
				check(t, s.ping())
				o.wantRecorded("redis", s.conn.LocalAddr(), s.conn.RemoteAddr(), "", o.Redis.Peers)
				s.conn.Close()
				o.wantRecorded("redis", s.conn.LocalAddr(), s.conn.RemoteAddr(), "client_closed", o.Redis.Peers)

				u := o.udp(net.JoinHostPort(decoy, "161"))
				o.wantRecorded("snmp", u.LocalAddr(), u.RemoteAddr(), "", o.UDP.Peers)
			}
			// A strict host (the effective value is the maximum of an interface's
			// own and all) checks every source address; ours must pass.
			o.Gateway.Sysctl("net.ipv4.conf.all.rp_filter", "1")
			o.wantWeb("192.0.2.105")
			o.wantKernelReset(t)
			o.wantMixedPaths(t)
			o.wantClosedWhileDown(t)
		})
	}
}

// udp sends a datagram and wants an answer.
func (o *office) udp(address string) net.Conn {
	o.t.Helper()
	conn, err := o.Intruder.Dial(o.t.Context(), "udp", address)
	check(o.t, err)
	o.t.Cleanup(func() { conn.Close() })
	check(o.t, conn.SetDeadline(time.Now().Add(5*time.Second)))
	_, err = conn.Write([]byte("who is there"))
	check(o.t, err)
	_, err = conn.Read(make([]byte, 1500))
	check(o.t, err)
	return conn
}

// wantRecorded waits for the session of a flow as the client knows it, in the
// given state, and compares what it says of the service's side with the
// service's own log.
func (o *office) wantRecorded(service string, source, decoy net.Addr, reason string, peers func() ([]netip.AddrPort, error)) {
	o.t.Helper()
	eventually(o.t, 10*time.Second, func() error {
		for _, s := range o.sessions("--service", service) {
			if endpoint(s, "source") != source.String() || endpoint(s, "destination") != decoy.String() {
				continue
			}
			if got, _ := s["decoynet.end_reason"].(string); got != reason {
				return fmt.Errorf("session %s -> %s: end reason %q, want %q", source, decoy, got, reason)
			}
			return wantSeen(endpoint(s, "source.nat"), peers)
		}
		return fmt.Errorf("no session %s -> %s", source, decoy)
	})
}

func wantSeen(peer string, peers func() ([]netip.AddrPort, error)) error {
	seen, err := peers()
	if err != nil {
		return err
	}
	for _, p := range seen {
		if p.String() == peer {
			return nil
		}
	}
	return fmt.Errorf("the service's log has no peer %s", peer)
}

func endpoint(s map[string]any, field string) string {
	port, _ := s[field+".port"].(float64)
	return net.JoinHostPort(fmt.Sprint(s[field+".ip"]), fmt.Sprint(int(port)))
}

// wantKernelReset sees a reset named with whom it came from.
func (o *office) wantKernelReset(t *testing.T) {
	t.Helper()
	s := o.keepOpen("192.0.2.102:6379")
	check(t, s.ping())
	check(t, s.conn.(*net.TCPConn).SetLinger(0))
	check(t, s.conn.Close())
	o.wantRecorded("redis", s.conn.LocalAddr(), s.conn.RemoteAddr(), "client_reset", o.Redis.Peers)
}

// wantMixedPaths reaches one service by both paths at once: each answer finds
// its way back.
func (o *office) wantMixedPaths(t *testing.T) {
	t.Helper()
	var all []*session
	for range 20 {
		all = append(all, o.keepOpen("192.0.2.103:6379"), o.keepOpen("192.0.2.200:6379"))
	}
	for _, s := range all {
		check(t, s.ping())
	}
	for _, s := range all {
		s.conn.Close()
	}
}

// wantClosedWhileDown stops a service: its port is refused within three
// seconds, others stay, and it is open again when the service is.
func (o *office) wantClosedWhileDown(t *testing.T) {
	t.Helper()
	check(t, o.Redis.Stop(t.Context()))
	began := time.Now()
	eventually(t, 10*time.Second, func() error {
		if s := o.keepOpen("192.0.2.104:6379"); s.alive == nil {
			s.conn.Close()
			return fmt.Errorf("the port is open though the service is down")
		} else if !strings.Contains(s.alive.Error(), "refused") {
			return fmt.Errorf("want the port refused: %w", s.alive)
		}
		return nil
	})
	t.Logf("the port was refused %s after the service stopped", time.Since(began).Round(time.Millisecond))
	o.wantWeb("192.0.2.104")
	check(t, o.Redis.Start(t.Context()))
	eventually(t, 10*time.Second, func() error { return o.keepOpen("192.0.2.104:6379").ping() })
}

// The host answers ARP at a zone's link for its own address only: services on
// one bridge must find each other, though what they send is delivered locally.
func TestZoneKeepsItsNeighbours(t *testing.T) {
	t.Parallel()
	o := kernelOffice(t, false)
	for address, answered := range map[string]bool{"10.1.0.1": true, "10.1.0.77": false} {
		out, err := o.Linux.Run(t.Context(), "arping", "-c", "2", "-w", "2", "-I", "eth0", address)
		if (err == nil) != answered {
			t.Errorf("arping %s answered = %v, want %v: %s", address, err == nil, answered, out)
		}
	}
}

// One intruder's port towards many decoys of one service, over and over at full
// speed: with aliases the service sees that very port every time; without, what
// it saw instead is on record.
func TestKernelPathSourcePorts(t *testing.T) {
	for _, aliases := range []bool{false, true} {
		t.Run(fmt.Sprintf("aliases=%v", aliases), func(t *testing.T) {
			t.Parallel()
			o := kernelOffice(t, aliases)
			const port, decoys = 34567, 100
			var wg sync.WaitGroup
			for i := range decoys {
				wg.Go(func() {
					decoy := fmt.Sprintf("192.0.2.%d:6379", 100+i)
					conn, err := o.dialFromPort(port, decoy)
					if err != nil {
						t.Errorf("dial %s from port %d: %v", decoy, port, err)
						return
					}
					defer conn.Close()
					s := &session{conn: conn}
					s.reader()
					if err := s.ping(); err != nil {
						t.Errorf("%s: %v", decoy, err)
					}
				})
			}
			wg.Wait()
			eventually(t, 10*time.Second, func() error {
				if n := len(o.sessions("--service", "redis")); n != decoys {
					return fmt.Errorf("%d sessions, want %d", n, decoys)
				}
				return nil
			})
			moved := 0
			for _, s := range o.sessions("--service", "redis") {
				check(t, wantSeen(endpoint(s, "source.nat"), o.Redis.Peers))
				if s["source.nat.port"] != float64(port) {
					moved++
				}
			}
			t.Logf("%d of %d ports moved", moved, decoys)
			if aliases && moved > 0 {
				t.Errorf("%d of %d source ports were moved although every decoy has an alias", moved, decoys)
			}
		})
	}
}

// dialFromPort connects from one fixed source port, which several connections
// to different decoys may share.
func (o *office) dialFromPort(port int, decoy string) (net.Conn, error) {
	var conn net.Conn
	err := o.Intruder.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		to := netip.MustParseAddrPort(decoy)
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: lab.OfficeIntruder.V4.As4()})
		}
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
		}
		if err != nil {
			unix.Close(fd)
			return err
		}
		conn, err = fileConn(fd)
		return err
	})
	return conn, err
}
