package config

import (
	"bytes"
	"errors"
	"flag"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"decoynet/deception"
)

var update = flag.Bool("update", false, "write the golden files of testdata/wrong anew")

// comparable addresses: netip's types hide their fields.
var opts = cmp.Options{
	cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{}),
	cmpopts.EquateEmpty(),
}

func TestWrongDocuments(t *testing.T) {
	files, err := filepath.Glob("testdata/wrong/*.yaml")
	if err != nil || len(files) < 40 {
		t.Fatalf("%d wrong documents (%v), want at least 40", len(files), err)
	}
	for _, file := range files {
		name := filepath.Base(file)
		t.Run(strings.TrimSuffix(name, ".yaml"), func(t *testing.T) {
			src, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			doc, err := Parse(name, src)
			if err == nil {
				t.Fatalf("no fault found; read as %+v", doc)
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".txt"
			got := err.Error() + "\n"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("messages (-want +got):\n%s", diff)
			}
		})
	}
}

// TestMessagesHaveTwoHalves holds every golden message to the form that the
// contract promises: what is wrong; what would be right.
func TestMessagesHaveTwoHalves(t *testing.T) {
	files, err := filepath.Glob("testdata/wrong/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files (%v)", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			parts := strings.SplitN(strings.TrimSpace(line), ":", 4)
			if len(parts) != 4 {
				t.Errorf("%s: %q has no FILE:LINE:COL:", file, line)
				continue
			}
			wrong, right, ok := strings.Cut(parts[3], "; ")
			if !ok || len(wrong) < 5 || len(right) < 5 {
				t.Errorf("%s: %q does not say both what is wrong and what would be right", file, line)
			}
		}
	}
}

func parseOK(t *testing.T, src string) *Document {
	t.Helper()
	doc, err := Parse("test.yaml", []byte(src))
	if err != nil {
		t.Fatalf("refused:\n%v", err)
	}
	return doc
}

func TestDesignExample(t *testing.T) {
	doc, err := Load("testdata/right/office.yaml")
	if err != nil {
		t.Fatal(err)
	}
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	want := &Document{
		Options: Options{Node: "hq", Retention: DefaultRetention, Heads: true},
		State: deception.State{
			Node: "hq",
			Segments: []deception.Segment{{
				Name: "office", Parent: "eth0", Steering: deception.SteeringAuto, Claim: deception.ClaimProbe,
				Subnets: []deception.Subnet{{Prefix: prefix("192.168.32.0/24"), Gateway: addr("192.168.32.1")}},
			}},
			Zones: []deception.Zone{{Name: "linux", Subnets: []netip.Prefix{prefix("10.1.0.0/24")}, Link: "br-linux"}},
			Services: []deception.Service{
				{Name: "web", Zone: "linux", Addr4: addr("10.1.0.2"), Ports: []deception.PortRange{deception.Port(deception.TCP, 80), deception.Port(deception.TCP, 443)}},
				{Name: "ssh", Zone: "linux", Addr4: addr("10.1.0.3"), Ports: []deception.PortRange{deception.Port(deception.TCP, 22)}},
				{Name: "snmp", Zone: "linux", Addr4: addr("10.1.0.4"), Ports: []deception.PortRange{deception.Port(deception.UDP, 161)}},
			},
			Decoys: []deception.Decoy{{
				Name: "office-web", Segment: "office",
				Addresses: []deception.AddrRange{
					{From: addr("192.168.32.100"), To: addr("192.168.32.150")},
					{From: addr("192.168.32.247"), To: addr("192.168.32.247")},
				},
				Bind: []deception.Binding{
					{Ports: []deception.PortRange{deception.Port(deception.TCP, 80), deception.Port(deception.TCP, 443)}, Service: "web"},
					{Ports: []deception.PortRange{deception.Port(deception.TCP, 2222)}, Service: "ssh", Target: 22},
					{Ports: []deception.PortRange{deception.Port(deception.UDP, 161)}, Service: "snmp"},
				},
				Path: deception.PathRelay, Idle: 30 * time.Minute,
			}},
		},
	}
	if diff := cmp.Diff(want, doc, opts); diff != "" {
		t.Errorf("document (-want +got):\n%s", diff)
	}
}

