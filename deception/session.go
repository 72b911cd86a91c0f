package deception

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"time"
)

// EndReason says how a session ended; the value of decoynet.end_reason.
type EndReason uint8

// The ways a session ends. "Client" is the intruder, "service" the real server.
const (
	EndNone          EndReason = iota // still running
	EndClientClosed                   // the intruder closed first, in order (FIN)
	EndServiceClosed                  // the service closed first, in order (FIN)
	EndClientReset                    // RST from the intruder
	EndServiceReset                   // RST from the service
	EndIdle                           // no byte within the decoy's idle timeout
	EndRefused                        // the service refused, or could not be reached
	EndShutdown                       // decoynet stopped, or the decoy was withdrawn
	EndUnbound                        // the decoy has no binding for it any more
	EndLost                           // the process died while the session ran
	EndOverload                       // a limit of this machine was reached (descriptors, flows)
	EndGateway                        // no ingress gateway could be reached, or it was lost on the way
	EndDenied                         // the ingress gateway does not let this agent speak for the decoy
)

var endReasons = [...]string{
	"", "client_closed", "service_closed", "client_reset", "service_reset",
	"idle", "refused", "shutdown", "unbound", "lost", "overload", "gateway_lost", "denied",
}

// String returns the value of decoynet.end_reason, "" for a running session.
func (r EndReason) String() string {
	if int(r) < len(endReasons) {
		return endReasons[r]
	}
	return fmt.Sprintf("reason-%d", uint8(r))
}

// ParseEndReason is the inverse of String; unknown names give EndNone and false.
func ParseEndReason(s string) (EndReason, bool) {
	for i, name := range endReasons {
		if name == s {
			return EndReason(i), true
		}
	}
	return EndNone, false
}

// SourceMode says what the service saw as the peer of a session.
type SourceMode uint8

// The source modes. The moved port is the only loss of truth that the relay
// allows itself, and it is on record in Session.SourceNAT.
const (
	SourceKept       SourceMode = iota // the intruder's own address and port
	SourcePortMoved                    // the intruder's address, another port
	SourceMasquerade                   // an address of the gateway
)

var sourceModes = [...]string{"kept", "port_moved", "masquerade"}

// String returns the value of decoynet.source_mode.
func (m SourceMode) String() string { return sourceModes[m] }

// HeadBytes is how many of the first bytes of each side a session keeps.
const HeadBytes = 256

// SessionID identifies a session for ever and on every node: a UUID of version
// 7 (RFC 9562), so that identifiers sort by the time of the session's start.
type SessionID [16]byte

// String writes the identifier in the usual UUID form.
func (id SessionID) String() string {
	var b [36]byte
	hex.Encode(b[0:8], id[0:4])
	hex.Encode(b[9:13], id[4:6])
	hex.Encode(b[14:18], id[6:8])
	hex.Encode(b[19:23], id[8:10])
	hex.Encode(b[24:36], id[10:16])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}

// ParseSessionID is the inverse of String; it takes the usual UUID form in
// either case. Its errors say what would be right.
func ParseSessionID(s string) (SessionID, error) {
	var id SessionID
	at := 0
	for i, part := range [...]int{8, 4, 4, 4, 12} {
		end := at + part
		if end > len(s) || i < 4 && (end == len(s) || s[end] != '-') || i == 4 && end != len(s) {
			return SessionID{}, badSessionID(s)
		}
		if _, err := hex.Decode(id[(at-i)/2:], []byte(s[at:end])); err != nil {
			return SessionID{}, badSessionID(s)
		}
		at = end + 1
	}
	return id, nil
}

// minPrefix is how many digits tell a session from next to all others: those of the
// time, but for the last minute.
const minPrefix = 8

// ParseSessionPrefix reads an identifier or the beginning of one, with eight digits
// at least, and returns the first and the last that begin so: the same one twice
// where it is whole. Its errors say what would be right.
func ParseSessionPrefix(s string) (first, last SessionID, err error) {
	if len(s) < minPrefix || len(s) > 36 {
		return first, last, badSessionID(s)
	}
	const lowest, highest = "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"
	if first, err = ParseSessionID(s + lowest[len(s):]); err == nil {
		last, err = ParseSessionID(s + highest[len(s):])
	}
	if err != nil {
		return SessionID{}, SessionID{}, badSessionID(s)
	}
	return first, last, nil
}

func badSessionID(s string) error {
	return fmt.Errorf("bad session identifier %q; 32 hexadecimal digits as 01234567-89ab-7def-8123-456789abcdef", s)
}

// IsZero tells whether no identifier was given.
func (id SessionID) IsZero() bool { return id == SessionID{} }

// Session is one flow from first packet to close. All addresses are unmapped
// (an IPv4 address is never held in IPv6 form).
type Session struct {
	ID         SessionID
	Start, End time.Time // End is zero while the session runs

	Node, Segment, Decoy, Service string
	Transport                     Transport
	Path                          Path
	SourceMode                    SourceMode

	// Source is the intruder as seen at the decoy, SourceNAT the peer as the
	// service saw it. Destination is the decoy's address and port,
	// DestinationNAT the service's (or its alias's).
	Source, SourceNAT           netip.AddrPort
	Destination, DestinationNAT netip.AddrPort

	SourceBytes, DestinationBytes uint64 // payload from the intruder, from the service
	SourceHead, DestinationHead   []byte // the first HeadBytes of each

	Reason EndReason

	// Scanner is the known scanner (see Scanner) that the intruder is, by the
	// time of the session's start; empty for everybody else. It is relayed and
	// recorded as everybody, but no alert is raised.
	Scanner string

	// Analysis is what was found in the session so far. Who reads a record sets it;
	// nil where nothing was found.
	Analysis *Analysis
}

// Running tells whether the session has not ended.
func (s *Session) Running() bool { return s.End.IsZero() }
