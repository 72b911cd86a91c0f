// Package doctor names the cause of what does not work on a machine, and for
// each problem the command that mends it.
//
// It works in two steps. Reading (read_*_linux.go, probe_*_linux.go) collects
// Facts: what the kernel and the running decoynet say, and what comes back when
// packets are really sent: to the LAN, to the services, across the kernel path.
// Judging (judge_*.go) is pure and turns facts into findings. Where a packet was
// seen to arrive, no setting that might have stopped it is called a problem;
// where it was not, the settings on its way are searched for the cause.
package doctor

import (
	"cmp"
	"slices"
)

// Severity says what a finding asks of the reader.
type Severity string

// The severities. A Note is worth knowing and stops nothing.
const (
	OK      Severity = "ok"
	Note    Severity = "note"
	Problem Severity = "problem"
)

// Finding is what one check says about one thing.
type Finding struct {
	Check    string   `json:"check"`
	Subject  string   `json:"subject,omitempty"` // the segment, zone, service, link, ... that it is about
	Severity Severity `json:"severity"`
	What     string   `json:"what"`
	Why      string   `json:"why,omitempty"` // it matters
	// Fix is a shell command, or a change of the document where On says so.
	Fix string `json:"fix,omitempty"`
	// On is where Fix belongs; empty means this machine.
	On string `json:"fix_on,omitempty"`
}

// OnDocument is the place of a fix that is a change of the document.
const OnDocument = "the document"

// Judge returns what the facts mean: what is well first, problems last.
func Judge(f *Facts) []Finding {
	var out []Finding
	for _, judge := range []func(*Facts) []Finding{
		judgeKernel, judgeCapabilities, judgeRunning, judgeLeftovers, judgeData, judgeLimits, judgeClock,
		judgeParents, judgeTrunks, judgeLAN, judgeConflicts,
		judgeZones, judgeServices, judgeReversePath, judgeForwarding, judgeKernelPath, judgeFilters, judgeBridges,
		judgeNeighbours, judgeListeners, judgeInspect, judgeUnread,
	} {
		out = append(out, judge(f)...)
	}
	rank := map[Severity]int{OK: 0, Note: 1, Problem: 2}
	slices.SortStableFunc(out, func(a, b Finding) int { return cmp.Compare(rank[a.Severity], rank[b.Severity]) })
	return out
}

// Problems counts the findings that are problems.
func Problems(findings []Finding) int {
	n := 0
	for _, f := range findings {
		if f.Severity == Problem {
			n++
		}
	}
	return n
}
