package deception

import (
	"net/netip"
	"time"
)

// EventKind says what happened; the value of event.action.
type EventKind string

// The kinds of events. Each is something a person should know that is no session:
// about an intruder, or about a part that could not do its work.
const (
	EventClaimRefused  EventKind = "claim-refused"    // an agent spoke for a decoy that is not its own
	EventPeerRefused   EventKind = "peer-refused"     // a peer that is not configured, or a bad header, at an egress or ingress
	EventPortInUse     EventKind = "port-in-use"      // a port of a decoy is taken by the machine's own service
	EventPortTaken     EventKind = "port-taken"       // such a port became free and is the decoy's now
	EventGatewayLost   EventKind = "gateway-lost"     // an agent has no ingress gateway
	EventGatewayBack   EventKind = "gateway-back"     // it has one again
	EventOverload      EventKind = "overload"         // intruders were turned away: a limit of the machine was reached
	EventSpoolDropped  EventKind = "spool-dropped"    // records were given up because the spool was full
	EventClockOff      EventKind = "clock-off"        // a node's clock differs from the controller's
	EventNodeConnected EventKind = "node-connected"   // a node reached the controller
	EventNodeLost      EventKind = "node-lost"        // a node is not heard of any more
	EventNodeRevoked   EventKind = "node-revoked"     // a node was cut off
	EventNodeEnrolled  EventKind = "node-enrolled"    // a machine became a node
	EventEnrolRefused  EventKind = "enrol-refused"    // a used, expired or forged token was shown
	EventRecordRefused EventKind = "record-refused"   // records that a node uploaded could not be read
	EventApplied       EventKind = "document-applied" // a document became the desired state
	EventConflict      EventKind = "address-conflict" // a real host has a decoy's address: the decoy was withdrawn there, unless it is ClaimUnchecked
	EventReclaimed     EventKind = "address-claimed"  // an address that a real host had is a decoy's again

	EventInspectFailed   EventKind = "inspect-failed"   // Suricata does not run: flows are not analysed
	EventInspectRestored EventKind = "inspect-restored" // it runs again
	EventRulesRefused    EventKind = "rules-refused"    // new rules are wrong; those before them stay
	EventFindingsMissed  EventKind = "findings-missed"  // Suricata's events were gone, or damaged, before they were read
	EventSensorLoss      EventKind = "sensor-loss"      // a Suricata that others run says that it did not look at everything
)

// Event is something that happened to the deception network itself.
type Event struct {
	ID          SessionID // a UUIDv7 as a session's; events are deduplicated by it
	Time        time.Time
	Kind        EventKind
	Node        string // where it happened
	Segment     string // empty where it is not about one
	Decoy       string
	Session     SessionID      // zero where it is not about one
	Source      netip.AddrPort // the peer or intruder, zero where there is none
	Destination netip.AddrPort
	Message     string // what, on which object, what to do
}

// SourceSeen says what the service of a session saw as its peer, where only the
// egress on another machine knows.
type SourceSeen struct {
	Session        SessionID
	SourceNAT      netip.AddrPort
	SourceMode     SourceMode
	DestinationNAT netip.AddrPort
}
