package conntrack

import (
	"net/netip"
	"time"

	"decoynet/deception"
)

// Flow is one redirected connection as far as it is known. All addresses are
// those that a session holds under the same names.
type Flow struct {
	ID        uint32
	Transport deception.Transport
	// Source is the intruder, Destination the decoy.
	Source, Destination netip.AddrPort
	// SourceNAT is the intruder as the service sees it: the kernel moves the
	// port where its tuple towards the service was still taken. DestinationNAT
	// is the service, or its alias.
	SourceNAT, DestinationNAT netip.AddrPort
	Start, End                time.Time // End is zero while the flow lives
	// Established is set once the service has answered; with TCP, once the
	// handshake was completed.
	Established bool
	// FromSource and FromDestination are known when the flow has ended.
	FromSource, FromDestination Counters
	Reason                      deception.EndReason
	// Inferred is set where Reason is the most likely one only.
	Inferred bool
}

// SourceMode says whether the service saw the intruder's own port.
func (f *Flow) SourceMode() deception.SourceMode {
	if f.Source == f.SourceNAT {
		return deception.SourceKept
	}
	return deception.SourcePortMoved
}

// Payload estimates the bytes of payload each way. It is exact for UDP without IP
// options. For TCP it takes every segment to carry the usual timestamps (RFC
// 7323), which is off by the options of the handshake and of SACK: a few dozen
// bytes for a connection.
func (f *Flow) Payload() (fromSource, fromDestination uint64) {
	header := uint64(20 + 8)
	if f.Transport == deception.TCP {
		header = 20 + 32
	}
	if f.Source.Addr().Is6() {
		header += 20
	}
	payload := func(c Counters) uint64 {
		if c.Bytes < c.Packets*header {
			return 0
		}
		return c.Bytes - c.Packets*header
	}
	return payload(f.FromSource), payload(f.FromDestination)
}

// Fact is what a Tracker concludes: Flow.End tells a start from an end. Every
// end follows the start of the same flow.
type Fact struct {
	Flow Flow
}

// Started tells whether the fact is a flow's start.
func (f *Fact) Started() bool { return f.Flow.End.IsZero() }

// Tracker makes facts of a namespace's events. It knows neither clock nor kernel;
// it is not safe for concurrent use.
//
// With the rules of the kernel path, the mark of the last event alone says how
// a flow ended. Without them the tracker takes what the kernel tells by
// itself: an UPDATE event at the first FIN says which side sent it; that a RST
// ended a flow shows, but not whose, and the Flow is marked Inferred.
type Tracker struct {
	live map[flowKey]*live
}

// flowKey is more than the kernel's ID, which may come again with the next flow.
type flowKey struct {
	id       uint32
	src, dst netip.AddrPort
}

type live struct {
	flow      Flow
	closed    deception.EndReason // who sent the first FIN, if an event told
	state     TCPState            // of the last event but DESTROY
	before    TCPState            // of the last event in another state than CLOSE
	early     bool                // known from a dump whose NEW event may still be on its way
	missing   int                 // how many dumps in a row did not have it
	confirmed bool                // handshake complete, or answered
}

// NewTracker returns a Tracker that knows of no flow.
func NewTracker() *Tracker { return &Tracker{live: map[flowKey]*live{}} }

// Live returns how many flows have started and not ended.
func (t *Tracker) Live() int { return len(t.live) }

// Observe takes one event and appends the facts that follow from it to dst.
// Events of connections that were not redirected say nothing.
func (t *Tracker) Observe(dst []Fact, e Event) []Fact {
	if e.Status&StatusDstNAT == 0 || !e.Orig.Src.IsValid() || !e.Reply.Src.IsValid() {
		return dst
	}
	key := flowKey{e.ID, e.Orig.Src, e.Orig.Dst}
	l := t.live[key]
	if l != nil && e.Type == EventNew && !l.early {
		// Its end was lost, and the kernel has given the same identity
		// to the next flow of the same tuple.
		dst = t.end(dst, key, l, Event{At: e.At})
		l = nil
	}
	fresh := l == nil
	if fresh {
		l = &live{flow: flowOf(e)}
		t.live[key] = l
		dst = append(dst, Fact{Flow: l.flow})
	}
	l.early = e.Type != EventNew && (l.early || fresh)
	l.missing = 0
	l.note(e)
	if e.Type != EventDestroy {
		return dst
	}
	return t.end(dst, key, l, e)
}

