package link

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCheckParent(t *testing.T) {
	links := []nic{
		{Index: 1, Name: "lo", Kind: "device", Up: true, LowerNS: -1},
		{Index: 2, Name: "eth0", Kind: "device", Up: true, Ethernet: true, LowerNS: -1},
		{Index: 3, Name: "eth1", Kind: "device", Up: true, Ethernet: true, Master: 4},
		{Index: 4, Name: "br0", Kind: "bridge", Up: true, Ethernet: true},
		{Index: 5, Name: "eth2", Kind: "device", Ethernet: true},
		{Index: 6, Name: "wlan0", Kind: "device", Up: true, Ethernet: true},
		{Index: 7, Name: "tun0", Kind: "tun", Up: true},
		{Index: 8, Name: "bond0", Kind: "bond", Up: true, Ethernet: true},
		{Index: 9, Name: "eth3", Kind: "device", Up: true, Ethernet: true, Master: 8},
		{Index: 10, Name: "ovs-system", Kind: "openvswitch", Up: false, Ethernet: true},
		{Index: 11, Name: "eth4", Kind: "device", Up: true, Ethernet: true, Master: 10},
		{Index: 12, Name: "red", Kind: "vrf", Up: true, Ethernet: true},
		{Index: 13, Name: "eth5", Kind: "device", Up: true, Ethernet: true, Master: 12},
		{Index: 14, Name: "dnv-00000000", Kind: "veth", Alias: Alias, Up: true, Ethernet: true},
	}
	wireless := func(n nic) bool { return n.Name == "wlan0" }
	for _, tt := range []struct {
		parent string
		cause  error
		want   string
	}{
		{"eth0", nil, ""},
		{"br0", nil, ""},
		{"eth5", nil, ""}, // a VRF's port keeps its receive handler free
		{"eth7", ErrParentMissing, "segment office: parent eth7 does not exist; interfaces here: bond0, br0, eth0, eth1, eth2, eth3, eth4, eth5, ovs-system, red, wlan0"},
		{"eth1", ErrParentBusy, "segment office: parent eth1 is taken; it is a port of bridge br0; write parent: br0"},
		{"eth2", ErrParentDown, "segment office: parent eth2 is down; ip link set eth2 up"},
		{"wlan0", ErrParentUnsuitable, "segment office: parent wlan0 cannot be a segment's parent; it is wireless, and an access point drops frames from any MAC address but the station's own; name a wired NIC"},
		{"tun0", ErrParentUnsuitable, "segment office: parent tun0 cannot be a segment's parent; it is not an Ethernet interface"},
		{"lo", ErrParentUnsuitable, "segment office: parent lo cannot be a segment's parent; it is not an Ethernet interface"},
		{"eth3", ErrParentBusy, "segment office: parent eth3 is taken; it is a port of bond bond0; write parent: bond0"},
		{"eth4", ErrParentBusy, "segment office: parent eth4 is taken; it is a port of an Open vSwitch bridge; add an internal port to that bridge and name it as the parent"},
	} {
		got, err := checkParent("office", tt.parent, links, wireless)
		if tt.cause == nil {
			if err != nil || got.Name != tt.parent {
				t.Errorf("%s: %+v, %v", tt.parent, got, err)
			}
			continue
		}
		if !errors.Is(err, tt.cause) || err.Error() != tt.want {
			t.Errorf("%s:\n got: %v\nwant: %s", tt.parent, err, tt.want)
		}
	}
	_, err := checkParent("office", "eth0", links[:1], wireless)
	if want := "segment office: parent eth0 does not exist; interfaces here: none"; err == nil || err.Error() != want {
		t.Errorf("on a machine without a NIC:\n got: %v\nwant: %s", err, want)
	}
}

