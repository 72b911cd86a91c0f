package doctor

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/kernel/trial"

	"github.com/google/go-cmp/cmp"
)

// trunkFacts are those of a trunk with two VLANs on which all is well.
func trunkFacts(t *testing.T) *Facts {
	f := wellFacts(t, "relay")
	f.Segments[0].LAN = LANProbe{}
	f.State.Segments = nil
	f.Segments = nil
	tags := map[uint16]uint64{}
	for i, name := range []string{"servers", "clients"} {
		id := uint16(110 + 10*i)
		gateway := netip.AddrFrom4([4]byte{198, 18, byte(id), 1})
		f.State.Segments = append(f.State.Segments, deception.Segment{
			Name: name, Parent: "eth0", VLAN: id, Subnets: []deception.Subnet{{Prefix: netip.PrefixFrom(gateway, 24).Masked(), Gateway: gateway}},
		})
		f.Segments = append(f.Segments, SegmentFacts{
			Name: name, Probed: 10, Total: 10,
			VLAN: &VLANFacts{ID: id, Frames: 9, Peers: []Peer{{
				Addr: gateway, Gateway: true, NIC: true, Second: true, AsDecoy: true, Decoy: gateway.Next(),
				Echo: Echo{Sent: true, Full: 1500, Largest: 1500},
			}}},
		})
		tags[id] = 9
	}
	f.Links[1].MTU = 1500
	f.Trunks = []TrunkFacts{{Parent: "eth0", Listened: 5 * time.Second, Heard: Census{Frames: 18, Tags: tags}}}
	return f
}