// Sync compares with a dump of the connections that lived at a time. It starts flows
// that are not known, and ends, as lost, those that were known at the Sync before
// too and in neither dump: one dump's lack may only be an end that is still on
// its way.
func (t *Tracker) Sync(dst []Fact, dump []Event, at time.Time) []Fact {
	for _, l := range t.live {
		l.missing++
	}
	for _, e := range dump {
		e.Type = EventUpdate
		dst = t.Observe(dst, e)
	}
	for key, l := range t.live {
		if l.missing > 1 {
			dst = t.end(dst, key, l, Event{At: at})
		}
	}
	return dst
}

func flowOf(e Event) Flow {
	f := Flow{
		ID: e.ID, Transport: e.Transport,
		Source: e.Orig.Src, Destination: e.Orig.Dst,
		SourceNAT: e.Reply.Dst, DestinationNAT: e.Reply.Src,
		Start: e.Start,
	}
	if f.Start.IsZero() {
		f.Start = e.At
	}
	return f
}

func (l *live) note(e Event) {
	answered := e.Status&StatusSeenReply != 0
	if e.Transport == deception.TCP {
		answered = e.Status&StatusAssured != 0
	}
	l.confirmed = l.confirmed || answered
	l.flow.Established = l.confirmed
	if e.OrigCount.Packets > 0 {
		l.flow.FromSource, l.flow.FromDestination = e.OrigCount, e.ReplyCount
	}
	if e.HasTCP && e.Type != EventDestroy {
		l.state = e.TCPState
		if e.TCPState != TCPClose {
			l.before = e.TCPState
		}
	}
	if l.closed != deception.EndNone {
		return
	}
	switch {
	case e.OrigFlags&TCPFlagCloseInit != 0:
		l.closed = deception.EndClientClosed
	case e.ReplyFlags&TCPFlagCloseInit != 0:
		l.closed = deception.EndServiceClosed
	}
}

// end ends the flow with its last event; with any other, as lost.
func (t *Tracker) end(dst []Fact, key flowKey, l *live, e Event) []Fact {
	delete(t.live, key)
	f := l.flow
	if e.Type != EventDestroy {
		f.Reason, f.Inferred, f.End = deception.EndLost, true, e.At
		if !f.End.After(f.Start) {
			f.End = f.Start
		}
		return append(dst, Fact{Flow: f})
	}
	if !e.Start.IsZero() {
		f.Start = e.Start
	}
	f.Reason, f.Inferred = l.reason(e)
	f.End = endOf(e)
	if f.End.Before(f.Start) {
		f.End = f.Start
	}
	return append(dst, Fact{Flow: f})
}

// endOf takes the time that the kernel kept the closed connection off the time at
// which it forgot it.
func endOf(e Event) time.Time {
	if e.Stop.IsZero() {
		return e.At
	}
	if !e.HasTCP {
		return e.Stop
	}
	switch e.TCPState {
	case TCPTimeWait, TCPClose:
		return e.Stop.Add(-timeoutClosed)
	case TCPLastAck:
		return e.Stop.Add(-timeoutLastAck)
	}
	return e.Stop
}

// reason concludes how the flow ended from its last event and what was noted.
func (l *live) reason(e Event) (reason deception.EndReason, inferred bool) {
	switch e.Mark {
	case MarkClientClosed:
		return deception.EndClientClosed, false
	case MarkServiceClosed:
		return deception.EndServiceClosed, false
	case MarkClientReset:
		return deception.EndClientReset, false
	case MarkServiceReset:
		if !l.confirmed {
			return deception.EndRefused, false
		}
		return deception.EndServiceReset, false
	case MarkUnreachable:
		return deception.EndRefused, false
	}
	if l.closed != deception.EndNone {
		return l.closed, false
	}
	if e.Transport != deception.TCP {
		return deception.EndIdle, false
	}
	state := e.TCPState
	if !e.HasTCP {
		state = l.state // kernels before 5.9 leave it out
	}
	switch state {
	case TCPSynSent, TCPSynSent2:
		return deception.EndRefused, false // no answer: it could not be reached
	case TCPClose:
		return l.resetBy(e)
	case TCPFinWait, TCPCloseWait, TCPLastAck, TCPTimeWait:
		return deception.EndClientClosed, true
	}
	return deception.EndIdle, false
}

// resetBy concludes who sent the RST that no mark tells of. The kernel kills a
// connection at once whose first answer is a RST, or that is reset before any
// answer, so that no rule can mark it; its counters tell the two apart.
func (l *live) resetBy(e Event) (reason deception.EndReason, inferred bool) {
	switch {
	case e.Status&StatusSeenReply == 0 && e.ReplyCount.Packets > 0:
		return deception.EndRefused, false
	case e.Status&StatusSeenReply == 0 && e.OrigCount.Packets > 0:
		return deception.EndClientReset, false
	case l.confirmed, l.before == TCPSynRecv: // the latter is a half-open scan
		return deception.EndClientReset, true
	}
	return deception.EndRefused, true
}
