//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"decoynet/internal/lab"
)

// probe is a recorded probe as `get probes -o json` prints it.
type probe struct {
	ID        string     `json:"event.id"`
	Start     time.Time  `json:"event.start"`
	End       *time.Time `json:"event.end"`
	Last      time.Time  `json:"decoynet.probe.last"`
	Source    netip.Addr `json:"source.ip"`
	MAC       string     `json:"source.mac"`
	First     netip.Addr `json:"destination.ip"`
	Node      string     `json:"decoynet.node"`
	Segment   string     `json:"decoynet.segment"`
	Scanner   string     `json:"decoynet.scanner"`
	Kind      string     `json:"decoynet.probe.kind"`
	ARP       int        `json:"decoynet.probe.contacts.arp"`
	Ping      int        `json:"decoynet.probe.contacts.ping"`
	SYN       int        `json:"decoynet.probe.contacts.syn"`
	Datagram  int        `json:"decoynet.probe.contacts.datagram"`
	Addresses int        `json:"decoynet.probe.addresses"`
	Ports     int        `json:"decoynet.probe.ports"`
	Sources   int        `json:"decoynet.probe.sources"`
}

// probes lists all that were recorded.
func (o *office) probes() ([]probe, error) {
	out, err := o.decoynet("get", "probes", "-o", "json", "--limit", "0")
	if err != nil {
		return nil, err
	}
	var list []probe
	for line := range strings.Lines(out) {
		var p probe
		if err := json.Unmarshal([]byte(line), &p); err != nil {
			return nil, fmt.Errorf("read %q: %w", line, err)
		}
		list = append(list, p)
	}
	return list, nil
}

// probe waits for the one probe of a source, until it is as it should be.
func (o *office) probe(source netip.Addr, d time.Duration, right func(p *probe) error) probe {
	o.t.Helper()
	var found probe
	eventually(o.t, d, func() error {
		list, err := o.probes()
		if err != nil {
			return err
		}
		list = slices.DeleteFunc(list, func(p probe) bool { return p.Source != source })
		if len(list) != 1 {
			return fmt.Errorf("%d probes of %s are recorded, want 1: %+v", len(list), source, list)
		}
		found = list[0]
		return right(&found)
	})
	return found
}

// stranger is a further machine in the office's network.
type stranger struct {
	*lab.Machine
	o      *office
	v4, v6 netip.Addr
	mac    string
}

// stranger plugs a machine in at the last bytes n of the office's addresses.
func (o *office) stranger(name string, n int) *stranger {
	o.t.Helper()
	l := o.Gateway.Lab()
	s := &stranger{Machine: l.Machine(name), o: o, v4: netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", n)), v6: netip.MustParseAddr(fmt.Sprintf("2001:db8:2::%d", n))}
	s.Plug(o.LAN, "eth0", s.v4.String()+"/24", s.v6.String()+"/64")
	check(o.t, l.Err())
	s.mac = strings.TrimSpace(s.run("cat", "/sys/class/net/eth0/address"))
	return s
}

func (s *stranger) run(name string, args ...string) string {
	s.o.t.Helper()
	out, err := s.Run(s.o.t.Context(), name, args...)
	check(s.o.t, err)
	return out
}

// watch has tcpdump write down what the machine sends.
func (s *stranger) watch(filter string) *capture {
	s.o.t.Helper()
	return s.o.capture(s.Machine, "eth0", "ether src "+s.mac+" and "+filter, "-s", "96") // whole frames would be more than its buffer holds
}

// TestSensing contacts decoys as an intruder does before he connects, and counts
// what is recorded of that against tcpdump at the intruder's machine. Everybody
// has a machine of his own, so that probes are told apart.
func TestSensing(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	newPuppet(t, o.Linux, 9000)
	o.document(fmt.Sprintf(officeDocument, "auto") + `scanners:
  - {name: audit, from: 192.0.2.86}
  - {name: retired, from: 192.0.2.87, until: 2001-01-31}
`)
	o.up()
	for _, part := range []struct {
		name string
		test func(*office)
	}{
		{"Sweep", (*office).testSenseSweep},
		{"Sweep6", (*office).testSenseSweep6},
		{"PortScan", (*office).testSensePortScan},
		{"NetworkScan", (*office).testSenseNetworkScan},
		{"Datagrams", (*office).testSenseDatagrams},
		{"Ping", (*office).testSensePing},
		{"Scanners", (*office).testSenseScanners},
		{"Nothing", (*office).testSenseNothing},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(o.in(t)) })
	}
	o.testSenseEnds()
	o.wantNoErrorLogged()
}

