package doctor

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"decoynet/config"
	"decoynet/deception"
	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/survey"
	"decoynet/internal/kernel/trial"

	"github.com/google/go-cmp/cmp"
)

const testDocument = `
node: gw
segments:
  - {name: office, parent: eth0, subnets: [{prefix: 192.0.2.0/24, gateway: 192.0.2.1}]}
zones:
  - {name: linux, subnet: 10.1.0.0/24, link: br-linux}
services:
  - {name: web, zone: linux, address: 10.1.0.2, ports: [80]}
decoys:
  - {name: w, segment: office, addresses: [192.0.2.100-192.0.2.110], path: PATH, bind: [{ports: [80], service: web}]}
`

func testState(t *testing.T, path string) *deception.State {
	t.Helper()
	doc, err := config.Parse("test", []byte(strings.Replace(testDocument, "PATH", path, 1)))
	if err != nil {
		t.Fatal(err)
	}
	return &doc.State
}

// wellFacts are those of a machine on which all is well.
func wellFacts(t *testing.T, path string) *Facts {
	f := &Facts{
		Release: "6.1.0", State: testState(t, path),
		Running: &Running{PID: 7, Ready: true, Segments: []RunningSegment{{Name: "office", Steering: "sk_lookup", Ready: true}}},
		Data:    Data{Path: "/var/lib/decoynet", Exists: true, FreeBytes: 1 << 40},
		Links: []survey.Link{
			{Index: 1, Name: "lo", Loopback: true, Up: true, Carrier: true},
			{Index: 2, Name: "eth0", Kind: "device", Ethernet: true, Up: true, Carrier: true},
			{Index: 3, Name: "br-linux", Kind: "bridge", Ethernet: true, Up: true, Carrier: true, Addrs: []netip.Prefix{netip.MustParsePrefix("10.1.0.1/24")}},
		},
		Sysctl: map[string]string{
			"net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/br-linux/rp_filter": "0", "net/ipv4/conf/eth0/rp_filter": "0",
			"net/ipv4/ip_forward": "0", "net/ipv4/conf/br-linux/forwarding": "0",
		},
		OurRules: []string{"IPv4 rule 14220: from all iif br-linux lookup 14200"},
		Limits:   Limits{Files: 1 << 20, OfRunning: true},
		Routes:   map[netip.Addr]survey.Route{netip.MustParseAddr("10.1.0.2"): {Dev: "br-linux"}},
		Segments: []SegmentFacts{{
			Name: "office", Exists: true, Probed: 11, Total: 11,
			LAN: LANProbe{Done: true, Asked: true, Parent: true, Macvlan: true, Neighbour: netip.MustParseAddr("192.0.2.1")},
		}},
		Services: []ServiceProbe{{
			Service: "web", Zone: "linux", Target: netip.MustParseAddrPort("10.1.0.2:80"), From: netip.MustParseAddr("198.18.0.1"),
			Answer: Accepts, Links: []string{"br-linux"}, Delivered: true,
		}},
	}
	for _, feature := range []trial.Feature{
		trial.Namespaces, trial.Veth, trial.Macvlan, trial.Containment, trial.KernelPath, trial.Events, trial.Rules,
		trial.Transparent, trial.SKLookup, trial.TPROXY, trial.IPTables,
	} {
		f.Features = append(f.Features, trial.Result{Feature: feature})
	}
	if path == "kernel" {
		uplink := link.HostName("office")
		f.Links = append(f.Links, survey.Link{Index: 9, Name: uplink, Kind: "veth", Ethernet: true, Up: true, Carrier: true, Alias: link.Alias})
		f.Sysctl["net/ipv4/conf/br-linux/forwarding"], f.Sysctl["net/ipv4/conf/"+uplink+"/forwarding"] = "1", "1"
		f.Sysctl["net/ipv4/conf/"+uplink+"/rp_filter"] = "0"
		f.KernelPaths = []KernelProbe{{
			Segment: "office", Service: "web", Zone: "linux", Uplink: uplink, Target: netip.MustParseAddrPort("10.1.0.2:80"),
			Forwarded: true, Answered: true, Returned: true,
		}}
	}
	return f
}

