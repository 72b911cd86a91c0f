package main

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"decoynet/bench/parity/verdict"
)

// explained is the reviewed list of misses.
//
//go:embed explained.txt
var explained string

// targets are what is to be kept, in percent, by feed and kind.
var targets = map[string]map[string]float64{
	"fifo":    {"alerts": 99, "records": 98, "flows": 99.5},
	"tap":     {"alerts": 99, "records": 98, "flows": 99.5},
	"capture": {"alerts": 98, "records": 96, "flows": 99},
}

// document is the shape of the JSON file.
type document struct {
	Name        string            `json:"name"`
	Setting     map[string]any    `json:"setting"`
	Feeds       []*feedReport     `json:"feeds"`
	NotPlayed   map[string]string `json:"not_played"`   // captures, and why
	NotPlayable map[string]int    `json:"not_playable"` // flows, by why
}

// feedReport is what became of all captures in one feed.
type feedReport struct {
	Name      string                   `json:"name"`
	Counts    map[string]verdict.Count `json:"counts"` // alerts, records, files, flows
	Reached   map[string]bool          `json:"reached,omitempty"`
	Protocols map[string]verdict.Count `json:"protocols"` // records by kind of event
	Misses    []miss                   `json:"misses"`
}

// miss is something that Suricata says of the original only.
type miss struct {
	Capture string `json:"capture"`
	Kind    string `json:"kind"`
	What    string `json:"what"`
	Why     string `json:"why,omitempty"` // empty: nobody knows yet
}

// report writes the table and the file. A miss without an explanation is an error.
func (s *session) report(results []result) error {
	reviewed, err := verdict.ParseExplained(explained)
	if err != nil {
		return err
	}
	d := s.document(results, reviewed)
	if err := s.table(d); err != nil {
		return fmt.Errorf("print the table: %w", err)
	}
	if s.verbose {
		s.details(d, results)
	}
	if err := s.write(d); err != nil {
		return err
	}
	if s.only == "" {
		for _, e := range reviewed.Unused() {
			fmt.Fprintf(s.w, "explained, and not missed: %s %s %s %s\n", e.Feed, e.Kind, e.Capture, e.What)
		}
	}
	return unexplained(d)
}

func (s *session) document(results []result, reviewed verdict.Explained) *document {
	d := &document{
		Name:        "parity",
		Setting:     map[string]any{"captures": len(s.captures), "played": len(s.played), "flows_per_second": s.pace, "inspect": s.inspected},
		NotPlayed:   map[string]string{},
		NotPlayable: map[string]int{},
	}
	for name, err := range s.failures {
		first, _, _ := strings.Cut(err.Error(), "\n")
		d.NotPlayed[name] = first
	}
	for _, c := range s.captures {
		for _, f := range c.Flows {
			if f.Why != "" {
				d.NotPlayable[f.Why]++
			}
		}
	}
	slices.SortFunc(results, func(a, b result) int { return strings.Compare(a.capture, b.capture) })
	for _, f := range s.feeds {
		d.Feeds = append(d.Feeds, reportOf(f.name, results, reviewed))
	}
	return d
}

func reportOf(feed string, results []result, reviewed verdict.Explained) *feedReport {
	r := &feedReport{Name: feed, Counts: map[string]verdict.Count{}, Protocols: map[string]verdict.Count{}, Misses: []miss{}}
	for _, one := range results {
		if one.feed != feed {
			continue
		}
		addTo(r.Counts, one.counts)
		addTo(r.Protocols, one.protocols)
		for _, k := range kinds {
			for _, m := range one.missed[k.name] {
				why, _ := reviewed.Why(feed, k.name, one.capture, m)
				r.Misses = append(r.Misses, miss{one.capture, k.name, m, why})
			}
		}
	}
	for kind, least := range targets[feed] {
		if r.Reached == nil {
			r.Reached = map[string]bool{}
		}
		r.Reached[kind] = r.Counts[kind].Share() >= least
	}
	return r
}

func addTo(sum, more map[string]verdict.Count) {
	for k, c := range more {
		total := sum[k]
		total.Add(c)
		sum[k] = total
	}
}

func (s *session) table(d *document) error {
	w := tabwriter.NewWriter(s.w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "feed\tof\tkept\ttotal\tshare\ttarget\tmore\t")
	for _, f := range d.Feeds {
		for _, k := range kinds {
			c := f.Counts[k.name]
			target := ""
			if least, ok := targets[f.Name][k.name]; ok {
				target = fmt.Sprintf("%g %%", least)
			}
			fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%.2f %%\t%s\t%d\t\n", f.Name, k.name, c.Kept, c.Total, c.Share(), target, c.More)
		}
		for _, p := range slices.Sorted(maps.Keys(f.Protocols)) {
			c := f.Protocols[p]
			fmt.Fprintf(w, "%s\trecords: %s\t%d\t%d\t%.2f %%\t\t%d\t\n", f.Name, p, c.Kept, c.Total, c.Share(), c.More)
		}
	}
	return w.Flush()
}

// details prints what is missed and what is said besides.
func (s *session) details(d *document, results []result) {
	for _, f := range d.Feeds {
		for _, m := range f.Misses {
			fmt.Fprintf(s.w, "MISS %s %s %s: %q (%s)\n", f.Name, m.Kind, m.Capture, m.What, m.Why)
		}
	}
	for _, r := range results {
		for _, k := range kinds {
			for _, m := range r.more[k.name] {
				fmt.Fprintf(s.w, "MORE %s %s %s: %q\n", r.feed, k.name, r.capture, m)
			}
		}
	}
}

func (s *session) write(d *document) error {
	b, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the figures: %w", err)
	}
	if err := os.MkdirAll(s.out, 0o755); err != nil {
		return fmt.Errorf("make the output folder: %w", err)
	}
	path := filepath.Join(s.out, "parity.json")
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the figures: %w", err)
	}
	fmt.Fprintf(s.w, "figures: %s\n", path)
	return nil
}

// unexplained lists what the feeds miss without a known reason; the wire is no feed.
func unexplained(d *document) error {
	var errs []error
	for _, f := range d.Feeds {
		for _, m := range f.Misses {
			if m.Why == "" && targets[f.Name] != nil {
				errs = append(errs, fmt.Errorf("feed %s misses, and nobody has explained: %s of %s: %.200q", f.Name, m.Kind, m.Capture, m.What))
			}
		}
	}
	return errors.Join(errs...)
}

// byProtocol counts the records of each kind of event apart.
func byProtocol(want, got verdict.Events) map[string]verdict.Count {
	out := map[string]verdict.Count{}
	wanted, had := verdict.ByKind(want.Records), verdict.ByKind(got.Records)
	for kind := range wanted {
		out[kind], _, _ = verdict.Compare(wanted[kind], had[kind], false)
	}
	return out
}
