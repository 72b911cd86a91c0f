package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"decoynet/deception"
	"decoynet/internal/suricata"
)

// inspectFacts reads what the doctor would of a machine with this inspect section.
func inspectFacts(t *testing.T, program string, want *deception.Inspect) []Finding {
	t.Helper()
	r := &reader{
		Subject: Subject{State: &deception.State{Inspect: want}, Data: t.TempDir(), Suricata: program},
		facts:   &Facts{},
	}
	r.readInspect(t.Context())
	return judgeInspect(r.facts)
}

func ruleFile(t *testing.T, text string) string {
	t.Helper()
	return fileWith(t, "own.rules", text, 0o644)
}

func fileWith(t *testing.T, name, text string, mode os.FileMode) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "decoynet-doctor-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// Each is broken in earnest and looked at with the Suricata of this machine.
func TestFaultsOfInspect(t *testing.T) {
	const good = `alert tcp any any -> any any (msg:"a"; content:"needle"; sid:1000001;)` + "\n"
	bad := ruleFile(t, good+"\n"+`alert tcp any any -> any any (msg:"b"; contents:"x"; sid:1000002;)`+"\n")
	const refusing = "#!/bin/sh\ncase \"$*\" in *-T*) exec suricata \"$@\" --set stream.memcap=much ;; esac\nexec suricata \"$@\"\n"
	const old = "#!/bin/sh\necho 'This is Suricata version 6.0.10 RELEASE'\n"
	event := func(text string) string {
		return `{"timestamp":"2026-01-01T00:00:00.000000+0000","event_type":"flow"` + text + "}\n"
	}
	managed := func(rules ...string) *deception.Inspect {
		return &deception.Inspect{Suricata: deception.SuricataManaged, Rules: rules}
	}
	external := func(path string) *deception.Inspect {
		return &deception.Inspect{Suricata: deception.SuricataExternal, EVE: path}
	}
	for _, f := range []struct {
		name, program string
		inspect       *deception.Inspect
		severity      Severity
		what, fix, on string // part of each
	}{
		{name: "all is well", inspect: managed(ruleFile(t, good)), severity: OK, what: "can be loaded"},
		{name: "missing", program: "/nowhere/suricata", inspect: managed(), severity: Problem, what: "not installed", fix: suricata.Install()},
		{name: "too old", program: fileWith(t, "suricata", old, 0o755), inspect: managed(), severity: Problem, what: "version 6.0.10", fix: suricata.Install()},
		{name: "configuration refused", program: fileWith(t, "suricata", refusing, 0o755), inspect: managed(), severity: Problem, what: "stream.memcap"},
		{name: "bad rule", inspect: managed(bad), severity: Problem, what: bad + ":3: unknown rule keyword 'contents'", fix: "line 3", on: bad},
		{name: "no such rules", inspect: managed("/nowhere/a.rules"), severity: Problem, what: "/nowhere/a.rules", on: OnDocument},
		{name: "no events", inspect: external("/nowhere/eve.json"), severity: Problem, what: "/nowhere/eve.json", on: OnDocument},
		{name: "a folder of events", inspect: external(os.TempDir()), severity: Problem, what: "regular file", on: OnDocument},
		{name: "no addresses in events", inspect: external(fileWith(t, "eve.json", event(""), 0o644)), severity: Problem, what: "ethernet: yes", on: "suricata.yaml"},
		{
			name: "no Community ID", severity: Problem, what: "community-id: true", on: "suricata.yaml",
			inspect: external(fileWith(t, "eve.json", event(`,"ether":{"src_mac":"02:00:00:00:00:01","dest_mac":"06:00:00:00:00:01"}`), 0o644)),
		},
		{
			name: "events of the feed", severity: OK, what: "1 of the last 2",
			inspect: external(fileWith(t, "eve.json", "half of a line\n"+
				event(`,"community_id":"1:a","ether":{"src_mac":"02:00:00:00:00:01","dest_mac":"06:00:00:00:00:01"}`)+
				event(`,"community_id":"1:a","ether":{"src_mac":"00:1b:21:00:00:01","dest_mac":"00:1b:21:00:00:02"}`), 0o644)),
		},
	} {
		t.Run(f.name, func(t *testing.T) {
			found := inspectFacts(t, f.program, f.inspect)
			for _, got := range found {
				if got.Severity == f.severity && strings.Contains(got.What, f.what) && strings.Contains(got.Fix, f.fix) && strings.Contains(got.On, f.on) {
					if f.severity == OK && Problems(found) > 0 {
						t.Errorf("problems where there are none: %+v", found)
					}
					return
				}
			}
			t.Errorf("not found: %s %q, fix %q on %q\namong %+v", f.severity, f.what, f.fix, f.on, found)
		})
	}
}

// What the running Suricata and the disk tell becomes findings.
func TestJudgeInspect(t *testing.T) {
	status := suricata.Status{State: suricata.Failed, Error: "it ended", Hung: 2, RulesError: "a.rules:1: bad"}
	status.Counters.MemoryDrops, status.DiskFull = 3, true
	f := &Facts{
		Running: &Running{Suricata: &status},
		Inspect: &InspectFacts{Dir: "/data/inspect", AllBytes: 100 << 30, FreeBytes: 2 << 30},
	}
	var all strings.Builder
	for _, got := range judgeInspect(f) {
		if got.Severity != Problem {
			t.Errorf("no problem: %+v", got)
		}
		all.WriteString(got.What + "\n")
	}
	for _, want := range []string{"does not run: it ended", "replaced, 2 times", "a.rules:1: bad", "may use 3 times", "events are lost", "2048 MB of 102400"} {
		if !strings.Contains(all.String(), want) {
			t.Errorf("%q is not in\n%s", want, all.String())
		}
	}
}
