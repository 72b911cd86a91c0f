package inspect

import (
	"fmt"
	"time"

	"decoynet/deception"
	"decoynet/internal/archive"
	"decoynet/internal/capture"
	"decoynet/internal/eve"
	"decoynet/internal/feed"
	"decoynet/internal/suricata"
)

// Status is what is true of analysis on this machine.
type Status struct {
	Feed     FeedStatus       `json:"feed"`
	Tap      *TapStatus       `json:"tap,omitempty"`
	Suricata *suricata.Status `json:"suricata,omitempty"` // that decoynet runs
	Events   *EventStatus     `json:"events,omitempty"`
	Packets  *PacketStatus    `json:"packets,omitempty"`
	Captures []capture.Stats  `json:"captures,omitempty"`
	Problems []string         `json:"problems,omitempty"`
}

// FeedStatus counts flows that were shown to sensors.
type FeedStatus struct {
	Flows   uint64         `json:"flows"`
	Running int64          `json:"running"`
	Lost    uint64         `json:"lost"` // that an output did not see whole
	Bad     uint64         `json:"bad"`  // that cannot be shown
	Outputs []OutputStatus `json:"outputs"`
}

// OutputStatus is one output of the feed.
type OutputStatus struct {
	Name         string     `json:"name"`
	Flows        uint64     `json:"flows"`
	Reintroduced uint64     `json:"reintroduced"` // shown from where they were, after a restart of who reads
	Lost         uint64     `json:"lost"`
	Frames       uint64     `json:"frames"`
	Bytes        uint64     `json:"bytes"`
	QueuedBytes  int64      `json:"queued_bytes"`
	QueueLimit   int64      `json:"queue_limit"`
	Errors       uint64     `json:"errors,omitempty"`
	LastError    string     `json:"last_error,omitempty"`
	StuckSince   *time.Time `json:"stuck_since,omitempty"`
}

// TapStatus is the tap device.
type TapStatus struct {
	Name   string `json:"name"`
	Open   bool   `json:"open"`
	Frames uint64 `json:"frames"`
	Failed uint64 `json:"failed"`
	Error  string `json:"error,omitempty"`
}

// EventStatus is what was read of Suricata's events.
type EventStatus struct {
	File        string            `json:"file"`
	Findings    map[string]uint64 `json:"findings"` // by kind
	Alerts      uint64            `json:"alerts"`
	BehindBytes int64             `json:"behind_bytes"`
	LastEvent   *time.Time        `json:"last_event,omitempty"`
	// How events and sessions were joined; see package eve.
	Unlisted    uint64 `json:"unlisted"`
	Unknown     uint64 `json:"unknown"`
	Mismatched  uint64 `json:"mismatched"`
	Addressless uint64 `json:"without_addresses"`
	Broken      uint64 `json:"broken_lines"`
	Oversized   uint64 `json:"oversized_lines"`
	Torn        uint64 `json:"torn_lines"`
	Trimmed     uint64 `json:"trimmed"`
	Rotations   uint64 `json:"rotations"`
	Truncations uint64 `json:"truncations"`
	Missed      uint64 `json:"missed_files"`
	LastError   string `json:"last_error,omitempty"`
	// Sensor is what a Suricata that others run says about itself, all of its
	// interfaces together; nil while it has said nothing.
	Sensor *suricata.Counters `json:"sensor,omitempty"`
}

// PacketStatus is what is kept of the packets of sessions.
type PacketStatus struct {
	Files     int        `json:"files"`
	Bytes     uint64     `json:"bytes"`
	Oldest    *time.Time `json:"oldest,omitempty"`
	Frames    uint64     `json:"frames"`
	Capped    uint64     `json:"capped_sessions"`
	Lost      uint64     `json:"lost"`
	LastError string     `json:"last_error,omitempty"`
}

