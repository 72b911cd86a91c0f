package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"strings"
	"time"

	"decoynet/deception"
)

// EventFilter chooses events. Zero fields choose all.
type EventFilter struct {
	Since time.Time           // events that happened at or after it
	Node  string              // where they happened
	Kind  deception.EventKind // what happened
	// Limit is the greatest number of events: the newest ones or, with After,
	// the oldest behind it.
	Limit int
	// After chooses events that sort behind the identifier, which is the way
	// to read on where a listing stopped.
	After deception.SessionID
}

// where writes the filter's conditions, without those on the identifier.
func (f *EventFilter) where(a *arguments) string {
	parts := []string{"TRUE"}
	if !f.Since.IsZero() {
		parts = append(parts, "time >= "+a.add(f.Since.UnixNano()))
	}
	if f.Node != "" {
		parts = append(parts, "node = "+a.add(f.Node))
	}
	if f.Kind != "" {
		parts = append(parts, "kind = "+a.add(string(f.Kind)))
	}
	return strings.Join(parts, " AND ")
}

// eventListing reads the table event.
func (r *Reader) eventListing(f EventFilter) *listing[deception.Event] {
	return &listing[deception.Event]{
		r: r, table: "event",
		query: `SELECT id, time, kind, node, segment, decoy, session,
			source, source_port, destination, destination_port, message, seq FROM event `,
		where: f.where, limit: f.Limit, after: f.After,
		parse: func(row *rowReader) deception.Event {
			return deception.Event{
				ID: row.id(), Time: row.time(), Kind: deception.EventKind(row.text()),
				Node: row.text(), Segment: row.text(), Decoy: row.text(), Session: row.id(),
				Source: row.addrPort(), Destination: row.addrPort(), Message: row.text(),
			}
		},
		id: func(e *deception.Event) deception.SessionID { return e.ID },
	}
}

// Events yields what the filter chooses, in the order in which the events
// happened by the clocks of their nodes, newest last. After an error it ends.
func (r *Reader) Events(ctx context.Context, f EventFilter) iter.Seq2[deception.Event, error] {
	return func(yield func(deception.Event, error) bool) {
		err := r.eventListing(f).until(ctx, lastSeq, func(e deception.Event) bool { return yield(e, nil) })
		if err != nil && !errors.Is(err, errStop) {
			yield(deception.Event{}, fmt.Errorf("read events: %w", err))
		}
	}
}

// WatchEvents yields what Events does and goes on, until ctx is done, with every
// event that comes. Limit holds for the first part only.
func (r *Reader) WatchEvents(ctx context.Context, f EventFilter) iter.Seq2[deception.Event, error] {
	return func(yield func(deception.Event, error) bool) {
		err := r.eventListing(f).watch(ctx, func(e deception.Event) bool { return yield(e, nil) })
		if err != nil && !errors.Is(err, errStop) && ctx.Err() == nil {
			yield(deception.Event{}, fmt.Errorf("watch events: %w", err))
		}
	}
}

// addrPort is an address, as text, and a port.
func (r *rowReader) addrPort() netip.AddrPort {
	host, port := r.text(), r.number()
	if host == "" {
		return netip.AddrPort{}
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		r.fail(host)
	}
	return netip.AddrPortFrom(addr, uint16(port))
}
