package suricata

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"decoynet/deception"
	"decoynet/internal/lab/publicset"
)

// publicRules writes a set as suricata-update fetches them, with no other of the
// system's in its way, and returns its file.
func publicRules(t *testing.T, o publicset.Options) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "suricata.rules")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := publicset.Write(f, o); err != nil {
		t.Fatal(err)
	}
	before := systemDirs
	systemDirs = []string{dir, "/etc/suricata/rules"} // the class types are beside the latter
	t.Cleanup(func() { systemDirs = before })
	return path
}

// counted is a Suricata whose runs are written down.
func counted(t *testing.T) (binary string, runs func(argument string) int) {
	t.Helper()
	b, err := Find(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "decoynet-suricata-") // where nobody may search
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	list := filepath.Join(dir, "runs")
	write(t, list, "")
	binary = filepath.Join(dir, "suricata")
	write(t, binary, fmt.Sprintf("#!/bin/sh\necho \"$*\" >>%s\nexec %s \"$@\"\n", list, b.Path))
	for path, mode := range map[string]os.FileMode{dir: 0o755, binary: 0o755, list: 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	return binary, func(argument string) int {
		text, err := os.ReadFile(list)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for line := range strings.Lines(string(text)) {
			if slices.Contains(strings.Fields(line), argument) {
				n++
			}
		}
		return n
	}
}

// Of the system's rules, those that this Suricata refuses are left out, however many
// they are, and the same set is not tested again.
func TestManyBrokenRules(t *testing.T) {
	const broken, negated = 900, 12
	publicRules(t, publicset.Options{Rules: 1500, Broken: broken, Negated: negated, Disabled: 100})
	binary, runs := counted(t)
	h, err := openHome(filepath.Join(closedDir(t), "inspect"))
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	b, err := Find(t.Context(), binary)
	if err != nil {
		t.Fatal(err)
	}
	want := &deception.Inspect{SystemRules: true}
	set, err := h.candidate(t.Context(), &b, want)
	if err != nil {
		t.Fatal(err)
	}
	if n := runs("-T"); n != 2 { // the second time without them
		t.Errorf("suricata tested %d times", n)
	}
	if len(set.trial.Dropped) != broken || set.widened != negated {
		t.Errorf("%d rules are left out, %d taken for any address", len(set.trial.Dropped), set.widened)
	}
	if r := set.report(); len(r.Problems) > keptProblems || len(r.Problems)+r.MoreProblems < broken || r.PeakBytes < 10<<20 {
		t.Errorf("the report has %d problems and %d more, %d bytes", len(r.Problems), r.MoreProblems, r.PeakBytes)
	}
	if err := h.promote(set, &b, want); err != nil {
		t.Fatal(err)
	}
	again, err := h.candidate(t.Context(), &b, want)
	if err != nil {
		t.Fatal(err)
	}
	if n := runs("-T"); n != 2 {
		t.Errorf("a set that had passed was tested: %d times in all", n)
	}
	if len(again.rules) != len(set.rules) || len(again.list) != len(set.list) {
		t.Errorf("%d rules and %d problems the second time, not %d and %d", len(again.rules), len(again.list), len(set.rules), len(set.list))
	}

	// The same rules as the document's are refused, in a text for people.
	want = &deception.Inspect{Rules: []string{systemDirs[0]}}
	_, err = h.candidate(t.Context(), &b, want)
	if err == nil || strings.Count(err.Error(), "\n") != shownProblems+1 || !strings.Contains(err.Error(), fmt.Sprintf("and %d more", broken-shownProblems)) {
		t.Errorf("refused with %v", err)
	}
}

// Rules for one side of the network's edge see intruders on both, and what else a
// rule says of addresses stays true.
func TestNegatedGroups(t *testing.T) {
	rules := ruleFile(t, `
alert tcp !$HOME_NET any -> $HOME_NET any (msg:"inbound"; content:"needle"; sid:1000001;)
alert tcp $HOME_NET any -> !$HOME_NET any (msg:"outbound"; content:"needle"; sid:1000002;)
alert tcp [!$HOME_NET,!198.18.0.2] any -> $HOME_NET any (msg:"but for one"; content:"needle"; sid:1000003;)
alert tcp ![$DNS_SERVERS,203.0.113.0/24] any -> !$SMTP_SERVERS any (msg:"but for a network"; content:"needle"; sid:1000004;)
alert tcp [$EXTERNAL_NET,!$HOME_NET] any <> 10.9.0.7 any (msg:"either way"; content:"needle"; sid:1000005;)
`)
	want := map[string][]uint32{
		"198.18.0.1":  {1000001, 1000002, 1000003, 1000004, 1000005},
		"198.18.0.2":  {1000001, 1000002, 1000004, 1000005},
		"203.0.113.9": {1000001, 1000002, 1000003, 1000005},
		"10.9.0.99":   {1000001, 1000002, 1000003, 1000004, 1000005}, // beside the decoy
	}
	var frames [][]byte
	for source := range want {
		client, server := netip.AddrPortFrom(netip.MustParseAddr(source), 40000), netip.MustParseAddrPort("10.9.0.7:4000")
		frames = append(frames, conversation(client, server, say{true, "needle"})...)
	}
	got := make(map[string][]uint32)
	for _, e := range analyse(t, &deception.Inspect{Rules: []string{rules}}, frames) {
		if e.Type == "alert" && e.Alert.SID < 14200000 {
			got[e.Source] = append(got[e.Source], e.Alert.SID)
		}
	}
	for source, rules := range want {
		slices.Sort(got[source])
		if !slices.Equal(got[source], rules) {
			t.Errorf("%s set off %v, not %v", source, got[source], rules)
		}
	}
}
