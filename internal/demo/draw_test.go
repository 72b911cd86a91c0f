package demo

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"decoynet/deception"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares output with a file below testdata.
func golden(t *testing.T, file, got string) {
	t.Helper()
	path := filepath.Join("testdata", file)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, addr(s))
	}
	return out
}

func TestDraw(t *testing.T) {
	p, err := readPlan(Document, nil)
	if err != nil {
		t.Fatal(err)
	}
	prefix := netip.MustParsePrefix
	got := draw(scene{
		LAN: "lan", LANPrefix: []netip.Prefix{prefix("192.0.2.0/24"), prefix("2001:db8:2::/64")},
		Zone: "linux", ZonePrefix: []netip.Prefix{prefix("10.1.0.0/24"), prefix("fd00:1::/64")},
		Branch: "branch", BranchPrefix: []netip.Prefix{prefix("198.51.100.0/24"), prefix("2001:db8:51::/64")},
		BranchIntruder: host{Name: "b-intruder", Addrs: addrs("198.51.100.66", "2001:db8:51::66"), MAC: "02:00:00:00:05:66"},
		CRM:            host{Name: "crm", Addrs: addrs("198.51.100.10", "2001:db8:51::10"), MAC: "02:00:00:00:05:10", Ports: "its own: 8080 8443"},
		Inside:         host{Name: "b-router", Addrs: addrs("198.51.100.1", "2001:db8:51::1")},
		Outside:        host{Name: "b-router", Addrs: addrs("192.0.2.20")},
		BranchDecoys:   p.hostDecoys("crm-1"),

		Intruder:   host{Name: "intruder", Addrs: addrs("192.0.2.66", "2001:db8:2::66"), MAC: "02:00:00:00:00:66"},
		Production: host{Name: "production", Addrs: addrs("192.0.2.10", "2001:db8:2::10"), MAC: "02:00:00:00:00:10"},
		Gateway:    host{Name: "gw", Addrs: addrs("192.0.2.5", "2001:db8:2::5")},
		Bridge:     host{Name: "br-linux", Addrs: addrs("10.1.0.1", "fd00:1::1")},
		Servers: []host{
			{Name: "nginx", Addrs: addrs("10.1.0.2", "fd00:1::2"), Ports: "80 443"},
			{Name: "redis", Addrs: addrs("10.1.0.3", "fd00:1::3"), Ports: "6379"},
			{Name: "sshd", Addrs: addrs("10.1.0.4", "fd00:1::4"), Ports: "22"},
			{Name: "udp", Addrs: addrs("10.1.0.5", "fd00:1::5"), Ports: "161/udp"},
		},
		Decoys: p.decoyGroups(), DecoysAt: "all at 02:00:00:00:00:de", Remark: "decoynet, steering by sk_lookup", Sensor: "Suricata 7.0.10",
	})
	golden(t, "network.txt", got)
	for line := range strings.Lines(got) {
		if len(line) > 101 {
			t.Errorf("wider than 100 columns: %q", line)
		}
	}
}

func TestShortRange(t *testing.T) {
	for text, want := range map[string][2]string{
		"192.0.2.20-192.0.2.65":           {"192.0.2.20-.65", ".20-.65"},
		"192.0.2.247":                     {"192.0.2.247", ".247"},
		"2001:db8:2::100-2001:db8:2::13f": {"2001:db8:2::100-:13f", ":100-:13f"},
	} {
		r, err := deception.ParseAddrRange(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := [2]string{shortRange(r, false), shortRange(r, true)}; got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

// TestListing shows what a person reads about a server that saw the truth and
// about one that did not.
func TestListing(t *testing.T) {
	var out bytes.Buffer
	s := &screen{w: &out, began: time.Now()}
	e := scenario(t)
	for _, f := range []flow{tcp("192.0.2.66:4000", "192.0.2.30:80"), tcp("192.0.2.66:4000", "192.0.2.31:80")} {
		e.Card.began = append(e.Card.began, f)
		e.Card.stage[f] = established
		e.Sessions = append(e.Sessions, session{flow: f, Seen: f, Service: "web"})
		e.Visits = append(e.Visits, visit{flow: f, Tool: "http", Group: "at once from source port 4000"})
		e.Servers[0].Contacts = append(e.Servers[0].Contacts, contact{f.Source, f.Destination})
	}
	for _, v := range judgeServers(e) {
		s.listing(v)
		s.verdict(v.Name, "says", v.Faults)
	}
	e.Servers[0].Contacts[0].Peer = ap("10.1.0.1:1001")
	e.Servers[0].Contacts[3].Peer = ap("10.1.0.1:4000")
	v := judgeServers(e)[0]
	s.listing(v)
	s.verdict(v.Name, "says", v.Faults)
	golden(t, "listing.txt", out.String())
}

func TestColourOnlyWhereWanted(t *testing.T) {
	for _, colour := range []bool{false, true} {
		var out bytes.Buffer
		s := &screen{w: &out, colour: colour, began: time.Now()}
		s.title("title")
		s.step("step")
		s.result("well", nil)
		s.verdict("name", "says", []string{"fault"})
		if got := strings.Contains(out.String(), "\x1b["); got != colour {
			t.Errorf("with colour %v: %q", colour, out.String())
		}
	}
}

// TestCommand shows a long command as a shell would take it back.
func TestCommand(t *testing.T) {
	var out bytes.Buffer
	s := &screen{w: &out, began: time.Now()}
	line := "decoynet join https://192.0.2.5:7443 --token dcn_" + strings.Repeat("a", 45) + " --pin sha256:" + strings.Repeat("0", 64)
	s.command("crm", "$", line)
	typed := strings.ReplaceAll(strings.TrimPrefix(strings.TrimSpace(out.String()), "crm$ "), "\\\n", " ")
	if diff := cmp.Diff(strings.Fields(line), strings.Fields(typed)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for text := range strings.Lines(out.String()) {
		if len(text) > 101 {
			t.Errorf("wider than 100 columns: %q", text)
		}
	}
}