func TestEveryKey(t *testing.T) {
	doc, err := Load("testdata/right/everything.yaml")
	if err != nil {
		t.Fatal(err)
	}
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	tcp := func(n uint16) deception.PortRange { return deception.Port(deception.TCP, n) }
	want := &Document{
		Options: Options{Node: "hq.example.com", Data: "/var/lib/decoynet", Retention: 36 * time.Hour, Heads: false},
		State: deception.State{
			Node: "hq.example.com",
			Segments: []deception.Segment{{
				Name: "office", Parent: "eth0", VLAN: 110, Steering: deception.SteeringTPROXY, Claim: deception.ClaimRFC5227,
				Subnets: []deception.Subnet{
					{Prefix: prefix("192.168.32.0/24"), Gateway: addr("192.168.32.1")},
					{Prefix: prefix("2001:db8:32::/64"), Gateway: addr("fe80::1")},
				},
				Exclude: []deception.AddrRange{{From: addr("192.168.32.2"), To: addr("192.168.32.15")}},
			}},
			Zones: []deception.Zone{{
				Name: "linux", Link: "br-linux",
				Subnets: []netip.Prefix{prefix("10.1.0.0/24"), prefix("2001:db8:1::/64")},
				Allow: []deception.Allow{
					{To: prefix("10.1.0.1/32"), Ports: []deception.PortRange{deception.Port(deception.UDP, 53), tcp(53)}},
					{To: prefix("2001:db8:1::/120"), Ports: []deception.PortRange{tcp(3128)}},
				},
			}},
			Services: []deception.Service{{
				Name: "web", Zone: "linux", Addr4: addr("10.1.0.2"), Addr6: addr("2001:db8:1::2"),
				Ports:   []deception.PortRange{tcp(80), {Transport: deception.TCP, First: 8000, Last: 8100}, deception.Port(deception.UDP, 161)},
				Aliases: []netip.Prefix{prefix("10.3.0.0/27"), prefix("2001:db8:3::/120")},
				Netns:   "web",
			}},
			Decoys: []deception.Decoy{{
				Name: "office-web", Segment: "office",
				Addresses: []deception.AddrRange{
					{From: addr("192.168.32.16"), To: addr("192.168.32.40")},
					{From: addr("192.168.32.100"), To: addr("192.168.32.100")},
					{From: addr("2001:db8:32::10"), To: addr("2001:db8:32::1f")},
				},
				Bind: []deception.Binding{
					{Ports: []deception.PortRange{tcp(80), {Transport: deception.TCP, First: 8010, Last: 8020}}, Service: "web"},
					{Ports: []deception.PortRange{deception.Port(deception.UDP, 1161)}, Service: "web", Target: 161},
				},
				Path: deception.PathKernel, Idle: 90 * time.Second,
				MAC: deception.MACPrefix{0x00, 0x14, 0x22}, Personality: deception.PersonalityWindows,
			}},
			Scanners: []deception.Scanner{
				{
					Name: "audit", From: []netip.Prefix{prefix("192.168.40.0/28"), prefix("2001:db8:40::1/128")},
					Ports: []deception.PortRange{tcp(443), {Transport: deception.TCP, First: 8000, Last: 8100}, deception.Port(deception.UDP, 161)},
					Until: time.Date(2027, 2, 1, 0, 0, 0, 0, time.UTC),
				},
				{Name: "monitoring", From: []netip.Prefix{prefix("192.168.40.20/32")}, Until: time.Date(2027, 1, 31, 18, 0, 0, 0, time.UTC)},
				{Name: "lab", From: []netip.Prefix{prefix("192.168.40.0/24")}},
			},
			Inspect: &deception.Inspect{
				Suricata: deception.SuricataExternal, EVE: "/var/log/suricata/eve.json", FIFO: true, Tap: "vtap7", Depth: 16 << 20,
				Rules:   []string{"/etc/decoynet/rules", "/etc/decoynet/more.rules"},
				Capture: []deception.Capture{{Interface: "br-gw", Ports: []deception.PortRange{tcp(8080), tcp(8443)}}, {Interface: "veth9"}},
				PCAP:    deception.PCAPLimits{MaxBytes: 20_000_000_000, MaxAge: 30 * 24 * time.Hour, SessionBytes: 64 << 10},
			},
		},
	}
	if diff := cmp.Diff(want, doc, opts); diff != "" {
		t.Errorf("document (-want +got):\n%s", diff)
	}
}

