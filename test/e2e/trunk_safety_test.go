//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/internal/lab"
)

// stream is a connection to a server that echoes, over which bytes go all the time.
type stream struct {
	conn net.Conn
	stop chan struct{}
	done chan error // one error or nil, when it has ended
}

// stream starts to a TCPPeer. It ends with the test.
func (o *trunkOffice) stream(m *lab.Machine, address string) *stream {
	o.t.Helper()
	conn, _, err := o.as(m).askPeer(netip.AddrPort{}, netip.MustParseAddrPort(address))
	check(o.t, err)
	s := &stream{conn: conn, stop: make(chan struct{}), done: make(chan error, 1)}
	go func() { s.done <- s.talk() }()
	o.t.Cleanup(func() { _ = conn.Close() })
	return s
}

func (s *stream) talk() error {
	const said = "0123456789abcdef"
	got := make([]byte, len(said))
	for {
		select {
		case <-s.stop:
			return nil
		case <-time.After(20 * time.Millisecond):
		}
		if err := s.conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		if _, err := io.WriteString(s.conn, said); err != nil {
			return err
		}
		if _, err := io.ReadFull(s.conn, got); err != nil || string(got) != said {
			return fmt.Errorf("%q came back as %q: %w", said, got, err)
		}
	}
}

// wantUndisturbed ends the stream and wants it to have gone on until then.
func (s *stream) wantUndisturbed(t *testing.T, what string) {
	t.Helper()
	close(s.stop)
	if err := <-s.done; err != nil {
		t.Errorf("%s was disturbed: %v", what, err)
	}
	_ = s.conn.Close()
}

// management is what the network of gw's own address sees of it.
type management struct {
	ssh    *stream
	ping   *lab.Process
	device string // eth1.99
}

const managementDevice = "ip -d -o link show eth1.99; ip -o address show eth1.99"

func (o *trunkOffice) watchManagement() *management {
	o.t.Helper()
	ping, err := o.admin.Start("ping", "-n", "-i", "0.5", "203.0.113.5")
	check(o.t, err)
	return &management{ssh: o.stream(o.admin, "203.0.113.5:22"), ping: ping, device: o.sh(o.Gateway, managementDevice)}
}

// testUndisturbed: gw's own address in a VLAN that it shares with decoys has
// answered through all that was before, and its device is as it was.
func (m *management) testUndisturbed(o *trunkOffice) {
	m.ssh.wantUndisturbed(o.t, "a connection to gw's own address")
	check(o.t, m.ping.Signal(syscall.SIGINT))
	ctx, cancel := context.WithTimeout(o.t.Context(), 20*time.Second)
	defer cancel()
	_ = m.ping.Wait(ctx) // the status says what its last line says better
	if log := m.ping.Log(); !strings.Contains(log, " 0% packet loss") {
		o.t.Errorf("ping of gw's own address: %s", log[max(0, len(log)-300):])
	}
	if now := o.sh(o.Gateway, managementDevice); now != m.device {
		o.t.Errorf("gw's own interface was\n%snow it is\n%s", m.device, now)
	}
	o.visit(o.admin, "203.0.113.100", "admin", o.beta)
}

// testReload removes a segment and adds it again, beside flows of the others.
func (o *trunkOffice) testReload() {
	trunk := o.Gateway.InSegment("decoynet-_trunk")
	devices := func() string { return o.sh(trunk, "ip -o link show | cut -d: -f1,2") }
	before := devices()
	flows := []*stream{o.stream(o.Intruder, "198.51.100.102:80"), o.stream(o.lab, "192.0.2.101:80")}
	mine := o.stream(o.plant, "198.51.100.102:80")

	o.document(withoutPlant)
	_, err := o.decoynet("reload")
	check(o.t, err)
	if now := devices(); strings.Contains(now, "v120-") || !strings.Contains(now, "v110-eth1") {
		o.t.Errorf("VLAN devices without segment plant:\n%s", now)
	}
	if out := o.sh(o.Gateway, "ip netns list"); strings.Contains(out, "decoynet-plant") {
		o.t.Errorf("namespaces without segment plant:\n%s", out)
	}
	if err := <-mine.done; err == nil {
		o.t.Error("a flow of a segment that is gone goes on")
	}
	if out, err := o.plant.Run(o.t.Context(), "busybox", "arping", "-c", "1", "-w", "1", "-I", "eth0", "198.51.100.102"); err == nil {
		o.t.Errorf("a segment that is gone answers: %s", out)
	}

	o.document(trunkDocument)
	_, err = o.decoynet("reload")
	check(o.t, err)
	o.waitReady(10 * time.Second)
	o.visit(o.plant, "198.51.100.102", "plant", o.beta)
	for _, f := range flows {
		f.wantUndisturbed(o.t, "a flow of another VLAN")
	}
	for line := range strings.Lines(before) {
		if !strings.Contains(line, "v120-") && !strings.Contains(devices(), line) {
			o.t.Errorf("a VLAN device of others is not the one it was: %s", line)
		}
	}
}

