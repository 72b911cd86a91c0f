//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/lab"
	"decoynet/internal/store"
)

// scannersDocument has decoys of both paths. What differs is who is known.
const scannersDocument = `
node: gw
segments:
  - name: office
    parent: eth0
    subnets: [{prefix: 192.0.2.0/24, gateway: 192.0.2.1}, {prefix: "2001:db8:2::/64"}]
zones:
  - {name: linux, subnet: [10.1.0.0/24, "fd00:1::/64"], link: br-linux}
services:
  - {name: web, zone: linux, address: [10.1.0.2, "fd00:1::2"], ports: [80, 443]}
decoys:
  - name: relayed
    segment: office
    addresses: [192.0.2.100, "2001:db8:2::100"]
    bind: [{ports: [80, 443], service: web}]
  - name: routed
    segment: office
    path: kernel
    addresses: [192.0.2.101]
    bind: [{ports: [80, 443], service: web}]
`

// TestScanners: sessions of known scanners carry their name, by address, port and
// time, whoever carries the bytes.
func TestScanners(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.document(scannersDocument + `scanners:
  - {name: audit, from: [192.0.2.64/28, "2001:db8:2::/64"]}
  - {name: nessus, from: 192.0.2.66, ports: [443]}
  - {name: retired, from: 192.0.2.66, until: 2001-01-31}
`)
	out, err := o.Gateway.Run(t.Context(), binary, "check", "-c", o.file)
	if check(t, err); !strings.Contains(out, `note: the time of scanner "retired" is over since 2001-02-01T00:00:00Z`) {
		t.Errorf("check says %q", out)
	}
	o.up()
	want := map[string]string{} // scanner by the session's source
	for url, scanner := range map[string]string{
		"http://192.0.2.100/":        "audit",
		"https://192.0.2.100/":       "nessus",
		"http://192.0.2.101/":        "audit",
		"https://192.0.2.101/":       "nessus",
		"http://[2001:db8:2::100]/":  "audit",
		"https://[2001:db8:2::100]/": "audit",
	} {
		_, from := o.curl(url)
		o.ended(from)
		want[from.String()] = scanner
	}
	o.wantScanners(want)
	for flag, count := range map[string]int{"--scanner=nessus": 2, "--scanner=audit": 4, "--unknown": 0} {
		if got := o.sessions(flag); len(got) != count {
			t.Errorf("get sessions %s lists %d sessions, want %d", flag, len(got), count)
		}
	}
	o.testScannerExpires(len(want))
}

// wantScanners compares what is on record, whole, with the scanner by source.
func (o *office) wantScanners(want map[string]string) {
	o.t.Helper()
	list := o.sessions()
	for _, s := range list {
		got, _ := s["decoynet.scanner"].(string)
		if from := endpoint(s, "source"); got != want[from] {
			o.t.Errorf("%s to %s is marked %q, want %q", from, endpoint(s, "destination"), got, want[from])
		}
	}
	if len(list) != len(want) {
		o.t.Errorf("%d sessions on record, want %d", len(list), len(want))
	}
}

// testScannerExpires: the time of a scanner ends while nothing else happens.
func (o *office) testScannerExpires(before int) {
	until := time.Now().Add(2 * time.Second)
	o.document(scannersDocument + fmt.Sprintf("scanners: [{name: brief, from: 192.0.2.66, until: %s}]\n", until.UTC().Format(time.RFC3339Nano)))
	_, err := o.decoynet("reload")
	check(o.t, err)
	visits := 0
	for last := false; !last; visits += 2 {
		last = time.Now().After(until)
		for _, url := range []string{"http://192.0.2.100/", "http://192.0.2.101/"} {
			_, from := o.curl(url)
			o.ended(from)
		}
	}
	list := o.sessions()[before:]
	if len(list) != visits {
		o.t.Errorf("%d sessions on record, want %d", len(list), visits)
	}
	for _, s := range list {
		text, _ := s["event.start"].(string)
		start, err := time.Parse(time.RFC3339Nano, text)
		check(o.t, err)
		if got, known := s["decoynet.scanner"].(string); known != start.Before(until) || known && got != "brief" {
			o.t.Errorf("a session that began %s before its time was over is marked %q", until.Sub(start), got)
		}
	}
	if unknown := o.sessions("--unknown"); len(unknown) == 0 {
		o.t.Error("none came later")
	}
}

