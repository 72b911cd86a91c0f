package ecs

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"decoynet/deception"
)

// ProbeAction is the value of event.action of probes.
const ProbeAction = "probe"

// ProbeDocument is a probe as it leaves decoynet: what one source did in one
// segment without reaching a service. The same probe is told again, under the same
// event.id, while it grows; event.end comes with the last telling. As in a
// SessionDocument, keys are flat and a contract, and what is not known is absent.
type ProbeDocument struct {
	Timestamp Time   `json:"@timestamp"` // of the last contact so far
	Version   string `json:"ecs.version"`

	EventID       string   `json:"event.id"`
	EventKind     string   `json:"event.kind"`
	EventCategory []string `json:"event.category"`
	EventType     []string `json:"event.type"`
	EventAction   string   `json:"event.action"`
	EventStart    Time     `json:"event.start"`
	EventEnd      *Time    `json:"event.end,omitempty"`
	EventDuration *int64   `json:"event.duration,omitempty"` // nanoseconds

	Source netip.Addr `json:"source.ip,omitzero"` // absent where many are counted together
	MAC    string     `json:"source.mac,omitempty"`
	// Destination and Port are those of the first contact.
	Destination netip.Addr `json:"destination.ip,omitzero"`
	Port        uint16     `json:"destination.port,omitempty"`

	Transport   string `json:"network.transport,omitempty"` // where there was one only
	NetworkType string `json:"network.type,omitempty"`

	Node    string `json:"decoynet.node,omitempty"`
	Segment string `json:"decoynet.segment"`
	Scanner string `json:"decoynet.scanner,omitempty"`

	Kind        string     `json:"decoynet.probe.kind"`
	ARP         uint64     `json:"decoynet.probe.contacts.arp"`
	Ping        uint64     `json:"decoynet.probe.contacts.ping"`
	SYN         uint64     `json:"decoynet.probe.contacts.syn"`
	Datagram    uint64     `json:"decoynet.probe.contacts.datagram"`
	Count       uint64     `json:"decoynet.probe.count"`
	Addresses   uint64     `json:"decoynet.probe.addresses"`
	Ports       uint64     `json:"decoynet.probe.ports"`
	Approximate bool       `json:"decoynet.probe.approximate"`
	Sources     uint64     `json:"decoynet.probe.sources"`
	Last        Time       `json:"decoynet.probe.last"`
	Latest      netip.Addr `json:"decoynet.probe.latest.ip,omitzero"` // destination of the last contact
	LatestPort  uint16     `json:"decoynet.probe.latest.port,omitempty"`
}

// NewProbeDocument returns the probe's document.
func NewProbeDocument(p *deception.Probe) ProbeDocument {
	d := ProbeDocument{
		Timestamp:     Time(p.Last),
		Version:       Version,
		EventID:       p.ID.String(),
		EventKind:     "event",
		EventCategory: []string{"network"},
		EventType:     []string{"info"},
		EventAction:   ProbeAction,
		EventStart:    Time(p.Start),
		Source:        p.Source.WithZone(""),
		MAC:           hardware(p.SourceMAC),
		Destination:   p.First.Addr().WithZone(""),
		Port:          p.First.Port(),
		Transport:     transportOf(p),
		NetworkType:   networkType(p.First.Addr()),
		Node:          p.Node,
		Segment:       p.Segment,
		Scanner:       p.Scanner,
		Kind:          p.Kind.String(),
		ARP:           p.Contacts[deception.ContactARP],
		Ping:          p.Contacts[deception.ContactPing],
		SYN:           p.Contacts[deception.ContactSYN],
		Datagram:      p.Contacts[deception.ContactDatagram],
		Count:         p.Count(),
		Addresses:     p.Addresses,
		Ports:         p.Ports,
		Approximate:   p.Approximate,
		Sources:       p.Sources,
		Last:          Time(p.Last),
		Latest:        p.Latest.Addr().WithZone(""),
		LatestPort:    p.Latest.Port(),
	}
	if !p.End.IsZero() {
		end, duration := Time(p.End), p.End.Sub(p.Start).Nanoseconds()
		d.EventEnd, d.EventDuration = &end, &duration
		d.EventType = []string{"info", "end"}
	}
	return d
}

// hardware writes an address as the schema wants it: 00-00-5E-00-53-23 (RFC 7042).
func hardware(mac string) string {
	if _, err := net.ParseMAC(mac); err != nil {
		return mac
	}
	return strings.ToUpper(strings.ReplaceAll(mac, ":", "-"))
}