func TestJudgeTrunk(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Facts)
		want   []string // "severity check subject: what | fix @ where", without those that are ok
	}{
		{"well", func(*Facts) {}, nil},
		{"not listened", func(f *Facts) { f.Trunks[0] = TrunkFacts{Parent: "eth0"} }, nil},
		{
			"no 802.1Q, not needed", func(f *Facts) {
				f.Features = append(f.Features, trial.Result{Feature: trial.VLAN, Err: errors.New("operation not supported")})
				f.State.Segments, f.Trunks = nil, nil
			}, nil,
		},
		{
			"no 802.1Q", func(f *Facts) {
				f.Features = append(f.Features, trial.Result{Feature: trial.VLAN, Err: errors.New("operation not supported")})
				f.VLANModule = true
			},
			[]string{"problem kernel 802.1Q: this kernel has no VLAN devices (CONFIG_VLAN_8021Q, module 8021q): operation not supported | modprobe 8021q && echo 8021q > /etc/modules-load.d/8021q.conf"},
		},
		{
			"no 802.1Q, no module", func(f *Facts) {
				f.Features = append(f.Features, trial.Result{Feature: trial.VLAN, Err: errors.New("operation not supported")})
			},
			[]string{"problem kernel 802.1Q: this kernel has no VLAN devices (CONFIG_VLAN_8021Q, module 8021q): operation not supported; /lib/modules/6.1.0 holds no 8021q | apt-get install linux-image-amd64 && reboot"},
		},
		{
			"a bridge's port", func(f *Facts) { f.Links[1].Master, f.Links[1].MasterKind = "br0", "bridge" },
			[]string{"problem parent eth0: eth0 is a port of the bridge br0 | segment servers: parent: br0 @ the document"},
		},
		{
			"VMware", func(f *Facts) {
				f.Maker = "VMware, Inc. VMware Virtual Platform"
				refuse(f, 0, true, false)
			},
			[]string{"problem vlan servers: VLAN 110: frames of a second MAC address leave, and those to it do not arrive (198.18.110.1 answers the NIC's own): a virtual switch refuses promiscuous mode | " + makers[0].fix + " @ vSphere"},
		},
		{
			"Hyper-V, all VLANs", func(f *Facts) {
				f.Maker = "Microsoft Corporation Virtual Machine"
				refuse(f, 0, false, true)
				refuse(f, 1, false, true)
			},
			[]string{"problem vlan eth0: VLANs 110, 120: frames of a second MAC address are dropped on their way out (the gateway answers the NIC's own): port security, or forged transmits are refused | Set-VMNetworkAdapter -VMName NAME -MacAddressSpoofing On @ Hyper-V"},
		},
		{
			"one of two gateways is silent", func(f *Facts) {
				v := f.Segments[0].VLAN
				v.Peers = append(v.Peers, Peer{Addr: netip.MustParseAddr("198.18.110.2"), Gateway: true, Decoy: netip.MustParseAddr("198.18.110.100")})
			},
			[]string{"problem vlan servers: VLAN 110 is heard, and its gateway answers nobody (198.18.110.2) | subnets: gateway: ADDRESS, the router's in 110 @ the document"},
		},
		{
			"a gateway that answers no pings", func(f *Facts) { f.Segments[0].VLAN.Peers[0].Echo = Echo{Sent: true, Full: 1500} }, nil,
		},
		{
			"silent, and nobody was asked", func(f *Facts) {
				f.Segments[0].VLAN.Frames, f.Segments[0].VLAN.Peers = 0, nil
			},
			[]string{"note vlan servers: VLAN 110 never showed a frame: the switch may not carry it on this port, or nobody is there | switchport trunk allowed vlan add 110 @ the switch, at the port of eth0"},
		},
		{
			"silent, and the switch says why", func(f *Facts) {
				f.Segments[0].VLAN.Frames, f.Segments[0].VLAN.Peers[0] = 0, Peer{Gateway: true}
				f.Trunks[0].Heard.Notices = []Notice{{Protocol: "LLDP", Switch: "core-1", Port: "7", VLANs: []uint16{120, 130}}}
			},
			[]string{"problem vlan servers: VLAN 110 never showed a frame, and its gateway answers nobody: the switch may not carry it on this port; by LLDP the port carries VLANs 120, 130 | switchport trunk allowed vlan add 110 @ switch core-1, port 7"},
		},
		{
			"inside of another VLAN", func(f *Facts) {
				f.Segments[0].VLAN.Frames, f.Segments[0].VLAN.Peers = 0, nil
				f.Trunks[0].Heard.Stacks = map[Stack]uint64{{300, 110}: 7}
				delete(f.Trunks[0].Heard.Tags, 110)
			},
			[]string{
				"note trunk eth0: frames with two tags arrive (802.1ad, QinQ): VLAN 110 in 300 | ",
				"problem vlan servers: VLAN 110 arrives inside of VLAN 300 only, with two tags | switchport mode trunk; switchport trunk allowed vlan add 110 @ the switch, at the port of eth0",
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := trunkFacts(t)
			c.change(f)
			var got []string
			for _, o := range slices.DeleteFunc(Judge(f), func(o Finding) bool { return o.Severity == OK }) {
				line := string(o.Severity) + " " + o.Check + " " + o.Subject + ": " + o.What + " | " + o.Fix
				if o.On != "" {
					line += " @ " + o.On
				}
				got = append(got, line)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
		})
	}
	f := trunkFacts(t)
	f.Trunks[0].Heard.Notices = []Notice{{Protocol: "LLDP", Switch: "core-1", Port: "Gi1/0/7", Native: 1}}
	var b strings.Builder
	if err := WriteText(&b, Judge(f)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"VLANs 110, 120 heard in 5s; native VLAN 1 (LLDP); switch core-1, port Gi1/0/7\n", "VLANs              20 decoy addresses asked for, nobody else has one",
		"VLANs 110, 120: the gateway answers the segment's own MAC address, with packets of 1500 bytes\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in:\n%s", want, b.String())
		}
	}
}

// refuse has a VLAN's gateway answer the NIC only.
func refuse(f *Facts, i int, out, back bool) {
	p := &f.Segments[i].VLAN.Peers[0]
	p.Second, p.AsDecoy, p.Echo = false, false, Echo{}
	p.Apart, p.Out, p.Back = true, out, back
}
