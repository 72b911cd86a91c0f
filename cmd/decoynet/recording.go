package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// recordingStatus is about what is recorded: in this machine's store or, on a node
// with a controller, in its spool.
type recordingStatus struct {
	Queued  int    `json:"queued"`
	Written uint64 `json:"written"` // sessions; in a spool records of all kinds
	// Lost are sessions. In a spool it is all that was given up since the spool was
	// made, which the numbers by kind add up to.
	Lost         uint64     `json:"lost"`
	LostSessions uint64     `json:"lost_sessions"` // how they ended
	LostStarts   uint64     `json:"lost_starts"`   // that sessions run
	LostHeads    uint64     `json:"lost_heads"`    // first bytes of sessions
	LostSeen     uint64     `json:"lost_seen"`     // what services saw of sessions
	LostEvents   uint64     `json:"lost_events"`
	LostProbes   uint64     `json:"lost_probes"`
	Findings     uint64     `json:"findings"` // written
	LostFindings uint64     `json:"lost_findings"`
	LostUnknown  uint64     `json:"lost_unknown,omitempty"` // damaged in the spool, or given up by an older version
	FailingSince *time.Time `json:"failing_since,omitempty"`
	LastError    string     `json:"last_error,omitempty"`
	FileBytes    int64      `json:"file_bytes"`
	// Waiting counts records in the spool that the controller has not
	// acknowledged yet.
	Waiting      uint64 `json:"waiting,omitempty"`
	WaitingBytes uint64 `json:"waiting_bytes,omitempty"`
}

// print writes it for a person.
func (r *recordingStatus) print(w io.Writer, spooled bool) {
	if spooled {
		fmt.Fprintf(w, "records written %d, waiting for the disk %d, for the controller %d, LOST %d", r.Written, r.Queued, r.Waiting, r.Lost)
		if lost := r.lost(); lost != "" {
			fmt.Fprintf(w, " (%s)", lost)
		}
		fmt.Fprintln(w)
	} else {
		fmt.Fprintf(w, "sessions written %d, waiting %d, LOST %d\n", r.Written, r.Queued, r.Lost)
		if r.Findings+r.LostFindings > 0 {
			fmt.Fprintf(w, "findings written %d, LOST %d\n", r.Findings, r.LostFindings)
		}
		if r.LostEvents > 0 {
			fmt.Fprintf(w, "events LOST %d\n", r.LostEvents)
		}
	}
	if r.FailingSince != nil {
		fmt.Fprintf(w, "recording fails since %s: %s\n", r.FailingSince.Format(time.RFC3339), r.LastError)
	}
}

// lost names the kinds of what was given up, and how many of each.
func (r *recordingStatus) lost() string {
	var parts []string
	for _, kind := range []struct {
		n    uint64
		name string
	}{
		{r.LostSessions, "sessions"},
		{r.LostStarts, "starts of sessions"},
		{r.LostSeen, "reports of what services saw"},
		{r.LostEvents, "events"},
		{r.LostProbes, "reports of probes"},
		{r.LostFindings, "findings"},
		{r.LostUnknown, "of unknown kind"},
	} {
		if kind.n > 0 {
			parts = append(parts, fmt.Sprint(kind.n, " ", kind.name))
		}
	}
	return strings.Join(parts, ", ")
}
