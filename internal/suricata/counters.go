package suricata

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Counters are what Suricata counted since it started.
type Counters struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
	Invalid uint64 `json:"invalid"` // packets that it could not decode
	Flows   uint64 `json:"flows"`
	Active  uint64 `json:"active_flows"`
	Alerts  uint64 `json:"alerts"`
	// AlertsDropped are of packets that set off more than its queue of alerts holds.
	AlertsDropped uint64 `json:"alerts_dropped"`
	// MemoryDrops counts what did not fit into its limits of memory: sessions, segments,
	// flows and fragments that it then knows nothing of.
	MemoryDrops  uint64 `json:"memory_drops"`
	Gaps         uint64 `json:"gaps"` // parts of streams that it missed
	StreamMemory uint64 `json:"stream_memory"`
	FlowMemory   uint64 `json:"flow_memory"`
	// Of one that listens to interfaces: the packets that the kernel had for it, and
	// those among them that it did not take in time.
	Captured     uint64 `json:"captured,omitempty"`
	CaptureDrops uint64 `json:"capture_drops,omitempty"`
}

// Lost says what Suricata did not look at since it started; empty: nothing is known.
func (c *Counters) Lost() string {
	var parts []string
	if c.CaptureDrops > 0 {
		parts = append(parts, fmt.Sprintf("it did not take %d of %d packets in time", c.CaptureDrops, c.Captured))
	}
	if c.MemoryDrops > 0 {
		parts = append(parts, fmt.Sprintf("it ran out of the memory that it may use %d times", c.MemoryDrops))
	}
	return strings.Join(parts, ", ")
}

// memoryDrops are the counters of what did not fit into a limit of memory.
var memoryDrops = []string{
	"flow.memcap", "flow.emerg_mode_entered", "tcp.ssn_memcap_drop", "tcp.segment_memcap_drop", "tcp.insert_data_normal_fail",
	"defrag.max_frag_hits", "http.memcap", "ftp.memcap",
}

// parseCounters reads the answer to dump-counters.
func parseCounters(text []byte) (Counters, error) {
	var tree map[string]any
	if err := json.Unmarshal(text, &tree); err != nil {
		return Counters{}, fmt.Errorf("read counters: %w", err)
	}
	return countersOf(tree), nil
}

// ParseStats reads what a Suricata says about itself among its events (event_type
// stats).
func ParseStats(event []byte) (Counters, error) {
	var e struct {
		Stats map[string]any `json:"stats"`
	}
	if err := json.Unmarshal(event, &e); err != nil {
		return Counters{}, fmt.Errorf("read counters: %w", err)
	}
	return countersOf(e.Stats), nil
}

func countersOf(tree map[string]any) Counters {
	c := Counters{
		Packets: number(tree, "decoder.pkts"), Bytes: number(tree, "decoder.bytes"), Invalid: number(tree, "decoder.invalid"),
		Flows: number(tree, "flow.total"), Active: number(tree, "flow.active"),
		Alerts: number(tree, "detect.alert"), AlertsDropped: number(tree, "detect.alert_queue_overflow"),
		Gaps:         number(tree, "tcp.reassembly_gap"),
		StreamMemory: number(tree, "tcp.memuse") + number(tree, "tcp.reassembly_memuse"),
		FlowMemory:   number(tree, "flow.memuse"),
		Captured:     number(tree, "capture.kernel_packets"), CaptureDrops: number(tree, "capture.kernel_drops"),
	}
	for _, path := range memoryDrops {
		c.MemoryDrops += number(tree, path)
	}
	return c
}

// number is the counter of a name with dots, 0 where there is none.
func number(tree map[string]any, path string) uint64 {
	for {
		name, rest, more := strings.Cut(path, ".")
		if !more {
			n, _ := tree[name].(float64)
			return uint64(max(n, 0))
		}
		tree, _ = tree[name].(map[string]any)
		path = rest
	}
}