func TestPlanLAN(t *testing.T) {
	want := lanSpec{Lower: 2, LowerNS: 0, MAC: "02:00:00:00:00:01"}
	good := nic{Index: 7, Name: LANName, Kind: "macvlan", Mode: "bridge", Alias: Alias, Lower: 2, LowerNS: 0, MAC: want.MAC}
	with := func(change func(*nic)) nic { n := good; change(&n); return n }
	lo := nic{Index: 1, Name: "lo", Kind: "device"}
	up := nic{Index: 8, Name: UplinkName, Kind: "veth", Alias: Alias}

	for _, tt := range []struct {
		name    string
		links   []nic
		anyNS   bool
		keep    bool
		why     string
		replace []string
	}{
		{name: "fresh namespace", links: []nic{lo}},
		{name: "it stands", links: []nic{lo, good, up}, keep: true},
		{name: "down and with another MTU it still stands", links: []nic{with(func(n *nic) { n.MTU = 9 })}, keep: true},
		{name: "another parent", links: []nic{with(func(n *nic) { n.Lower = 3 })}, why: "it stands on another parent", replace: []string{LANName}},
		{name: "same index in another namespace", links: []nic{with(func(n *nic) { n.LowerNS = 1 })}, why: "it stands on another parent", replace: []string{LANName}},
		{name: "on a macvlan the namespace is not compared", links: []nic{with(func(n *nic) { n.LowerNS = 1 })}, anyNS: true, keep: true},
		{name: "another mode", links: []nic{with(func(n *nic) { n.Mode = "private" })}, why: "it is in private mode", replace: []string{LANName}},
		{name: "another kind", links: []nic{with(func(n *nic) { n.Kind = "veth" })}, why: "it is a veth", replace: []string{LANName}},
		{name: "another MAC address", links: []nic{with(func(n *nic) { n.MAC = "02:00:00:00:00:02" })}, why: "its MAC address is 02:00:00:00:00:02", replace: []string{LANName}},
		{
			name: "what an interrupted run left goes",
			links: []nic{
				good, up,
				{Index: 9, Name: "dn-0a0b0c0d", Kind: "macvlan"},
				{Index: 10, Name: "dnv-0a0b0c0d", Kind: "veth"},
				{Index: 11, Name: "odd", Alias: Alias},
				{Index: 12, Name: "theirs", Kind: "macvlan"},
				{Index: 13, Name: "dn-bridge", Kind: "bridge"},
			},
			keep: true, replace: []string{"dn-0a0b0c0d", "dnv-0a0b0c0d", "odd"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := want
			spec.AnyNS = tt.anyNS
			plan, err := planLAN(tt.links, spec)
			if err != nil {
				t.Fatal(err)
			}
			var replace []string
			for _, n := range plan.Replace {
				replace = append(replace, n.Name)
			}
			if (plan.Keep != nil) != tt.keep || plan.Why != tt.why {
				t.Errorf("keeps %v because %q", plan.Keep, plan.Why)
			}
			if diff := cmp.Diff(tt.replace, replace); diff != "" {
				t.Errorf("replaces (-want +got):\n%s", diff)
			}
		})
	}
	for _, foreign := range []nic{
		with(func(n *nic) { n.Alias = "somebody's" }),
		with(func(n *nic) { n.Alias, n.MAC = "", "02:00:00:00:00:02" }),
	} {
		if _, err := planLAN([]nic{foreign}, want); err == nil {
			t.Error("somebody else's lan0 would be replaced")
		}
	}
	plan, err := planLAN([]nic{with(func(n *nic) { n.Alias = "" })}, want)
	if err != nil || plan.Keep != nil || len(plan.Replace) != 1 || plan.Why != "it was not finished" {
		t.Errorf("a lan0 of ours without its mark: %+v, %v", plan, err)
	}
}

func TestPlanUplink(t *testing.T) {
	want := uplinkSpec{HostName: "dnv-1", HostNS: 0, HostMAC: "02:00:00:00:00:01", LinkMAC: "02:00:00:00:00:02"}
	up := nic{Index: 5, Name: UplinkName, Kind: "veth", Alias: Alias, Lower: 9, LowerNS: 0, MAC: want.LinkMAC}
	peer := nic{Index: 9, Name: "dnv-1", Kind: "veth", Alias: Alias, Lower: 5, MAC: want.HostMAC}
	with := func(n nic, change func(*nic)) []nic { change(&n); return []nic{n} }

	for _, tt := range []struct {
		name              string
		seg, host         []nic
		keep              bool
		dropSeg, dropHost bool
		refused           bool
	}{
		{name: "none"},
		{name: "stands", seg: []nic{up}, host: []nic{peer}, keep: true},
		{name: "only the host's end", host: []nic{peer}, dropHost: true},
		{name: "only the segment's end", seg: []nic{up}, dropSeg: true},
		{name: "not each other's peers", seg: with(up, func(n *nic) { n.Lower = 8 }), host: []nic{peer}, dropSeg: true, dropHost: true},
		{name: "peer in a third namespace", seg: with(up, func(n *nic) { n.LowerNS = 4 }), host: []nic{peer}, dropSeg: true, dropHost: true},
		{name: "another MAC address", seg: []nic{up}, host: with(peer, func(n *nic) { n.MAC = "x" }), dropSeg: true, dropHost: true},
		{name: "somebody else's in the host", host: with(peer, func(n *nic) { n.Alias = "" }), refused: true},
		{name: "somebody else's in the segment", seg: with(up, func(n *nic) { n.Alias = "" }), refused: true},
	} {
		keep, dropSeg, dropHost, err := planUplink(tt.seg, tt.host, want)
		if keep != tt.keep || (dropSeg != nil) != tt.dropSeg || (dropHost != nil) != tt.dropHost || (err != nil) != tt.refused {
			t.Errorf("%s: keep %v, drop %v and %v, %v", tt.name, keep, dropSeg, dropHost, err)
		}
	}
}

func TestNamesAndAddressesAreStable(t *testing.T) {
	// Written down, since neighbours remember them across versions.
	if got := HostName("office"); got != "dnv-691ce035" {
		t.Errorf("HostName(office) = %s", got)
	}
	if got := hardwareAddr("lan", "id", "", "office").String(); got != "fe:7f:52:38:cf:50" {
		t.Errorf("hardwareAddr = %s", got)
	}
	seen := map[string]bool{}
	for _, parts := range [][]string{{"lan", "a", "", "b"}, {"lan", "a", "b", ""}, {"lan", "", "a", "b"}, {"lan", "ab", "", ""}} {
		mac := hardwareAddr(parts...)
		if mac[0]&3 != 2 {
			t.Errorf("%s is not a locally administered unicast address", mac)
		}
		seen[mac.String()] = true
	}
	if len(seen) != 4 {
		t.Errorf("different parts give equal addresses: %v", seen)
	}
}
