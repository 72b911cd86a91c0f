package verdict

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// Flow is a TCP or UDP flow by what does not change with who sent the packet.
type Flow struct {
	Transport      string // tcp or udp
	Client, Server netip.AddrPort
}

// String writes the flow as it began.
func (f Flow) String() string { return fmt.Sprintf("%s %s > %s", f.Transport, f.Client, f.Server) }

func (f Flow) reversed() Flow { return Flow{f.Transport, f.Server, f.Client} }

// Events is what Suricata said of some flows, in a form that can be compared: how
// often each thing was said.
type Events struct {
	Alerts       map[string]int // rule, direction and flow
	Records      map[string]int // whole records of application protocols, files and anomalies
	Files        map[string]int // flow and hashes
	Applications map[string]int // flow and its protocol
	// Excluded counts events of flows that were not asked for.
	Excluded int
}

// ReadEvents reads Suricata's events of the flows.
func ReadEvents(file string, flows []Flow) (Events, error) {
	e := Events{Alerts: map[string]int{}, Records: map[string]int{}, Files: map[string]int{}, Applications: map[string]int{}}
	text, err := os.ReadFile(file)
	if err != nil {
		return e, fmt.Errorf("read events: %w", err)
	}
	known := map[Flow]bool{}
	for _, f := range flows {
		known[f] = true
	}
	for line := range bytes.Lines(text) {
		decoder := json.NewDecoder(bytes.NewReader(line))
		decoder.UseNumber()
		var doc map[string]any
		if err := decoder.Decode(&doc); err != nil {
			return e, fmt.Errorf("read events: %w: %s", err, line)
		}
		e.add(doc, known)
	}
	return e, nil
}

func (e *Events) add(doc map[string]any, known map[Flow]bool) {
	from, direction, ok := flowOf(doc, known)
	if !ok {
		e.Excluded++
		return
	}
	switch kind := text(doc, "event_type"); kind {
	case "alert":
		alert, _ := doc["alert"].(map[string]any)
		if ofTransport(alert) {
			e.Excluded++
			return
		}
		e.Alerts[fmt.Sprintf("%v:%v:%v %s | %s | %s", alert["gid"], alert["signature_id"], alert["rev"], text(alert, "signature"), direction, from)]++
	case "flow":
		if app := text(doc, "app_proto"); app != "" {
			e.Applications[fmt.Sprintf("%s | %s", app, from)]++
		}
	case "stats", "netflow":
	default:
		e.Records[record(doc, kind, from)]++
		if info, ok := doc["fileinfo"].(map[string]any); ok && kind == "fileinfo" && text(info, "sha256") != "" {
			e.Files[fmt.Sprintf("%s %s | %s", text(info, "sha256"), text(info, "filename"), from)]++
		}
	}
}

// ofTransport tells whether an alert is of Suricata's own rules on packets and TCP
// streams (decoder-events.rules, stream-events.rules): about overlaps, injected
// resets, bad options. A relay takes these away, and no feed of it can have them.
func ofTransport(alert map[string]any) bool {
	n, _ := alert["signature_id"].(json.Number)
	sid, _ := n.Int64()
	return sid >= 2200000 && sid < 2201000 || sid >= 2210000 && sid < 2211000
}

// flowOf returns the flow as it was opened, and which way the event points.
func flowOf(doc map[string]any, known map[Flow]bool) (Flow, string, bool) {
	f := Flow{Transport: strings.ToLower(text(doc, "proto")), Client: endpoint(doc, "src"), Server: endpoint(doc, "dest")}
	switch {
	case known[f]:
		return f, "to server", true
	case known[f.reversed()]:
		return f.reversed(), "to client", true
	}
	return f, "", false
}

func endpoint(doc map[string]any, side string) netip.AddrPort {
	a, _ := netip.ParseAddr(text(doc, side+"_ip"))
	port, _ := doc[side+"_port"].(json.Number)
	n, _ := port.Int64()
	return netip.AddrPortFrom(a.Unmap(), uint16(n))
}

func text(doc map[string]any, key string) string {
	s, _ := doc[key].(string)
	return s
}

// unsteady are the fields that say when and as which packet, not what.
var unsteady = []string{
	"timestamp", "flow_id", "pcap_cnt", "tx_id", "file_id", "ether", "vlan", "in_iface", "community_id", "pkt_src", "parent_id",
	"src_ip", "src_port", "dest_ip", "dest_port", "proto", "event_type", "ip_v",
}

// record writes an event down without what depends on when it was written: which
// side's packet came next, and how much of a body had come by then.
func record(doc map[string]any, kind string, from Flow) string {
	if http, ok := doc["http"].(map[string]any); ok && kind == "fileinfo" {
		delete(http, "length")
	}
	b, err := json.Marshal(withoutUnsteady(doc)) // keys come out sorted
	if err != nil {
		b = []byte(err.Error())
	}
	return fmt.Sprintf("%s | %s | %s", kind, from, b)
}

func withoutUnsteady(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, value := range v {
			if !slices.Contains(unsteady, k) {
				out[k] = withoutUnsteady(value)
			}
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = withoutUnsteady(v[i])
		}
		return out
	}
	return v
}

// Count is how much of one kind is found again.
type Count struct {
	Kept  int `json:"kept"`
	Total int `json:"total"`
	More  int `json:"more"` // said of the feed and not of the original
}

// Add adds another count.
func (c *Count) Add(o Count) { c.Kept += o.Kept; c.Total += o.Total; c.More += o.More }

// Share returns what part is kept, in percent; all of nothing is 100.
func (c Count) Share() float64 {
	if c.Total == 0 {
		return 100
	}
	return 100 * float64(c.Kept) / float64(c.Total)
}

// Compare counts what of want is in got, and lists what is not. distinct counts
// what was said several times once.
func Compare(want, got map[string]int, distinct bool) (c Count, missed, more []string) {
	times := func(m map[string]int, k string) int {
		if distinct {
			return min(m[k], 1)
		}
		return m[k]
	}
	for _, k := range slices.Sorted(maps.Keys(want)) {
		w, g := times(want, k), times(got, k)
		c.Total += w
		c.Kept += min(w, g)
		if g < w {
			missed = append(missed, k)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(got)) {
		if w, g := times(want, k), times(got, k); g > w {
			c.More += g - w
			more = append(more, k)
		}
	}
	return c, missed, more
}

// ByKind splits records by the kind of event that they are.
func ByKind(records map[string]int) map[string]map[string]int {
	out := map[string]map[string]int{}
	for r, n := range records {
		kind, _, _ := strings.Cut(r, " | ")
		if out[kind] == nil {
			out[kind] = map[string]int{}
		}
		out[kind][r] = n
	}
	return out
}