// TestJudge changes one fact at a time: just that finding comes of it.
func TestJudge(t *testing.T) {
	uplink := link.HostName("office")
	broken := errors.New("operation not supported")
	feature := func(f *Facts, name trial.Feature, err error) {
		for i := range f.Features {
			if f.Features[i].Feature == name {
				f.Features[i].Err = err
			}
		}
	}
	for _, c := range []struct {
		name, path string // path relay unless given
		change     func(*Facts)
		want       []string // "severity check subject: what | fix @ where", without those that are ok
	}{
		{name: "well", change: func(*Facts) {}},
		{name: "well", path: "kernel", change: func(*Facts) {}},
		{
			name: "no macvlan", change: func(f *Facts) { feature(f, trial.Macvlan, broken) },
			want: []string{"problem kernel macvlan: this kernel refuses macvlan (CONFIG_MACVLAN): operation not supported | modprobe -a macvlan"},
		},
		{
			name: "no conntrack, not needed", change: func(f *Facts) { feature(f, trial.Events, broken) },
			want: []string{"note kernel connection events: this kernel refuses connection events (CONFIG_NF_CT_NETLINK, NF_CONNTRACK_EVENTS): operation not supported | modprobe -a nf_conntrack_netlink"},
		},
		{
			name: "no conntrack, needed", path: "kernel", change: func(f *Facts) { feature(f, trial.Events, broken) },
			want: []string{"problem kernel connection events: this kernel refuses connection events (CONFIG_NF_CT_NETLINK, NF_CONNTRACK_EVENTS): operation not supported | modprobe -a nf_conntrack_netlink"},
		},
		{
			name: "no policy routing", change: func(f *Facts) { feature(f, trial.Rules, broken) },
			want: []string{"problem kernel policy routing: this kernel refuses policy routing (CONFIG_IP_MULTIPLE_TABLES): operation not supported | boot a kernel with CONFIG_IP_MULTIPLE_TABLES"},
		},
		{name: "old kernel", change: func(f *Facts) { feature(f, trial.SKLookup, broken) }},
		{
			name: "no steering", change: func(f *Facts) {
				for _, s := range steerings {
					feature(f, s, broken)
				}
			},
			want: []string{
				"problem kernel sk_lookup: this kernel refuses sk_lookup (CONFIG_BPF_SYSCALL, Linux 5.9): operation not supported | boot a kernel with CONFIG_BPF_SYSCALL, Linux 5.9",
				"problem kernel TPROXY: this kernel refuses TPROXY (CONFIG_NFT_TPROXY, NF_TPROXY_IPV4, NF_TPROXY_IPV6): operation not supported | modprobe -a nft_tproxy",
				"problem kernel iptables and ipset: this kernel refuses iptables and ipset (the program iptables, CONFIG_IP_SET_HASH_NETPORT, NETFILTER_XT_SET, NETFILTER_XT_TARGET_TPROXY): operation not supported | modprobe -a ip_set_hash_netport xt_set xt_TPROXY",
			},
		},
		{
			name: "forced steering", change: func(f *Facts) {
				feature(f, trial.SKLookup, broken)
				f.State.Segments[0].Steering = deception.SteeringSKLookup
			},
			want: []string{"problem kernel office: the segment asks for steering by sk_lookup, which this kernel refuses: operation not supported | segment office: steering: tproxy @ the document"},
		},
		{
			name: "no capability", change: func(f *Facts) { f.Capabilities = []string{"CAP_NET_RAW"} },
			want: []string{"problem capabilities : missing CAP_NET_RAW | sudo decoynet doctor"},
		},
		{
			name: "not ready", change: func(f *Facts) { f.Running.Ready = false },
			want: []string{"problem running : decoynet says that it is not ready | decoynet status"},
		},
		{
			name: "recording fails", change: func(f *Facts) { f.Running.Failing, f.Running.Lost = "disk full", 3 },
			want: []string{
				"note recording : 3 sessions were not recorded since decoynet started | ",
				"problem recording : sessions cannot be written: disk full | df -h /var/lib/decoynet",
			},
		},
		{
			name: "NFS", change: func(f *Facts) { f.Data.FileSystem = "nfs" },
			want: []string{"problem data /var/lib/decoynet: is on a network file system (nfs) | decoynet up --data /var/lib/decoynet -c FILE"},
		},
		{
			name: "wireless", change: func(f *Facts) { f.Links[1].Wireless = true },
			want: []string{"problem parent office: eth0 is wireless | segment office: parent: a wired NIC @ the document"},
		},
		{
			name: "bond", change: func(f *Facts) { f.Links[1].Master, f.Links[1].MasterKind = "bond0", "bond" },
			want: []string{"problem parent office: eth0 is a port of the bond bond0 | segment office: parent: bond0 @ the document"},
		},
		{
			name: "macvlan refused", change: func(f *Facts) { f.Segments[0].Create = broken },
			want: []string{"problem parent office: eth0 refuses a macvlan: operation not supported | ip -d link show eth0"},
		},
		{
			name: "nobody there", change: func(f *Facts) { f.Segments[0].LAN = LANProbe{Done: true} },
			want: []string{"note lan office: nobody there answered, so whether frames pass cannot be told | "},
		},
		{
			name: "proxy ARP", change: func(f *Facts) {
				f.Segments[0].Probed, f.Segments[0].Total = 200, 200
				for i := range 100 {
					f.Segments[0].Conflicts = append(f.Segments[0].Conflicts, Conflict{netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), []byte{2, 0, 0, 0, 0, 1}})
				}
			},
			want: []string{"problem conflicts office: 02:00:00:00:00:01 answers for 100 decoy addresses: a router that does proxy ARP | switch proxy ARP off for this network @ 02:00:00:00:00:01"},
		},
		{
			name: "zone's link elsewhere", change: func(f *Facts) { f.Services[0].Links = []string{"eth1"} },
			want: []string{"problem service web: its answers come in at eth1, not at br-linux | zone linux: link: eth1 @ the document"},
		},
		{
			name: "astray within the zone", change: func(f *Facts) {
				p := &f.Services[0]
				p.Answer, p.Links, p.Passed, p.Delivered, p.Own = Accepts, nil, []string{"veth1"}, false, Accepts
			},
			want: []string{"problem service web: 10.1.0.2 answers this host, but its answers to strangers (of the world) go elsewhere (seen at veth1 on their way to another machine) | ip route replace default via 10.1.0.1 @ the machine of service web (10.1.0.2)"},
		},
		{
			name: "astray, namespace known", change: func(f *Facts) {
				f.State.Services[0].Netns = "linux"
				p := &f.Services[0]
				p.Answer, p.Links, p.Delivered, p.Own = NoAnswer, nil, false, Accepts
			},
			want: []string{"problem service web: 10.1.0.2 answers this host, but its answers to strangers (of the world) go elsewhere | nsenter --net=/run/netns/linux ip route replace default via 10.1.0.1"},
		},
		{
			name: "alias silent", change: func(f *Facts) {
				f.State.Services[0].Aliases = []netip.Prefix{netip.MustParsePrefix("10.1.128.0/24")}
				p := f.Services[0]
				p.Target, p.Alias, p.Answer, p.Links, p.Delivered = netip.MustParseAddrPort("10.1.128.0:80"), true, NoAnswer, nil, false
				f.Services = append(f.Services, p)
			},
			want: []string{"problem service web: does not answer at its alias 10.1.128.0:80 | ip route add local 10.1.128.0/24 dev lo @ the machine of service web (10.1.0.2)"},
		},
		{
			name: "undelivered", change: func(f *Facts) { f.Services[0].Delivered = false },
			want: []string{"problem service web: answers of 10.1.0.2 come in at br-linux and do not reach decoynet; something on this host drops them | nft list ruleset; ip rule; nstat -az TcpExtIPReversePathFilter"},
		},
		{
			name: "undelivered by strict filtering", change: func(f *Facts) {
				f.Services[0].Delivered = false
				f.Sysctl["net/ipv4/conf/all/rp_filter"] = "1"
			},
			want: []string{"problem rp_filter br-linux: drops the answers of service web: strict reverse path filtering | sysctl -w net.ipv4.conf.br-linux.rp_filter=2"},
		},
		{
			name: "loose overrules strict", change: func(f *Facts) {
				f.Sysctl["net/ipv4/conf/all/rp_filter"], f.Sysctl["net/ipv4/conf/br-linux/rp_filter"] = "1", "2"
			},
		},
		{
			name: "loose filtering of all", path: "kernel", change: func(f *Facts) {
				f.Sysctl["net/ipv4/conf/all/rp_filter"] = "2"
				f.KernelPaths[0].Forwarded, f.KernelPaths[0].Answered, f.KernelPaths[0].Returned = false, false, false
			},
			want: []string{"problem rp_filter " + uplink + ": drops what comes out of the segment: reverse path filtering | sysctl -w net.ipv4.conf.eth0.rp_filter=2 && sysctl -w net.ipv4.conf.br-linux.rp_filter=2 && sysctl -w net.ipv4.conf.all.rp_filter=0"},
		},
		{
			name: "service down on the kernel path", path: "kernel", change: func(f *Facts) {
				p := &f.Services[0]
				p.Answer, p.Delivered = Refuses, true
				f.KernelPaths[0].Answered, f.KernelPaths[0].Returned = false, false
			},
			want: []string{"problem service web: port 80 of 10.1.0.2 refuses connections | start the server (who listens: ss -lntup 'sport = :80') @ the machine of service web (10.1.0.2)"},
		},
		{
			name: "lost on the way back", path: "kernel", change: func(f *Facts) { f.KernelPaths[0].Returned = false },
			want: []string{"problem kernel path office: answers of 10.1.0.2:80 come in at br-linux and do not go back into the segment at " + uplink + " | nft list table inet decoynet; ip rule; ip route show table all proto 142"},
		},
		{
			name: "a filter that was seen to let pass", path: "kernel", change: func(f *Facts) {
				f.Filters = []survey.Chain{{Family: "ip", Table: "filter", Name: "FORWARD", Hook: "forward", Drop: true}}
			},
		},
		{
			name: "an input filter that was seen to let pass", change: func(f *Facts) {
				f.Filters = []survey.Chain{{Family: "ip", Table: "filter", Name: "INPUT", Hook: "input", Drop: true}}
			},
		},
		{
			name: "an input filter, before decoynet runs", change: func(f *Facts) {
				f.Running, f.Services[0].Delivered = nil, false
				f.Filters = []survey.Chain{{Family: "inet", Table: "host", Name: "in", Hook: "input", Drop: true}}
			},
			want: []string{`problem filter br-linux: chain inet host in drops services' answers at br-linux | nft insert rule inet host in iifname '"br-linux"' accept`},
		},
		{
			name: "forwarding, a name with a dot", path: "kernel", change: func(f *Facts) {
				f.State.Zones[0].Link, f.Links[2].Name = "eth1.5", "eth1.5"
				f.Routes[netip.MustParseAddr("10.1.0.2")] = survey.Route{Dev: "eth1.5"}
				f.Services[0].Links = []string{"eth1.5"}
				f.Sysctl["net/ipv4/conf/eth1.5/forwarding"] = "0"
				f.KernelPaths[0].Returned = false
			},
			want: []string{"problem forwarding eth1.5: this host does not forward IPv4 between eth1.5 and the segment office | sysctl -w net/ipv4/conf/eth1.5/forwarding=1"},
		},
		{
			name: "conntrack full", path: "kernel", change: func(f *Facts) {
				f.Limits.Conntrack, f.Limits.ConntrackUsed = 100000, map[string]uint64{"office": 99000, "": 5}
			},
			want: []string{"problem limits conntrack: segment office tracks 99000 connections of 100000 | sysctl -w net.netfilter.nf_conntrack_max=400000"},
		},
		{
			name: "many neighbours", change: func(f *Facts) {
				f.State.Segments[0].Subnets[0].Prefix = netip.MustParsePrefix("10.0.0.0/16")
				f.Neighbour.Limit4 = 1024
			},
			want: []string{"note limits neighbours: the segments' subnets have 65536 addresses, the machine remembers 1024 neighbours | sysctl -w net.ipv4.neigh.default.gc_thresh3=131072"},
		},
		{
			name: "neighbour table full", change: func(f *Facts) { f.Neighbour = NeighbourTable{Limit4: 1024, InUse4: 1000} },
			want: []string{"problem limits neighbours: 1000 of at most 1024 ipv4 neighbours are known | sysctl -w net.ipv4.neigh.default.gc_thresh3=16384"},
		},
		{
			name: "files of the machine", change: func(f *Facts) { f.Limits.SystemFiles, f.Limits.SystemInUse = 100000, 99000 },
			want: []string{"problem limits fs.file-max: 99000 of the machine's 100000 open files are in use | sysctl -w fs.file-max=2097152"},
		},
		{
			name: "unread", change: func(f *Facts) { f.Unread = []Unread{{"filter", "", errors.New("too large")}} },
			want: []string{"note filter : could not be found out: too large | "},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := c.path
			if path == "" {
				path = "relay"
			}
			facts := wellFacts(t, path)
			c.change(facts)
			var got []string
			for _, f := range Judge(facts) {
				if f.Severity != OK {
					line := string(f.Severity) + " " + f.Check + " " + f.Subject + ": " + f.What + " | " + f.Fix
					if f.On != "" {
						line += " @ " + f.On
					}
					got = append(got, line)
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
		})
	}
}

// TestJudgeNothing judges a machine of which nothing is known.
func TestJudgeNothing(t *testing.T) {
	for _, f := range Judge(&Facts{}) {
		t.Errorf("of nothing came %+v", f)
	}
}

func TestWriteText(t *testing.T) {
	var b strings.Builder
	err := WriteText(&b, []Finding{
		{Check: "kernel", Severity: OK, What: "Linux"},
		{Check: "zone", Subject: "linux", Severity: OK, What: "up"},
		{Check: "service", Subject: "web", Severity: Problem, What: "is off", Why: "no answers", Fix: "turn it on", On: "its machine"},
	})
	if err != nil {
		t.Fatal(err)
	}
	const want = `ok       kernel          Linux
ok       zone     linux  up

problem  service  web    is off
         no answers
         fix (its machine): turn it on

2 well, 0 notes, 1 problem
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