// testHostOutOfReach: no server of gw's answers in VLANs that are decoys' alone, nor
// in the trunk's native one, whatever the frames are addressed to; in the former
// nothing else of gw does.
func (o *trunkOffice) testHostOutOfReach() {
	native := o.access(o.LAN.Machine().Lab().Machine("native"), 1, "198.51.100.67/24")
	o.sh(o.LAN.Machine(), "bridge vlan add dev gw-eth1 vid 1 pvid untagged")
	check(o.t, o.LAN.Machine().Lab().Err())
	nic := strings.TrimSpace(o.sh(o.Gateway, "cat /sys/class/net/eth1/address"))
	local6 := strings.TrimSpace(o.sh(o.Gateway, "ip -6 -o address show dev eth1 scope link | awk '{sub(\"/.*\", \"\", $4); print $4}'"))
	type place struct {
		from *lab.Machine
		macs []string
	}
	lan := map[string]string{}
	st, err := o.status()
	check(o.t, err)
	for _, s := range st.Segments {
		lan[s.Name] = s.MAC
	}
	places := []place{{o.Intruder, []string{nic, lan["dmz"]}}, {o.plant, []string{nic, lan["plant"]}}, {native, []string{nic, lan["admin"]}}}
	own := []string{"203.0.113.5", "fd00:1::1"}
	seen := o.capture(o.LAN.Machine(), "gw-eth1", "port 22 or (vlan and port 22)")
	before, err := o.sshd.Contacts()
	check(o.t, err)
	var asking sync.WaitGroup
	for _, p := range places {
		asking.Go(func() {
			for _, mac := range p.macs {
				var dialing sync.WaitGroup
				for _, addr := range own {
					dialing.Go(func() { o.reach(p.from, addr, mac) })
				}
				dialing.Wait()
			}
			if p.from != native {
				o.unanswered(p.from, local6)
			}
		})
	}
	asking.Wait()
	seen.want("203.0.113.5.22:", "vlan 110,") // they did arrive
	seen.want("203.0.113.5.22:", "vlan 120,")
	seen.want(">", "ethertype IPv4 (0x0800)", "198.51.100.67.", "203.0.113.5.22:")
	seen.none("203.0.113.5.22 > 198.51.100.")
	seen.none("fd00:1::1.22 > ")
	after, err := o.sshd.Contacts()
	check(o.t, err)
	for _, c := range after[len(before):] {
		o.t.Errorf("gw's own server was reached by %s", c.Peer)
	}
	o.sh(o.LAN.Machine(), "bridge vlan del dev gw-eth1 vid 1")
}

// unanswered: gw has no address in the machine's network, not even a link-local one.
func (o *trunkOffice) unanswered(from *lab.Machine, local6 string) {
	if out, err := from.Run(o.t.Context(), "busybox", "arping", "-c", "1", "-w", "1", "-I", "eth0", "203.0.113.5"); err == nil {
		o.t.Errorf("%s has an answer to ARP for gw's address: %s", from, out)
	}
	if out, err := from.Run(o.t.Context(), "ping", "-n", "-c", "1", "-W", "1", local6+"%eth0"); err == nil {
		o.t.Errorf("%s reaches gw's link-local address: %s", from, out)
	}
}

// reach tries to connect to an address of gw, of which the machine believes to
// know the MAC address.
func (o *trunkOffice) reach(from *lab.Machine, addr, mac string) {
	bits := 32
	if strings.Contains(addr, ":") {
		bits = 128
	}
	out, err := from.Run(o.t.Context(), "sh", "-ec", fmt.Sprintf("ip route replace %[1]s/%[2]d dev eth0; ip neigh replace %[1]s lladdr %[3]s dev eth0 nud permanent", addr, bits, mac))
	if err != nil {
		o.t.Errorf("make gw known: %s, %v", out, err)
		return
	}
	ctx, cancel := context.WithTimeout(o.t.Context(), time.Second)
	defer cancel()
	conn, err := from.Dial(ctx, "tcp", net.JoinHostPort(addr, "22"))
	if err == nil {
		_ = conn.Close()
		o.t.Errorf("%s is connected to %s, at %s", from, addr, mac)
	}
}

// testNoForwarding: who takes a decoy for a router gets nowhere.
func (o *trunkOffice) testNoForwarding() {
	o.sh(o.Intruder, "for to in 10.20.0.0/24 10.1.0.0/24 203.0.113.0/24; do ip route replace $to via 198.51.100.103; done")
	other := o.capture(o.LAN.Machine(), "gw-eth1", "vlan and src 198.51.100.66")
	zone := o.capture(o.Linux, "eth0", "src 198.51.100.66")
	var asking sync.WaitGroup
	for _, to := range []string{"10.20.0.100:80", "10.20.0.66:80", "10.1.0.3:7", "203.0.113.66:22", "203.0.113.100:80"} {
		asking.Go(func() {
			ctx, cancel := context.WithTimeout(o.t.Context(), 2*time.Second)
			defer cancel()
			conn, err := o.Intruder.Dial(ctx, "tcp", to)
			if err == nil {
				_ = conn.Close()
				o.t.Errorf("the intruder is connected to %s, by way of a decoy", to)
			}
		})
	}
	asking.Wait()
	other.want("vlan 110,", "> 10.20.0.100.80:") // it did arrive
	other.none("vlan 120,")
	other.none("vlan 99,")
	zone.none()
	o.sh(o.Intruder, "for to in 10.20.0.0/24 10.1.0.0/24 203.0.113.0/24; do ip route del $to via 198.51.100.103; done")
}

