//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decoynet/internal/lab"
	"decoynet/internal/lab/labtest"
	"decoynet/internal/lab/vm"
)

// The networks of two VLANs are the same, down to the intruders' addresses and
// the decoys'. VLAN 99 is the one in which gw has an address of its own.
const (
	trunkSegments = `
node: gw
segments:
  - name: dmz
    parent: eth1
    vlan: 110
    subnets: [{prefix: 198.51.100.0/24, gateway: 198.51.100.1}, {prefix: 198.51.101.0/24}, {prefix: "2001:db8:110::/64"}]
  - {name: admin, parent: eth1, vlan: 99, subnets: [{prefix: 203.0.113.0/24}]}
  - {name: lab, parent: eth2, vlan: 130, subnets: [{prefix: 192.0.2.0/24}]}
`
	trunkPlant = `
  - {name: plant, parent: eth1, vlan: 120, subnets: [{prefix: 198.51.100.0/24}, {prefix: 10.20.0.0/24}]}
`
	trunkServices = `
zones:
  - {name: linux, subnet: [10.1.0.0/24, "fd00:1::/64"], link: br-linux}
services:
  - {name: alpha, zone: linux, address: [10.1.0.2, "fd00:1::2"], ports: [7, 161/udp]}
  - {name: beta, zone: linux, address: 10.1.0.3, ports: [7]}
decoys:
  - name: dmz-web
    segment: dmz
    addresses: [198.51.100.100-198.51.100.130, 198.51.101.100-198.51.101.103, "2001:db8:110::100-2001:db8:110::12f"]
    bind: [{ports: [80], service: alpha, target: 7}, {ports: [161/udp], service: alpha}]
  - {name: admin-web, segment: admin, addresses: [203.0.113.100-203.0.113.103], bind: [{ports: [80], service: beta, target: 7}]}
  - {name: lab-web, segment: lab, addresses: [192.0.2.100-192.0.2.103], bind: [{ports: [80], service: beta, target: 7}]}
`
	trunkPlantDecoys = `
  - {name: plant-web, segment: plant, addresses: [198.51.100.100-198.51.100.130], bind: [{ports: [80], service: beta, target: 7}]}
  - {name: plcs, segment: plant, mac: "vendor:dell", addresses: [10.20.0.100-10.20.0.103], bind: [{ports: [80], service: beta, target: 7}]}
`
	trunkDocument = trunkSegments + trunkPlant + trunkServices + trunkPlantDecoys
	withoutPlant  = trunkSegments + trunkServices
)

// trunkOffice has gw at two trunk ports of a switch, and nobody of gw's in the
// VLANs but in 99:
//
//	dmz  real      plant      admin      lab
//	 | 110 |        | 120      | 99       | 130
//	-+-----+--------+----------+----------+-------  lan
//	     | 99 110 120 tagged            | 130 tagged
//	eth1 |                         eth2 |
//	    gw  eth1.99 203.0.113.5 --------+   br-linux --- linux: alpha .2  beta .3
//
// The embedded office's intruder is the one in the dmz, its production host is real.
type trunkOffice struct {
	*office
	plant, admin, lab *lab.Machine
	alpha, beta       *lab.Server
	sshd              *lab.Server // gw's own
	before            string      // gw's snapshot
}

// in returns the office as a subtest sees it.
func (o *trunkOffice) in(t *testing.T) *trunkOffice {
	view := *o
	view.office = o.office.in(t)
	return &view
}

// as has another machine intrude.
func (o *trunkOffice) as(m *lab.Machine) *office {
	view := *o.office
	view.Intruder = m
	return &view
}

func newTrunkOffice(t *testing.T) *trunkOffice {
	t.Helper()
	l, dir := labtest.New(t), t.TempDir()
	o := &trunkOffice{office: &office{
		t: t, since: time.Now(), daemon: &daemon{}, data: filepath.Join(dir, "data"), file: filepath.Join(dir, "decoynet.yaml"),
	}}
	o.LAN = l.Switch("lan")
	o.sh(o.LAN.Machine(), "ip link set "+o.LAN.Bridge()+" type bridge vlan_filtering 1 vlan_default_pvid 0")
	o.Gateway, o.Linux = l.Machine("gw"), l.Machine("linux")
	o.Intruder = o.access(l.Machine("dmz"), 110, "198.51.100.66/24", "198.51.101.66/24", "2001:db8:110::66/64")
	o.Production = o.access(l.Machine("real"), 110, "198.51.100.120/24")
	o.plant = o.access(l.Machine("plant"), 120, "198.51.100.66/24", "10.20.0.66/24")
	o.admin = o.access(l.Machine("admin"), 99, "203.0.113.66/24")
	o.lab = o.access(l.Machine("lab"), 130, "192.0.2.66/24")
	o.trunk("eth1", 99, 110, 120)
	o.trunk("eth2", 130)
	o.manage()
	o.Gateway.Forward()
	o.Zone = o.Gateway.Bridge("br-linux", "10.1.0.1/24", "fd00:1::1/64")
	o.Linux.Plug(o.Zone, "eth0", "10.1.0.2/24", "10.1.0.3/24", "fd00:1::2/64")
	o.Linux.Route("default", "10.1.0.1")
	o.Linux.Route("default", "fd00:1::1")
	labtest.Built(t, l)

	var err error
	o.alpha, err = lab.TCPPeer(t.Context(), o.Linux, lab.Listen{Addrs: []string{"10.1.0.2", "fd00:1::2"}})
	check(t, err)
	o.beta, err = lab.TCPPeer(t.Context(), o.Linux, lab.Listen{Addrs: []string{"10.1.0.3"}})
	check(t, err)
	o.UDP, err = lab.UDPEcho(t.Context(), o.Linux, lab.Listen{Addrs: []string{"10.1.0.2", "fd00:1::2"}})
	check(t, err)
	o.sshd, err = lab.TCPPeer(t.Context(), o.Gateway, lab.Listen{Ports: []uint16{22}})
	check(t, err)
	return o
}