// TestScannersOfABranch: the gateway knows whom the agent brings. The agent itself is
// not told whom nobody looks at.
func TestScannersOfABranch(t *testing.T) {
	t.Parallel()
	b := newBranch(t)
	b.document(branchDocument + "scanners: [{name: audit, from: 198.51.100.66}]\n")
	b.up()
	b.join()
	b.startAgent()
	b.waitAgent()
	for target, scanner := range map[netip.Addr]any{lab.BranchServer.V4: "audit", lab.BranchServer.V6: nil} {
		conn, err := b.Branch.Intruder.Dial(t.Context(), "tcp", netip.AddrPortFrom(target, 6379).String())
		check(t, err)
		from := localAddr(conn)
		_, err = conn.Write([]byte("PING\r\n"))
		check(t, err)
		_, err = conn.Read(make([]byte, 7))
		check(t, err)
		check(t, conn.Close())
		b.ended(from)
		if s := b.office.sessions("--source", from.Addr().String()); len(s) != 1 || s[0]["decoynet.scanner"] != scanner {
			t.Errorf("recorded %v, want scanner %v", s, scanner)
		}
	}
	if out, err := b.Server.Run(t.Context(), "grep", "-rl", "audit", b.agentData); err == nil || out != "" {
		t.Errorf("the agent has the scanner's name in %s", out)
	}
}

// TestGetProbes reads what is on record, as a person and as a program.
func TestGetProbes(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	r, err := store.OpenRecorder(store.RecorderConfig{Path: filepath.Join(data, store.FileName)})
	check(t, err)
	start := time.Now().Add(-time.Minute)
	for i := range 3 {
		p := &deception.Probe{
			ID: deception.NewSessionID(start.Add(time.Duration(i) * time.Second)), Start: start.Add(time.Duration(i) * time.Second), Last: start.Add(30 * time.Second),
			Node: "gw", Segment: "office", Source: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), Sources: 1, Kind: deception.ScanHorizontal,
			Addresses: 254, Ports: 1, First: netip.MustParseAddrPort("192.0.2.100:22"), Latest: netip.MustParseAddrPort("192.0.2.254:22"),
		}
		p.Contacts[deception.ContactSYN] = 254
		if i == 1 {
			p.Scanner = "audit"
		}
		r.Probe(p)
	}
	check(t, r.Close(t.Context()))
	get := func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, binary, append([]string{"get", "probes", "--data", data}, args...)...).Output()
		check(t, err)
		return string(out)
	}
	table := strings.Split(strings.TrimSpace(get()), "\n")
	if len(table) != 4 || !strings.HasPrefix(table[0], "TIME") || !strings.Contains(table[2], "horizontal_scan") || !strings.HasSuffix(table[2], "audit") {
		t.Errorf("the table is\n%s", strings.Join(table, "\n"))
	}
	for args, count := range map[string]int{
		"--unknown": 2, "--scanner=audit": 1, "--source=192.0.2.2": 1, "--source=192.0.2.0/30 --unknown": 2, "--segment=lab": 0,
		"--node=gw": 3, "--since=10s": 0, "--since=1h": 3, "--limit=1": 1,
	} {
		lines := strings.Count(get(append(strings.Fields(args), "-o", "json")...), "\n")
		if lines != count {
			t.Errorf("get probes %s lists %d, want %d", args, lines, count)
		}
	}
	var doc struct {
		Source    string `json:"source.ip"`
		Kind      string `json:"decoynet.probe.kind"`
		Addresses int    `json:"decoynet.probe.addresses"`
	}
	check(t, json.Unmarshal([]byte(get("--scanner", "audit", "-o", "json")), &doc))
	if doc.Source != "192.0.2.1" || doc.Kind != "horizontal_scan" || doc.Addresses != 254 {
		t.Errorf("the document says %+v", doc)
	}
}
