package doctor_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/doctor"
	"decoynet/internal/lab"
)

// TestTrunkHealthy looks at a trunk with two VLANs that work. tcpdump at the
// switch sees what was sent: few frames, in those VLANs only, and no word under a
// decoy's address before that was asked for from nobody's.
func TestTrunkHealthy(t *testing.T) {
	t.Parallel()
	s := newTrunk(t)
	s.vlan(110)
	s.vlan(120)
	dump, err := s.core.Start("tcpdump", "--immediate-mode", "-lnneti", "port1", "-Q", "in")
	if err != nil {
		t.Fatal(err)
	}
	err = lab.Eventually(t.Context(), 10*time.Second, func() error {
		if !strings.Contains(dump.Log(), "listening on") {
			return context.DeadlineExceeded
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	before := s.run(s.gw, "ip -d link show eth1 | grep -o 'promiscuity [0-9]*'")
	quiet := s.talk(func() {
		s.emit(999, arpFrame(1, stranger, gatewayOf(999), everybody, netip.MustParseAddr("198.18.231.7")))
	})
	list := s.examine(state(110, 120))
	quiet()
	t.Logf("\n%s", text(list))
	if doctor.Problems(list) > 0 || find(list, "", "") != nil {
		t.Errorf("complaints about a trunk that works:\n%s", text(list))
	}
	for _, want := range []string{
		"VLANs 110, 120 heard in ", "s; without a segment: VLAN 999", "VLANs 110, 120: the gateway answers the segment's own MAC address, with packets of 1500 bytes",
		"20 decoy addresses asked for, nobody else has one",
	} {
		if !strings.Contains(text(list), want) {
			t.Errorf("no %q", want)
		}
	}
	if after := s.run(s.gw, "ip -d link show eth1 | grep -o 'promiscuity [0-9]*'"); after != before {
		t.Errorf("eth1 was left %s, was %s", after, before)
	}
	err = lab.Eventually(t.Context(), 10*time.Second, func() error {
		for _, last := range []string{"198.18.110.100 > 198.18.110.1: ICMP echo request", "198.18.120.100 > 198.18.120.1: ICMP echo request"} {
			if strings.Count(dump.Log(), last) < 2 {
				return errors.New("tcpdump has not seen the pings")
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	_ = dump.Stop(t.Context())
	frames, claimed, probed := 0, false, false
	for line := range strings.Lines(dump.Log()) {
		if !strings.Contains(line, "ethertype") {
			continue
		}
		frames++
		if !strings.Contains(line, "vlan 110,") && !strings.Contains(line, "vlan 120,") {
			t.Errorf("a frame in another VLAN: %s", line)
		}
		probed = probed || strings.Contains(line, "who-has 198.18.110.100 tell 0.0.0.0")
		claimed = claimed || strings.Contains(line, "tell 198.18.110.100")
		if claimed && !probed {
			t.Errorf("a decoy's address was used before it was asked for: %s", line)
		}
		if strings.Contains(line, "is-at") {
			t.Errorf("an address was claimed: %s", line)
		}
	}
	if !claimed || frames > 2*(20+2*10) {
		t.Errorf("%d frames were sent (as a decoy: %t):\n%s", frames, claimed, dump.Log())
	}
}

// TestTrunkFaults has one of three VLANs fail, each time otherwise.
func TestTrunkFaults(t *testing.T) {
	t.Parallel()
	outer := t
	s := newTrunk(t)
	s.vlan(110)
	r := s.vlan(120)
	s.vlan(130)
	for _, c := range []struct {
		name      string
		fault     router
		want, fix string
		on        string
	}{
		{"not carried", router{silent: true}, "VLAN 120 never showed a frame, and its gateway answers nobody", "switchport trunk allowed vlan add 120", "switch"},
		{"port security", router{firstMAC: true}, "VLAN 120: frames of a second MAC address are dropped on their way out (198.18.120.1 answers the NIC's own): port security", "", ""},
		{"promiscuous mode", router{toNIC: true}, "VLAN 120: frames of a second MAC address leave, and those to it do not arrive", "", ""},
		{"both ways", router{toNIC: true, firstMAC: true}, "VLAN 120: 198.18.120.1 answers the NIC's own MAC address, and not a second one", "", ""},
		{"ARP inspection", router{leases: true}, "VLAN 120: 198.18.120.1 answers a question from nobody's address, and not one from decoy 198.18.120.100", "ip arp inspection filter DECOYS vlan 120", "switch"},
		{"no baby giants", router{largest: 1496}, "VLAN 120: packets of 1500 bytes do not come back from 198.18.120.1, those of 1496 do", "system mtu", "switch"},
		{"small MTU", router{mtu: 1400}, "VLAN 120: 198.18.120.1 answers a packet of 1500 bytes in fragments of 1396", "ip mtu 1500", "198.18.120.1"},
		{"a host has a decoy's address", router{alsoHas: netip.MustParseAddr("198.18.120.105")}, "198.18.120.105 is in use by 00:1b:54:01:00:78", "[198.18.120.100-198.18.120.104, 198.18.120.106-198.18.120.109]", doctor.OnDocument},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.change(func() {
				c.fault.addr, c.fault.mac = r.addr, r.mac
				*r = c.fault
				s.t = t
			})
			t.Cleanup(func() { s.change(func() { s.t = outer }) })
			f := s.only(s.examine(state(110, 120, 130)), doctor.Problem, "vlan120", c.want)
			if !strings.Contains(f.Fix, c.fix) || !strings.Contains(f.On, c.on) {
				t.Errorf("fix (%s): %s", f.On, f.Fix)
			}
		})
	}
}

// TestTrunkAllAlike has every VLAN fail by one cause, which is one finding.
func TestTrunkAllAlike(t *testing.T) {
	t.Parallel()
	s := newTrunk(t)
	var ids []uint16
	for id := uint16(100); id < 164; id++ {
		s.vlan(id).firstMAC = true
		ids = append(ids, id)
	}
	s.only(s.examine(state(ids...)), doctor.Problem, "eth1", "VLANs 100-163: frames of a second MAC address are dropped on their way out")
}

// TestTrunkWhole is about the port itself.
func TestTrunkWhole(t *testing.T) {
	t.Parallel()
	talk := func(s *trunk, vlan uint16, sender string) {
		s.emit(vlan, arpFrame(1, stranger, netip.MustParseAddr(sender), everybody, netip.MustParseAddr("192.0.2.77")))
	}
	for _, c := range []struct {
		name     string
		fault    func(*trunk)
		talk     func(*trunk) // by the switch, all the time
		severity doctor.Severity
		subject  string
		want     string
		fix      string
	}{
		{
			"silent", func(s *trunk) { s.routers[110].silent = true }, func(*trunk) {},
			doctor.Problem, "eth1", "no frame at all arrived", "ethtool eth1",
		},
		{
			"access port", func(s *trunk) { s.routers[110].silent = true }, func(s *trunk) { talk(s, 0, "10.99.0.1") },
			doctor.Problem, "eth1", "none with a VLAN tag: the port is no trunk", "switchport mode trunk; switchport trunk allowed vlan add 110",
		},
		{
			"native VLAN by its hosts", func(s *trunk) { s.routers[110].silent = true },
			func(s *trunk) { talk(s, 0, "198.18.110.7"); talk(s, 200, "203.0.113.1") },
			doctor.Problem, "vlan110", "VLAN 110 has no tag here: it is the port's native VLAN (198.18.110.7 was heard without one)", "switchport trunk native vlan",
		},
		{
			"native VLAN by LLDP", func(s *trunk) { s.routers[110].silent = true },
			func(s *trunk) { s.emit(0, lldp("core-1", "Gi1/0/7", 110)); talk(s, 200, "203.0.113.1") },
			doctor.Problem, "vlan110", "VLAN 110 has no tag here: it is the port's native VLAN (the switch says by LLDP)", "switchport trunk native vlan",
		},
		{
			"wrong VLAN", func(s *trunk) { s.routers[110].silent = true }, func(s *trunk) { talk(s, 111, "198.18.110.7") },
			doctor.Problem, "vlan110", "VLAN 110 is silent, and 198.18.110.7 of its subnet was heard in VLAN 111", "segment vlan110: vlan: 111",
		},
		{
			"two tags", func(*trunk) {}, func(s *trunk) {
				f := arpFrame(1, stranger, netip.MustParseAddr("198.18.110.7"), everybody, gatewayOf(110))
				s.emit(300, slices.Concat(f[:12], []byte{0x81, 0, 0, 110}, f[12:]))
			},
			doctor.Note, "eth1", "frames with two tags arrive (802.1ad, QinQ): VLAN 110 in 300", "",
		},
		{
			"small MTU of the NIC", func(s *trunk) { s.run(s.gw, "ip link set eth1 mtu 1400") }, func(*trunk) {},
			doctor.Problem, "eth1", "the MTU of eth1 is 1400", "ip link set eth1 mtu 1500",
		},
		{
			"large MTU of the NIC", func(s *trunk) {
				s.run(s.gw, "ip link set eth1 mtu 9000")
				s.routers[110].largest = 1500
			}, func(*trunk) {},
			doctor.Problem, "vlan110", "packets of 9000 bytes do not come back from 198.18.110.1, those of 1500 do", "ip link set eth1 mtu 1500",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newTrunk(t)
			s.vlan(110)
			c.fault(s)
			quiet := s.talk(func() { c.talk(s) })
			list := s.examine(state(110))
			quiet()
			f := s.only(list, c.severity, c.subject, c.want)
			if !strings.Contains(f.Fix, c.fix) {
				t.Errorf("fix (%s): %s", f.On, f.Fix)
			}
			if strings.Contains(c.name, "LLDP") && f.On != "switch core-1, port Gi1/0/7" {
				t.Errorf("to be mended on %q", f.On)
			}
		})
	}
}

// TestTrunkWithoutGateway asks a host that was heard, where no gateway is known.
func TestTrunkWithoutGateway(t *testing.T) {
	t.Parallel()
	s := newTrunk(t)
	r := s.vlan(110)
	document := state(110, 120)
	for i := range document.Segments {
		document.Segments[i].Subnets[0].Gateway = netip.Addr{}
	}
	quiet := s.talk(func() { s.emit(110, arpFrame(1, r.mac, r.addr, everybody, netip.MustParseAddr("198.18.110.9"))) })
	list := s.examine(document)
	quiet()
	s.only(list, doctor.Note, "vlan120", "VLAN 120 never showed a frame: the switch may not carry it on this port, or nobody is there")
	if want := "VLAN 110: 198.18.110.1 answers the segment's own MAC address, with packets of 1500 bytes"; !strings.Contains(text(list), want) {
		t.Errorf("no %q in:\n%s", want, text(list))
	}
}

// TestTrunkIPv6 asks gateways of VLANs that have no IPv4.
func TestTrunkIPv6(t *testing.T) {
	t.Parallel()
	s := newTrunk(t)
	s.vlan(110)
	s.vlan(120).firstMAC = true
	document := state(110, 120)
	for i := range document.Segments {
		gateway := gatewayOf6(document.Segments[i].VLAN)
		document.Segments[i].Subnets = []deception.Subnet{{Prefix: netip.PrefixFrom(gateway, 64).Masked(), Gateway: gateway}}
		document.Decoys[i].Addresses = []deception.AddrRange{{From: gateway.Next(), To: gateway.Next().Next()}}
	}
	list := s.examine(document)
	s.only(list, doctor.Problem, "vlan120", "VLAN 120: frames of a second MAC address are dropped on their way out (2001:db8:0:78::1 answers")
	if want := "VLAN 110: 2001:db8:0:6e::1 answers the segment's own MAC address"; !strings.Contains(text(list), want) {
		t.Errorf("no %q in:\n%s", want, text(list))
	}
}

// TestTrunkPassive sends nothing; an untagged segment on the same NIC is not
// disturbed by what comes in VLANs, even where a VLAN has its addresses too.
func TestTrunkPassive(t *testing.T) {
	t.Parallel()
	s := newTrunk(t)
	r := s.vlan(110)
	r.alsoHas = netip.MustParseAddr("10.99.0.100")
	passive := func(d *doctor.Subject) { d.Passive = true }
	s.examine(state(110), passive)
	s.change(func() {
		for _, f := range s.seen {
			if bytes.Equal(f[12:14], []byte{8, 6}) {
				t.Errorf("a question was sent: %x", f)
			}
		}
	})
	for _, f := range s.examine(state(110), passive, func(d *doctor.Subject) { d.Listen = 0 }) {
		if f.Check == "trunk" || f.Check == "vlan" {
			t.Errorf("neither listened nor asked, it says %q", f.What)
		}
	}
	document := state(110)
	document.Segments = append(document.Segments, deception.Segment{
		Name: "office", Parent: "eth1", Subnets: []deception.Subnet{{Prefix: netip.MustParsePrefix("10.99.0.0/24")}},
	})
	document.Decoys = append(document.Decoys, deception.Decoy{
		Name: "office", Segment: "office", Addresses: []deception.AddrRange{{From: r.alsoHas, To: r.alsoHas}},
	})
	quiet := s.talk(func() { s.emit(110, arpFrame(1, r.mac, r.alsoHas, everybody, gatewayOf(110))) }) // that address exists, in VLAN 110
	list := s.examine(document)
	quiet()
	if doctor.Problems(list) > 0 {
		t.Errorf("problems:\n%s", text(list))
	}
	var b bytes.Buffer
	if err := doctor.WriteJSON(&b, list); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		var f doctor.Finding
		if err := json.Unmarshal([]byte(line), &f); err != nil || f.Check == "" {
			t.Errorf("%v in %s", err, line)
		}
	}
}

// lldp is what a switch says of its port (IEEE 802.1AB), by hand.
func lldp(name, port string, native uint16) []byte {
	tlv := func(kind byte, value ...byte) []byte { return append([]byte{kind << 1, byte(len(value))}, value...) }
	b := []byte{0x01, 0x80, 0xc2, 0, 0, 0x0e, 0, 0x1b, 0x54, 1, 1, 1, 0x88, 0xcc}
	b = append(b, tlv(1, 4, 0, 0x1b, 0x54, 1, 1, 1)...)
	b = append(b, tlv(2, append([]byte{5}, port...)...)...)
	b = append(b, tlv(3, 0, 120)...)
	b = append(b, tlv(5, []byte(name)...)...)
	b = append(b, tlv(127, 0, 0x80, 0xc2, 1, byte(native>>8), byte(native))...)
	return append(b, 0, 0)
}
