//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"decoynet/internal/lab"
)

// conflictsDocument has a decoy in a network where others have addresses, too.
const conflictsDocument = `
node: %s
segments:
  - name: office
    parent: eth0
    claim: %s
    subnets: [{prefix: 192.0.2.0/24, gateway: 192.0.2.1}, {prefix: "2001:db8:2::/64"}]
zones:
  - {name: linux, subnet: [10.1.0.0/24, "fd00:1::/64"], link: br-linux}
services:
  - {name: redis, zone: linux, address: [10.1.0.3, "fd00:1::3"], ports: [6379]}
decoys:
  - name: shop
    segment: office
    addresses: [192.0.2.100-192.0.2.115, "2001:db8:2::100-2001:db8:2::10f"]
    bind: [{ports: [6379], service: redis}]
`

var answeredBy = regexp.MustCompile(`bytes from ([0-9a-f:]{17})`)

// owners asks once by ARP for an address and returns the MAC addresses that
// answer, in half a second.
func (o *office) owners(address string) []string {
	o.t.Helper()
	out, _ := o.Intruder.Run(o.t.Context(), "arping", "-c", "1", "-w", "0.5", "-i", "eth0", address) // fails where nobody answers
	var macs []string
	for _, m := range answeredBy.FindAllStringSubmatch(out, -1) {
		macs = append(macs, m[1])
	}
	return macs
}

// owners6 is owners for IPv6.
func (o *office) owners6(address string) []string {
	out, _ := o.Intruder.Run(o.t.Context(), "ndisc6", "-q", "-n", "-r", "1", "-w", "500", address, "eth0")
	return strings.Fields(strings.ToLower(out))
}

// taken waits until one machine alone answers for an address.
func (o *office) taken(d time.Duration, address, mac string) {
	o.t.Helper()
	ask := o.owners
	if strings.Contains(address, ":") {
		ask = o.owners6
	}
	eventually(o.t, d, func() error {
		if got := ask(address); !slices.Equal(got, []string{strings.ToLower(mac)}) {
			return fmt.Errorf("%s is at %v, want %s", address, got, mac)
		}
		return nil
	})
}

// claims is what status says of the first segment.
type claims struct {
	MAC                          string
	Addresses, Claimed, Claiming int
	Conflicts                    []string
}

func (o *office) claims() claims {
	o.t.Helper()
	out, err := o.decoynet("status", "-o", "json")
	check(o.t, err)
	var st struct{ Segments []claims }
	check(o.t, json.Unmarshal([]byte(out), &st))
	return st.Segments[0]
}

// local tells whether the segment's namespace has the address as its own.
func (o *office) local(address string) bool {
	o.t.Helper()
	family := "-4"
	if strings.Contains(address, ":") {
		family = "-6"
	}
	out, err := o.Gateway.InSegment("decoynet-office").Run(o.t.Context(), "ip", family, "route", "get", address)
	return err == nil && strings.HasPrefix(out, "local ")
}

// conflict waits for the event of an address and returns how many there are.
func (o *office) conflict(address, mac string) int {
	o.t.Helper()
	n := 0
	eventually(o.t, 20*time.Second, func() error {
		out, err := o.decoynet("get", "events", "-o", "json", "--kind", "address-conflict")
		if err != nil {
			return err
		}
		n = 0
		for line := range strings.Lines(out) {
			var e event
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				return err
			}
			if strings.Contains(e.Message, address+" ") && strings.Contains(e.Message, mac) && e.Decoy == "shop" && e.Node == "gw" {
				n++
			}
		}
		if n == 0 {
			return fmt.Errorf("no event of %s and %s among\n%s", address, mac, out)
		}
		return nil
	})
	return n
}

