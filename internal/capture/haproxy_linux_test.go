package capture

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"decoynet/deception"
	"decoynet/internal/capture/capturetest"
	"decoynet/internal/kernel/netns"
	"decoynet/internal/lab"
	"decoynet/internal/lab/labtest"
)

// office is an intruder, a gateway that is HAProxy, and a server behind it that
// reads its header. Host has the bridge between the two, and is captured at.
//
//	intruder --lan-- proxy, host --br0-- server
type office struct {
	intruder, host, proxy, server *lab.Machine
	ns                            *netns.NS
}

const (
	front4, front6 = "192.0.2.10", "2001:db8:2::10" // HAProxy in a machine of its own
	host4, host6   = "192.0.2.11", "2001:db8:2::11" // HAProxy on the host
	back4, back6   = "172.16.23.2", "fd00:23::2"
)

func newOffice(t *testing.T, offload string) *office {
	t.Helper()
	l := labtest.New(t)
	lan := l.Switch("lan")
	o := &office{intruder: l.Machine("intruder"), host: l.Machine("host"), proxy: l.Machine("proxy"), server: l.Machine("server")}
	bridge := o.host.Bridge("br0", "172.16.23.1/24", "fd00:23::1/64")
	o.intruder.Plug(lan, "eth0", "192.0.2.66/24", "2001:db8:2::66/64")
	o.host.Plug(lan, "eth0", host4+"/24", host6+"/64")
	o.proxy.Plug(lan, "eth0", front4+"/24", front6+"/64")
	o.proxy.Plug(bridge, "eth1", "172.16.23.3/24", "fd00:23::3/64")
	o.server.Plug(bridge, "eth0", back4+"/24", back6+"/64")
	labtest.Built(t, l)
	if offload == "off" {
		for m, nics := range map[*lab.Machine][]string{o.proxy: {"eth0", "eth1"}, o.server: {"eth0"}, o.host: {"br0"}} {
			for _, nic := range nics {
				if out, err := m.Run(t.Context(), "ethtool", "-K", nic, "tso", "off", "gso", "off", "gro", "off", "tx", "off"); err != nil {
					t.Fatalf("ethtool in %s: %v %s", m, err, out)
				}
			}
		}
	}
	var err error
	if o.ns, err = netns.Open(o.host.NetnsPath()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.ns.Close() })
	o.serve(t)
	for _, m := range []*lab.Machine{o.host, o.proxy} {
		o.haproxy(t, m)
	}
	return o
}

