package figure

import (
	"encoding/json"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSummarise(t *testing.T) {
	for _, c := range []struct {
		samples []float64
		want    Summary
	}{
		{[]float64{7}, Summary{7, 7, 7}},
		{[]float64{3, 1, 2}, Summary{2, 1, 3}},
		{[]float64{4, 1, 3, 2}, Summary{2.5, 1, 4}},
		{[]float64{5, 5, 1, 9, 5}, Summary{5, 1, 9}},
	} {
		if got := Summarise(c.samples); got != c.want {
			t.Errorf("Summarise(%v) = %v, want %v", c.samples, got, c.want)
		}
	}
}

// sampleReport has three rounds on a machine that gets slower from one to the
// next; ours misses the second.
func sampleReport() *Report {
	r := &Report{
		Subjects: []string{"ours", "peer", "liar"},
		Peers:    []string{"peer", "liar"},
		Metrics: []Metric{
			{Name: "rate", Unit: "1/s", What: "how many"},
			{Name: "cost", Unit: "us", What: "how dear"},
			{Name: "failed", Unit: "connections", What: "that failed"},
			{Name: "untaken", Unit: "1", What: "nobody asked"},
		},
		Targets: []Target{
			{Subject: "ours", Metric: "rate", Value: 1.1, RatioTo: "peer"},
			{Subject: "ours", Metric: "cost", AtMost: true, Value: 3},
			{Subject: "liar", Metric: "rate", Value: 1},
		},
	}
	for round, base := range []float64{400, 200, 100} {
		r.Add(round, "peer", "rate", base)
		if round != 1 {
			r.Add(round, "ours", "rate", base*1.2)
		}
		r.Add(round, "liar", "rate", base*9)
		r.Add(round, "ours", "cost", float64(round)+2)
		r.Add(round, "ours", "failed", 0)
		r.Add(round, "peer", "failed", 0)
	}
	r.Add(3, "ours", "rate", math.NaN())
	r.Void("liar", "rate", "wrong source")
	r.Void("liar", "rate", "another reason")
	r.Void("liar", "untaken", "wrong source")
	return r
}

func TestRows(t *testing.T) {
	f := func(v float64) *float64 { return &v }
	yes, no := true, false
	want := []Row{
		{
			Name: "ours", Metric: "rate", Unit: "1/s", Median: f(300), Min: f(120), Max: f(480),
			RatioTo: map[string]float64{"peer": 1.2}, Rounds: 2, Target: ">= 1.1 of peer", Reached: &yes,
		},
		{Name: "peer", Metric: "rate", Unit: "1/s", Median: f(200), Min: f(100), Max: f(400), RatioTo: map[string]float64{}, Rounds: 3},
		{Name: "liar", Metric: "rate", Unit: "1/s", RatioTo: map[string]float64{}, Rounds: 3, Target: ">= 1", Reached: &no, Void: "wrong source"},
		{
			Name: "ours", Metric: "cost", Unit: "us", Median: f(3), Min: f(2), Max: f(4),
			RatioTo: map[string]float64{}, Rounds: 3, Target: "<= 3", Reached: &yes,
		},
		{Name: "ours", Metric: "failed", Unit: "connections", Median: f(0), Min: f(0), Max: f(0), RatioTo: map[string]float64{}, Rounds: 3},
		{Name: "peer", Metric: "failed", Unit: "connections", Median: f(0), Min: f(0), Max: f(0), RatioTo: map[string]float64{}, Rounds: 3},
	}
	if diff := cmp.Diff(want, sampleReport().Rows()); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

func TestTargetWithoutPeer(t *testing.T) {
	r := &Report{
		Subjects: []string{"ours"},
		Peers:    []string{"peer"},
		Metrics:  []Metric{{Name: "rate"}},
		Targets:  []Target{{Subject: "ours", Metric: "rate", Value: 1, RatioTo: "peer"}},
	}
	r.Add(0, "ours", "rate", 10)
	if got := r.Rows()[0].Reached; got != nil {
		t.Errorf("a target relative to a peer that was not measured: reached = %v, want none", *got)
	}
}

const wantTable = `
rate [1/s]: how many
        median  min  max  / peer  / liar          target  reached
  ours     300  120  480    1.20          >= 1.1 of peer      yes
  peer     200  100  400
  liar    VOID                                      >= 1       NO
  ! liar is void: wrong source

cost [us]: how dear
        median   min   max  / peer  / liar  target  reached
  ours    3.00  2.00  4.00                    <= 3      yes

failed [connections]: that failed: 0 everywhere
`

func TestTable(t *testing.T) {
	var b strings.Builder
	if err := sampleReport().WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wantTable, b.String()); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}

// TestFile reads the file as an outsider would, by the names of the contract.
func TestFile(t *testing.T) {
	path, err := sampleReport().WriteFile(t.TempDir()+"/out", "relay", map[string]any{"rounds": 3})
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Name string           `json:"name"`
		Rows []map[string]any `json:"rows"`
	}
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"name": "ours", "metric": "rate", "unit": "1/s", "median": 300.0, "min": 120.0, "max": 480.0,
		"ratio_to": map[string]any{"peer": 1.2}, "rounds": 2.0, "target": ">= 1.1 of peer", "reached": true,
	}
	if diff := cmp.Diff(want, file.Rows[0]); diff != "" {
		t.Errorf("first row (-want +got):\n%s", diff)
	}
	if v, there := file.Rows[2]["median"]; v != nil || !there {
		t.Errorf("median of a void figure = %v, want null", v)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.0413: "0.0413", 1.234: "1.23", 12.34: "12.3", 123.4: "123", 12345.6: "12346"} {
		if got := number(v); got != want {
			t.Errorf("number(%v) = %q, want %q", v, got, want)
		}
	}
}
