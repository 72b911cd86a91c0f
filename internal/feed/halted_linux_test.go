package feed

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
)

// TestHaltedOutput: an output that stands still loses nothing while little waits,
// then flows at once, long before its queue is full; and none when it goes on.
func TestHaltedOutput(t *testing.T) {
	g := &gate{frames: map[string]int{}}
	f := New(Config{Lanes: 1})
	f.Add("gate", g)
	g.mu.Lock()
	var flows []*script
	block := strings.Repeat("z", 32<<10)
	one := func() {
		flows = append(flows, tcpFlow(f, strconv.Itoa(40_000+len(flows))).server(block))
		f.flush()
	}
	fill := func(bytes int64) {
		for f.Lost() == 0 && f.Stats().Outputs[0].Queued < bytes {
			one()
		}
	}
	fill(haltedBytes / 2)
	waitFor(t, "it has stood still for long", func() bool {
		since := f.Stats().Outputs[0].StuckSince
		return !since.IsZero() && time.Since(since) > haltedAfter
	})
	one()
	if f.Lost() != 0 {
		t.Errorf("%d flows are lost, with %d bytes waiting", f.Lost(), f.Stats().Outputs[0].Queued)
	}
	fill(2 * haltedBytes)
	if f.Lost() != 1 || f.Begin(session(deception.TCP, "192.0.2.7:39999", "198.51.100.4:80"), 0) != nil {
		t.Errorf("flows still begin, with %d bytes waiting", f.Stats().Outputs[0].Queued)
	}
	g.mu.Unlock()
	waitFor(t, "flows are taken again", func() bool { return f.full.Load() == 0 })
	lost := f.Lost()
	one()
	for _, p := range flows {
		p.end(deception.EndClientClosed)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if n := f.Lost(); n != lost || lost != 2 {
		t.Errorf("%d flows are lost, then %d; want 2", lost, n)
	}
}