// Status returns what is true now, nil where nothing is analysed.
func (i *Inspector) Status() *Status {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.want == nil || !i.want.Enabled() {
		return nil
	}
	s := &Status{Feed: feedStatus(i.feed.Stats())}
	for _, o := range s.Feed.Outputs {
		if o.StuckSince != nil && (o.Name != outputFIFO || i.reading()) { // else that is said below
			s.problem("inspect: nothing is read of the feed's output %s since %s; flows are lost to it", o.Name, o.StuckSince.Format(time.RFC3339))
		}
	}
	if i.tap != nil {
		t := i.tap.Stats()
		s.Tap = &TapStatus{Name: t.Name, Open: t.Open, Frames: t.Frames, Failed: t.Failed, Error: text(t.Err)}
	}
	if i.suricata != nil && i.want.Suricata == deception.SuricataManaged {
		st := i.suricata.Status()
		s.Suricata = &st
		if st.State == suricata.Failed {
			s.problem("inspect: flows are not analysed: %s", st.Error)
		}
		if st.RulesError != "" {
			s.problem("inspect: the rules of before are in use: %s", st.RulesError)
		}
	}
	if i.events != nil {
		e := i.events.Stats()
		s.Events = eventStatus(i.reads, &e)
		if s.Events.Sensor = i.sensor.counters.Load(); s.Events.Sensor != nil && s.Events.Sensor.Lost() != "" {
			s.problem("%s", lossText(s.Events.Sensor))
		}
		if !e.FailingSince.IsZero() {
			s.problem("inspect: events of Suricata cannot be read since %s: %s", e.FailingSince.Format(time.RFC3339), e.LastError)
		}
	}
	if i.archive != nil {
		a := i.archive.Stats()
		s.Packets = packetStatus(&a)
		if !a.FailingSince.IsZero() {
			s.problem("inspect: packets of sessions cannot be kept since %s: %s", a.FailingSince.Format(time.RFC3339), a.Err)
		}
	}
	for _, l := range i.captures {
		c := l.capture.Stats()
		s.Captures = append(s.Captures, c)
		if c.Problem != "" {
			s.problem("inspect: nothing is captured at %s: %s", c.Interface, c.Problem)
		}
	}
	return s
}

// reading tells whether there should be somebody who reads the FIFO.
func (i *Inspector) reading() bool {
	return i.suricata == nil || i.want.Suricata != deception.SuricataManaged || i.suricata.Status().State != suricata.Failed
}

func (s *Status) problem(format string, args ...any) {
	s.Problems = append(s.Problems, fmt.Sprintf(format, args...))
}

func feedStatus(f feed.Stats) FeedStatus {
	s := FeedStatus{Flows: f.Flows, Running: f.Running, Lost: f.Lost, Bad: f.Bad, Outputs: []OutputStatus{}}
	for _, o := range f.Outputs {
		s.Outputs = append(s.Outputs, OutputStatus{
			Name: o.Name, Flows: o.Flows, Reintroduced: o.Reintroduced, Lost: o.Lost, Frames: o.Frames, Bytes: o.Bytes,
			QueuedBytes: o.Queued, QueueLimit: o.Limit, Errors: o.Errors, LastError: o.LastError, StuckSince: instant(o.StuckSince),
		})
	}
	return s
}

func eventStatus(file string, e *eve.Stats) *EventStatus {
	return &EventStatus{
		File: file, Findings: e.Findings, Alerts: e.Alerts, BehindBytes: e.Behind, LastEvent: instant(e.LastEvent),
		Unlisted: e.Unlisted, Unknown: e.Unknown, Mismatched: e.Mismatched, Addressless: e.Addressless,
		Broken: e.Broken, Oversized: e.Oversized, Torn: e.Torn, Trimmed: e.Trimmed,
		Rotations: e.Rotations, Truncations: e.Truncations, Missed: e.Missed, LastError: text(e.LastError),
	}
}

func packetStatus(a *archive.Stats) *PacketStatus {
	return &PacketStatus{
		Files: a.Files, Bytes: a.FileBytes, Oldest: instant(a.Oldest), Frames: a.Frames, Capped: a.CappedSessions, Lost: a.Lost, LastError: text(a.Err),
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// instant leaves a zero time out of JSON.
func instant(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