// sh runs a line of shell in a machine.
func (o *trunkOffice) sh(m *lab.Machine, script string) string {
	o.t.Helper()
	out, err := m.Run(o.t.Context(), "sh", "-ec", script)
	check(o.t, err)
	return out
}

// access plugs a machine into a port of one VLAN.
func (o *trunkOffice) access(m *lab.Machine, vlan int, addrs ...string) *lab.Machine {
	o.t.Helper()
	m.Plug(o.LAN, "eth0", addrs...)
	o.sh(o.LAN.Machine(), fmt.Sprintf("bridge vlan add dev %s-eth0 vid %d pvid untagged", m.Name(), vlan))
	return m
}

// trunk plugs gw into a port that carries VLANs with their tags.
func (o *trunkOffice) trunk(nic string, vlans ...int) {
	o.t.Helper()
	o.Gateway.Plug(o.LAN, nic)
	for _, vlan := range vlans {
		o.sh(o.LAN.Machine(), fmt.Sprintf("bridge vlan add dev gw-%s vid %d", nic, vlan))
	}
}

// manage gives gw its own address, in a VLAN that it shares.
func (o *trunkOffice) manage() {
	o.t.Helper()
	o.sh(o.Gateway, `ip link add link eth1 name eth1.99 type vlan id 99
		ip link set eth1.99 alias management
		echo 0 >/proc/sys/net/ipv6/conf/eth1.99/accept_dad
		ip address add 203.0.113.5/24 dev eth1.99
		ip link set eth1.99 up`)
}

// TestTrunk has the real binary at a trunk port, on a kernel with 802.1Q. One guest
// serves all parts.
func TestTrunk(t *testing.T) {
	t.Parallel()
	if !vm.Run(t, vm.Options{
		Modules:  []string{"8021q", "macvlan", "veth"},
		Programs: []string{"tcpdump", "ping", "nft", "nmap"},
		Files:    trunkFiles(t),
		Timeout:  5 * time.Minute,
	}) {
		return
	}
	o := newTrunkOffice(t)
	o.before = o.snapshot()
	eventually(t, 6*time.Second, func() error { // link-local addresses come a moment after their links
		last := o.before
		if o.before = o.snapshot(); last != o.before {
			return errors.New("gw does not come to rest")
		}
		return nil
	})
	o.document(trunkDocument)
	o.upInGuest()
	m := o.watchManagement()
	o.parts([]trunkPart{
		{"Overlap", (*trunkOffice).testOverlap},
		{"Subnets", (*trunkOffice).testSubnets},
		{"Reload", (*trunkOffice).testReload},
		{"HostOutOfReach", (*trunkOffice).testHostOutOfReach},
		{"NoForwarding", (*trunkOffice).testNoForwarding},
		{"Probes", (*trunkOffice).testProbes},
		{"Conflicts", (*trunkOffice).testConflicts},
		{"Killed", (*trunkOffice).testKilled},
		{"Cleanup", (*trunkOffice).testCleanup},
		{"Management", m.testUndisturbed},
		{"ParentDown", (*trunkOffice).testParentDown},
		{"ParentMoved", (*trunkOffice).testParentMoved},
		{"ParentGone", (*trunkOffice).testParentGone},
	})
	o.down()
}

// trunkFiles are what a node has on its disk. Without a machine-id its MAC addresses
// would depend on the NIC's.
func trunkFiles(t *testing.T) map[string]string {
	t.Helper()
	id := filepath.Join(t.TempDir(), "machine-id")
	check(t, os.WriteFile(id, []byte("8d5b1c8e0a7f4e0e9b1f6c3d2a4e5f60\n"), 0o644))
	return map[string]string{guestBinary: binary, "/etc/machine-id": id}
}

type trunkPart struct {
	name string
	test func(o *trunkOffice)
}

