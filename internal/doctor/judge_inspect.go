package doctor

import (
	"errors"
	"fmt"

	"decoynet/internal/suricata"
)

// Below these there is soon no room for events and packets.
const (
	littleSpace = 1 << 30
	littleShare = 20 // one part of so many
)

// judgeInspect says what keeps flows from being analysed.
func judgeInspect(f *Facts) []Finding {
	i := f.Inspect
	if i == nil {
		return nil
	}
	out := judgeSpace(i)
	switch {
	case i.Missing != nil:
		what := "Suricata is not installed"
		if !errors.Is(i.Missing, suricata.ErrMissing) {
			what = i.Missing.Error()
		}
		out = append(out, Finding{
			Check: "inspect", Subject: "suricata", Severity: Problem, What: what,
			Why: "flows are relayed and recorded, but nobody looks into them", Fix: suricata.Install(),
		})
	case i.Refused != nil:
		out = append(out, Finding{
			Check: "inspect", Subject: "suricata", Severity: Problem, What: i.Refused.Error(),
			Why: "Suricata does not start with what decoynet generates for version " + i.Version + "; flows are not analysed",
		})
	case i.Version != "":
		out = append(out, Finding{
			Check: "inspect", Subject: "suricata", Severity: OK,
			What: fmt.Sprintf("Suricata %s takes decoynet's configuration", i.Version),
		})
		out = append(out, judgeRules(i)...)
	}
	if i.EVE != "" {
		out = append(out, judgeEVE(i)...)
	}
	if f.Running != nil && f.Running.Suricata != nil {
		out = append(out, judgeSuricata(f.Running.Suricata)...)
	}
	return out
}

func judgeSpace(i *InspectFacts) []Finding {
	if i.AllBytes == 0 || i.FreeBytes >= littleSpace && i.FreeBytes >= i.AllBytes/littleShare {
		return nil
	}
	return []Finding{{
		Check: "inspect", Subject: "disk", Severity: Problem,
		What: fmt.Sprintf("%d MB of %d are free where %s is", i.FreeBytes>>20, i.AllBytes>>20, i.Dir),
		Why:  "Suricata's events and sessions' packets are lost when the disk is full",
		Fix:  "data: a directory on a larger file system, or a smaller inspect.pcap", On: OnDocument,
	}}
}

// maxNamed bounds how many rules are named one by one.
const maxNamed = 10

func judgeRules(i *InspectFacts) []Finding {
	if i.RulesErr == nil {
		out := []Finding{{
			Check: "inspect", Subject: "rules", Severity: OK, What: fmt.Sprintf("%d rules of %d files can be loaded", i.Rules.Rules, i.Rules.Files),
		}}
		if n := len(i.Rules.Problems); n > 0 {
			out = append(out, Finding{
				Check: "inspect", Subject: "rules", Severity: Note,
				What: fmt.Sprintf("%d rules are left out or taken with reservations, the first is %s", n, i.Rules.Problems[0]),
				Why:  "of public sets that is usual", Fix: "decoynet rules check",
			})
		}
		return out
	}
	const why = "no new rule goes live until it is mended; those that were good last stay in force"
	var refused *suricata.RulesError
	if !errors.As(i.RulesErr, &refused) {
		return []Finding{{
			Check: "inspect", Subject: "rules", Severity: Problem, What: i.RulesErr.Error(), Why: why,
			Fix: "inspect.rules: files and directories that are there and can be read", On: OnDocument,
		}}
	}
	var out []Finding
	for _, p := range refused.Problems {
		if p.Ignored {
			continue
		}
		if len(out) == maxNamed {
			break
		}
		out = append(out, Finding{
			Check: "inspect", Subject: "rules", Severity: Problem, What: p.String(), Why: why,
			Fix: fmt.Sprintf("mend or remove line %d, then: decoynet rules reload", p.Line), On: p.File,
		})
	}
	return out
}

func judgeEVE(i *InspectFacts) []Finding {
	setting := func(what, why string) Finding {
		return Finding{
			Check: "inspect", Subject: i.EVE, Severity: Problem, What: what, Why: why,
			Fix: `"decoynet rules settings" prints what it needs`, On: "Suricata's suricata.yaml",
		}
	}
	switch {
	case i.EVEErr != nil:
		return []Finding{{
			Check: "inspect", Subject: i.EVE, Severity: Problem, What: i.EVEErr.Error(), Why: "what Suricata finds is not stored with sessions",
			Fix: "inspect.eve: the file that Suricata writes, readable for decoynet", On: OnDocument,
		}}
	case i.Events > 0 && i.WithMAC == 0:
		return []Finding{setting("Suricata's events lack the frames' MAC addresses (ethernet: yes)", "these hold the session that an event belongs to")}
	case i.Events > 0 && i.WithID == 0:
		return []Finding{setting("Suricata's events lack a Community ID (community-id: true)", "other tools find the flow by it")}
	case i.Events > 0:
		return []Finding{{
			Check: "inspect", Subject: i.EVE, Severity: OK,
			What: fmt.Sprintf("events can be read; %d of the last %d are of the feed", i.OurEvents, i.Events),
		}}
	}
	return []Finding{{Check: "inspect", Subject: i.EVE, Severity: Note, What: "Suricata has written no event yet"}}
}

// judgeSuricata looks at what the running decoynet says of its Suricata.
func judgeSuricata(s *suricata.Status) []Finding {
	var out []Finding
	problem := func(what, why, fix string) {
		out = append(out, Finding{Check: "inspect", Subject: "suricata", Severity: Problem, What: what, Why: why, Fix: fix})
	}
	if s.State == suricata.Failed {
		problem("Suricata does not run: "+s.Error, fmt.Sprintf("it was started %d times; flows are not analysed", s.Starts), "")
	}
	if s.Hung > 0 {
		problem(fmt.Sprintf("Suricata took nothing of the feed and was replaced, %d times", s.Hung),
			"the FIFO was full meanwhile, and flows were left out; too many rules, or too little processor", "")
	}
	if s.RulesError != "" {
		problem("newer rules are refused: "+s.RulesError, "those that were good last are in force", "decoynet rules check")
	}
	c := &s.Counters
	if c.MemoryDrops > 0 {
		problem(fmt.Sprintf("Suricata ran out of the memory that it may use %d times", c.MemoryDrops), "it knows nothing of those flows or parts", "")
	}
	if s.DiskFull {
		problem("the disk is full, and Suricata's events are lost", "it says nothing of that itself", "")
	}
	return out
}