var asked = regexp.MustCompile(`Request who-has ([0-9.]+)`)

// testSenseSweep: of a sweep by ARP, what is asked for from the first decoy on
// counts, but for what belongs to somebody.
func (o *office) testSenseSweep() {
	s := o.stranger("sweeper", 80)
	o.ordinaryHosts()
	seen := s.watch("arp[6:2] = 1")
	s.run("nmap", "-n", "-sn", "-T4", "192.0.2.0/24")
	theirs := []string{"192.0.2.1", "192.0.2.10", "192.0.2.66"} // the gateway, and who was heard of
	var requests int
	unowned := map[string]bool{}
	count := func() {
		requests = 0
		clear(unowned)
		for _, line := range seen.lines("Request who-has") {
			target := asked.FindStringSubmatch(line)[1]
			if requests > 0 && !slices.Contains(theirs, target) || isDecoy(target) {
				requests++
				unowned[target] = true
			}
		}
	}
	p := o.probe(s.v4, 30*time.Second, func(p *probe) error {
		if count(); p.Kind != "ping_sweep" || p.ARP != requests || p.Addresses != len(unowned) {
			return fmt.Errorf("%s with %d requests for %d addresses, on the wire %d for %d", p.Kind, p.ARP, p.Addresses, requests, len(unowned))
		}
		return nil
	})
	if len(unowned) < 53 || !strings.EqualFold(strings.ReplaceAll(p.MAC, "-", ":"), s.mac) || !isDecoy(p.First.String()) || p.Segment != "office" || p.Node != "gw" || p.SYN+p.Ping+p.Datagram > 0 {
		o.t.Errorf("recorded %+v; %d addresses on the wire", p, len(unowned))
	}
	o.t.Logf("%d requests for %d addresses", p.ARP, p.Addresses)
}

// isDecoy tells whether an IPv4 address is a decoy's in officeDocument.
func isDecoy(a string) bool {
	b := netip.MustParseAddr(a).As4()
	return b[3] >= 100 && b[3] <= 150 || b[3] == 247 || b[3] == 200
}

// ordinaryHosts makes the two real hosts known, as they are where they talk.
func (o *office) ordinaryHosts() {
	o.t.Helper()
	o.run("ip", "neigh", "flush", "to", lab.OfficeProduction.V4.String())
	o.run("ping", "-n", "-c", "1", "-W", "5", lab.OfficeProduction.V4.String())
	_, err := o.Production.Run(o.t.Context(), "arping", "-c", "1", "-w", "5", "-i", "eth0", lab.OfficeIntruder.V4.String())
	check(o.t, err)
}

func (o *office) testSenseSweep6() {
	s := o.stranger("sweeper6", 81)
	seen := s.watch("icmp6 and ip6[40] = 135 and not src ::")
	s.run("nmap", "-6", "-n", "-sn", "-T4", "2001:db8:2::100/124")
	o.probe(s.v6, 30*time.Second, func(p *probe) error {
		if on := len(seen.lines("neighbor solicitation", "2001:db8:2::10")); p.Kind != "ping_sweep" || p.Addresses != 16 || p.ARP != on {
			return fmt.Errorf("%s of %d addresses by %d questions, on the wire %d", p.Kind, p.Addresses, p.ARP, on)
		}
		return nil
	})
}