// testProbes: a scan in one VLAN is one probe, of its segment.
func (o *trunkOffice) testProbes() {
	_, err := o.Production.Run(o.t.Context(), "nmap", "-n", "-T4", "-p", "81-85", "198.51.100.101-112")
	check(o.t, err)
	type probe struct {
		Segment   string `json:"decoynet.segment"`
		Kind      string `json:"decoynet.probe.kind"`
		ARP       int    `json:"decoynet.probe.contacts.arp"`
		SYN       int    `json:"decoynet.probe.contacts.syn"`
		Addresses int    `json:"decoynet.probe.addresses"`
	}
	eventually(o.t, 5*time.Second, func() error {
		out, err := o.decoynet("get", "probes", "-o", "json", "--source", "198.51.100.120")
		if err != nil {
			return err
		}
		var p probe
		if strings.Count(out, "\n") != 1 {
			return fmt.Errorf("the scan is not one probe:\n%s", out)
		}
		if err := json.Unmarshal([]byte(out), &p); err != nil {
			return err
		}
		if p.Segment != "dmz" || p.Kind != "horizontal_scan" && p.Kind != "network_scan" || p.Addresses != 12 || p.ARP < 12 || p.SYN < 60 {
			return fmt.Errorf("the scan is told as %+v", p)
		}
		return nil
	})
}

// held tells whether the segment's kernel has the address.
func (o *trunkOffice) held(segment, addr string) bool {
	out, err := o.Gateway.InSegment("decoynet-"+segment).Run(o.t.Context(), "ip", "-o", "route", "get", addr)
	return err == nil && strings.HasPrefix(out, "local ")
}

// testConflicts: a real host that was there first, one that comes, and one that asks
// first, each get their address, in their VLAN.
func (o *trunkOffice) testConflicts() {
	real := o.Production
	mac := strings.TrimSpace(o.sh(real, "cat /sys/class/net/eth0/address"))
	conflict := func(addr string) {
		o.t.Helper()
		eventually(o.t, 3*time.Second, func() error {
			if o.held("dmz", addr) {
				return fmt.Errorf("%s is still a decoy's", addr)
			}
			return nil
		})
		e := o.wantEvent("address-conflict", func(e event) bool { return e.DestIP == addr })
		if e.Segment != "dmz" || e.Decoy != "dmz-web" || !strings.Contains(e.Message, mac) {
			o.t.Errorf("the event of %s says %+v", addr, e)
		}
		if strings.Contains(addr, ".") && !o.held("plant", addr) {
			o.t.Errorf("%s was given up in another VLAN, too", addr)
		}
	}
	conflict("198.51.100.120")
	if at := o.lladdr("198.51.100.120"); at != mac {
		o.t.Errorf("198.51.100.120 is at %s, and is %s's", at, mac)
	}

	flow, _, err := o.askPeer(netip.AddrPort{}, netip.MustParseAddrPort("198.51.100.121:80"))
	check(o.t, err)
	defer flow.Close()
	began := time.Now()
	o.sh(real, "ip address add 198.51.100.121/24 dev eth0; busybox arping -q -U -c 1 -w 1 -I eth0 198.51.100.121 || true")
	eventually(o.t, 3*time.Second, func() error {
		if o.held("dmz", "198.51.100.121") {
			return fmt.Errorf("198.51.100.121 is still a decoy's")
		}
		return nil
	})
	o.t.Logf("given up within %v", time.Since(began).Round(time.Millisecond))
	wantEnd(o.t, flow.(*net.TCPConn), unix.ECONNRESET)
	conflict("198.51.100.121")

	// Duplicate address detection has it that nobody is there.
	if out, err := real.Run(o.t.Context(), "busybox", "arping", "-D", "-c", "2", "-w", "2", "-I", "eth0", "198.51.100.122"); err != nil {
		o.t.Errorf("who asks first for a decoy's address is refused: %s, %v", out, err)
	}
	conflict("198.51.100.122")
	o.sh(real, "echo 1 >/proc/sys/net/ipv6/conf/eth0/accept_dad; ip address add 2001:db8:110::121/64 dev eth0")
	eventually(o.t, 5*time.Second, func() error {
		if out := o.sh(real, "ip -o address show dev eth0 to 2001:db8:110::121"); strings.Contains(out, "tentative") || strings.Contains(out, "dadfailed") {
			return fmt.Errorf("the real host has not got its address: %s", out)
		}
		return nil
	})
	conflict("2001:db8:110::121")
}