// transportOf names the one transport that was used, ARP aside, or none.
func transportOf(p *deception.Probe) string {
	ping := "icmp"
	if p.First.Addr().Is6() {
		ping = "ipv6-icmp"
	}
	out := ""
	for kind, name := range map[deception.ContactKind]string{
		deception.ContactPing: ping, deception.ContactSYN: deception.TCP.String(), deception.ContactDatagram: deception.UDP.String(),
	} {
		switch {
		case p.Contacts[kind] == 0:
		case out != "":
			return ""
		default:
			out = name
		}
	}
	return out
}

// WriteProbe writes the probe's document and a line feed, in one call.
func (j *JSON) WriteProbe(p *deception.Probe) error {
	if err := j.write(NewProbeDocument(p)); err != nil {
		return fmt.Errorf("write probe %s: %w", p.ID, err)
	}
	return nil
}

// ProbeTable writes probes as plain text in columns, as Table does sessions.
type ProbeTable struct{ grid[deception.Probe] }

var narrowProbes = []column[deception.Probe]{
	{"TIME", 23, false, func(o *TableOptions, p *deception.Probe) string { return o.time(p.Start) }},
	{"SOURCE", 15, false, func(_ *TableOptions, p *deception.Probe) string {
		if !p.Source.IsValid() {
			return fmt.Sprintf("(~%d sources)", p.Sources)
		}
		return name(p.Source.String())
	}},
	{"SEGMENT", 8, false, func(_ *TableOptions, p *deception.Probe) string { return name(p.Segment) }},
	{"KIND", 15, false, func(_ *TableOptions, p *deception.Probe) string { return p.Kind.String() }},
	{"CONTACTS", 16, false, contacts},
	{"ADDRESSES", 9, true, func(_ *TableOptions, p *deception.Probe) string { return about(p, p.Addresses) }},
	{"PORTS", 5, true, func(_ *TableOptions, p *deception.Probe) string { return about(p, p.Ports) }},
	{"FIRST", 21, false, func(_ *TableOptions, p *deception.Probe) string { return destination(p.First) }},
	{"LAST", 23, false, func(o *TableOptions, p *deception.Probe) string { return o.time(p.Last) }},
	{"STATE", 7, false, func(_ *TableOptions, p *deception.Probe) string {
		if p.End.IsZero() {
			return "running"
		}
		return "ended"
	}},
	{"SCANNER", 7, false, func(_ *TableOptions, p *deception.Probe) string { return name(p.Scanner) }},
}

var wideProbes = append(append([]column[deception.Probe]{{"ID", 36, false, func(_ *TableOptions, p *deception.Probe) string { return p.ID.String() }}}, narrowProbes...),
	column[deception.Probe]{"LATEST", 21, false, func(_ *TableOptions, p *deception.Probe) string { return destination(p.Latest) }},
	column[deception.Probe]{"SOURCE MAC", 17, false, func(_ *TableOptions, p *deception.Probe) string { return name(p.SourceMAC) }},
	column[deception.Probe]{"NODE", 8, false, func(_ *TableOptions, p *deception.Probe) string { return name(p.Node) }},
)

// NewProbeTable returns a table to w. Call Flush when no more probes come for now.
func NewProbeTable(w io.Writer, opts TableOptions) *ProbeTable {
	columns := narrowProbes
	if opts.Wide {
		columns = wideProbes
	}
	return &ProbeTable{newGrid(w, opts, columns)}
}

// contacts writes how many there were of which kind: syn 1024, arp 1.
func contacts(_ *TableOptions, p *deception.Probe) string {
	var parts []string
	for kind, n := range p.Contacts {
		if n > 0 {
			parts = append(parts, fmt.Sprint(deception.ContactKind(kind), " ", n))
		}
	}
	return strings.Join(parts, ", ")
}

// about writes a number that may be an estimate.
func about(p *deception.Probe, n uint64) string {
	if p.Approximate {
		return "~" + strconv.FormatUint(n, 10)
	}
	return strconv.FormatUint(n, 10)
}

// destination leaves out a port that there is none of.
func destination(a netip.AddrPort) string {
	if a.Port() == 0 && a.IsValid() {
		return name(a.Addr().String())
	}
	return endpoint(a)
}