// TestRealHostsWin: whoever really has an address keeps it or gets it, and the
// other decoys do not notice.
func TestRealHostsWin(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	owner := o.stranger("owner", 103)
	newcomer := o.stranger("newcomer", 20)
	newcomer.run("sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=1")
	o.document(fmt.Sprintf(conflictsDocument, "gw", "probe"))
	o.up()
	for _, part := range []struct {
		name string
		test func(*office, *stranger)
	}{
		{"There", (*office).testHostIsThere},
		{"Announces", (*office).testHostAnnounces},
		{"Asks", (*office).testHostAsks},
		{"Detects6", (*office).testHostDetects6},
		{"Flaps", (*office).testHostFlaps},
		{"NeverAnswered", func(o *office, _ *stranger) { o.testNeverAnswered() }},
	} {
		s := newcomer
		if part.name == "There" {
			s = owner
		}
		t.Run(part.name, func(t *testing.T) {
			view := *s
			view.o = o.in(t)
			part.test(view.o, &view)
		})
	}
	o.down()
	o.wantNoErrorLogged()
}

// announce says once that the address is the machine's (gratuitous ARP).
func (s *stranger) announce(address string) {
	// That nobody answers, arping calls a failure.
	_, _ = s.Run(s.o.t.Context(), "arping", "-q", "-U", "-c", "1", "-w", "0.1", "-i", "eth0", "-S", address, address)
}

// testHostIsThere: what somebody had before is not taken.
func (o *office) testHostIsThere(s *stranger) {
	st := o.claims()
	if st.Addresses != 32 || st.Claimed != 30 || st.Claiming != 0 || len(st.Conflicts) != 2 {
		o.t.Errorf("status says %+v", st)
	}
	for i, address := range []string{"192.0.2.103", "2001:db8:2::103"} {
		if i < len(st.Conflicts) && !(strings.HasPrefix(st.Conflicts[i], address+" of decoy shop: ") && strings.Contains(st.Conflicts[i], s.mac)) {
			o.t.Errorf("status names the conflict %q, want %s and %s", st.Conflicts[i], address, s.mac)
		}
		if o.local(address) || !o.local(strings.Replace(address, "103", "104", 1)) {
			o.t.Errorf("%s is the segment's own, or the one beside it is not", address)
		}
		o.taken(5*time.Second, address, s.mac)
		o.conflict(address, s.mac)
	}
	o.taken(5*time.Second, "192.0.2.104", st.MAC)
	text, err := o.decoynet("status")
	check(o.t, err)
	if !strings.Contains(text, "! 192.0.2.103 of decoy shop: the machine with MAC "+s.mac) {
		o.t.Errorf("status does not name the conflict:\n%s", text)
	}
}

// testHostAnnounces: a machine that simply uses the address has it at once. The
// flow to the decoy there ends, others go on.
func (o *office) testHostAnnounces(s *stranger) {
	there, beside := o.keepOpen("192.0.2.105:6379"), o.keepOpen("192.0.2.106:6379")
	check(o.t, there.ping())
	check(o.t, beside.ping())
	s.run("ip", "addr", "add", "192.0.2.105/24", "dev", "eth0")
	began := time.Now()
	s.announce("192.0.2.105")
	eventually(o.t, 5*time.Second, func() error {
		if o.local("192.0.2.105") {
			return fmt.Errorf("the segment still has 192.0.2.105")
		}
		return nil
	})
	o.t.Logf("given up within %v", time.Since(began).Round(time.Millisecond))
	o.taken(5*time.Second, "192.0.2.105", s.mac)
	if there.ping() == nil {
		o.t.Error("the flow to the decoy goes on")
	}
	o.wantReason(localAddr(there.conn), "shutdown")
	check(o.t, beside.ping())
	check(o.t, o.keepOpen("192.0.2.104:6379").ping())
	o.conflict("192.0.2.105", s.mac)
	if !o.refused("192.0.2.105:6379") {
		o.t.Error("the real host's port is not its own")
	}
}

