//go:build linux

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"decoynet/internal/lab"
	"decoynet/internal/lab/labtest"
	"decoynet/internal/lab/vm"
)

// Both VLANs have the same subnets, intruder and decoys. Decoys ending in 100 are
// relayed, those in 110 go the kernel path.
const twinsDocument = `
node: gw
segments:
  - {name: dmz, parent: eth1, vlan: 110, claim: unchecked, subnets: [{prefix: 198.51.100.0/24}, {prefix: "2001:db8:1::/64"}]}
  - {name: plant, parent: eth1, vlan: 120, claim: unchecked, subnets: [{prefix: 198.51.100.0/24}, {prefix: "2001:db8:1::/64"}]}
zones:
  - {name: linux, subnet: [10.1.0.0/24, "fd00:1::/64"], link: br-linux}
services:
  - {name: alpha, zone: linux, address: [10.1.0.2, "fd00:1::2"], ports: [80]}
  - {name: beta, zone: linux, address: [10.1.0.3, "fd00:1::3"], ports: [80]}
decoys:
  - {name: dmz-relay, segment: dmz, addresses: [198.51.100.100, "2001:db8:1::100"], bind: [{ports: [80], service: alpha}]}
  - {name: plant-relay, segment: plant, addresses: [198.51.100.100, "2001:db8:1::100"], bind: [{ports: [80], service: beta}]}
  - {name: dmz-kernel, segment: dmz, path: kernel, addresses: [198.51.100.110, "2001:db8:1::110"], bind: [{ports: [80], service: alpha}]}
  - {name: plant-kernel, segment: plant, path: kernel, addresses: [198.51.100.110, "2001:db8:1::110"], bind: [{ports: [80], service: beta}]}
inspect: {}
`

// TestInspectVLANs has a trunk port, a kernel with 802.1Q and the real Suricata:
// what one intruder does in two VLANs at once, from the same address and port to the
// same address and port, stays apart in alerts, records, sessions and packets.
func TestInspectVLANs(t *testing.T) {
	t.Parallel()
	if !vm.Run(t, vm.Options{
		Modules:  []string{"8021q", "macvlan", "veth"},
		Programs: []string{"suricata", "tcpdump", "nft", "ping"},
		Files:    trunkFiles(t),
		Timeout:  7 * time.Minute,
	}) {
		return
	}
	o := newTwinsOffice(t)
	o.document(twinsDocument)
	o.start()
	o.waitReady(30 * time.Second)
	began := time.Now()
	o.waitSuricata()
	t.Logf("suricata runs after another %v", time.Since(began).Round(time.Millisecond))
	twins := o.visitAsTwins()
	o.wantOwnSessions(twins)
	o.parts([]trunkPart{
		{"Findings", func(o *trunkOffice) { o.wantOwnFindings(twins) }},
		{"Packets", func(o *trunkOffice) { o.wantOwnPackets(twins) }},
	})
	o.down()
	o.wantNoErrorLogged()
}

// newTwinsOffice has gw at a trunk port, and in each of two VLANs an intruder who
// has the other one's addresses.
func newTwinsOffice(t *testing.T) *trunkOffice {
	t.Helper()
	l, dir := labtest.New(t), t.TempDir()
	o := &trunkOffice{office: &office{
		t: t, since: time.Now(), daemon: &daemon{}, data: filepath.Join(dir, "data"), file: filepath.Join(dir, "decoynet.yaml"),
	}}
	o.LAN = l.Switch("lan")
	o.sh(o.LAN.Machine(), "ip link set "+o.LAN.Bridge()+" type bridge vlan_filtering 1 vlan_default_pvid 0")
	o.Gateway, o.Linux = l.Machine("gw"), l.Machine("linux")
	o.Intruder = o.access(l.Machine("dmz"), 110, "198.51.100.66/24", "2001:db8:1::66/64")
	o.plant = o.access(l.Machine("plant"), 120, "198.51.100.66/24", "2001:db8:1::66/64")
	o.trunk("eth1", 110, 120)
	o.Gateway.Forward()
	o.Zone = o.Gateway.Bridge("br-linux", "10.1.0.1/24", "fd00:1::1/64")
	o.Linux.Plug(o.Zone, "eth0", "10.1.0.2/24", "10.1.0.3/24", "fd00:1::2/64", "fd00:1::3/64")
	o.Linux.Route("default", "10.1.0.1")
	o.Linux.Route("default", "fd00:1::1")
	labtest.Built(t, l)
	for name, addrs := range map[string][]string{"alpha": {"10.1.0.2", "fd00:1::2"}, "beta": {"10.1.0.3", "fd00:1::3"}} {
		for _, addr := range addrs {
			serveName(t, o.Linux, name, net.JoinHostPort(addr, "80"))
		}
	}
	return o
}

