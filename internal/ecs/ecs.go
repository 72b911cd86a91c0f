// Package ecs shows what decoynet records to people and to other programs: as
// JSON documents in the names of the Elastic Common Schema, and as tables.
package ecs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"time"

	"decoynet/deception"
)

// Version is the version of the Elastic Common Schema that documents follow.
const Version = "8.17.0"

// The values of event.action.
const (
	SessionStarted = "session-started"
	SessionEnded   = "session-ended"
)

// SessionDocument is a session as it leaves decoynet. Its keys are flat, and a
// contract: others store and search them. Fields that are not known (no end
// yet, a service that was never reached) are absent.
type SessionDocument struct {
	// Timestamp is the time of what the document tells: the session's start
	// while it runs, its end afterwards.
	Timestamp Time   `json:"@timestamp"`
	Version   string `json:"ecs.version"`

	EventID       string   `json:"event.id"`
	EventKind     string   `json:"event.kind"`
	EventCategory []string `json:"event.category"`
	EventType     []string `json:"event.type"`
	EventAction   string   `json:"event.action"`
	EventStart    Time     `json:"event.start"`
	EventEnd      *Time    `json:"event.end,omitempty"`
	EventDuration *int64   `json:"event.duration,omitempty"` // nanoseconds

	// Addresses have no zone: the field type "ip" of search engines knows none,
	// and the segment says which link it is.
	Source         netip.Addr `json:"source.ip,omitzero"`
	SourcePort     uint16     `json:"source.port,omitempty"`
	SourceNAT      netip.Addr `json:"source.nat.ip,omitzero"`
	SourceNATPort  uint16     `json:"source.nat.port,omitempty"`
	SourceBytes    uint64     `json:"source.bytes"`
	Destination    netip.Addr `json:"destination.ip,omitzero"`
	Port           uint16     `json:"destination.port,omitempty"`
	DestinationNAT netip.Addr `json:"destination.nat.ip,omitzero"`
	NATPort        uint16     `json:"destination.nat.port,omitempty"`
	Bytes          uint64     `json:"destination.bytes"`

	Transport   string `json:"network.transport"`
	NetworkType string `json:"network.type,omitempty"`
	CommunityID string `json:"network.community_id,omitempty"`

	Node       string `json:"decoynet.node,omitempty"`
	Segment    string `json:"decoynet.segment"`
	Decoy      string `json:"decoynet.decoy"`
	Service    string `json:"decoynet.service"`
	Path       string `json:"decoynet.path"`
	SourceMode string `json:"decoynet.source_mode"`
	EndReason  string `json:"decoynet.end_reason,omitempty"`
	Scanner    string `json:"decoynet.scanner,omitempty"` // the known scanner that the intruder is

	// The first bytes of each side, in base64 as encoding/json writes them.
	SourceHead      []byte `json:"decoynet.source_head,omitempty"`
	DestinationHead []byte `json:"decoynet.destination_head,omitempty"`

	*AnalysisDocument // nil where nothing was found
}

// AnalysisDocument is the part of a session's document that says what Suricata found.
type AnalysisDocument struct {
	Protocol   string `json:"network.protocol,omitempty"`
	UserAgent  string `json:"user_agent.original,omitempty"`
	JA3        string `json:"tls.client.ja3,omitempty"`
	JA4        string `json:"decoynet.tls.ja4,omitempty"` // the schema has no field for it yet
	SSH        string `json:"decoynet.ssh.client,omitempty"`
	HASSH      string `json:"decoynet.ssh.hassh,omitempty"`
	ServerName string `json:"destination.domain,omitempty"`
	User       string `json:"user.name,omitempty"`
	Findings   uint64 `json:"decoynet.findings"`
	Alerts     uint64 `json:"decoynet.alerts"`
	Severity   uint8  `json:"decoynet.severity,omitempty"` // of the worst alert; 1 is the worst
	Partial    bool   `json:"decoynet.partial"`            // findings may be missing
}