func (o *office) testSensePortScan() {
	s := o.stranger("portscanner", 82)
	seen := s.watch("tcp[tcpflags] & tcp-syn != 0 and dst port not 80 and dst port not 443")
	s.run("nmap", "-n", "-Pn", "-sS", "-T4", "-p", "1-1000", "192.0.2.101")
	p := o.probe(s.v4, 30*time.Second, func(p *probe) error {
		if on := len(seen.lines("Flags [S]")); p.Kind != "port_scan" || p.SYN != on {
			return fmt.Errorf("%s by %d SYNs to unbound ports, on the wire %d", p.Kind, p.SYN, on)
		}
		return nil
	})
	if n := p.Ports; n < 950 || n > 1050 || p.Addresses != 1 || p.Datagram+p.Ping > 0 { // above 384 it is an estimate
		o.t.Errorf("recorded %+v", p)
	}
	if n := len(o.sessions("--source", s.v4.String())); n != 0 {
		o.t.Errorf("SYNs that were followed by nothing are %d sessions", n)
	}
}

func (o *office) testSenseNetworkScan() {
	s := o.stranger("networkscanner", 83)
	seen := s.watch("tcp[tcpflags] & tcp-syn != 0")
	s.run("nmap", "-n", "-Pn", "-sS", "-T4", "-p", "20-40", "192.0.2.110-119")
	p := o.probe(s.v4, 30*time.Second, func(p *probe) error {
		if on := len(seen.lines("Flags [S]")); p.Kind != "network_scan" || p.SYN != on {
			return fmt.Errorf("%s by %d SYNs, on the wire %d", p.Kind, p.SYN, on)
		}
		return nil
	})
	if p.Ports != 21 || p.Addresses != 10 {
		o.t.Errorf("recorded %+v", p)
	}
}

// testSenseDatagrams: ports that are not bound count, the one that is does not.
func (o *office) testSenseDatagrams() {
	s := o.stranger("datagrams", 84)
	seen := s.watch("udp and dst port not 161")
	s.run("nmap", "-n", "-Pn", "-sU", "--min-rate", "200", "--max-retries", "0", "-p", "150-175", "192.0.2.102")
	p := o.probe(s.v4, 30*time.Second, func(p *probe) error {
		if on := len(seen.lines("192.0.2.102.")); p.Kind != "port_scan" || p.Datagram != on {
			return fmt.Errorf("%s by %d datagrams, on the wire %d", p.Kind, p.Datagram, on)
		}
		return nil
	})
	if p.Ports != 25 || p.Addresses != 1 || p.SYN > 0 {
		o.t.Errorf("recorded %+v", p)
	}
}

// testSensePing: a few pings are told while they are news.
func (o *office) testSensePing() {
	s := o.stranger("pinger", 85)
	s.run("ping", "-n", "-q", "-c", "3", "-i", "0.2", "192.0.2.103")
	began := time.Now()
	p := o.probe(s.v4, 5*time.Second, func(*probe) error { return nil })
	took := time.Since(began)
	if p.Kind != "contact" || p.Ping < 1 || p.ARP != 1 || p.Addresses != 1 || p.First.String() != "192.0.2.103" {
		o.t.Errorf("recorded %+v", p)
	}
	o.t.Logf("on record %v after the pings", took.Round(time.Millisecond))
	o.probe(s.v4, 20*time.Second, func(p *probe) error {
		if p.Ping != 3 {
			return fmt.Errorf("%d pings are recorded of 3", p.Ping)
		}
		return nil
	})
}