// TestFeedsByDefault: what is fed where the document does not say.
func TestFeedsByDefault(t *testing.T) {
	for text, want := range map[string]struct {
		mode deception.SuricataMode
		fifo bool
		tap  string
	}{
		"{}":                                      {deception.SuricataManaged, true, ""},
		"{tap: vtap1}":                            {deception.SuricataManaged, true, "vtap1"},
		"{feeds: [fifo, tap]}":                    {deception.SuricataManaged, true, DefaultTap},
		"{suricata: external}":                    {deception.SuricataExternal, false, DefaultTap},
		"{suricata: external, feeds: fifo}":       {deception.SuricataExternal, true, ""},
		"{suricata: off}":                         {deception.SuricataOff, false, ""},
		"{suricata: off, tap: vtap1, pcap: {}}":   {deception.SuricataOff, false, "vtap1"},
		"{suricata: off, feeds: [tap]}":           {deception.SuricataOff, false, DefaultTap},
		"{suricata: managed, system-rules: true}": {deception.SuricataManaged, true, ""},
	} {
		doc, err := Parse("test", []byte("inspect: "+text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		got := doc.State.Inspect
		if got.Suricata != want.mode || got.FIFO != want.fifo || got.Tap != want.tap || got.Depth != DefaultDepth || !got.SystemRules && !strings.Contains(text, "false") {
			t.Errorf("%s: %+v, want %+v", text, got, want)
		}
		if got.PCAP != (deception.PCAPLimits{MaxBytes: DefaultPCAPSize, MaxAge: DefaultPCAPAge, SessionBytes: DefaultPCAPSession}) {
			t.Errorf("%s: packets kept within %+v", text, got.PCAP)
		}
	}
	doc, err := Parse("test", []byte("inspect: {depth: off, pcap: {size: off}}"))
	if err != nil || doc.State.Inspect.PCAP.MaxBytes != 0 || doc.State.Inspect.Depth != 0 {
		t.Errorf("sizes off: %v, %+v", err, doc)
	}
	if doc, err := Parse("test", []byte("node: hq")); err != nil || doc.State.Inspect != nil {
		t.Errorf("without inspect: %v, %+v", err, doc)
	}
}

// TestDefaults writes every default out and expects the same document.
func TestDefaults(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	const short = `
segments: [{name: a, parent: eth0, subnets: [{prefix: 192.0.2.0/24}]}]
zones: [{name: z, subnet: 10.1.0.0/24, link: br0}]
services: [{name: s, zone: z, address: 10.1.0.2, ports: [80]}]
decoys: [{name: d, segment: a, addresses: [192.0.2.9], bind: [{ports: [80], service: s}]}]
`
	long := `
node: ` + host + `
recording: {retention: 90d, heads: true}
segments: [{name: a, parent: eth0, subnets: [{prefix: 192.0.2.0/24}], exclude: [], steering: auto}]
zones: [{name: z, subnet: [10.1.0.0/24], link: br0, allow: []}]
services: [{name: s, zone: z, address: [10.1.0.2], ports: [80/tcp], aliases: []}]
decoys: [{name: d, segment: a, addresses: [192.0.2.9-192.0.2.9], bind: [{ports: ["80"], service: s}], path: relay, idle: 30m}]
`
	got, want := parseOK(t, long), parseOK(t, short)
	if diff := cmp.Diff(want, got, opts); diff != "" {
		t.Errorf("with defaults written out (-short +long):\n%s", diff)
	}
	if got.State.Node != host {
		t.Errorf("node %q, want the host name %q", got.State.Node, host)
	}
	if changes := Diff(&want.State, &got.State); len(changes) != 0 {
		t.Errorf("Diff sees %v between equal documents", changes)
	}
}

func TestAcceptedForms(t *testing.T) {
	const head = `
segments: [{name: a, parent: eth0, subnets: [{prefix: 192.0.2.0/24}, {prefix: 198.51.100.0/31}, {prefix: 203.0.113.7/32}, {prefix: "2001:db8::/64"}]}]
zones: [{name: z, subnet: [10.1.0.0/24, "2001:db8:1::/64"], link: br0}]
services: [{name: s, zone: z, address: [10.1.0.2, "2001:db8:1::2"], ports: [80, 81-90, 91]}, {name: t, zone: z, address: 10.1.0.2, ports: [22]}]
`
	for name, doc := range map[string]string{
		"point-to-point subnets have no network address": head + `decoys: [{name: d, segment: a, addresses: [198.51.100.0/31, 203.0.113.7], bind: [{ports: [80], service: s}]}]`,
		"unquoted IPv6 in flow style":                    head + `decoys: [{name: d, segment: a, addresses: [2001:db8::10, 2001:db8::20-2001:db8::2f], bind: [{ports: [80], service: s}]}]`,
		"range over joined ports of a service":           head + `decoys: [{name: d, segment: a, addresses: [192.0.2.9], bind: [{ports: [80-91], service: s}]}]`,
		"names of digits in quotes":                      head + `decoys: [{name: "2024", segment: a, addresses: [192.0.2.9], bind: [{ports: [80], service: s}]}]`,
		"aliases of YAML":                                head + `decoys: [{name: d, segment: a, addresses: [192.0.2.9], bind: &b [{ports: [80], service: s}]}, {name: e, segment: a, addresses: [192.0.2.10], bind: *b}]`,
		"nothing but empty lists":                        "segments:\nzones:\nservices: []\ndecoys:\n",
		"byte order mark, CRLF, end marker":              "\xef\xbb\xbf---\r\nnode: hq\r\n...\r\n",
		"comments and blank lines with tabs":             "node: hq\n\t\n\t# remark\ndata: /var/lib/decoynet\t# here\n",
		"YAML directive":                                 "%YAML 1.2\n---\nnode: hq\n",
		"an empty document behind":                       "node: hq\n---\n",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Parse("test.yaml", []byte(doc)); err != nil {
				t.Errorf("refused:\n%v", err)
			}
		})
	}
}

