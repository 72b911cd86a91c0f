package ecs

import (
	"fmt"
	"io"
	"net/netip"

	"decoynet/deception"
)

// EventDocument is an event as it leaves decoynet. As in a SessionDocument, keys
// are flat and a contract, and what is not known is absent.
type EventDocument struct {
	Timestamp Time   `json:"@timestamp"`
	Version   string `json:"ecs.version"`

	EventID       string   `json:"event.id"`
	EventKind     string   `json:"event.kind"`
	EventCategory []string `json:"event.category,omitempty"`
	EventType     []string `json:"event.type"`
	EventAction   string   `json:"event.action"`
	EventOutcome  string   `json:"event.outcome,omitempty"`
	Message       string   `json:"message"`

	Source      netip.Addr `json:"source.ip,omitzero"`
	SourcePort  uint16     `json:"source.port,omitempty"`
	Destination netip.Addr `json:"destination.ip,omitzero"`
	Port        uint16     `json:"destination.port,omitempty"`

	Node    string `json:"decoynet.node,omitempty"`
	Segment string `json:"decoynet.segment,omitempty"`
	Decoy   string `json:"decoynet.decoy,omitempty"`
	Session string `json:"decoynet.session,omitempty"` // event.id of the session that it is about
}

// class is where the schema files a kind of event.
type class struct{ category, kind, outcome string }

// classes holds pairs of category and type that the schema allows, see
// https://www.elastic.co/guide/en/ecs/8.17/ecs-allowed-values-event-category.html.
var classes = map[deception.EventKind]class{
	deception.EventClaimRefused:  {"network", "denied", "failure"},
	deception.EventPeerRefused:   {"network", "denied", "failure"},
	deception.EventPortInUse:     {"host", "info", "failure"},
	deception.EventPortTaken:     {"host", "change", "success"},
	deception.EventGatewayLost:   {"network", "info", "failure"},
	deception.EventGatewayBack:   {"network", "info", "success"},
	deception.EventSpoolDropped:  {"host", "info", "failure"},
	deception.EventOverload:      {"network", "denied", "failure"},
	deception.EventRecordRefused: {"host", "info", "failure"},
	deception.EventClockOff:      {"host", "info", ""},
	deception.EventNodeConnected: {"host", "info", ""},
	deception.EventNodeLost:      {"host", "info", ""},
	deception.EventNodeRevoked:   {"iam", "deletion", "success"},
	deception.EventNodeEnrolled:  {"iam", "creation", "success"},
	deception.EventEnrolRefused:  {"iam", "creation", "failure"},
	deception.EventApplied:       {"configuration", "change", "success"},
	deception.EventConflict:      {"network", "denied", "failure"},
	deception.EventReclaimed:     {"network", "allowed", "success"},

	deception.EventInspectFailed:   {"host", "info", "failure"},
	deception.EventInspectRestored: {"host", "info", "success"},
	deception.EventRulesRefused:    {"configuration", "info", "failure"},
	deception.EventFindingsMissed:  {"host", "info", "failure"},
	deception.EventSensorLoss:      {"host", "info", "failure"},
}

// NewEventDocument returns the event's document.
func NewEventDocument(e *deception.Event) EventDocument {
	d := EventDocument{
		Timestamp:   Time(e.Time),
		Version:     Version,
		EventID:     e.ID.String(),
		EventKind:   "event",
		EventType:   []string{"info"},
		EventAction: string(e.Kind),
		Message:     e.Message,
		Source:      e.Source.Addr().WithZone(""),
		SourcePort:  e.Source.Port(),
		Destination: e.Destination.Addr().WithZone(""),
		Port:        e.Destination.Port(),
		Node:        e.Node,
		Segment:     e.Segment,
		Decoy:       e.Decoy,
	}
	if c, ok := classes[e.Kind]; ok {
		d.EventCategory, d.EventType, d.EventOutcome = []string{c.category}, []string{c.kind}, c.outcome
	}
	if !e.Session.IsZero() {
		d.Session = e.Session.String()
	}
	return d
}

// WriteEvent writes the event's document and a line feed, in one call.
func (j *JSON) WriteEvent(e *deception.Event) error {
	if err := j.write(NewEventDocument(e)); err != nil {
		return fmt.Errorf("write event %s: %w", e.ID, err)
	}
	return nil
}

// EventTable writes events as plain text in columns, as Table does sessions. The
// last column is the message, as long as it is.
type EventTable struct{ grid[deception.Event] }

var narrowEvents = []column[deception.Event]{
	{"TIME", 23, false, func(o *TableOptions, e *deception.Event) string { return o.time(e.Time) }},
	{"NODE", 8, false, func(_ *TableOptions, e *deception.Event) string { return name(e.Node) }},
	{"EVENT", 16, false, func(_ *TableOptions, e *deception.Event) string { return name(string(e.Kind)) }},
	{"SOURCE", 21, false, func(_ *TableOptions, e *deception.Event) string { return endpoint(e.Source) }},
	{"MESSAGE", 7, false, func(_ *TableOptions, e *deception.Event) string { return name(e.Message) }},
}

var wideEvents = []column[deception.Event]{
	{"ID", 36, false, func(_ *TableOptions, e *deception.Event) string { return e.ID.String() }},
	narrowEvents[0], narrowEvents[1], narrowEvents[2], narrowEvents[3],
	{"DESTINATION", 21, false, func(_ *TableOptions, e *deception.Event) string { return endpoint(e.Destination) }},
	{"SEGMENT", 8, false, func(_ *TableOptions, e *deception.Event) string { return name(e.Segment) }},
	{"DECOY NAME", 10, false, func(_ *TableOptions, e *deception.Event) string { return name(e.Decoy) }},
	{"SESSION", 36, false, func(_ *TableOptions, e *deception.Event) string {
		if e.Session.IsZero() {
			return ""
		}
		return e.Session.String()
	}},
	narrowEvents[4],
}

// NewEventTable returns a table to w. Call Flush when no more events come for now.
func NewEventTable(w io.Writer, opts TableOptions) *EventTable {
	columns := narrowEvents
	if opts.Wide {
		columns = wideEvents
	}
	return &EventTable{newGrid(w, opts, columns)}
}