// testSenseScanners: a known scanner is sensed and relayed as ever, and marked.
func (o *office) testSenseScanners() {
	for n, scanner := range map[int]string{86: "audit", 87: ""} {
		s := o.stranger(fmt.Sprintf("known%d", n), n)
		s.run("curl", "-sS", "-m", "10", "-o", "/dev/null", "http://192.0.2.104/")
		s.run("nmap", "-n", "-Pn", "-sS", "-T4", "-p", "20-40", "192.0.2.104")
		p := o.probe(s.v4, 30*time.Second, func(p *probe) error {
			if p.Kind != "port_scan" || p.SYN < 21 {
				return fmt.Errorf("%s by %d SYNs", p.Kind, p.SYN)
			}
			return nil
		})
		if p.Scanner != scanner {
			o.t.Errorf("the probe of %s is marked %q, want %q", s.v4, p.Scanner, scanner)
		}
		eventually(o.t, 5*time.Second, func() error {
			list := o.sessions("--source", s.v4.String())
			if got, _ := append(list, map[string]any{})[0]["decoynet.scanner"].(string); len(list) != 1 || got != scanner {
				return fmt.Errorf("%d sessions of %s, marked %q, want one, %q", len(list), s.v4, got, scanner)
			}
			return nil
		})
	}
}

// testSenseNothing: what happens in every network is no probe, and neither is a
// session for the question that precedes it.
func (o *office) testSenseNothing() {
	visitor, colleague := o.stranger("visitor", 88), o.stranger("colleague", 89)
	for _, url := range []string{"http://192.0.2.105/", "http://[2001:db8:2::105]/"} {
		visitor.run("curl", "-sS", "-m", "10", "-o", "/dev/null", url)
	}
	for _, to := range []lab.Pair{lab.OfficeProduction, lab.OfficeGateway} {
		colleague.run("ping", "-n", "-q", "-c", "1", "-W", "5", to.V4.String())
		colleague.run("ping", "-n", "-q", "-c", "1", "-W", "5", to.V6.String())
	}
	colleague.run("curl", "-sS", "-m", "10", "-o", "/dev/null", "http://192.0.2.10/")
	colleague.run("sh", "-c", `arping -q -c 1 -w 1 -i eth0 192.0.2.1
arping -q -U -c 1 -w 1 -i eth0 -S 192.0.2.89 192.0.2.89
arping -q -U -P -c 1 -w 1 -i eth0 -S 192.0.2.89 192.0.2.89
arping -q -0 -c 1 -w 1 -i eth0 192.0.2.99
ping -n -q -b -c 1 -W 1 192.0.2.255
ping -n -q -c 1 -W 1 ff02::1%eth0
ip route add 224.0.0.0/4 dev eth0
ip route add 255.255.255.255 dev eth0
true`)
	colleague.say("255.255.255.255:67", "192.0.2.255:137", "192.0.2.255:138", "224.0.0.251:5353", "239.255.255.250:1900")
	// What came before this is told before it, or never.
	last := o.stranger("last", 90)
	last.run("ping", "-n", "-q", "-c", "1", "-W", "5", "192.0.2.105")
	o.probe(last.v4, 5*time.Second, func(*probe) error { return nil })
	list, err := o.probes()
	check(o.t, err)
	for _, p := range list {
		if p.Source == visitor.v4 || p.Source == visitor.v6 || p.Source == colleague.v4 || p.Source == colleague.v6 || !p.Source.IsValid() || p.Source.IsLinkLocalUnicast() {
			o.t.Errorf("ordinary traffic is recorded as %+v", p)
		}
	}
}

// say sends a datagram to each of the addresses.
func (s *stranger) say(to ...string) {
	s.o.t.Helper()
	for _, a := range to {
		addr, err := netip.ParseAddrPort(a)
		check(s.o.t, err)
		conn, err := s.ListenPacket(s.o.t.Context(), "udp4", s.v4.String()+":0")
		check(s.o.t, err)
		if _, err = conn.WriteTo([]byte("hello"), net.UDPAddrFromAddrPort(addr)); err != nil {
			s.o.t.Errorf("send to %s: %v", a, err)
		}
		check(s.o.t, conn.Close())
	}
}

