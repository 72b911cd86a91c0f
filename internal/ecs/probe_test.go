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

// probes are a scan that is over, a known scanner's pings that go on, an estimate
// of many sources, and one whose names try to take over the terminal.
func probes(t *testing.T) []deception.Probe {
	at := time.Date(2026, 3, 4, 5, 6, 7, 8009, time.UTC)
	ap := netip.MustParseAddrPort
	contacts := func(arp, ping, syn, datagram uint64) [deception.ContactKinds]uint64 {
		return [deception.ContactKinds]uint64{arp, ping, syn, datagram}
	}
	return []deception.Probe{{
		ID: id(t, "019cb7a1-0000-7000-8000-000000000001"), Start: at, End: at.Add(90 * time.Second), Last: at.Add(90 * time.Second),
		Node: "hq", Segment: "office", Source: netip.MustParseAddr("192.0.2.55"), SourceMAC: "02:00:5e:00:53:0a", Sources: 1,
		Kind: deception.ScanHorizontal, Contacts: contacts(254, 0, 762, 0), Addresses: 254, Ports: 3,
		First: ap("198.51.100.1:0"), Latest: ap("198.51.100.254:445"), Scanner: "audit",
	}, {
		ID: id(t, "019cb7a1-0001-7000-8000-000000000002"), Start: at.Add(time.Second), Last: at.Add(2 * time.Second),
		Node: "hq", Segment: "office", Source: netip.MustParseAddr("2001:db8:1111:2222:3333:4444:5555:6666"), Sources: 1,
		Kind: deception.ScanPingSweep, Contacts: contacts(3, 9, 0, 0), Addresses: 9,
		First: ap("[2001:db8::1]:0"), Latest: ap("[2001:db8::9]:0"), Scanner: "monitoring",
	}, {
		ID: id(t, "019cb7a1-0002-7000-8000-000000000003"), Start: at.Add(2 * time.Second), Last: at.Add(3 * time.Second),
		Node: "trunk-1", Segment: "dmz", Sources: 70000,
		Kind: deception.ScanNetwork, Contacts: contacts(0, 0, 1_000_000, 5), Addresses: 65012, Ports: 1002, Approximate: true,
		First: ap("198.51.100.9:22"), Latest: ap("198.51.100.10:23"),
	}, {
		ID: id(t, "019cb7a1-0003-7000-8000-000000000004"), Start: at.Add(3 * time.Second), End: at.Add(3 * time.Second), Last: at.Add(3 * time.Second),
		Node: "hq\x1b[2J", Segment: "off\u202eice", Source: netip.MustParseAddr("fe80::1").WithZone("lan\x1b]0;x\a"), SourceMAC: "\u009b31m", Sources: 1,
		Kind: deception.ScanContact, Contacts: contacts(0, 0, 0, 1), Addresses: 1, Ports: 1,
		First: ap("[fe80::2]:161"), Latest: ap("[fe80::2]:161"), Scanner: "\x1b]0;owned\x07",
	}}
}

func TestProbeDocuments(t *testing.T) {
	var out bytes.Buffer
	j := NewJSON(&out)
	for _, p := range probes(t) {
		if err := j.WriteProbe(&p); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "probes.json", out.Bytes())
	safeForTerminals(t, out.String())
	var doc map[string]any
	first, _, _ := strings.Cut(out.String(), "\n")
	if err := json.Unmarshal([]byte(first), &doc); err != nil {
		t.Fatal(err)
	}
	for _, key := range strings.Fields(`@timestamp ecs.version event.id event.kind event.category event.type event.action
		event.start event.end source.ip source.mac destination.ip network.transport network.type decoynet.node
		decoynet.segment decoynet.scanner decoynet.probe.kind decoynet.probe.contacts.arp decoynet.probe.contacts.ping
		decoynet.probe.contacts.syn decoynet.probe.contacts.datagram decoynet.probe.count decoynet.probe.addresses
		decoynet.probe.ports decoynet.probe.approximate decoynet.probe.sources decoynet.probe.last
		decoynet.probe.latest.ip decoynet.probe.latest.port`) {
		if _, ok := doc[key]; !ok {
			t.Errorf("no %s in %s", key, first)
		}
	}
	if doc["source.mac"] != "02-00-5E-00-53-0A" || doc["event.action"] != "probe" || doc["decoynet.probe.count"] != 1016.0 {
		t.Errorf("%s", first)
	}
	if _, ok := doc["destination.port"]; ok {
		t.Errorf("an ARP request has a port: %s", first)
	}
}

func TestProbeTables(t *testing.T) {
	for file, isWide := range map[string]bool{"probes.txt": false, "probes-wide.txt": true} {
		var out bytes.Buffer
		table := NewProbeTable(&out, tableOptions(isWide))
		for _, p := range probes(t) {
			if err := table.Write(&p); err != nil {
				t.Fatal(err)
			}
		}
		if err := table.Flush(); err != nil {
			t.Fatal(err)
		}
		golden(t, file, out.Bytes())
		safeForTerminals(t, out.String())
		if n := strings.Count(out.String(), "\n"); n != len(probes(t))+1 {
			t.Errorf("%s: %d lines", file, n)
		}
	}
}