// testHostAsks: a machine that asks whether it may have the address is not told
// that it is taken, and gets it.
func (o *office) testHostAsks(s *stranger) {
	const address = "192.0.2.107"
	if out, err := s.Run(o.t.Context(), "arping", "-0", "-c", "3", "-w", "2", "-i", "eth0", address); err == nil {
		o.t.Errorf("who asked for %s was told that it is taken:\n%s", address, out)
	}
	s.run("ip", "addr", "add", address+"/24", "dev", "eth0")
	o.taken(5*time.Second, address, s.mac)
	if o.local(address) {
		o.t.Errorf("the segment still has %s", address)
	}
	o.conflict(address, s.mac)
}

// testHostDetects6: so it is with the kernel's own duplicate address detection.
func (o *office) testHostDetects6(s *stranger) {
	const address = "2001:db8:2::107"
	o.taken(5*time.Second, address, o.claims().MAC)
	s.run("ip", "addr", "add", address+"/64", "dev", "eth0")
	eventually(o.t, 10*time.Second, func() error {
		if out := s.run("ip", "-6", "addr", "show", "dev", "eth0", "to", address); !strings.Contains(out, address) || strings.Contains(out, "tentative") || strings.Contains(out, "dadfailed") {
			return fmt.Errorf("duplicate address detection: %s", out)
		}
		return nil
	})
	o.taken(5*time.Second, address, s.mac)
	if o.local(address) || !o.local("2001:db8:2::108") {
		o.t.Errorf("%s is the segment's own, or the one beside it is not", address)
	}
	o.conflict(address, s.mac)
}

// testHostFlaps: a machine that comes and goes is no storm of events.
func (o *office) testHostFlaps(s *stranger) {
	for range 10 {
		s.run("ip", "addr", "add", "192.0.2.110/24", "dev", "eth0")
		s.announce("192.0.2.110")
		s.run("ip", "addr", "del", "192.0.2.110/24", "dev", "eth0")
	}
	eventually(o.t, 5*time.Second, func() error {
		if macs := o.owners("192.0.2.110"); len(macs) > 0 {
			return fmt.Errorf("192.0.2.110 is at %v, want nobody yet", macs)
		}
		return nil
	})
	if n := o.conflict("192.0.2.110", s.mac); n > 2 {
		o.t.Errorf("%d events of a machine that came and went ten times", n)
	}
}

// testNeverAnswered: the gateway, who is not there, the network and its broadcast
// address, and what is beside the decoys.
func (o *office) testNeverAnswered() {
	for _, address := range []string{"192.0.2.0", "192.0.2.1", "192.0.2.99", "192.0.2.116", "192.0.2.255"} {
		if macs := o.owners(address); len(macs) > 0 {
			o.t.Errorf("%s is at %v", address, macs)
		}
	}
}

// TestLinkDown: while the NIC was down somebody may have come. So everything is
// asked for again, and what is free is the decoys' as before.
func TestLinkDown(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	late := o.stranger("late", 20)
	o.document(fmt.Sprintf(conflictsDocument, "gw", "probe"))
	o.up()
	mac := o.claims().MAC
	o.taken(5*time.Second, "192.0.2.101", mac)
	_, err := o.Gateway.Run(t.Context(), "ip", "link", "set", "eth0", "down")
	check(t, err)
	eventually(t, 30*time.Second, func() error {
		st, err := o.status()
		if err == nil && st.Ready {
			err = fmt.Errorf("ready without a link")
		}
		return err
	})
	late.run("ip", "addr", "add", "192.0.2.102/24", "dev", "eth0") // and says nothing
	asked := o.capture(o.Intruder, "eth0", "arp and ether src "+mac)
	_, err = o.Gateway.Run(t.Context(), "ip", "link", "set", "eth0", "up")
	check(t, err)
	o.waitReady(20 * time.Second)
	asked.want("who-has 192.0.2.101 tell 0.0.0.0")
	o.taken(10*time.Second, "192.0.2.102", late.mac)
	o.taken(5*time.Second, "192.0.2.101", mac)
	o.taken(5*time.Second, "2001:db8:2::101", mac)
	o.conflict("192.0.2.102", late.mac)
	check(t, o.keepOpen("192.0.2.101:6379").ping())

	// A cable that is out for a moment is seen afterwards.
	for _, state := range []string{"down", "up"} {
		_, err := o.LAN.Machine().Run(t.Context(), "ip", "link", "set", "gw-eth0", state)
		check(t, err)
		late.run("ip", "addr", "replace", "192.0.2.104/24", "dev", "eth0")
	}
	o.conflict("192.0.2.104", late.mac)
	o.taken(5*time.Second, "192.0.2.104", late.mac)
	o.taken(5*time.Second, "192.0.2.101", mac)
}