// testSenseEnds: probes end with decoynet, at their last contact; and status has
// counted what they were made of.
func (o *office) testSenseEnds() {
	o.t.Helper()
	out, err := o.decoynet("status", "-o", "json")
	check(o.t, err)
	var status struct {
		Sensing  struct{ Sensed, Dropped int }
		Segments []struct{ Sensed int }
	}
	check(o.t, json.Unmarshal([]byte(out), &status))
	o.down()
	list, err := o.probes()
	check(o.t, err)
	contacts := 0
	for _, p := range list {
		contacts += p.ARP + p.Ping + p.SYN + p.Datagram
		if p.End == nil || !p.End.Equal(p.Last) {
			o.t.Errorf("not ended at its last contact: %+v", p)
		}
	}
	if v := status.Sensing; len(list) < 9 || v.Sensed < contacts || v.Dropped != 0 || len(status.Segments) != 1 || status.Segments[0].Sensed != v.Sensed {
		o.t.Errorf("%d contacts of %d probes, status says %+v", contacts, len(list), status)
	}
}

// plantDocument has a network that only a node of the controller's sees.
const plantDocument = `
node: hq
controller: {node: hq, listen: 0.0.0.0:7443, urls: ["https://192.0.2.5:7443"]}
nodes: [{name: hq}, {name: plant-1}]
gateways: [{name: gw1, node: hq, listen: 0.0.0.0:7444}]
segments:
  - {name: plant, node: plant-1, parent: eth1, subnets: [{prefix: 198.51.100.0/24, gateway: 198.51.100.1}]}
zones:
  - {name: linux, node: hq, subnet: 10.1.0.0/24, link: br-linux}
services:
  - {name: web, zone: linux, address: 10.1.0.2, ports: [80]}
decoys:
  - {name: plc, segment: plant, addresses: [198.51.100.100-198.51.100.110], bind: [{ports: [80], service: web}]}
scanners: [{name: audit, from: 198.51.100.67}]
`

// TestSensingOfANode: what a node senses is on record at its controller, once,
// also what it sensed while the controller was away.
func TestSensingOfANode(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	l := o.Gateway.Lab()
	lan, machine := l.Switch("plant"), l.Machine("plant-1")
	machine.Plug(o.LAN, "eth0", "192.0.2.20/24")
	machine.Plug(lan, "eth1")
	var intruders []*lab.Machine
	for i := range 3 {
		m := l.Machine(fmt.Sprintf("plant-intruder-%d", i))
		m.Plug(lan, "eth0", fmt.Sprintf("198.51.100.%d/24", 66+i))
		intruders = append(intruders, m)
	}
	check(t, l.Err())
	o.document(plantDocument)
	o.up()
	node := o.newMember(machine, "plant-1")
	node.waitReady()
	for i, scanner := range []string{"", "audit"} {
		_, err := intruders[i].Run(t.Context(), "nmap", "-n", "-Pn", "-sS", "-T4", "-p", "20-40", "198.51.100.100")
		check(t, err)
		p := o.probe(netip.AddrFrom4([4]byte{198, 51, 100, byte(66 + i)}), 15*time.Second, func(p *probe) error {
			if p.Kind != "port_scan" || p.SYN < 21 {
				return fmt.Errorf("%s by %d SYNs", p.Kind, p.SYN)
			}
			return nil
		})
		if p.Node != "plant-1" || p.Segment != "plant" || p.Ports != 21 || p.Scanner != scanner {
			t.Errorf("recorded %+v, want scanner %q", p, scanner)
		}
	}
	o.down()
	_, err := intruders[2].Run(t.Context(), "ping", "-n", "-q", "-c", "2", "-i", "0.2", "198.51.100.101")
	check(t, err)
	eventually(t, 10*time.Second, func() error {
		st, err := node.status()
		if err == nil && st.Recording.Waiting == 0 {
			err = fmt.Errorf("nothing waits for the controller")
		}
		return err
	})
	o.start()
	o.probe(netip.MustParseAddr("198.51.100.68"), 30*time.Second, func(p *probe) error {
		if p.Ping != 2 || p.Node != "plant-1" {
			return fmt.Errorf("recorded %+v", p)
		}
		return nil
	})
}
