package doctor

import "decoynet/internal/suricata"

// InspectFacts is what was read about the analysis of flows; nil in Facts where the
// document wants none.
type InspectFacts struct {
	Version   string // of Suricata
	Missing   error  // it is not there, or cannot be used
	Refused   error  // it does not take our configuration, or could not be asked
	Rules     suricata.Report
	RulesErr  error // rules are wrong or cannot be read
	Dir       string
	FreeBytes uint64 // on the file system of Dir
	AllBytes  uint64
	// EVE is the file of an external Suricata's events.
	EVE       string
	EVEErr    error // it cannot be read
	Events    int   // that were looked at in it
	WithMAC   int   // of them, with the frames' addresses
	WithID    int   // of them, with a Community ID
	OurEvents int   // of WithMAC, with addresses of the feed
}