var pinged = regexp.MustCompile(`(\d+) packets transmitted, (\d+) received`)

// TestRestartLeavesNoGap: decoys answer while decoynet is dead, and while the
// next one asks whether it may have them.
func TestRestartLeavesNoGap(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.document(fmt.Sprintf(conflictsDocument, "gw", "probe"))
	o.up()
	var pings []*lab.Process
	for _, address := range []string{"192.0.2.101", "2001:db8:2::101"} {
		p, err := o.Intruder.Start("ping", "-n", "-i", "0.05", address)
		check(t, err)
		pings = append(pings, p)
		eventually(t, 10*time.Second, func() error {
			if !strings.Contains(p.Log(), "bytes from") {
				return fmt.Errorf("no answer from %s: %s", address, p.Log())
			}
			return nil
		})
	}
	mac := o.claims().MAC
	check(t, o.process.Kill())
	o.taken(5*time.Second, "192.0.2.102", mac)
	probes := o.capture(o.Intruder, "eth0", "arp")
	o.start()
	o.waitReady(10 * time.Second)
	probes.want("who-has 192.0.2.101 tell 0.0.0.0")
	if st := o.claims(); st.Claimed != 32 {
		t.Errorf("status says %+v", st)
	}
	for _, p := range pings {
		check(t, p.Signal(os.Interrupt))
		check(t, p.Wait(t.Context()))
		m := pinged.FindStringSubmatch(p.Log())
		if m == nil {
			t.Fatalf("ping said %s", p.Log())
		}
		t.Log(m[0])
		if m[1] != m[2] {
			t.Errorf("%s of %s pings were answered", m[2], m[1])
		}
	}
}

// TestTwoNodes: two nodes with the same decoys in one network are a mistake. The
// first gives up what the second asks for, and says so; nobody ever sees an
// address at both.
func TestTwoNodes(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	second := &office{t: t, Topology: o.Topology, since: o.since, daemon: &daemon{}, data: o.data + "2", file: o.file + "2"}
	second.Gateway = o.Gateway.Lab().Machine("gw2")
	second.Gateway.Plug(o.LAN, "eth0", "192.0.2.6/24", "2001:db8:2::6/64")
	second.Gateway.Bridge("br-linux", "10.1.0.1/24", "fd00:1::1/64")
	check(t, o.Gateway.Lab().Err())
	o.document(fmt.Sprintf(conflictsDocument, "gw", "probe"))
	second.document(fmt.Sprintf(conflictsDocument, "gw2", "probe"))
	o.up()
	o.taken(5*time.Second, "192.0.2.100", o.claims().MAC)
	second.start()
	addresses := []string{"192.0.2.100", "192.0.2.115"}
	eventually(t, 30*time.Second, func() error {
		for _, a := range addresses {
			if macs := o.owners(a); len(macs) > 1 {
				t.Errorf("%s is at %v", a, macs)
			}
		}
		st, err := second.status()
		if err == nil && !st.Ready {
			err = fmt.Errorf("the second is not ready: %v", st.Problems)
		}
		return err
	})
	mac := second.claims().MAC
	for _, a := range addresses {
		o.taken(5*time.Second, a, mac)
	}
	o.conflict("192.0.2.100", mac)
	if first, then := o.claims(), second.claims(); first.Claimed != 0 || then.Claimed != 32 {
		t.Errorf("the first says %+v, the second %+v", first, then)
	}
}
