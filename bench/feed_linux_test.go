package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"testing"
	"time"

	"decoynet/bench/figure"
	"decoynet/bench/subject"
)

// TestAlertsAreCounted: of flows that are fed whole both alerts are found; where
// the feed ends before the answer does, the answer's are missing.
func TestAlertsAreCounted(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	n := network(t)
	b := &bench{
		options: options{quick: true, duration: 300 * time.Millisecond, decoys: subject.Decoys, closes: "client"},
		report:  &figure.Report{Metrics: feedSuite().metrics, Subjects: []string{"whole", "shallow"}},
		log:     io.Discard,
	}
	for _, f := range []subject.Feed{{Name: "whole", Suricata: true}, {Name: "shallow", Suricata: true, Depth: 1 << 10}} {
		in := up(t, n, subject.Fed(self, f))
		for _, take := range []func(context.Context, *bench, *subject.Instance) error{takeMixed, takeLatency, takeLost} {
			if err := take(t.Context(), b, in); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := map[string]float64{}
	for _, r := range b.report.Rows() {
		if r.Median != nil {
			got[r.Name+" "+r.Metric] = *r.Median
		}
	}
	for name, want := range map[string]float64{
		"whole mixed_asked": 100, "whole mixed_answered": 100, "whole mixed_lost": 0, "whole alert_missing": 0, "whole not_whole": 0,
		"shallow mixed_asked": 100,
	} {
		if value, ok := got[name]; value != want || !ok {
			t.Errorf("%s: %v (%v), want %v", name, value, ok, want)
		}
	}
	// Answers of one read are fed whole, those of 64 KB are not.
	if got["shallow mixed_answered"] > 90 {
		t.Errorf("%v %% of the answers are found although the feed ends before", got["shallow mixed_answered"])
	}
	if got["whole mixed_flows"] < 20 || got["whole alert_p50"] <= 0 {
		t.Errorf("figures %v", got)
	}
}

// TestAlertsOfAnyPort: an intruder's port may be the one that the service has.
func TestAlertsOfAnyPort(t *testing.T) {
	a := alerts{seen: map[int]map[flowKey]time.Time{subject.AskedSID: {}, subject.AnsweredSID: {}}}
	const line = `{"event_type":"alert","src_ip":"%s","src_port":8000,"dest_ip":"%s","dest_port":8000,"alert":{"signature_id":%d}}`
	a.take(fmt.Appendf(nil, line, "192.0.2.66", "192.0.2.10", subject.AskedSID), time.Now())
	a.take(fmt.Appendf(nil, line, "192.0.2.10", "192.0.2.66", subject.AnsweredSID), time.Now())
	want := flowKey{subject.PortMixed, netip.MustParseAddr("192.0.2.10")}
	for sid, seen := range a.seen {
		if _, ok := seen[want]; !ok || len(seen) != 1 {
			t.Errorf("rule %d: %v", sid, seen)
		}
	}
}
