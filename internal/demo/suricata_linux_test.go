package demo

import (
	"testing"

	"decoynet/internal/suricata"
)

// TestMissing tells a machine without a Suricata of use from one whose Suricata fails,
// and from a document that wants none.
func TestMissing(t *testing.T) {
	status := func(text string) *inspectStatus {
		return &inspectStatus{Suricata: &suricata.Status{State: suricata.Failed, Error: text}}
	}
	for name, c := range map[string]struct {
		is              *inspectStatus
		missing, wanted bool
	}{
		"none":            {status("suricata is not installed: get it"), true, false},
		"too old":         {status("suricata is too old: /usr/bin/suricata is version 6.0.10"), true, false},
		"fails":           {status("suricata ended: signal: killed"), false, true},
		"runs":            {status(""), false, true},
		"another's":       {&inspectStatus{}, false, false},
		"nothing to look": {nil, false, false},
	} {
		if missing, wanted := c.is.missing() != "", c.is.wanted(); missing != c.missing || wanted != c.wanted {
			t.Errorf("%s: missing %v, wanted %v", name, missing, wanted)
		}
	}
}
