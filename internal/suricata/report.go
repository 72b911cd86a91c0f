package suricata

import (
	"errors"
	"fmt"
	"strings"
)

// ErrConfiguration says that Suricata refuses its configuration.
var ErrConfiguration = errors.New("suricata refuses its configuration")

// ErrUnreadable says that files of rules cannot be read.
var ErrUnreadable = errors.New("rules cannot be read")

// ErrRules says that rules were refused; RulesError has them.
var ErrRules = errors.New("rules are refused")

// ErrMemory says that there is too little memory for a set of rules.
var ErrMemory = errors.New("too little memory")

// RulesError names the rules that Suricata refuses. It is ErrRules.
type RulesError struct {
	Problems []RuleProblem
	More     int // that are not among Problems
}

// shownProblems bounds an error's text; Report has all of them.
const shownProblems = 10

func (e *RulesError) Error() string {
	var b strings.Builder
	b.WriteString("rules are refused, mend or remove them:")
	n := 0
	for _, p := range e.Problems {
		if p.Ignored {
			continue
		}
		if n++; n <= shownProblems {
			b.WriteString("\n  " + p.String())
		}
	}
	if n += e.More; n > shownProblems {
		fmt.Fprintf(&b, "\n  and %d more", n-shownProblems)
	}
	return b.String()
}

// Is tells that the error is ErrRules.
func (e *RulesError) Is(target error) bool { return target == ErrRules }

// Report says what a set of rules is made of.
type Report struct {
	Files int `json:"files"`
	Rules int `json:"rules"`
	// Widened are those of the rules that need the opposite of a group of addresses,
	// as !$HOME_NET, and take any address for it.
	Widened  int           `json:"widened,omitempty"`
	Problems []RuleProblem `json:"problems,omitempty"`
	// MoreProblems there are than those that are kept.
	MoreProblems int `json:"more_problems,omitempty"`
	// PeakBytes is the memory that Suricata took to read them.
	PeakBytes uint64 `json:"peak_bytes,omitempty"`
	// Live: they were exchanged in the running Suricata.
	Live bool `json:"live"`
	// Restart: Suricata is started anew for them; else it takes them with its next start.
	Restart bool    `json:"restart,omitempty"`
	Millis  float64 `json:"took_ms"`
}

// trial is what came out when Suricata tested a set. To repeat it for the same set
// would double the time of a start.
type trial struct {
	Sum     string  `json:"sum"` // of the set as it was gathered
	Dropped []Place `json:"dropped,omitempty"`
	Report  Report  `json:"report"`
}
