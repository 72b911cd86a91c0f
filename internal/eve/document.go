package eve

import (
	"bytes"
	"strconv"
)

// left says which members of an event are not carried over: what the finding
// holds in a field of its own, what is about the feed and not about the session,
// and the packet, which is in the session's capture.
var left = map[string]bool{
	"timestamp": true, "ether": true, "vlan": true, "in_iface": true, "pcap_cnt": true, "pcap_filename": true,
	"stream": true, "packet": true, "packet_info": true, "tcp": true,
	// Written anew, from the intruder to the decoy.
	"event_type": true, "src_ip": true, "src_port": true, "dest_ip": true, "dest_port": true, "proto": true,
}

// maxDistinct is how many members are looked at for names that come twice. An
// event of Suricata's has a few dozen.
const maxDistinct = 128

// document makes the event's document: an EVE event whose source is the intruder
// and whose destination is the decoy.
func (e *event) document(limit int) (doc []byte, trimmed bool) {
	size := 256
	for i := range e.members {
		size += len(e.members[i].name) + len(e.members[i].value) + 4
	}
	doc = e.head(make([]byte, 0, size))
	for i := range e.members {
		m := &e.members[i]
		if left[string(m.name)] || i < maxDistinct && seen(e.members[:i], m.name) {
			continue
		}
		v := m.value
		if string(m.name) == "flow" {
			v = withoutAddresses(v)
		}
		doc = appendMember(doc, m.name, v)
	}
	doc = append(doc, '}')
	if len(doc) <= limit {
		return doc, false
	}
	if doc = trim(doc, limit); len(doc) > limit {
		doc = append(e.head(nil), `,"trimmed":["..."]}`...)
	}
	return doc, true
}

// head writes what each document begins with.
func (e *event) head(doc []byte) []byte {
	doc = append(append(append(doc, `{"event_type":"`...), e.kind...), '"')
	if !e.source.IsValid() {
		return doc
	}
	doc = append(e.source.Addr().AppendTo(append(doc, `,"src_ip":"`...)), '"')
	if e.ports {
		doc = strconv.AppendUint(append(doc, `,"src_port":`...), uint64(e.source.Port()), 10)
	}
	doc = append(e.destination.Addr().AppendTo(append(doc, `,"dest_ip":"`...)), '"')
	if e.ports {
		doc = strconv.AppendUint(append(doc, `,"dest_port":`...), uint64(e.destination.Port()), 10)
	}
	if v := find(e.members, "proto"); len(v) > 1 && v[0] == '"' {
		doc = append(append(doc, `,"proto":`...), v...)
	}
	return doc
}

func seen(list []member, name []byte) bool {
	for i := range list {
		if bytes.Equal(list[i].name, name) {
			return true
		}
	}
	return false
}

func appendMember(doc, name, value []byte) []byte {
	if doc[len(doc)-1] != '{' {
		doc = append(doc, ',')
	}
	doc = append(append(append(doc, '"'), name...), `":`...)
	return append(doc, value...)
}

// withoutAddresses leaves the addresses of a flow out, which an alert repeats in
// the direction that Suricata believes in.
func withoutAddresses(flow []byte) []byte {
	if !bytes.Contains(flow, []byte(`"src_ip"`)) {
		return flow
	}
	var room [24]member
	list, err := members(room[:0], flow)
	if err != nil {
		return flow
	}
	out := append(make([]byte, 0, len(flow)), '{')
	for i := range list {
		switch string(list[i].name) {
		case "src_ip", "dest_ip", "src_port", "dest_port":
		default:
			out = appendMember(out, list[i].name, list[i].value)
		}
	}
	return append(out, '}')
}