func (o *trunkOffice) parts(parts []trunkPart) {
	for _, p := range parts {
		began := time.Now()
		o.t.Run(p.name, func(t *testing.T) { p.test(o.in(t)) })
		o.t.Logf("%s took %v", p.name, time.Since(began).Round(time.Millisecond))
	}
}

// snapshot is gw's: a guest takes seconds for those of all machines.
func (o *trunkOffice) snapshot() string {
	o.t.Helper()
	text, err := o.Gateway.Snapshot(o.t.Context())
	check(o.t, err)
	return text
}

// upInGuest is up with the patience that a guest needs.
func (o *trunkOffice) upInGuest() {
	o.t.Helper()
	began := time.Now()
	o.start()
	o.waitReady(12 * time.Second)
	o.t.Logf("ready after %v", time.Since(began).Round(time.Millisecond))
}

// visit has a machine ask a decoy's service whom it sees, and wants the session on
// record in the segment.
func (o *trunkOffice) visit(m *lab.Machine, decoy, segment string, service *lab.Server) netip.AddrPort {
	o.t.Helper()
	return o.visitFrom(m, netip.AddrPort{}, decoy, segment, service)
}

func (o *trunkOffice) visitFrom(m *lab.Machine, from netip.AddrPort, decoy, segment string, service *lab.Server) netip.AddrPort {
	o.t.Helper()
	to := netip.AddrPortFrom(netip.MustParseAddr(decoy), 80)
	conn, seen, err := o.as(m).askPeer(from, to)
	if err != nil {
		o.t.Errorf("%s asks %s: %v", m, to, err)
		return netip.AddrPort{}
	}
	defer conn.Close()
	source := localAddr(conn)
	if seen != source {
		o.t.Errorf("the service sees %s, the intruder is %s", seen, source)
	}
	o.wantPeer(service, source)
	s := o.recorded(source, func(s *record) bool { return s.dest() == to && s.Segment == segment })
	if s.Node != "gw" || s.sourceNAT() != source {
		o.t.Errorf("recorded %+v", s)
	}
	return source
}

// Two intruders who have the same address and port at the same address and port,
// in two VLANs, are two sessions with two services.
func (o *trunkOffice) testOverlap() {
	seen := o.capture(o.LAN.Machine(), "gw-eth1", "vlan")
	from := netip.MustParseAddrPort("198.51.100.66:31000")
	o.visitFrom(o.Intruder, from, "198.51.100.100", "dmz", o.alpha)
	o.visitFrom(o.plant, from, "198.51.100.100", "plant", o.beta)
	for vlan := range map[int]bool{110: true, 120: true} {
		tag := fmt.Sprintf("vlan %d,", vlan)
		seen.want(tag, "198.51.100.66.31000 > 198.51.100.100.80", "[S]")
		seen.want(tag, "198.51.100.100.80 > 198.51.100.66.31000", "[S.]")
	}
	// Nothing of it shows in the host's namespace, nor an address in the VLANs'.
	if out := o.sh(o.Gateway, "ip -d -o link show; ip -o address show"); strings.Contains(out, "alias decoynet") || strings.Contains(out, "198.51.100.") || strings.Contains(out, "id 110") {
		o.t.Errorf("gw's own namespace has\n%s", out)
	}
	trunk := o.Gateway.InSegment("decoynet-_trunk")
	for _, device := range []string{"v110-eth1@", "v120-eth1@", "v130-eth2@"} {
		if out := o.sh(trunk, "ip -d -o link show"); !strings.Contains(out, device) || strings.Contains(out, "id 99 ") {
			o.t.Errorf("no %s or VLAN 99 in\n%s", device, out)
		}
	}
	if out := o.sh(trunk, "ip -o address show; ip -4 route show table all; ip -6 route show table all"); strings.TrimSpace(out) != "" {
		o.t.Errorf("addresses or routes beside the VLAN devices:\n%s", out)
	}
}

// One VLAN has several subnets, of both families.
func (o *trunkOffice) testSubnets() {
	o.visit(o.Intruder, "198.51.101.103", "dmz", o.alpha)
	o.visit(o.Intruder, "2001:db8:110::12f", "dmz", o.alpha)
	o.visit(o.lab, "192.0.2.100", "lab", o.beta)
	for _, at := range []string{"198.51.101.100", "2001:db8:110::100"} {
		o.wantEcho(o.Intruder, netip.AddrPortFrom(netip.MustParseAddr(at), 161))
	}
	macs := map[string]bool{}
	for i := range 4 {
		addr := fmt.Sprintf("10.20.0.%d", 100+i)
		o.visit(o.plant, addr, "plant", o.beta)
		mac := o.as(o.plant).lladdr(addr)
		if !strings.HasPrefix(mac, "00:14:22:") || macs[mac] {
			o.t.Errorf("%s is at %q; others at %v", addr, mac, macs)
		}
		macs[mac] = true
	}
}