// serveName runs a web server that tells its name, whom it sees, and what was asked.
func serveName(t *testing.T, m *lab.Machine, name, address string) {
	t.Helper()
	l, err := m.Listen(t.Context(), "tcp", address)
	check(t, err)
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s\n", name, r.RemoteAddr, r.URL.Path)
	})}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		check(t, s.Close())
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve %s: %v", name, err)
		}
	})
}

// twin is one of two flows that have all addresses and ports in common.
type twin struct {
	intruder      *lab.Machine
	segment, path string
	from, to      netip.AddrPort
	service       string
	mark          string // of this flow alone, in every request and answer
	attack, rule  string // its second request, and what is said of that
	conn          *net.TCPConn
	answers       *bufio.Reader
	seen          string // by the service
	session       record
}

func (o *trunkOffice) newTwins() []*twin {
	var out []*twin
	for _, path := range []string{"relay", "kernel"} {
		for _, family := range []string{"v4", "v6"} {
			host, port := "100", uint16(31000)
			if path == "kernel" {
				host, port = "110", 32000
			}
			from, to := "198.51.100.66", "198.51.100."+host
			if family == "v6" {
				from, to = "2001:db8:1::66", "2001:db8:1::"+host
			}
			pair := twin{path: path, from: addrPort(from, port), to: addrPort(to, 80)}
			a, b := pair, pair
			a.intruder, a.segment, a.service = o.Intruder, "dmz", "alpha"
			b.intruder, b.segment, b.service = o.plant, "plant", "beta"
			for _, w := range []*twin{&a, &b} {
				w.mark = strings.Join([]string{w.segment, path, family}, "-")
			}
			a.attack, a.rule = "GET /"+a.mark+"?id=1%20UNION%20SELECT%20password%20FROM%20users HTTP/1.1\r\nHost: a\r\n\r\n", "14200409"
			b.attack, b.rule = "GET /"+b.mark+" HTTP/1.1\r\nHost: b\r\nUser-Agent: () { :;}; /bin/id\r\n\r\n", "14200406"
			out = append(out, &a, &b)
		}
	}
	return out
}

// visitAsTwins has all flows stand at once and speak in turn, half a request at a time.
func (o *trunkOffice) visitAsTwins() []*twin {
	o.t.Helper()
	twins := o.newTwins()
	for _, w := range twins {
		conn, err := o.as(w.intruder).tryDial(w.from, w.to.String())
		check(o.t, err)
		defer conn.Close()
		check(o.t, conn.SetDeadline(time.Now().Add(2*time.Minute)))
		w.conn, w.answers = conn, bufio.NewReader(conn)
	}
	for _, request := range []func(*twin) string{
		func(w *twin) string {
			return "GET /" + w.mark + " HTTP/1.1\r\nHost: decoy\r\nUser-Agent: curl/8.0\r\n\r\n"
		},
		func(w *twin) string { return w.attack },
	} {
		for _, half := range []int{0, 1} {
			for _, w := range twins {
				text := request(w)
				_, err := io.WriteString(w.conn, []string{text[:20], text[20:]}[half])
				check(o.t, err)
			}
		}
		for _, w := range slices.Backward(twins) {
			w.read(o.t)
		}
	}
	for _, w := range twins {
		check(o.t, w.conn.Close())
	}
	return twins
}

// read wants the answer of the flow's own service.
func (w *twin) read(t *testing.T) {
	t.Helper()
	answer, err := http.ReadResponse(w.answers, nil)
	check(t, err)
	text, err := io.ReadAll(answer.Body)
	check(t, errors.Join(err, answer.Body.Close()))
	words := strings.Fields(string(text))
	if len(words) != 3 || words[0] != w.service || words[2] != "/"+w.mark {
		t.Errorf("%s is answered %q", w.mark, text)
		return
	}
	w.seen = words[1]
}

