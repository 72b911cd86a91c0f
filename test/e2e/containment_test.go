//go:build linux

package e2e

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"decoynet/internal/lab"
)

// testContainment has a service that was broken into try to get out. Witnesses
// are listeners at every target, the targets' own logs, and the wire.
func (o *relayOffice) testContainment() {
	before := o.denied()
	held, _ := o.pair(at(oneEach[0], 9000)) // a port at which the intruder does talk to the zone
	var contacts witnesses
	for _, at := range []struct {
		m       *lab.Machine
		address string
	}{
		{o.Gateway, ":2200"}, {o.Intruder, ":4444"}, {o.Production, ":4444"},
	} {
		o.listen(&contacts, at.m, at.address)
	}
	lan := o.capture(o.LAN.Machine(), o.LAN.Bridge(), "net 10.1.0.0/24 or net fd00:1::/64 or host 203.0.113.9 or host 2001:db8:ffff::9")

	productionBefore, err := o.ProductionWeb.Contacts()
	check(o.t, err)
	own := localAddr(held)
	attempts := []string{
		at("192.0.2.10", 80), at("192.0.2.10", 4444), at("2001:db8:2::10", 80), at("2001:db8:2::10", 4444), // production
		at("192.0.2.66", 4444), at("2001:db8:2::66", 4444), own.String(), // the intruder
		at("192.0.2.5", 2200), at("10.1.0.1", 2200), at("2001:db8:2::5", 2200), at("fd00:1::1", 2200), // the gateway's machine
		at("203.0.113.9", 443), at("2001:db8:ffff::9", 443), // somewhere in the internet
		at("192.0.2.100", 80), at("2001:db8:2::100", 80), // another decoy
	}
	// The gateway's link-local address on the bridge is nobody's business either.
	out, err := o.Gateway.Run(o.t.Context(), "ip", "-6", "-o", "address", "show", "dev", "br-linux", "scope", "link")
	check(o.t, err)
	if f := strings.Fields(out); len(f) > 3 {
		linkLocal, _, _ := strings.Cut(f[3], "/")
		attempts = append(attempts, at(linkLocal+"%eth0", 2200))
	} else {
		o.t.Errorf("no link-local address on br-linux: %q", out)
	}
	var tries sync.WaitGroup
	for _, address := range attempts {
		host, port, err := net.SplitHostPort(address)
		check(o.t, err)
		tries.Go(func() {
			if out, err := o.Linux.Run(o.t.Context(), "nc", "-n", "-v", "-z", "-w", "1", host, port); err == nil {
				o.t.Errorf("a service could connect to %s: %s", address, out)
			}
		})
		tries.Go(func() {
			conn, err := o.Linux.Dial(o.t.Context(), "udp", address)
			if err != nil {
				o.t.Errorf("send from the zone to %s: %v", address, err)
				return
			}
			defer conn.Close()
			_, _ = conn.Write([]byte("phone home"))
			_ = conn.SetReadDeadline(time.Now().Add(time.Second))
			if n, err := conn.Read(make([]byte, 100)); err == nil {
				o.t.Errorf("a service got %d bytes back from %s by UDP", n, address)
			}
		})
	}
	for _, host := range []string{"192.0.2.10", "2001:db8:2::10", "192.0.2.66", "2001:db8:2::66", "203.0.113.9", "2001:db8:ffff::9", "192.0.2.100"} {
		tries.Go(func() {
			if out, err := o.Linux.Run(o.t.Context(), "ping", "-n", "-c", "1", "-W", "1", host); err == nil {
				o.t.Errorf("a service could ping %s: %s", host, out)
			}
		})
	}
	tries.Wait()

	lan.none()
	if got := contacts.list(); len(got) > 0 {
		o.t.Errorf("contacts from the zone: %v", got)
	}
	productionAfter, err := o.ProductionWeb.Contacts()
	check(o.t, err)
	if len(productionAfter) != len(productionBefore) {
		o.t.Errorf("production was contacted: %v", productionAfter[len(productionBefore):])
	}
	// Each attempt by TCP, by UDP and by ping was at least one packet.
	if got, least := o.denied()-before, 2*len(attempts)+7; got < least {
		o.t.Errorf("%d packets are counted as denied after at least %d", got, least)
	}
	o.curl("http://" + at(oneEach[0], 80) + "/") // what is asked of the zone is answered as before
}

// denied is how many packets decoynet counts as denied to the zone.
func (o *office) denied() int {
	o.t.Helper()
	st, err := o.status()
	check(o.t, err)
	for _, z := range st.Zones {
		if z.Name == "linux" && z.Contained {
			return z.DeniedPackets
		}
	}
	o.t.Fatalf("zone linux is not contained: %+v", st.Zones)
	return 0
}

// witnesses collect who came, other than the office's own people.
type witnesses struct {
	mu   sync.Mutex // guards came
	came []string
}

func (w *witnesses) note(at net.Addr, from net.Addr) {
	if from != nil && (strings.Contains(from.String(), "10.1.0.") || strings.Contains(from.String(), "fd00:1::")) {
		w.mu.Lock()
		w.came = append(w.came, fmt.Sprintf("%s at %s", from, at))
		w.mu.Unlock()
	}
}

func (w *witnesses) list() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.came...)
}

// listen has a machine listen for TCP and UDP until the test ends.
func (o *office) listen(w *witnesses, m *lab.Machine, address string) {
	o.t.Helper()
	tcp, err := m.Listen(o.t.Context(), "tcp", address)
	check(o.t, err)
	udp, err := m.ListenPacket(o.t.Context(), "udp", address)
	check(o.t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := tcp.Accept()
			if err != nil {
				return
			}
			w.note(tcp.Addr(), conn.RemoteAddr())
			_ = conn.Close()
		}
	})
	serving.Go(func() {
		for {
			_, from, err := udp.ReadFrom(make([]byte, 100))
			if err != nil {
				return
			}
			w.note(udp.LocalAddr(), from)
		}
	})
	o.t.Cleanup(func() {
		_ = tcp.Close()
		_ = udp.Close()
		serving.Wait()
	})
}
