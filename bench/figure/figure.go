// Package figure turns the samples of a side-by-side benchmark into rows:
// median and spread of each subject's metric, its ratio to named peers, and
// whether a target was reached. It knows nothing about networks.
package figure

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
)

// Metric is something measured, and how it is written.
type Metric struct {
	Name string
	Unit string
	What string // one line for a reader of the table
}

// Target is a figure to reach. It is data of the report, not an assertion.
type Target struct {
	Subject string
	Metric  string
	AtMost  bool    // false: at least
	Value   float64 // of the ratio, or of the median where RatioTo is empty
	RatioTo string  // the peer
}

// String writes the target as a reader would: ">= 1.1 of haproxy".
func (t Target) String() string {
	op := ">="
	if t.AtMost {
		op = "<="
	}
	s := fmt.Sprintf("%s %g", op, t.Value)
	if t.RatioTo != "" {
		s += " of " + t.RatioTo
	}
	return s
}

// Row is one line of the report: a subject's metric over all rounds.
type Row struct {
	Name   string `json:"name"` // of the subject
	Metric string `json:"metric"`
	Unit   string `json:"unit"`
	// Median, Min and Max are null where the figure is void or was not taken.
	Median *float64 `json:"median"`
	Min    *float64 `json:"min"`
	Max    *float64 `json:"max"`
	// RatioTo holds, for each peer, the median of the ratios within a round:
	// both sides of each were measured moments apart.
	RatioTo map[string]float64 `json:"ratio_to"`
	Rounds  int                `json:"rounds"`
	Target  string             `json:"target,omitempty"`
	Reached *bool              `json:"reached,omitempty"`
	Void    string             `json:"void,omitempty"` // why the figure is worth nothing
}

// Report collects samples round by round.
type Report struct {
	Subjects []string // in the order of the table
	Metrics  []Metric
	Peers    []string // the subjects that ratios are formed to
	Targets  []Target
	samples  map[key]map[int]float64 // by round
	void     map[key]string
}

type key struct{ subject, metric string }

// Add records one round's sample. A NaN or infinite one is dropped: what could
// not be measured has no figure.
func (r *Report) Add(round int, subject, metric string, value float64) {
	if math.IsNaN(value) || math.IsInf(value, 0) {
		return
	}
	if r.samples == nil {
		r.samples = map[key]map[int]float64{}
	}
	k := key{subject, metric}
	if r.samples[k] == nil {
		r.samples[k] = map[int]float64{}
	}
	r.samples[k][round] = value
}

// Void marks a subject's metric as worthless, for ever; the first reason stays.
func (r *Report) Void(subject, metric, why string) {
	if r.void == nil {
		r.void = map[key]string{}
	}
	if k := (key{subject, metric}); r.void[k] == "" {
		r.void[k] = why
	}
}

// Rows returns the rows of all metrics that were sampled, metric by metric. A
// metric that nobody has a sample of, void or not, has none.
func (r *Report) Rows() []Row {
	rows := []Row{}
	for _, m := range r.Metrics {
		if !r.sampled(m) {
			continue
		}
		for _, s := range r.Subjects {
			k := key{s, m.Name}
			if len(r.samples[k]) > 0 || r.void[k] != "" {
				rows = append(rows, r.row(k, m))
			}
		}
	}
	return rows
}

func (r *Report) sampled(m Metric) bool {
	return slices.ContainsFunc(r.Subjects, func(s string) bool { return len(r.samples[key{s, m.Name}]) > 0 })
}

func (r *Report) row(k key, m Metric) Row {
	row := Row{Name: k.subject, Metric: m.Name, Unit: m.Unit, RatioTo: map[string]float64{}, Rounds: len(r.samples[k]), Void: r.void[k]}
	if row.Void == "" {
		s := Summarise(values(r.samples[k]))
		row.Median, row.Min, row.Max = &s.Median, &s.Min, &s.Max
		for _, peer := range r.Peers {
			if ratio, ok := r.ratio(k, peer); ok && peer != k.subject {
				row.RatioTo[peer] = ratio
			}
		}
	}
	for _, t := range r.Targets {
		if t.Subject == k.subject && t.Metric == k.metric {
			row.Target = t.String()
			row.Reached = reached(t, row)
		}
	}
	return row
}

// ratio pairs the rounds that both sides have.
func (r *Report) ratio(k key, peer string) (float64, bool) {
	pk := key{peer, k.metric}
	if r.void[pk] != "" {
		return 0, false
	}
	var ratios []float64
	for round, v := range r.samples[k] {
		if p, ok := r.samples[pk][round]; ok && p != 0 {
			ratios = append(ratios, v/p)
		}
	}
	if len(ratios) == 0 {
		return 0, false
	}
	return Summarise(ratios).Median, true
}

// reached is nil where the peer to compare with is missing; a void figure
// reaches nothing.
func reached(t Target, row Row) *bool {
	no := false
	if row.Void != "" || row.Median == nil {
		return &no
	}
	v := *row.Median
	if t.RatioTo != "" {
		ratio, ok := row.RatioTo[t.RatioTo]
		if !ok {
			return nil
		}
		v = ratio
	}
	ok := v >= t.Value
	if t.AtMost {
		ok = v <= t.Value
	}
	return &ok
}

// Summary is what is told of a series of samples.
type Summary struct{ Median, Min, Max float64 }

// Summarise returns the summary of at least one sample.
func Summarise(samples []float64) Summary {
	s := slices.Sorted(slices.Values(samples))
	n := len(s)
	median := s[n/2]
	if n%2 == 0 {
		median = (s[n/2-1] + s[n/2]) / 2
	}
	return Summary{Median: median, Min: s[0], Max: s[n-1]}
}

func values(m map[int]float64) []float64 {
	out := make([]float64, 0, len(m))
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

// document is the JSON file's shape.
type document struct {
	Name    string         `json:"name"`
	Setting map[string]any `json:"setting"`
	Rows    []Row          `json:"rows"`
}

// WriteFile writes the report to dir/name.json, with what it was taken under.
func (r *Report) WriteFile(dir, name string, setting map[string]any) (string, error) {
	b, err := json.MarshalIndent(document{Name: name, Setting: setting, Rows: r.Rows()}, "", "  ")
	if err != nil {
		return "", fmt.Errorf("encode %s: %w", name, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the output folder: %w", err)
	}
	path := filepath.Join(dir, name+".json")
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		return "", fmt.Errorf("write the figures: %w", err)
	}
	return path, nil
}

// WriteTable writes the report for people.
func (r *Report) WriteTable(w io.Writer) error {
	return writeTable(w, r.Metrics, r.Peers, r.Rows())
}
