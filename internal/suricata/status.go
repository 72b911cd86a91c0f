// Package suricata finds, configures and runs the one Suricata of a machine, which
// reads the feed from a FIFO and writes its events to a file, and gives it its
// rules.
//
// Nothing of the machine's own Suricata is used but its program and, where that is
// wanted, its rules: what it reads is generated, what it writes is in a directory
// of ours. It runs without privileges and ends with decoynet.
package suricata

import (
	"fmt"
	"time"
)

// State says what Suricata does.
type State string

// The states.
const (
	Off      State = "off"      // nobody asked for it
	Starting State = "starting" // it reads its rules, or waits for the feed
	Running  State = "running"
	Failed   State = "failed" // it does not run; Status.Error says why
)

// Status is what is true of the Suricata that decoynet runs.
type Status struct {
	State    State     `json:"state"`
	Since    time.Time `json:"since"` // of State
	Error    string    `json:"error,omitempty"`
	Version  string    `json:"version,omitempty"`
	Path     string    `json:"path,omitempty"`
	PID      int       `json:"pid,omitempty"`
	Starts   uint64    `json:"starts"`
	Failures uint64    `json:"failures"` // ends that nobody asked for
	Hung     uint64    `json:"hung"`     // of them, those that were ended because nothing moved
	Upgrades uint64    `json:"upgrades"` // restarts for a new program
	LastEnd  string    `json:"last_end,omitempty"`
	Resident uint64    `json:"resident_bytes"`
	Counters Counters  `json:"counters"`
	// Loading is the set of rules that is on its way; nil: none.
	Loading *Loading `json:"loading,omitempty"`
	// Rules are those that are loaded; RulesError says why a newer set is not.
	Rules      Report    `json:"rules"`
	RulesSince time.Time `json:"rules_since,omitzero"`
	RulesError string    `json:"rules_error,omitempty"`
	EVEBytes   int64     `json:"eve_bytes"`
	// DiskFull: there is no room for events, and Suricata loses them without a word.
	DiskFull  bool   `json:"disk_full"`
	Rotations uint64 `json:"rotations"`
	// Unread are rotated files that were removed before they were read.
	Unread uint64 `json:"unread_files_removed"`
}

// Loading is a set of rules on its way into a Suricata that runs.
type Loading struct {
	Step  string    `json:"step"`
	Rules int       `json:"rules"`
	Since time.Time `json:"since"` // of the step
}

// The steps.
const (
	LoadingTest     = "testing" // another Suricata tests the set
	LoadingExchange = "loading" // the running one reads it, and analyses with the one of before
)

func (l *Loading) String() string {
	return fmt.Sprintf("%d rules: %s since %v", l.Rules, l.Step, time.Since(l.Since).Round(time.Second))
}
