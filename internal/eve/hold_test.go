package eve

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
)

// Suricata finds things in a flow that ended, of which no packet tells. They are
// joined by another event of the flow, before or after.
func TestEventsWithoutPacket(t *testing.T) {
	sessions := roster{}
	s := sessions.add(session(1))
	other := session(2)
	line := func(kind string, flow int, ether string) string {
		extra := ""
		if kind == "alert" {
			extra = alertMember
		}
		return record(&s, kind, flow, false, ether, extra) + "\n"
	}
	type want struct {
		kind   string
		joined bool
	}
	now := time.Now()
	for name, test := range map[string]struct {
		before, after, late string // after: read together with before; late: when nobody waits any longer
		want                []want
	}{
		"flow known before": {line("ssh", 7, "packet"), line("alert", 7, "none"), "", []want{{"ssh", true}, {"alert", true}}},
		"flow known after":  {line("alert", 7, "none"), line("flow", 7, "flow"), "", []want{{"alert", true}, {"flow", true}}},
		"flow known late": {
			line("alert", 7, "none") + line("http", 7, "none"), "", line("flow", 7, "flow"),
			[]want{{"alert", false}, {"alert", true}, {"http", true}, {"flow", true}},
		},
		"flow never known": {line("alert", 7, "none") + line("http", 7, "none"), "", line("flow", 8, "flow"), []want{{"alert", false}, {"flow", true}}},
		"the number was another flow's": {
			record(&other, "ssh", 7, false, "packet", "") + "\n", line("alert", 7, "none"), "",
			[]want{{"ssh", true}, {"alert", false}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, k := newFolder(t), newSink()
			r := start(t, f.config(sessions, k))
			f.write(t, "eve.json", test.before+test.after)
			drive(t, r, now)
			if test.late == "" && len(k.all()) > len(test.want) {
				t.Error("somebody did not wait")
			}
			drive(t, r, now.Add(holdFor))
			f.write(t, "eve.json", test.late)
			drive(t, r, now.Add(holdFor))
			var got []want
			for _, x := range k.all() {
				got = append(got, want{x.Kind, !x.Session.IsZero()})
				if !x.Session.IsZero() && x.Kind != "ssh" && (x.Session != s.ID || x.Source != s.Source) {
					t.Errorf("%s joined to %s", x.Kind, x.Session)
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(test.want) {
				t.Errorf("got %v, want %v; %+v", got, test.want, r.Stats())
			}
			ids := map[deception.SessionID]bool{}
			for _, x := range k.all() {
				ids[x.ID] = true
			}
			if distinct := len(test.want); test.late != "" && strings.Contains(name, "late") && len(ids) != distinct-1 {
				t.Errorf("%d identifiers; one event has two", len(ids))
			}
		})
	}
}

// The checkpoint waits for those that wait; and a new reader knows the flows of
// what the old one has read.
func TestRestartKnowsFlows(t *testing.T) {
	sessions := roster{}
	s := sessions.add(session(1))
	for _, order := range [][]string{{"ssh packet", "alert none"}, {"alert none", "flow flow"}, {"alert none", "", "flow flow"}} {
		f, now := newFolder(t), time.Now()
		var last []deception.Finding
		for _, event := range order {
			k := newSink()
			r := start(t, f.config(sessions, k))
			if kind, ether, ok := strings.Cut(event, " "); ok {
				extra := ""
				if kind == "alert" {
					extra = alertMember
				}
				f.write(t, "eve.json", record(&s, kind, 7, false, ether, extra)+"\n")
			}
			drive(t, r, now)
			if event == "" { // nobody waits any longer; the checkpoint goes on
				drive(t, r, now.Add(holdFor))
				drive(t, r, now.Add(holdFor))
			}
			last = k.all()
			r.follow.close()
		}
		found := false
		for _, x := range last {
			found = found || x.Kind == "alert" && x.Session == s.ID
		}
		if !found {
			t.Errorf("%v: the alert is not joined: %+v", order, last)
		}
	}
}

// An event that waits is read again by the next reader, however much was read since.
func TestRestartWhileWaiting(t *testing.T) {
	sessions := roster{}
	s := sessions.add(session(1))
	f, k, now := newFolder(t), newSink(), time.Now()
	f.write(t, "eve.json", record(&s, "alert", 7, false, "none", alertMember)+"\n")
	f.write(t, "eve.json", strings.Repeat(record(&s, "ssh", 8, false, "packet", page)+"\n", relearnBytes/1000))
	r := start(t, f.config(sessions, k))
	drive(t, r, now)
	r.follow.close()
	f.write(t, "eve.json", record(&s, "flow", 7, false, "flow", "")+"\n")
	drive(t, start(t, f.config(sessions, k)), now)
	for _, x := range k.all() {
		if x.Kind == "alert" && x.Session == s.ID {
			return
		}
	}
	t.Error("the alert is not joined")
}

// Memory for events that wait is bounded. An alert for which there is no room is
// handed over as it is.
func TestHeldAreBounded(t *testing.T) {
	s := session(1)
	f, k := newFolder(t), newSink()
	r := start(t, f.config(roster{}, k))
	var b strings.Builder
	const lines = 3 * maxHeld
	for n := range lines {
		b.WriteString(record(&s, "alert", n+1, false, "none", alertMember) + "\n")
	}
	f.write(t, "eve.json", b.String())
	drive(t, r, time.Now())
	if got := len(r.hold.list); got != maxHeld {
		t.Errorf("%d are held", got)
	}
	if got := len(k.all()); got != lines-maxHeld {
		t.Errorf("%d were handed over", got)
	}
	big := fmt.Sprintf(`,"x":"%s"`, strings.Repeat("x", 1<<20))
	for n := range 20 {
		f.write(t, "eve.json", record(&s, "http", lines+n, false, "none", big)+"\n")
	}
	drive(t, r, time.Now())
	if r.hold.bytes > maxHeldBytes || len(r.hold.list) > 8 {
		t.Errorf("%d are held, of %d bytes", len(r.hold.list), r.hold.bytes)
	}
}
