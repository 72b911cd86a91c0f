package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"decoynet/deception"
)

// read runs a statement that begins with selectSession. Besides the sessions
// it returns the last identifier and the number of rows, those that the filter
// rejects afterwards included.
func (r *Reader) read(ctx context.Context, f *Filter, text string, args ...any) (out []deception.Session, last deception.SessionID, n int, err error) {
	rows, err := r.db.QueryContext(ctx, text, args...)
	if err != nil {
		return nil, last, 0, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	var row sessionRow
	var bindings []int64
	for rows.Next() {
		if err := rows.Scan(row.fields()...); err != nil {
			return nil, last, 0, err
		}
		s, err := row.session()
		if err != nil {
			return nil, last, 0, err
		}
		n++
		last = s.ID
		if f.matches(&s) {
			out = append(out, s)
			bindings = append(bindings, row.binding)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, last, 0, err
	}
	return out, last, n, r.name(ctx, out, bindings)
}

// sessionRow is a row of the table session.
type sessionRow struct {
	id                                          []byte
	start                                       int64
	finish                                      *int64
	binding                                     int64
	source, sourceNAT, destination, serviceAddr any
	up, down                                    int64
	mode                                        deception.SourceMode
	reason                                      deception.EndReason
	sourceHead, destinationHead                 []byte
}

func (r *sessionRow) fields() []any {
	return []any{
		&r.id, &r.start, &r.finish, &r.binding, &r.source, &r.sourceNAT, &r.destination, &r.serviceAddr,
		&r.up, &r.down, &r.mode, &r.reason, &r.sourceHead, &r.destinationHead,
	}
}

func (r *sessionRow) session() (s deception.Session, err error) {
	if len(r.id) != len(s.ID) {
		return s, fmt.Errorf("session %x: %w", r.id, errIdentifier)
	}
	s.ID = deception.SessionID(r.id)
	s.Start = time.Unix(0, r.start)
	if r.finish != nil {
		s.End = time.Unix(0, *r.finish)
	}
	var errs [4]error
	s.Source, errs[0] = parseColumn(r.source)
	if r.sourceNAT == int64(0) {
		s.SourceNAT = s.Source
	} else {
		s.SourceNAT, errs[1] = parseColumn(r.sourceNAT)
	}
	s.Destination, errs[2] = parseColumn(r.destination)
	s.DestinationNAT, errs[3] = parseColumn(r.serviceAddr)
	if err := errors.Join(errs[:]...); err != nil {
		return s, fmt.Errorf("session %s: %w", s.ID, err)
	}
	s.SourceBytes, s.DestinationBytes = uint64(r.up), uint64(r.down)
	s.SourceMode, s.Reason = r.mode, r.reason
	s.SourceHead, s.DestinationHead = r.sourceHead, r.destinationHead
	return s, nil
}

var errIdentifier = errors.New("not a session identifier")

// name sets what the sessions have from their binding.
func (r *Reader) name(ctx context.Context, sessions []deception.Session, bindings []int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, id := range bindings {
		key, ok := r.bindings[id]
		if !ok {
			if err := r.loadBindingsLocked(ctx); err != nil {
				return err
			}
			key = r.bindings[id]
		}
		s := &sessions[i]
		s.Node, s.Segment, s.Decoy, s.Service = key.node, key.segment, key.decoy, key.service
		s.Transport, s.Path = key.transport, key.path
	}
	return nil
}

func (r *Reader) loadBindings(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.loadBindingsLocked(ctx)
}

func (r *Reader) loadBindingsLocked(ctx context.Context) error {
	rows, err := r.db.QueryContext(ctx, "SELECT id, node, segment, decoy, service, transport, path FROM binding")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		var k bindingKey
		if err := rows.Scan(&id, &k.node, &k.segment, &k.decoy, &k.service, &k.transport, &k.path); err != nil {
			return err
		}
		r.bindings[id] = k
	}
	return rows.Err()
}
