package demo

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"decoynet/deception"
	"decoynet/internal/ecs"
	"decoynet/internal/suricata"
)

// alert is what a rule of Suricata's says of a connection.
type alert struct {
	flow
	Time     time.Time
	Severity uint8 // 1 is the worst
	Says     string
	Service  string
	Session  string // identifier of the session that it belongs to
}

func alertOf(d ecs.FindingDocument) alert {
	return alert{
		flow:     flowOf(d.Transport, d.Source, d.SourcePort, d.Destination, d.Port),
		Time:     time.Time(d.Timestamp),
		Severity: d.EventSeverity, Says: d.RuleName, Service: d.Service, Session: d.Session,
	}
}

func flowOf(transport string, source netip.Addr, sourcePort uint16, destination netip.Addr, port uint16) flow {
	f := flow{deception.TCP, netip.AddrPortFrom(source, sourcePort), netip.AddrPortFrom(destination, port)}
	if transport == deception.UDP.String() {
		f.Transport = deception.UDP
	}
	return f
}

// noSuricata tells whether decoynet says that this machine has no Suricata of use.
func noSuricata(problem string) bool {
	return strings.Contains(problem, suricata.ErrMissing.Error()) || strings.Contains(problem, suricata.ErrTooOld.Error())
}

// alertVerdict is what comes out about Suricata's alerts.
type alertVerdict struct {
	Connections int // that decoys accepted
	Detected    int // of them, those that an alert is about
	Faults      []string
}

// judgeAlerts holds every alert against the intruders' cards, the sessions and the
// servers' own logs: it is about a connection that an intruder made, in the session
// that it names, and where that is a visit, the server's log knows the address and
// port. Each visit has one, and each place that was scanned has one of the scan.
func judgeAlerts(e evidence, servers []serverVerdict) alertVerdict {
	j := alertJudge{evidence: e, alerted: map[flow]bool{}, bad: map[flow]bool{}, sessions: map[string]flow{}, visits: map[flow]string{}}
	for _, s := range e.Sessions {
		j.sessions[s.ID] = s.flow
	}
	for _, s := range servers {
		for _, r := range s.Rows {
			j.visits[r.flow] = s.Name
			if r.Contact != nil {
				j.visits[r.flow] = ""
			}
		}
	}
	for _, a := range e.Alerts {
		j.alerted[a.flow] = true
		if fault := j.fault(a); fault != "" && !j.bad[a.flow] { // one a connection is enough
			j.bad[a.flow] = true
			j.out.Faults = append(j.out.Faults, fault)
		}
	}
	j.complete()
	return j.out
}

type alertJudge struct {
	evidence
	out          alertVerdict
	alerted, bad map[flow]bool
	sessions     map[string]flow // by identifier
	// visits are the intruders' visits, each with the server whose log does not know
	// it, or "".
	visits map[flow]string
}

// fault says what is wrong with the alert, "" where nothing is.
func (j *alertJudge) fault(a alert) string {
	of, known := j.sessions[a.Session]
	switch {
	case j.Card.stage[a.flow] == 0:
		return fmt.Sprintf("%q is about %s, which no intruder used", a.Says, a.flow)
	case !known:
		return fmt.Sprintf("%q about %s belongs to no session", a.Says, a.flow)
	case of != a.flow:
		return fmt.Sprintf("%q about %s belongs to the session %s", a.Says, a.flow, of)
	case a.Service != j.Plan.service(a.Transport, a.Destination):
		return fmt.Sprintf("%q about %s names the service %q", a.Says, a.flow, a.Service)
	case j.visits[a.flow] != "":
		return fmt.Sprintf("%q is about %s, but %s has not logged that peer", a.Says, a.Source, j.visits[a.flow])
	}
	return ""
}

// complete looks for what should have been detected.
func (j *alertJudge) complete() {
	for _, v := range j.Visits {
		if !j.alerted[v.flow] {
			j.out.Faults = append(j.out.Faults, fmt.Sprintf("no alert is about %s %s", v.Tool, v.flow))
		}
	}
	scanned, told := map[string]int{}, map[string]bool{} // by place
	for _, f := range j.Card.began {
		if j.Plan.service(f.Transport, f.Destination) == "" || j.Card.stage[f] != established {
			continue
		}
		j.out.Connections++
		if j.alerted[f] {
			j.out.Detected++
		}
		if _, visit := j.visits[f]; !visit {
			place := j.place(f)
			scanned[place]++
			told[place] = told[place] || j.alerted[f]
		}
	}
	for _, place := range slices.Sorted(maps.Keys(scanned)) {
		if !told[place] {
			j.out.Faults = append(j.out.Faults, fmt.Sprintf("no alert is about any of the %d connections of the scan of %s", scanned[place], place))
		}
	}
}

// place tells where the flow met its decoy.
func (e *evidence) place(f flow) string {
	return cmp.Or(e.Plan.hosts[f.Destination.Addr()], "the office")
}

// highlights returns the alerts to show, the worst first: of each service at each
// place the first of the worst, and the first of each place's scan. More is their
// number in all, by severity.
func highlights(e evidence) (shown []alert, more map[uint8]int) {
	visited := map[flow]bool{}
	for _, v := range e.Visits {
		visited[v.flow] = true
	}
	all := slices.SortedStableFunc(slices.Values(e.Alerts), func(a, b alert) int {
		return cmp.Or(cmp.Compare(a.Severity, b.Severity), a.Time.Compare(b.Time))
	})
	known, more := map[string]bool{}, map[uint8]int{}
	for _, a := range all {
		kind := e.place(a.flow) + " scan"
		if visited[a.flow] {
			kind = e.place(a.flow) + " " + a.Service
		}
		if known[kind] {
			more[a.Severity]++
			continue
		}
		known[kind] = true
		shown = append(shown, a)
	}
	return shown, more
}

// alerts lists what Suricata's rules say.
func (s *screen) alerts(e evidence) {
	shown, more := highlights(e)
	var from, to, service int
	for _, a := range shown {
		from, to, service = max(from, len(a.Source.String())), max(to, len(a.Destination.String())), max(service, len(a.Service))
	}
	s.say("\n  %s", s.paint(faint, "decoynet get alerts         (severity 1 is the worst)"))
	for _, a := range shown {
		says := a.Says
		if a.Severity <= 2 { // it went further than looking around
			says = s.paint(bold, says)
		}
		s.say("  %d  %-*s -> %-*s  %-*s  %s", a.Severity, from, a.Source, to, a.Destination, service, a.Service, says)
	}
	var counts []string
	total := 0
	for _, severity := range slices.Sorted(maps.Keys(more)) {
		total += more[severity]
		counts = append(counts, fmt.Sprintf("%d of severity %d", more[severity], severity))
	}
	if total > 0 {
		s.say("  ... %d more: %s", total, strings.Join(counts, ", "))
	}
}
