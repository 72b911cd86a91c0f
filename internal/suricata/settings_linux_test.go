package suricata

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"decoynet/deception"
)

// What is exported and printed for a Suricata of others is what that one reads
// without complaint.
func TestSettingsAndExport(t *testing.T) {
	dir := t.TempDir()
	files, err := Export(dir)
	if err != nil || len(files) != 2 {
		t.Fatalf("%v, %v", files, err)
	}
	text := "%YAML 1.1\n---\n" + Settings(&deception.Inspect{Tap: "vtap7", EVE: filepath.Join(dir, "eve.json"), Depth: 1 << 20}) +
		"classification-file: " + files[1] + "\ndefault-rule-path: " + dir + "\nrule-files: [decoynet.rules]\n"
	path := filepath.Join(dir, "suricata.yaml")
	write(t, path, text)
	out, err := exec.Command("suricata", "-T", "-c", path, "-l", dir).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "successfully loaded") || strings.Contains(string(out), "E: ") {
		t.Fatalf("%v: %s\n%s", err, out, text)
	}
	for _, want := range []string{"eve-log.ethernet = yes", "af-packet.0.interface = vtap7", "stream.reassembly.depth = 1048576", "stream.inline = yes", "vlan.use-for-tracking = true"} {
		dump, err := exec.Command("suricata", "-c", path, "--dump-config").CombinedOutput()
		if err != nil || !strings.Contains(string(dump), want) {
			t.Errorf("%v: %q is not in what suricata understood:\n%s", err, want, dump)
		}
	}
}

func TestRulesHaveASeverity(t *testing.T) {
	rules, err := Rules()
	if err != nil || len(rules) < 130 {
		t.Fatalf("%d rules, %v", len(rules), err)
	}
	for _, r := range rules {
		if r.Severity < 1 || r.Severity > 4 || !strings.HasPrefix(r.Message, "DECOY ") || !strings.HasPrefix(r.Class, "decoy-") ||
			r.SID < 14200001 || r.SID > 14209999 {
			t.Errorf("%+v", r)
		}
	}
}
