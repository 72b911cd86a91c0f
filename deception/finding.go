package deception

import (
	"net/netip"
	"time"
)

// Finding is what Suricata says about a session: an alert, or a record of its
// application protocol, of a file in it, or of an anomaly.
type Finding struct {
	// ID is the same whenever the same event is read again: a UUIDv7 of the
	// event's time whose rest is made of where the event stood.
	ID      SessionID
	Session SessionID // zero where the event belongs to none that is known
	Time    time.Time
	Node    string // where it was found
	// Kind is the event_type of Suricata's EVE output: alert, http, tls, ssh, smb,
	// dns, fileinfo, anomaly, flow, ...
	Kind string
	// Source is the intruder, Destination the decoy, whatever direction the event
	// itself has.
	Source, Destination netip.AddrPort
	Transport           Transport
	Alert               *Alert // of KindAlert
	// Application is Suricata's app_proto of the flow; empty where it is not known.
	Application string
	// Document is the EVE event as JSON, addresses corrected, without what other
	// fields of Finding hold better (see package eve); at most FindingBytes.
	Document []byte
	// FeedLost is how many flows this node's feed had lost for this Suricata, all in
	// all, when the event was read; Partial says that this flow is among them.
	FeedLost uint64
	Partial  bool
	// Scanner is the known scanner that the intruder is; empty for everybody else.
	// What a rule says of it is recorded, but is no alert.
	Scanner string

	// Of is where the session belongs. Who reads a record sets it, where the
	// session is on record; who tells of a finding does not.
	Of Place
}

// Place is where a session belongs.
type Place struct{ Node, Segment, Decoy, Service string }

// The kinds that are looked at by name. All others are stored alike.
const (
	KindAlert   = "alert"
	KindFlow    = "flow"
	KindAnomaly = "anomaly"
	KindFile    = "fileinfo"
)

// Alarming tells whether the finding is an alert about somebody who is not known.
func (f *Finding) Alarming() bool { return f.Alert != nil && f.Scanner == "" }

// FindingBytes bounds the document of a finding.
const FindingBytes = 64 << 10

// Alert is a detection, tied to its session by the Finding that holds it.
type Alert struct {
	GID, SID, Revision uint32
	Signature          string // the rule's message
	Category           string // the rule's class type, in words
	Severity           uint8  // 1 (worst) to 4, as Suricata has it; 255 where unknown
	// ToService tells the direction of what matched: from the intruder to the
	// service.
	ToService bool
}

// Analysis is what the findings of a session say of it, taken together.
type Analysis struct {
	// Findings is how many there are, Alerts how many of them are alerts.
	Findings, Alerts uint64
	Severity         uint8  // the worst of the alerts, see Alert; 0 where there is none
	Application      string // Suricata's app_proto; empty where it is not known
	// What the first record that has it says of the client: the user agent (of
	// HTTP and QUIC), JA3 and JA4 of its TLS, the software and HASSH of its SSH,
	// which server it asked for (SNI, or HTTP's Host) and who it claims to be.
	UserAgent, JA3, JA4, SSH, HASSH, ServerName, User string
	// Partial says that findings of this session may be missing: its feed was not
	// whole.
	Partial bool
}

// Texts returns what is said of the client, field by field, as UserAgent to User
// stand above.
func (a *Analysis) Texts() []*string {
	return []*string{&a.UserAgent, &a.JA3, &a.JA4, &a.SSH, &a.HASSH, &a.ServerName, &a.User}
}