// serve starts nginx, for which a header must come first.
func (o *office) serve(t *testing.T) {
	t.Helper()
	dir := o.server.Dir()
	config := fmt.Sprintf(`daemon off; user root; pid %[1]s/pid; error_log %[1]s/error.log;
events {}
http {
  access_log %[1]s/nginx.log; default_type text/plain;
  server { listen %[2]s:80 proxy_protocol; listen [%[3]s]:80 proxy_protocol; root %[1]s;
    location /hello { return 200 "hello $proxy_protocol_addr $proxy_protocol_port\n"; } }
}
`, dir, back4, back6)
	big := make([]byte, 2<<20)
	for i := range big {
		big[i] = byte(i ^ i>>7 ^ i>>15)
	}
	for name, content := range map[string][]byte{"nginx.conf": []byte(config), "big": big, "robots.txt": []byte("User-agent: *\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := o.server.Start("nginx", "-p", dir, "-e", dir+"/error.log", "-c", dir+"/nginx.conf"); err != nil {
		t.Fatal(err)
	}
}

// haproxy starts a gateway that speaks version 2 at port 80 and version 1 at 81.
func (o *office) haproxy(t *testing.T, m *lab.Machine) {
	t.Helper()
	path := filepath.Join(m.Dir(), "haproxy.cfg")
	config := `defaults
 mode tcp
 timeout connect 5s
 timeout client 20s
 timeout server 20s
`
	for name, options := range map[string][3]string{
		"binary4": {"0.0.0.0:80", back4, "send-proxy-v2"}, "binary6": {"[::]:80 v6only", back6, "send-proxy-v2 check inter 500ms"},
		"text4": {"0.0.0.0:81", back4, "send-proxy"}, "text6": {"[::]:81 v6only", back4, "send-proxy"}, // IPv6 within IPv4
		"named4": {"0.0.0.0:82", back4, "send-proxy-v2 proxy-v2-options crc32c,unique-id"},
	} {
		config += fmt.Sprintf("listen %s\n bind %s\n unique-id-format %%ci:%%cp\n server s %s:80 %s\n", name, options[0], options[1], options[2])
	}
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Start("haproxy", "-db", "-f", path); err != nil {
		t.Fatal(err)
	}
}

// curl asks for something until it is answered.
func (o *office) curl(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), capturetest.Patience)
	defer cancel()
	out, err := o.intruder.Run(ctx, "curl", append([]string{"-sS", "-m", "20", "--retry", "50", "--retry-connrefused", "--retry-delay", "1"}, args...)...)
	if err != nil {
		t.Fatalf("curl %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// tcpdump captures at the intruder's own card.
func (o *office) tcpdump(t *testing.T) (stop func() string) {
	t.Helper()
	path := filepath.Join(o.intruder.Dir(), "intruder.pcap")
	p, err := o.intruder.Start("tcpdump", "-i", "eth0", "-U", "-B", "32768", "-s", "0", "-w", path, "tcp")
	if err != nil {
		t.Fatal(err)
	}
	capturetest.Eventually(t, "tcpdump listens", func() bool { return strings.Contains(p.Log(), "listening on") })
	return func() string {
		settle(t, path)
		ctx, cancel := context.WithTimeout(t.Context(), capturetest.Patience)
		defer cancel()
		if err := p.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(p.Log(), "0 packets dropped by kernel") {
			t.Fatalf("the witness has lost packets: %s", p.Log())
		}
		return path
	}
}

// settle waits until the file does not grow any more: libpcap hands on what it has
// a second later.
func settle(t *testing.T, path string) {
	t.Helper()
	size, since := int64(-1), time.Now()
	capturetest.Eventually(t, "the witness has written all", func() bool {
		if f, err := os.Stat(path); err == nil && f.Size() != size {
			size, since = f.Size(), time.Now()
		}
		return time.Since(since) > 2*time.Second
	})
}

// What HAProxy sends to its server, without the header, is for Suricata what the
// intruder said to HAProxy: whether the host forwards its packets or sends them
// itself, whoever cuts them.
func TestHAProxy(t *testing.T) {
	for _, offload := range []string{"on", "off"} {
		t.Run("offload "+offload, func(t *testing.T) {
			o := newOffice(t, offload)
			r := capturetest.NewRecordings()
			c := New(Config{
				NS: o.ns, Node: "hq", Interface: "br0", RingBytes: 64 << 20, Ports: []deception.PortRange{deception.Port(deception.TCP, 80)}, Feed: r, Recorder: r,
				Service: func(_ deception.Transport, at netip.AddrPort) string {
					if at.Addr() == netip.MustParseAddr(back4) && at.Port() == 80 {
						return "web"
					}
					return ""
				},
			})
			defer c.Close()
			for _, front := range []string{front4, "[" + front6 + "]", host4, "[" + host6 + "]"} {
				o.curl(t, "http://"+front+"/hello") // everybody is up
			}
			before := len(r.Over())
			stop := o.tcpdump(t)
			flows := 0
			for _, front := range []string{front4, "[" + front6 + "]", host4, "[" + host6 + "]"} {
				for _, port := range []string{"80", "81"} {
					at := "http://" + front + ":" + port
					if out := o.curl(t, at+"/hello"); !strings.Contains(out, "hello "+intruderOf(front)) {
						t.Fatalf("the server sees %q", out)
					}
					o.curl(t, "-A", "evil/1.0", "--limit-rate", "10M", at+"/robots.txt", at+"/big", "-o", "/dev/null", "-o", "/dev/null")
					o.curl(t, "-d", strings.Repeat("x", 20_000), at+"/hello")
					flows += 3
				}
			}
			o.curl(t, "http://"+front4+":82/hello")
			flows++
			path := stop()
			capturetest.Eventually(t, "all flows have ended", func() bool { return len(r.Over()) >= before+flows })
			checkHAProxy(t, c, r, path, flows)
		})
	}
}

func intruderOf(front string) string {
	if strings.HasPrefix(front, "[") {
		return "2001:db8:2::66"
	}
	return "192.0.2.66"
}

func checkHAProxy(t *testing.T, c *Capture, r *capturetest.Recordings, path string, flows int) {
	t.Helper()
	st := c.Stats()
	t.Logf("%+v", st)
	if st.Dropped != 0 || st.Gaps != 0 || st.Malformed != 0 || st.Corrupt != 0 || st.BadHeader != 0 || st.NoHeader != 0 || !st.Listening || st.Local == 0 {
		t.Errorf("counted %+v", st)
	}
	want, events := capturetest.Records(capturetest.Suricata(t, path, true)), capturetest.Suricata(t, r.Write(t, t.TempDir()), false)
	got := capturetest.Records(events)
	// The fed ones begin with those by which the test saw that all was up.
	got = keepKnown(got, want)
	if diff := cmp.Diff(want, got); diff != "" || len(want) < flows {
		t.Errorf("%d records at the intruder's card; (-intruder +fed):\n%s", len(want), diff)
	}
	sessions := map[deception.SessionID]deception.Session{}
	for _, s := range r.Over() {
		sessions[s.ID] = s
	}
	overtaken := 0
	for _, e := range events {
		switch e.Kind {
		case "http":
			id, _ := capturetest.SessionOf(t, e)
			s, ok := sessions[id]
			from, to := netip.MustParseAddr(e.Source), netip.MustParseAddr(e.Destination)
			if !ok || s.Source != netip.AddrPortFrom(from, uint16(e.SourcePort)) || s.Destination != netip.AddrPortFrom(to, uint16(e.DestinationPort)) {
				t.Errorf("session %+v, %v for %s", s, ok, e.Line)
			}
			if s.Node != "hq" || s.DestinationNAT.Addr() == netip.MustParseAddr(back4) != (s.Service == "web") || s.SourceBytes == 0 || s.DestinationBytes == 0 || s.Reason == deception.EndNone {
				t.Errorf("session %+v", s)
			}
		case "anomaly":
			switch {
			case capturetest.SentAgain[e.Anomaly.Event]:
			case capturetest.Overtaken[e.Anomaly.Event] && overtaken < maxOvertaken:
				overtaken++
			default:
				t.Errorf("Suricata does not like it: %s", e.Line)
			}
		}
	}
}

// maxOvertaken is how many events there may be of acknowledgements that came late. With
// numbers that are wrong there would be one of each packet, thousands.
const maxOvertaken = 20

// keepKnown leaves out records of flows that the witness did not see.
func keepKnown(got, want []string) []string {
	flows := map[string]bool{}
	name := func(record string) string { return strings.Join(strings.Fields(record)[1:3], " ") }
	for _, w := range want {
		flows[name(w)] = true
	}
	var out []string
	for _, g := range got {
		if flows[name(g)] {
			out = append(out, g)
		}
	}
	return out
}

// An interface may come later, go, and come again.
func TestInterfaceComesAndGoes(t *testing.T) {
	l := labtest.New(t)
	m := l.Machine("m")
	labtest.Built(t, l)
	ns, err := netns.Open(m.NetnsPath())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	r := capturetest.NewRecordings()
	c := New(Config{NS: ns, Interface: "gone0", Feed: r, Recorder: r})
	defer c.Close()
	for range 3 {
		if st := c.Stats(); st.Listening || !strings.Contains(st.Problem, "gone0") {
			t.Fatalf("without an interface: %+v", st)
		}
		if _, err := m.Run(t.Context(), "ip", "link", "add", "gone0", "type", "veth", "peer", "name", "other"); err != nil {
			t.Fatal(err)
		}
		capturetest.Eventually(t, "it listens", func() bool { st := c.Stats(); return st.Listening && st.Problem == "" })
		if _, err := m.Run(t.Context(), "ip", "link", "del", "gone0"); err != nil {
			t.Fatal(err)
		}
		capturetest.Eventually(t, "it notices", func() bool { return !c.Stats().Listening })
	}
}
