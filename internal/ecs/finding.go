package ecs

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strconv"

	"decoynet/deception"
	"decoynet/internal/evedoc"
)

// The values of event.kind: what a rule says of somebody who is not known is an
// alert, everything else is not.
const (
	kindAlert = "alert"
	kindEvent = "event"
)

// unknownSeverity is an alert's whose rule has none, see deception.Alert.
const unknownSeverity = 255

// FindingDocument is what Suricata says of a session as it leaves decoynet: an alert,
// or a record of another kind. As in a SessionDocument, keys are flat and a contract,
// and what is not known is absent; but suricata.eve holds Suricata's own event, an
// object with Suricata's keys.
type FindingDocument struct {
	Timestamp Time   `json:"@timestamp"`
	Version   string `json:"ecs.version"`

	EventID       string   `json:"event.id"`
	EventKind     string   `json:"event.kind"`
	EventCategory []string `json:"event.category"`
	EventType     []string `json:"event.type"`
	EventAction   string   `json:"event.action"` // event_type of the EVE event
	EventModule   string   `json:"event.module"`
	EventDataset  string   `json:"event.dataset"`
	EventSeverity uint8    `json:"event.severity,omitempty"` // 1 is the worst, as Suricata has it

	RuleID       string `json:"rule.id,omitempty"`
	RuleName     string `json:"rule.name,omitempty"`
	RuleCategory string `json:"rule.category,omitempty"`
	RuleVersion  string `json:"rule.version,omitempty"`

	Source      netip.Addr `json:"source.ip,omitzero"`
	SourcePort  uint16     `json:"source.port,omitempty"`
	Destination netip.Addr `json:"destination.ip,omitzero"`
	Port        uint16     `json:"destination.port,omitempty"`

	Transport   string `json:"network.transport,omitempty"`
	NetworkType string `json:"network.type,omitempty"`
	Protocol    string `json:"network.protocol,omitempty"`
	CommunityID string `json:"network.community_id,omitempty"`

	Session string `json:"decoynet.session,omitempty"` // event.id of the session
	Node    string `json:"decoynet.node,omitempty"`
	Segment string `json:"decoynet.segment,omitempty"`
	Decoy   string `json:"decoynet.decoy,omitempty"`
	Service string `json:"decoynet.service,omitempty"`
	Scanner string `json:"decoynet.scanner,omitempty"`

	RuleGroup uint32 `json:"decoynet.rule.gid,omitempty"`
	ToService *bool  `json:"decoynet.rule.to_service,omitempty"` // what matched went to the service
	Inspector string `json:"decoynet.inspect.node,omitempty"`    // where it was found
	FeedLost  uint64 `json:"decoynet.feed_lost"`                 // flows that Suricata was not shown there, all in all
	Partial   bool   `json:"decoynet.partial"`                   // this one is among them

	EVE   json.RawMessage `json:"suricata.eve,omitempty"`
	Error string          `json:"error.message,omitempty"`
}

// NewFindingDocument returns the finding's document.
func NewFindingDocument(f *deception.Finding) FindingDocument {
	d := FindingDocument{
		Timestamp:    Time(f.Time),
		Version:      Version,
		EventID:      f.ID.String(),
		EventKind:    kindEvent,
		EventAction:  f.Kind,
		EventModule:  "suricata",
		EventDataset: "suricata.eve",
		Source:       f.Source.Addr().WithZone(""),
		SourcePort:   f.Source.Port(),
		Destination:  f.Destination.Addr().WithZone(""),
		Port:         f.Destination.Port(),
		NetworkType:  networkType(f.Source.Addr()),
		Protocol:     protocol(f.Application),
		CommunityID:  CommunityID(f.Transport, f.Source, f.Destination),
		Node:         cmp.Or(f.Of.Node, f.Node),
		Segment:      f.Of.Segment,
		Decoy:        f.Of.Decoy,
		Service:      f.Of.Service,
		Scanner:      f.Scanner,
		Inspector:    f.Node,
		FeedLost:     f.FeedLost,
		Partial:      f.Partial,
	}
	d.EventCategory, d.EventType = findingClass(f)
	if f.Transport != 0 {
		d.Transport = f.Transport.String()
	}
	if !f.Session.IsZero() {
		d.Session = f.Session.String()
	}
	if a := f.Alert; a != nil {
		d.RuleID, d.RuleGroup = strconv.FormatUint(uint64(a.SID), 10), a.GID
		d.RuleName, d.RuleCategory, d.RuleVersion = a.Signature, a.Category, strconv.FormatUint(uint64(a.Revision), 10)
		d.ToService = &a.ToService
		if a.Severity != unknownSeverity {
			d.EventSeverity = a.Severity
		}
	}
	if f.Alarming() {
		d.EventKind = kindAlert
	}
	switch {
	case len(f.Document) == 0:
	case json.Valid(f.Document) && bytes.HasPrefix(bytes.TrimLeft(f.Document, " \t\r\n"), []byte("{")):
		d.EVE = f.Document
	default:
		d.Error = "what Suricata said is not a JSON object, and left out"
	}
	return d
}

// findingClass is where the schema files a finding.
func findingClass(f *deception.Finding) (category, kind []string) {
	switch {
	case f.Alert != nil:
		return []string{"network", "intrusion_detection"}, []string{"info"}
	case f.Kind == "http":
		return []string{"network", "web"}, []string{"protocol", "access"}
	case f.Kind == deception.KindFile:
		return []string{"network", "file"}, []string{"info"}
	case f.Kind == deception.KindFlow:
		return []string{"network"}, []string{"connection"}
	case f.Kind == deception.KindAnomaly:
		return []string{"network"}, []string{"info"}
	}
	return []string{"network"}, []string{"protocol"}
}