func TestLoadOfWhatIsNoFile(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none.yaml")
	_, err := Load(missing)
	if want := missing + ": there is no such file; name the document to read"; err == nil || err.Error() != want {
		t.Errorf("missing file: %v, want %s", err, want)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v is not fs.ErrNotExist", err)
	}
	_, err = Load(t.TempDir())
	var one Error
	if !errors.As(err, &one) || one.Line != 0 {
		t.Errorf("directory: %v, want one Error without a line", err)
	}
}

func TestErrorsUnwrap(t *testing.T) {
	_, err := Parse("f.yaml", []byte("node: 1\ndata: x\n"))
	var all Errors
	if !errors.As(err, &all) || len(all) != 2 {
		t.Fatalf("%v, want two errors", err)
	}
	want := Error{File: "f.yaml", Line: 1, Column: 7, Message: `node is a number, not text; in quotes, as node: "1"`}
	if diff := cmp.Diff(want, all[0], cmpopts.IgnoreUnexported(Error{})); diff != "" {
		t.Errorf("first error (-want +got):\n%s", diff)
	}
}

func TestSizeLimit(t *testing.T) {
	file := filepath.Join(t.TempDir(), "large.yaml")
	line := []byte("# " + strings.Repeat("x", 1021) + "\n")
	if err := os.WriteFile(file, bytes.Repeat(line, MaxSize/len(line)+1), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Load(file)
	if err == nil || !strings.HasSuffix(err.Error(), ":1:1: the document is larger than 16 MiB; write runs of addresses as ranges, or split it") {
		t.Errorf("large file: %v", err)
	}
}

// TestLargeDocuments bounds the time of what grows with the square if written
// carelessly: many decoys, each overlapping another, with unknown references.
func TestLargeDocuments(t *testing.T) {
	var b strings.Builder
	b.WriteString("segments: [{name: a, parent: eth0, subnets: [{prefix: 10.0.0.0/8}]}]\n")
	b.WriteString("zones: [{name: z, subnet: 172.16.0.0/24, link: br0}]\nservices: [{name: s, zone: z, address: 172.16.0.2, ports: [80]}]\ndecoys:\n")
	const n = 5000
	for i := range n {
		from := deception.Nth(netip.MustParseAddr("10.1.0.0"), uint64(i*4))
		b.WriteString("  - {name: d" + strings.Repeat("x", i%7) + from.String()[5:] + ", segment: a, addresses: [" + from.String() + "-" + deception.Nth(from, 4).String() + "], bind: [{ports: [80], service: gone}]}\n")
	}
	start := time.Now()
	_, err := Parse("large.yaml", []byte(b.String()))
	var all Errors
	if !errors.As(err, &all) || len(all) < 2*n-1 {
		t.Fatalf("%d errors, want at least %d", len(all), 2*n-1)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
}

func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/wrong/*.yaml", "testdata/right/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			f.Fatalf("no seeds in %s (%v)", pattern, err)
		}
		for _, file := range files {
			src, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(src)
		}
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		doc, err := Parse("fuzz.yaml", src)
		if err == nil {
			checkState(t, &doc.State)
			return
		}
		if doc != nil {
			t.Errorf("both a document and an error")
		}
		var all Errors
		if !errors.As(err, &all) || len(all) == 0 {
			t.Fatalf("error of type %T (%v), want Errors", err, err)
		}
		checkPositions(t, src, all)
	})
}

// checkPositions holds every position against the text: within the file, and
// sorted.
func checkPositions(t *testing.T, src []byte, all Errors) {
	t.Helper()
	lines := strings.Split(strings.TrimPrefix(string(src), "\ufeff"), "\n")
	last := pos{1, 1}
	for _, e := range all {
		at := pos{e.Line, e.Column}
		if e.Line < 1 || e.Line > len(lines) || e.Column < 1 || e.Column > utf8.RuneCountInString(lines[e.Line-1])+1 {
			t.Errorf("%v: not within the file", e)
		}
		if at.compare(last) < 0 {
			t.Errorf("%v: out of order", e)
		}
		last = at
		if !strings.Contains(e.Message, "; ") {
			t.Errorf("%v: does not say what would be right", e)
		}
	}
}

// checkState holds an accepted document against the promises of
// deception.State: every reference resolves, decoys are disjoint and inside
// their segments, and flows have a way from each decoy to its services.
func checkState(t *testing.T, s *deception.State) {
	t.Helper()
	for _, svc := range s.Services {
		if s.Zone(svc.Zone) == nil || !svc.Addr4.IsValid() && !svc.Addr6.IsValid() || len(svc.Ports) == 0 {
			t.Errorf("service %+v does not resolve", svc)
		}
	}
	for _, z := range s.Zones {
		if z.Link == "" || z.Egress != nil && z.Egress.Node != z.Node {
			t.Errorf("zone %+v has no link, or an egress elsewhere", z)
		}
	}
	seen := map[string][]deception.AddrRange{}
	for i := range s.Decoys {
		d := &s.Decoys[i]
		if len(d.Addresses) == 0 && !d.Any || len(d.Bind) == 0 || d.Idle <= 0 || d.Path == "" {
			t.Fatalf("decoy %+v does not resolve", d)
		}
		if d.Segment != deception.HostSegment {
			checkInside(t, d, s.Segment(d.Segment))
		} else if d.Node == "" || d.Path != deception.PathRelay {
			t.Errorf("decoy %s listens on node %q, path %s", d.Name, d.Node, d.Path)
		}
		key := deception.SegmentKey(d.Node, d.Segment)
		for _, r := range d.Addresses {
			for _, other := range seen[key] {
				if other.Overlaps(r) && d.Segment != deception.HostSegment {
					t.Errorf("decoy %s: %s overlaps %s", d.Name, r, other)
				}
			}
			seen[key] = append(seen[key], r)
		}
		for _, b := range d.Bind {
			checkLeads(t, s, d, &b)
		}
	}
	checkNodes(t, s)
}

func checkInside(t *testing.T, d *deception.Decoy, seg *deception.Segment) {
	t.Helper()
	if seg == nil || d.Node != seg.Node || d.Any {
		t.Fatalf("decoy %+v does not resolve", d)
	}
	for _, r := range d.Addresses {
		inside := false
		for _, sub := range seg.Subnets {
			inside = inside || deception.RangeOf(sub.Prefix).Contains(r.From)
			if r.Contains(sub.Gateway) {
				t.Errorf("decoy %s takes the gateway %s", d.Name, sub.Gateway)
			}
		}
		if !inside {
			t.Errorf("decoy %s: %s is outside its segment", d.Name, r)
		}
	}
}

func checkLeads(t *testing.T, s *deception.State, d *deception.Decoy, b *deception.Binding) {
	t.Helper()
	svc := s.Service(b.Service)
	if svc == nil || len(b.Ports) == 0 {
		t.Fatalf("decoy %s: binding %+v does not resolve", d.Name, b)
	}
	for _, p := range b.Ports {
		for _, edge := range []uint16{p.First, p.Last} {
			has := func(r deception.PortRange) bool { return r.Contains(p.Transport, b.TargetPort(edge)) }
			if !slices.ContainsFunc(svc.Ports, has) {
				t.Errorf("decoy %s: port %s leads nowhere", d.Name, p)
			}
		}
	}
	if len(s.Nodes) == 0 {
		return
	}
	// Who leads the flows knows the service, and its zone is behind a link of it
	// or has an egress.
	leaders := []string{d.Node}
	if d.Path == deception.PathRelay && !s.HasGateway(d.Node) && len(s.Gateways) > 0 {
		leaders = nil
		for _, g := range s.Gateways {
			leaders = append(leaders, g.Node)
		}
	}
	for _, node := range leaders {
		part := s.Part(node)
		if v := part.Service(b.Service); v == nil || part.Decoy(d.Name) == nil {
			t.Errorf("decoy %s: node %s is to lead its flows to %s and knows nothing of it", d.Name, node, b.Service)
		} else if z := part.Zone(v.Zone); !z.IsLocal() && z.Egress == nil {
			t.Errorf("decoy %s: node %s has no way to %s", d.Name, node, b.Service)
		}
	}
}

// checkNodes holds every node named in the state against the list of them.
func checkNodes(t *testing.T, s *deception.State) {
	t.Helper()
	var named []string
	for _, g := range s.Gateways {
		named = append(named, g.Node)
	}
	for _, g := range s.Segments {
		named = append(named, g.Node)
	}
	for _, z := range s.Zones {
		named = append(named, z.Node)
	}
	for _, d := range s.Decoys {
		if len(s.Nodes) > 0 || d.Segment != deception.HostSegment {
			named = append(named, d.Node)
		}
	}
	for _, node := range named {
		if len(s.Nodes) == 0 && node != "" || len(s.Nodes) > 0 && !slices.Contains(s.Nodes, deception.Node{Name: node}) {
			t.Errorf("node %q is named, the nodes are %v", node, s.Nodes)
		}
	}
}
