package suricata

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
)

// clientHello is what Go's TLS client says first.
func clientHello() string {
	near, far := net.Pipe()
	go func() {
		_ = tls.Client(near, &tls.Config{ServerName: "decoy.example", InsecureSkipVerify: true}).Handshake()
		near.Close()
	}()
	b := make([]byte, 4096)
	n, _ := far.Read(b)
	for total := 5 + int(b[3])<<8 + int(b[4]); n < total; {
		more, err := far.Read(b[n:])
		if n += more; err != nil {
			break
		}
	}
	far.Close()
	return string(b[:n])
}

// frames makes a case's flow between its addresses.
func (c *ruleCase) frames(client, server netip.AddrPort, parts []say) [][]byte {
	if !c.udp {
		return conversation(client, server, parts...)
	}
	var out [][]byte
	for _, p := range parts {
		if p.client {
			out = append(out, datagram(client, server, p.text, true))
		} else {
			out = append(out, datagram(server, client, p.text, false))
		}
	}
	return out
}

// analyse has Suricata read frames with decoynet's rules and configuration, and
// returns its events.
func analyse(t *testing.T, want *deception.Inspect, frames [][]byte) []event {
	t.Helper()
	h, err := openHome(filepath.Join(closedDir(t), "inspect"))
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	b, err := Find(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	set, err := h.candidate(t.Context(), &b, want)
	if err != nil {
		t.Fatal(err)
	}
	if len(set.list) > 0 {
		t.Fatalf("suricata has reservations: %v", set.list)
	}
	if err := h.promote(set, &b, want); err != nil {
		t.Fatal(err)
	}
	text := pcapHeader()
	for _, f := range frames {
		text = append(text, record(f)...)
	}
	if err := os.WriteFile(h.file("test.pcap"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := h.start(&b, "-c", root+"/"+liveConfig, "-r", root+"/test.pcap", "--runmode", "single", "-k", "none", "-l", root+"/"+childDir)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(time.Minute):
		p.kill()
		<-p.done
		t.Fatal("suricata hangs")
	}
	if p.err != nil {
		t.Fatalf("suricata: %v\n%s", p.err, p.output.String())
	}
	return events(t, h.child(eveName))
}

// Every rule fires for what it is about, once a flow, and not for what is much
// like it.
func TestRules(t *testing.T) {
	cases := slices.Concat(contactCases, enumerationCases, credentialCases, loginCases, webAttackCases, attackCases)
	set, err := gather(&deception.Inspect{})
	if err != nil {
		t.Fatal(err)
	}
	tested := make(map[uint32]bool)
	var frames [][]byte
	for i := range cases {
		c := &cases[i]
		tested[c.sid] = true
		if c.quiet == nil {
			t.Errorf("rule %d has no flow that is much like it", c.sid)
		}
		for j, parts := range [][]say{c.fire, c.quiet} {
			client, server := caseAddresses(i, j, c.port)
			frames = append(frames, c.frames(client, server, parts)...)
		}
	}
	for i := range set.rules {
		if sid := uint32(set.rules[i].sid); !tested[sid] {
			t.Errorf("rule %d has no case", sid)
		}
	}
	fired := make(map[string][]uint32)
	for _, e := range analyse(t, &deception.Inspect{}, frames) {
		if e.Type == "alert" {
			client := e.Source
			if e.ToClient() {
				client = e.Destination
			}
			fired[client] = append(fired[client], e.Alert.SID)
		}
	}
	for i := range cases {
		c := &cases[i]
		for j, parts := range [][]say{c.fire, c.quiet} {
			client, _ := caseAddresses(i, j, c.port)
			got := fired[client.Addr().String()]
			want := 0
			if j == 0 && len(parts) > 0 {
				want = 1
			}
			if n := occurrences(got, c.sid); n != want {
				t.Errorf("rule %d fired %d times, not %d (all that fired: %v) for\n%q", c.sid, n, want, got, fmt.Sprint(parts))
			}
			slices.Sort(got)
			if len(slices.Compact(slices.Clone(got))) != len(got) {
				t.Errorf("a rule fired twice in one flow: %v", got)
			}
		}
	}
}

// The document lists every rule that can fire, in its words.
func TestRulesAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/rules.md")
	if err != nil {
		t.Fatal(err)
	}
	set, err := gather(&deception.Inspect{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range set.rules {
		r := &set.rules[i]
		var message string
		for option := range options(r.text) {
			if rest, ok := strings.CutPrefix(strings.TrimSpace(option), `msg:"DECOY `); ok {
				message = strings.TrimPrefix(strings.TrimSuffix(rest, `"`), "contact: ")
			}
		}
		line := fmt.Sprintf("| %d | %s", uint32(r.sid), message)
		if !strings.Contains(r.text, "noalert") && !strings.Contains(string(text), line) {
			t.Errorf("docs/rules.md lacks %q", line)
		}
	}
}

func occurrences(all []uint32, one uint32) int {
	n := 0
	for _, sid := range all {
		if sid == one {
			n++
		}
	}
	return n
}

// caseAddresses gives each flow a client of its own.
func caseAddresses(i, j int, port uint16) (client, server netip.AddrPort) {
	return netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("198.18.%d.%d", j, i+1)), 40000+uint16(i)),
		netip.AddrPortFrom(netip.MustParseAddr("10.9.0.7"), port)
}