// protocol is Suricata's name of an application, where it has one.
func protocol(name string) string {
	if name == "failed" { // it looked in vain
		return ""
	}
	return name
}

// WriteFinding writes the finding's document and a line feed, in one call.
func (j *JSON) WriteFinding(f *deception.Finding) error {
	if err := j.write(NewFindingDocument(f)); err != nil {
		return fmt.Errorf("write finding %s: %w", f.ID, err)
	}
	return nil
}

// FindingTable writes alerts or other findings as plain text in columns, as Table
// does sessions. The last column is what was found, as long as it is.
type FindingTable struct{ grid[deception.Finding] }

// said is how many columns a record may take.
const said = 160

type findingColumn = column[deception.Finding]

var (
	findingID      = findingColumn{"ID", 36, false, func(_ *TableOptions, f *deception.Finding) string { return f.ID.String() }}
	findingTime    = findingColumn{"TIME", 23, false, func(o *TableOptions, f *deception.Finding) string { return o.time(f.Time) }}
	findingKind    = findingColumn{"KIND", 8, false, func(_ *TableOptions, f *deception.Finding) string { return name(f.Kind) }}
	findingSource  = findingColumn{"SOURCE", 21, false, func(_ *TableOptions, f *deception.Finding) string { return endpoint(f.Source) }}
	findingDecoy   = findingColumn{"DECOY", 21, false, func(_ *TableOptions, f *deception.Finding) string { return endpoint(f.Destination) }}
	findingService = findingColumn{"SERVICE", 8, false, func(_ *TableOptions, f *deception.Finding) string { return name(f.Of.Service) }}
	findingSession = findingColumn{"SESSION", 36, false, func(_ *TableOptions, f *deception.Finding) string {
		if f.Session.IsZero() {
			return ""
		}
		return f.Session.String()
	}}
	alertSeverity = findingColumn{"SEV", 3, true, func(_ *TableOptions, f *deception.Finding) string {
		if f.Alert == nil {
			return ""
		}
		return severity(f.Alert.Severity)
	}}
	alertRule   = findingColumn{"RULE", 10, false, func(_ *TableOptions, f *deception.Finding) string { return rule(f.Alert) }}
	findingSays = findingColumn{"RECORD", 10, false, func(_ *TableOptions, f *deception.Finding) string { return FindingLine(f, said) }}

	findingDetails = []findingColumn{
		{"SEGMENT", 8, false, func(_ *TableOptions, f *deception.Finding) string { return name(f.Of.Segment) }},
		{"DECOY NAME", 10, false, func(_ *TableOptions, f *deception.Finding) string { return name(f.Of.Decoy) }},
		{"NODE", 8, false, func(_ *TableOptions, f *deception.Finding) string { return name(cmp.Or(f.Of.Node, f.Node)) }},
		{"PROTOCOL", 8, false, func(_ *TableOptions, f *deception.Finding) string { return name(protocol(f.Application)) }},
		{"SCANNER", 7, false, func(_ *TableOptions, f *deception.Finding) string { return name(f.Scanner) }},
		{"COMMUNITY ID", 30, false, func(_ *TableOptions, f *deception.Finding) string {
			return CommunityID(f.Transport, f.Source, f.Destination)
		}},
		{"FEED LOST", 9, true, func(_ *TableOptions, f *deception.Finding) string { return feedLost(f) }},
	}
	alertDetails = []findingColumn{
		{"CATEGORY", 8, false, func(_ *TableOptions, f *deception.Finding) string {
			if f.Alert == nil {
				return ""
			}
			return name(f.Alert.Category)
		}},
		{"MATCHED", 9, false, func(_ *TableOptions, f *deception.Finding) string { return matched(f.Alert) }},
	}
)

// severity writes one that is known; 0 stands for no alert.
func severity(n uint8) string {
	if n == 0 || n == unknownSeverity {
		return ""
	}
	return strconv.Itoa(int(n))
}

// rule is a rule's number and what it says, which whoever wrote it chose.
func rule(a *deception.Alert) string {
	if a == nil {
		return ""
	}
	return fmt.Sprintf("%d %s", a.SID, name(a.Signature))
}

// matched is whose bytes a rule matched.
func matched(a *deception.Alert) string {
	switch {
	case a == nil:
		return ""
	case a.ToService:
		return "intruder"
	}
	return "service"
}

// feedLost is how much Suricata was not shown where it was found.
func feedLost(f *deception.Finding) string {
	n := strconv.FormatUint(f.FeedLost, 10)
	if f.Partial {
		n += ", this one too"
	}
	return n
}

// FindingLine says in one line, of at most limit columns, what was found. It is safe
// for terminals.
func FindingLine(f *deception.Finding, limit int) string {
	if f.Alert != nil {
		return rule(f.Alert)
	}
	return Printable([]byte(evedoc.Line(f.Kind, f.Document)), limit)
}

// NewAlertTable returns a table of alerts to w. Call Flush when no more come for now.
func NewAlertTable(w io.Writer, opts TableOptions) *FindingTable {
	columns := []findingColumn{findingTime, alertSeverity, findingSource, findingDecoy, findingService, findingSession}
	if opts.Wide {
		columns = append(append(append([]findingColumn{findingID}, columns...), findingDetails...), alertDetails...)
	}
	return &FindingTable{newGrid(w, opts, append(columns, alertRule))}
}

// NewFindingTable returns a table of findings of all kinds to w.
func NewFindingTable(w io.Writer, opts TableOptions) *FindingTable {
	columns := []findingColumn{findingTime, findingKind, findingSource, findingDecoy, findingService, findingSession}
	if opts.Wide {
		columns = append(append([]findingColumn{findingID}, columns...), findingDetails...)
	}
	return &FindingTable{newGrid(w, opts, append(columns, findingSays))}
}
