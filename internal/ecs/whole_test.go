package ecs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
)

// wholes are an ended session with findings before and after its end, a running one
// of a known scanner, and one that tries to take over the analyst's terminal.
func wholes(t *testing.T) []WholeSession {
	s, f := sessions(t), findings(t)
	f[1].Time, f[3].Time = s[0].Start.Add(7*time.Millisecond), s[0].End.Add(time.Second)
	s[2].Scanner = "audit"
	return []WholeSession{
		{Session: s[0], Findings: []deception.Finding{f[3], f[0], f[1]}},
		{Session: s[2], Findings: []deception.Finding{f[2]}},
		{Session: s[4], Findings: []deception.Finding{f[4], f[5]}},
	}
}

func TestWholeSessions(t *testing.T) {
	var text, doc bytes.Buffer
	for _, s := range wholes(t) {
		if err := s.WriteText(&text, tableOptions(false)); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&text)
		if err := s.WriteJSON(&doc); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "session.txt", text.Bytes())
	golden(t, "session.json", doc.Bytes())
	safeForTerminals(t, text.String())
	safeForTerminals(t, doc.String())
	// The order is that of time, whatever that of the findings is.
	var order []string
	for _, line := range strings.Split(text.String(), "\n") {
		for _, word := range []string{"start", "sent", "received", "ALERT", "http", "end", "fileinfo"} {
			if fields := strings.Fields(line); len(fields) > 1 && len(order) < 7 && (fields[0] == word || fields[1] == word && strings.HasSuffix(fields[0], "s")) {
				order = append(order, word)
			}
		}
	}
	if got := strings.Join(order, " "); got != "start sent received ALERT http end fileinfo" {
		t.Errorf("in the order %s", got)
	}
	var first struct {
		Session  map[string]any
		Findings []map[string]any
		Notes    []string
	}
	if err := json.NewDecoder(&doc).Decode(&first); err != nil {
		t.Fatal(err)
	}
	if first.Session["event.id"] != "019cb7a1-0000-7000-8000-000000000001" || len(first.Findings) != 3 || len(first.Notes) != 2 ||
		first.Findings[0]["rule.id"] != "2010937" {
		t.Errorf("%+v", first)
	}
}
