package suricata

import (
	"encoding/json"
	"fmt"
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
	MemoryDrops uint64 `json:"memory_drops"`
	Gaps        uint64 `json:"gaps"` // bytes of a stream that it missed
	// OutputErrors are events that it could not write, as on a full disk.
	OutputErrors uint64 `json:"output_errors"`
	StreamMemory uint64 `json:"stream_memory"`
	FlowMemory   uint64 `json:"flow_memory"`
}

// parseCounters reads the answer to dump-counters.
func parseCounters(text []byte) (Counters, error) {
	var tree map[string]any
	if err := json.Unmarshal(text, &tree); err != nil {
		return Counters{}, fmt.Errorf("read counters: %w", err)
	}
	sum := func(paths ...[]string) uint64 {
		var n uint64
		for _, path := range paths {
			n += count(tree, path)
		}
		return n
	}
	at := func(path ...string) []string { return path }
	return Counters{
		Packets: sum(at("decoder", "pkts")), Bytes: sum(at("decoder", "bytes")), Invalid: sum(at("decoder", "invalid")),
		Flows: sum(at("flow", "total")), Active: sum(at("flow", "active")),
		Alerts: sum(at("detect", "alert")), AlertsDropped: sum(at("detect", "alert_queue_overflow")),
		MemoryDrops: sum(at("flow", "memcap"), at("tcp", "ssn_memcap_drop"), at("tcp", "segment_memcap_drop"),
			at("tcp", "reassembly_memcap_drop"), at("defrag", "memcap_drop"), at("defrag", "max_frag_hits"), at("defrag", "max_trackers_reached"),
			at("http", "memcap"), at("ftp", "memcap"), at("app_layer", "expectations_memcap")),
		Gaps:         sum(at("tcp", "reassembly_gap")),
		OutputErrors: sum(at("file_store", "fs_errors"), at("outputs", "errors")),
		StreamMemory: sum(at("tcp", "memuse"), at("tcp", "reassembly_memuse")),
		FlowMemory:   sum(at("flow", "memuse")),
	}, nil
}

func count(tree map[string]any, path []string) uint64 {
	for i, name := range path {
		if i == len(path)-1 {
			n, _ := tree[name].(float64)
			return uint64(max(n, 0))
		}
		tree, _ = tree[name].(map[string]any)
	}
	return 0
}