// wantOwnSessions: each flow is a session of its own VLAN, and of the peer that its
// service saw.
func (o *trunkOffice) wantOwnSessions(twins []*twin) {
	o.t.Helper()
	eventually(o.t, 20*time.Second, func() error {
		list, err := o.records()
		if err != nil {
			return err
		}
		if len(list) != len(twins) {
			return fmt.Errorf("%d sessions are on record, want %d", len(list), len(twins))
		}
		for _, w := range twins {
			at := slices.IndexFunc(list, func(s record) bool {
				return s.source() == w.from && s.dest() == w.to && s.Segment == w.segment && s.EndReason != ""
			})
			if at < 0 {
				return fmt.Errorf("no ended session of %s among %+v", w.mark, list)
			}
			w.session = list[at]
		}
		return nil
	})
	for _, w := range twins {
		s := &w.session
		if s.Path != w.path || s.Decoy != w.segment+"-"+w.path || s.Service != w.service || s.sourceNAT().String() != w.seen {
			o.t.Errorf("%s, which its service saw as %s, is on record as %+v", w.mark, w.seen, *s)
		}
	}
}

// wantOwnFindings: nothing that is known of one flow is said of another.
func (o *trunkOffice) wantOwnFindings(twins []*twin) {
	sessions := map[string]*twin{}
	for _, w := range twins {
		sessions[w.session.ID] = w
	}
	var alerts, requests []finding
	eventually(o.t, 20*time.Second, func() (err error) {
		if alerts, err = o.findings("alerts", "--limit", "0"); err != nil {
			return err
		}
		if requests, err = o.findings("findings", "--kind", "http", "--limit", "0"); err != nil {
			return err
		}
		for _, w := range twins {
			own := func(f finding) bool { return f.Session == w.session.ID }
			if !slices.ContainsFunc(alerts, func(f finding) bool { return own(f) && f.Rule == w.rule }) {
				return fmt.Errorf("no alert %s of %s among %d", w.rule, w.mark, len(alerts))
			}
			if n := len(slices.DeleteFunc(slices.Clone(requests), func(f finding) bool { return !own(f) })); n != 2 {
				return fmt.Errorf("%d records of HTTP requests of %s among %d, want 2", n, w.mark, len(requests))
			}
		}
		return nil
	})
	for _, f := range slices.Concat(alerts, requests) {
		w := sessions[f.Session]
		if w == nil {
			o.t.Errorf("found of no session: %+v", f)
			continue
		}
		if f.SourceIP != w.from.Addr().String() || f.Port != w.from.Port() || f.DestIP != w.to.Addr().String() ||
			f.Segment != w.segment || f.Decoy != w.session.Decoy || f.Service != w.service || f.Partial {
			o.t.Errorf("found of %s: %+v", w.mark, f)
		}
		for _, other := range twins {
			if other != w && (strings.Contains(string(f.EVE), other.mark) || f.Rule == other.rule && other.rule != w.rule) {
				o.t.Errorf("of %s stands with %s: %s", other.mark, w.mark, f.EVE)
			}
		}
	}
	st, err := o.inspection()
	check(o.t, err)
	if st.Events.Unknown != 0 || st.Events.Mismatched != 0 || st.Feed.Lost != 0 || st.Feed.Flows != len(twins) {
		o.t.Errorf("status: %+v", st)
	}
}

// wantOwnPackets: tcpdump finds in a session's packets what both sides of it said,
// and nothing of another.
func (o *trunkOffice) wantOwnPackets(twins []*twin) {
	for _, w := range twins {
		file := filepath.Join(o.t.TempDir(), w.mark+".pcap")
		_, err := o.decoynet("pcap", w.session.ID, "-w", file)
		check(o.t, err)
		out, err := o.Gateway.Run(o.t.Context(), "tcpdump", "-nn", "-q", "-A", "-r", file)
		check(o.t, err)
		for _, want := range []string{"GET /" + w.mark, w.service + " " + w.seen + " /" + w.mark} {
			if n := strings.Count(out, want); n != 2 {
				o.t.Errorf("%d times, not twice, in the packets of %s: %q\n%s", n, w.mark, want, out)
			}
		}
		for _, other := range twins {
			if other != w && strings.Contains(out, other.mark) {
				o.t.Errorf("of %s in the packets of %s:\n%s", other.mark, w.mark, out)
			}
		}
	}
}
