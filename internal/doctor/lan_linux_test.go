package doctor_test

import (
	"strings"
	"testing"

	"decoynet/internal/doctor"
)

// TestConflicts puts hosts onto the LAN that have decoys' addresses; the decoys
// are then taken out of the document as the doctor says.
func TestConflicts(t *testing.T) {
	t.Parallel()
	p := newPatient(t, relayed)
	p.up()
	p.run(p.Production, "ip address add 192.0.2.120/24 dev eth0 && ip address add 2001:db8:2::105/64 dev eth0 nodad")
	mac := strings.TrimSpace(p.run(p.Production, "cat /sys/class/net/eth0/address"))
	found := p.must(p.findings(""), doctor.Problem, "conflicts", "office")
	if want := "192.0.2.120, 2001:db8:2::105 is in use by " + mac; found.What != want {
		t.Errorf("found %q, want %q", found.What, want)
	}
	const fix = "decoy office-web: addresses: [192.0.2.100-192.0.2.119, 192.0.2.121-192.0.2.150, 2001:db8:2::100-2001:db8:2::104, 2001:db8:2::106-2001:db8:2::10f]"
	if found.Fix != fix || found.On != doctor.OnDocument {
		t.Errorf("fix %q on %q, want %q", found.Fix, found.On, fix)
	}
	p.document(strings.Replace(relayed, `[192.0.2.100-192.0.2.150, "2001:db8:2::100-2001:db8:2::10f"]`, strings.TrimPrefix(fix, "decoy office-web: addresses: "), 1))
	stale := p.must(p.findings(""), doctor.Note, "document", p.file)
	p.run(p.Gateway, stale.Fix)
	list := p.findings("")
	p.gone(list, "conflicts", "office")
	p.gone(list, "document", "")
	p.healthy(list)

	// The same before decoynet claims them, and a decoy that is this host itself.
	if err := p.process.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.document(strings.Replace(relayed, "[192.0.2.200]", "[192.0.2.5]", 1))
	list = p.findings("", "-c", p.file)
	own := strings.TrimSpace(p.run(p.Gateway, "cat /sys/class/net/eth0/address"))
	for _, want := range []string{"192.0.2.120, 2001:db8:2::105 is in use by " + mac, "192.0.2.5 is in use by " + own} {
		if !strings.Contains(text(list), want) {
			t.Errorf("no %q in:\n%s", want, text(list))
		}
	}
}

// TestSecondMAC has the LAN drop every frame that is not for the gateway's own
// MAC address, as hypervisors do.
func TestSecondMAC(t *testing.T) {
	t.Parallel()
	p := newPatient(t, relayed)
	mac := strings.TrimSpace(p.run(p.Gateway, "cat /sys/class/net/eth0/address"))
	port := strings.TrimSpace(p.run(p.LAN.Machine(), "ls /sys/class/net/br0/brif | grep gw"))
	p.run(p.LAN.Machine(), `nft "table bridge hypervisor { chain out { type filter hook postrouting priority 0;
		oifname `+port+` ether daddr != `+mac+` ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 drop; }; }"`)
	for _, running := range []bool{false, true} {
		args := []string{"-c", p.file}
		if running {
			p.up()
			args = nil
		}
		found := p.must(p.findings("", args...), doctor.Problem, "lan", "office")
		if !strings.Contains(found.What, "and not a second one") || !strings.Contains(found.Fix, "forged transmits") {
			t.Errorf("found %+v", found)
		}
	}
	p.run(p.LAN.Machine(), "nft delete table bridge hypervisor")
	list := p.findings("")
	p.gone(list, "lan", "office")
	p.healthy(list)
}

// TestSilentGateway takes the segment's gateway away; others still answer.
func TestSilentGateway(t *testing.T) {
	t.Parallel()
	document := strings.Replace(relayed, "gateway: 192.0.2.10}", "gateway: 192.0.2.1}", 1)
	p := newPatient(t, document)
	// Before decoynet stands there is no address to ask under but none.
	p.must(p.findings("", "-c", p.file), doctor.Note, "lan", "office")
	p.up()
	found := p.must(p.findings(""), doctor.Problem, "lan", "office")
	if !strings.Contains(found.What, "192.0.2.1 answers nobody") || found.On != doctor.OnDocument {
		t.Errorf("found %+v", found)
	}
	p.document(relayed)
	p.run(p.Gateway, "decoynet reload")
	p.healthy(p.findings(""))
}

// TestParent breaks the NIC that the segment stands on.
func TestParent(t *testing.T) {
	t.Parallel()
	p := newPatient(t, relayed)
	look := func() doctor.Finding {
		t.Helper()
		return p.must(p.findings("", "-c", p.file), doctor.Problem, "parent", "office")
	}
	well := func(document string) {
		t.Helper()
		p.document(document)
		list := p.findings("", "-c", p.file)
		p.gone(list, "parent", "office")
		p.healthy(list)
	}

	p.run(p.Gateway, "ip link add br-lan type bridge && ip link set br-lan up && ip link set eth0 master br-lan")
	found := look()
	if found.Fix != "segment office: parent: br-lan" || found.On != doctor.OnDocument {
		t.Errorf("found %+v", found)
	}
	well(strings.Replace(relayed, "parent: eth0", "parent: br-lan", 1))
	p.run(p.Gateway, "ip link del br-lan")
	p.document(relayed)

	p.run(p.Gateway, "ip link set eth0 down")
	found = look()
	p.run(p.Gateway, found.Fix)
	well(relayed)

	p.run(p.LAN.Machine(), "ip link set $(ls /sys/class/net/br0/brif | grep gw) down")
	if found = look(); !strings.Contains(found.What, "no carrier") {
		t.Errorf("found %+v", found)
	}
	p.run(p.LAN.Machine(), "ip link set $(ls /sys/class/net/br0/brif | grep gw) up")
	well(relayed)

	p.document(strings.Replace(relayed, "parent: eth0", "parent: eth9", 1))
	if found = look(); !strings.Contains(found.What, "interfaces here: br-linux, eth0") {
		t.Errorf("found %+v", found)
	}
}
