package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
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

const selectEvent = `SELECT id, time, kind, node, segment, decoy, session,
	source, source_port, destination, destination_port, message, seq FROM event WHERE `

// Events yields what the filter chooses, in the order in which the events
// happened by the clocks of their nodes, newest last. After an error it ends.
func (r *Reader) Events(ctx context.Context, f EventFilter) iter.Seq2[deception.Event, error] {
	return func(yield func(deception.Event, error) bool) {
		err := r.eventsUntil(ctx, f, lastSeq, func(e deception.Event) bool { return yield(e, nil) })
		if err != nil && !errors.Is(err, errStop) {
			yield(deception.Event{}, fmt.Errorf("read events: %w", err))
		}
	}
}

// WatchEvents yields what Events does and goes on, until ctx is done, with every
// event that comes. Limit holds for the first part only.
func (r *Reader) WatchEvents(ctx context.Context, f EventFilter) iter.Seq2[deception.Event, error] {
	return func(yield func(deception.Event, error) bool) {
		err := r.watchEvents(ctx, f, func(e deception.Event) bool { return yield(e, nil) })
		if err != nil && !errors.Is(err, errStop) && ctx.Err() == nil {
			yield(deception.Event{}, fmt.Errorf("watch events: %w", err))
		}
	}
}

const lastSeq = 1<<63 - 1

func (r *Reader) watchEvents(ctx context.Context, f EventFilter, yield func(deception.Event) bool) error {
	var seq int64
	if err := r.db.QueryRowContext(ctx, "SELECT coalesce(max(seq), 0) FROM event").Scan(&seq); err != nil {
		return err
	}
	if err := r.eventsUntil(ctx, f, seq, yield); err != nil {
		return err
	}
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		var a arguments
		text := selectEvent + "seq > " + a.add(seq) + " AND " + f.where(&a) + " ORDER BY seq LIMIT " + a.add(int64(pageRows))
		page, last, err := r.readEvents(ctx, text, a.values)
		if err != nil {
			return err
		}
		for _, e := range page {
			if !yield(e) {
				return errStop
			}
		}
		if len(page) > 0 {
			seq = last
		}
		if len(page) == pageRows {
			continue
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// eventsUntil yields the events that arrived no later than seq says. It returns
// errStop when yield returned false.
func (r *Reader) eventsUntil(ctx context.Context, f EventFilter, seq int64, yield func(deception.Event) bool) error {
	newest := f.Limit > 0 && f.After.IsZero()
	from, to, left := f.After, lastID, f.Limit
	var kept []deception.Event
	for {
		rows := pageRows
		if f.Limit > 0 {
			rows = min(rows, left)
		}
		var a arguments
		text := selectEvent + "id > " + a.add(r.back.key(from)) + " AND id < " + a.add(r.back.key(to)) +
			" AND seq <= " + a.add(seq) + " AND " + f.where(&a) + " ORDER BY id " + order(newest) + " LIMIT " + a.add(int64(rows))
		page, _, err := r.readEvents(ctx, text, a.values)
		if err != nil {
			return err
		}
		left -= len(page)
		done := len(page) < rows || f.Limit > 0 && left == 0
		if newest {
			kept = append(kept, page...)
			if !done {
				to = page[len(page)-1].ID
				continue
			}
			slices.Reverse(kept)
			page = kept
		}
		for _, e := range page {
			if !yield(e) {
				return errStop
			}
		}
		if done {
			return nil
		}
		from = page[len(page)-1].ID
	}
}

func order(newestFirst bool) string {
	if newestFirst {
		return "DESC"
	}
	return "ASC"
}

// readEvents runs a statement that begins with selectEvent, and returns the last
// row's number too.
func (r *Reader) readEvents(ctx context.Context, text string, args []any) (out []deception.Event, seq int64, err error) {
	err = r.each(ctx, text, args, func(values []any) error {
		row := rowReader{values: values}
		e := deception.Event{
			ID: row.id(), Time: row.time(), Kind: deception.EventKind(row.text()),
			Node: row.text(), Segment: row.text(), Decoy: row.text(), Session: row.id(),
			Source: row.addrPort(), Destination: row.addrPort(), Message: row.text(),
		}
		seq = row.number()
		out = append(out, e)
		return row.err
	})
	return out, seq, err
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