func analysisDocument(a *deception.Analysis) *AnalysisDocument {
	if a == nil {
		return nil
	}
	d := &AnalysisDocument{
		Protocol: protocol(a.Application), UserAgent: a.UserAgent, JA3: a.JA3, JA4: a.JA4, SSH: a.SSH, HASSH: a.HASSH,
		ServerName: a.ServerName, User: a.User, Findings: a.Findings, Alerts: a.Alerts, Severity: a.Severity, Partial: a.Partial,
	}
	if d.Severity == unknownSeverity {
		d.Severity = 0
	}
	return d
}

// Time is written in UTC with all nine digits, so that text sorts as time does.
type Time time.Time

const timeLayout = "2006-01-02T15:04:05.000000000Z"

// MarshalJSON implements json.Marshaler.
func (t Time) MarshalJSON() ([]byte, error) {
	b := make([]byte, 0, len(timeLayout)+2)
	b = append(b, '"')
	b = time.Time(t).UTC().AppendFormat(b, timeLayout)
	return append(b, '"'), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (t *Time) UnmarshalJSON(b []byte) error {
	parsed, err := time.Parse(`"`+time.RFC3339Nano+`"`, string(b))
	if err != nil {
		return fmt.Errorf("read time: %w", err)
	}
	*t = Time(parsed)
	return nil
}

// Document returns the session's document.
func Document(s *deception.Session) SessionDocument {
	d := SessionDocument{
		Timestamp:      Time(s.Start),
		Version:        Version,
		EventID:        s.ID.String(),
		EventKind:      "event",
		EventCategory:  []string{"network"},
		EventType:      []string{"connection", "start"},
		EventAction:    SessionStarted,
		EventStart:     Time(s.Start),
		Source:         s.Source.Addr().WithZone(""),
		SourcePort:     s.Source.Port(),
		SourceNAT:      s.SourceNAT.Addr().WithZone(""),
		SourceNATPort:  s.SourceNAT.Port(),
		SourceBytes:    s.SourceBytes,
		Destination:    s.Destination.Addr().WithZone(""),
		Port:           s.Destination.Port(),
		DestinationNAT: s.DestinationNAT.Addr().WithZone(""),
		NATPort:        s.DestinationNAT.Port(),
		Bytes:          s.DestinationBytes,
		Transport:      s.Transport.String(),
		NetworkType:    networkType(s.Source.Addr()),
		CommunityID:    CommunityID(s.Transport, s.Source, s.Destination),
		Node:           s.Node,
		Segment:        s.Segment,
		Decoy:          s.Decoy,
		Service:        s.Service,
		Path:           string(s.Path),
		SourceMode:     s.SourceMode.String(),
		EndReason:      s.Reason.String(),
		Scanner:        s.Scanner,

		SourceHead:      s.SourceHead,
		DestinationHead: s.DestinationHead,

		AnalysisDocument: analysisDocument(s.Analysis),
	}
	if !s.Running() {
		end, duration := Time(s.End), s.End.Sub(s.Start).Nanoseconds()
		d.Timestamp = end
		d.EventEnd, d.EventDuration = &end, &duration
		d.EventType, d.EventAction = []string{"connection", "end"}, SessionEnded
	}
	return d
}

func networkType(a netip.Addr) string {
	switch {
	case a.Is4():
		return "ipv4"
	case a.Is6():
		return "ipv6"
	}
	return ""
}

// JSON writes sessions, findings, probes and events as one document a line.
type JSON struct {
	w    io.Writer
	line bytes.Buffer
	enc  *json.Encoder
}

// NewJSON returns a writer of documents to w.
func NewJSON(w io.Writer) *JSON {
	j := &JSON{w: w}
	j.enc = json.NewEncoder(&j.line)
	j.enc.SetEscapeHTML(false)
	return j
}

// Write writes the session's document and a line feed, in one call.
func (j *JSON) Write(s *deception.Session) error {
	if err := j.write(Document(s)); err != nil {
		return fmt.Errorf("write session %s: %w", s.ID, err)
	}
	return nil
}

func (j *JSON) write(document any) error {
	j.line.Reset()
	if err := j.enc.Encode(document); err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	_, err := j.w.Write(asciiJSON(j.line.Bytes()))
	return err
}
