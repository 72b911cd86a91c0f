package ecs

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
)

// events are one with everything, one with nothing, one of a kind that this
// version does not know, and one whose text tries to take over the terminal.
func events(t *testing.T) []deception.Event {
	at := time.Date(2026, 3, 4, 5, 6, 7, 8009, time.UTC)
	ap := netip.MustParseAddrPort
	return []deception.Event{{
		ID: id(t, "019cb7a1-0000-7000-8000-000000000001"), Time: at, Kind: deception.EventClaimRefused,
		Node: "hq", Segment: "host", Decoy: "crm", Session: id(t, "019cb7a0-0000-7000-8000-00000000000a"),
		Source: ap("192.0.2.55:40000"), Destination: ap("198.51.100.7:445"),
		Message: "agent crm-1 spoke for decoy office-web, which is not its own",
	}, {
		ID: id(t, "019cb7a1-0001-7000-8000-000000000002"), Time: at.Add(time.Second), Kind: deception.EventApplied,
		Message: "anna applied site.yaml",
	}, {
		ID: id(t, "019cb7a1-0002-7000-8000-000000000003"), Time: at.Add(2 * time.Second), Kind: "from-the-future",
		Node: "crm-1", Message: "what it is",
	}, {
		ID: id(t, "019cb7a1-0003-7000-8000-000000000004"), Time: at.Add(3 * time.Second), Kind: deception.EventPeerRefused,
		Node: "vm1\x1b[2J", Source: netip.AddrPortFrom(netip.MustParseAddr("fe80::1").WithZone("lan\x1b]0;x\a"), 7),
		Message: "bad header \x1b]0;owned\x07\nfrom \u202egnp.exe \u009b31m",
	}}
}

func TestEventDocuments(t *testing.T) {
	var out bytes.Buffer
	j := NewJSON(&out)
	for _, e := range events(t) {
		if err := j.WriteEvent(&e); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "events.json", out.Bytes())
	safeForTerminals(t, out.String())
	var doc map[string]any
	first, _, _ := strings.Cut(out.String(), "\n")
	if err := json.Unmarshal([]byte(first), &doc); err != nil {
		t.Fatal(err)
	}
	for _, key := range strings.Fields(`@timestamp ecs.version event.id event.kind event.category event.type
		event.action event.outcome message source.ip source.port destination.ip destination.port
		decoynet.node decoynet.segment decoynet.decoy decoynet.session`) {
		if _, ok := doc[key]; !ok {
			t.Errorf("no %s in %s", key, first)
		}
	}
	if doc["event.kind"] != "event" || doc["event.action"] != "claim-refused" {
		t.Errorf("%s", first)
	}
}

func TestEventTables(t *testing.T) {
	for file, isWide := range map[string]bool{"events.txt": false, "events-wide.txt": true} {
		var out bytes.Buffer
		table := NewEventTable(&out, tableOptions(isWide))
		for _, e := range events(t) {
			if err := table.Write(&e); err != nil {
				t.Fatal(err)
			}
		}
		if err := table.Flush(); err != nil {
			t.Fatal(err)
		}
		golden(t, file, out.Bytes())
		safeForTerminals(t, out.String())
		if n := strings.Count(out.String(), "\n"); n != len(events(t))+1 {
			t.Errorf("%s: %d lines", file, n)
		}
	}
}

// Every kind of the domain has its place in the schema.
func TestEventKindsAreFiled(t *testing.T) {
	for _, kind := range []deception.EventKind{
		deception.EventClaimRefused, deception.EventPeerRefused, deception.EventPortInUse, deception.EventPortTaken,
		deception.EventGatewayLost, deception.EventGatewayBack, deception.EventSpoolDropped, deception.EventClockOff,
		deception.EventNodeConnected, deception.EventNodeLost, deception.EventNodeRevoked, deception.EventNodeEnrolled,
		deception.EventEnrolRefused, deception.EventApplied, deception.EventConflict, deception.EventReclaimed,
		deception.EventInspectFailed, deception.EventInspectRestored, deception.EventRulesRefused,
		deception.EventFindingsMissed, deception.EventSensorLoss,
	} {
		if d := NewEventDocument(&deception.Event{Kind: kind}); len(d.EventCategory) != 1 || len(d.EventType) != 1 {
			t.Errorf("%s: category %v, type %v", kind, d.EventCategory, d.EventType)
		}
	}
}
