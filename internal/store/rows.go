package store

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"decoynet/deception"
)

// stored is a session as its row holds it: without what its binding does.
type stored struct {
	deception.Session
	binding int64
	flags   uint8
	origin  int64
	dirty   bool // not as in the database any more
}

var errRow = errors.New("not a session's row")

// parseSession reads the values of dialect.columns.
func parseSession(values []any) (s stored, err error) {
	r := rowReader{values: values}
	s.ID = r.id()
	s.Start, s.End = r.time(), r.time()
	s.binding = r.number()
	s.Source = r.endpoint()
	s.SourceNAT = r.sourceNAT(s.Source)
	s.Destination, s.DestinationNAT = r.endpoint(), r.endpoint()
	s.SourceBytes, s.DestinationBytes = uint64(r.number()), uint64(r.number())
	s.SourceMode = min(deception.SourceMode(r.number()), deception.SourceMasquerade)
	s.Reason = deception.EndReason(r.number())
	s.SourceHead, s.DestinationHead = r.bytes(), r.bytes()
	s.flags, s.origin = uint8(r.number()), r.number()
	if r.err != nil {
		return s, fmt.Errorf("session %s: %w", s.ID, r.err)
	}
	return s, nil
}

// rowReader takes the values of a row one after the other, as the drivers
// give them: int64, []byte, string or nil.
type rowReader struct {
	values []any
	err    error
}

func (r *rowReader) next() any {
	v := r.values[0]
	r.values = r.values[1:]
	return v
}

func (r *rowReader) fail(v any) {
	if r.err == nil {
		r.err = fmt.Errorf("%v: %w", v, errRow)
	}
}

func (r *rowReader) id() (id deception.SessionID) {
	switch v := r.next().(type) {
	case []byte:
		if len(v) != len(id) {
			r.fail(v)
			break
		}
		id = deception.SessionID(v)
	case string: // database/sql has no type for a UUID
		var err error
		if id, err = deception.ParseSessionID(v); err != nil {
			r.fail(v)
		}
	case nil:
	default:
		r.fail(v)
	}
	return id
}

func (r *rowReader) number() int64 {
	switch v := r.next().(type) {
	case int64:
		return v
	case nil:
	default:
		r.fail(v)
	}
	return 0
}

func (r *rowReader) time() time.Time {
	if n := r.number(); n != 0 {
		return time.Unix(0, n)
	}
	return time.Time{}
}

func (r *rowReader) text() string {
	switch v := r.next().(type) {
	case string:
		return v
	case nil:
	default:
		r.fail(v)
	}
	return ""
}

func (r *rowReader) bytes() []byte {
	switch v := r.next().(type) {
	case []byte:
		return v
	case nil:
	default:
		r.fail(v)
	}
	return nil
}

func (r *rowReader) endpoint() netip.AddrPort {
	a, err := parseColumn(r.next())
	if err != nil && r.err == nil {
		r.err = err
	}
	return a
}

// sourceNAT is an endpoint for which SQLite writes 0 where it is the source.
func (r *rowReader) sourceNAT(source netip.AddrPort) netip.AddrPort {
	if r.values[0] == int64(0) {
		r.next()
		return source
	}
	return r.endpoint()
}

// read runs a statement that selects dialect.columns of session. Besides the
// sessions it returns the last identifier and the number of rows, those that
// the filter rejects afterwards included.
func (r *Reader) read(ctx context.Context, f *Filter, text string, args []any) (out []deception.Session, last deception.SessionID, n int, err error) {
	var bindings []int64
	err = r.each(ctx, text, args, func(values []any) error {
		s, err := parseSession(values)
		if err != nil {
			return err
		}
		n++
		last = s.ID
		if f.matches(&s.Session) {
			out = append(out, s.Session)
			bindings = append(bindings, s.binding)
		}
		return nil
	})
	if err != nil {
		return nil, last, 0, err
	}
	if err := r.name(ctx, out, bindings); err != nil {
		return nil, last, 0, err
	}
	return out, last, n, r.analyse(ctx, out)
}

// each calls row for every row of a query.
func (r *Reader) each(ctx context.Context, text string, args []any, row func(values []any) error) (err error) {
	rows, err := r.db.QueryContext(ctx, text, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	columns, err := rows.Columns()
	if err != nil {
		return err
	}
	values, dest := make([]any, len(columns)), make([]any, len(columns))
	for i := range values {
		dest[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(dest...); err != nil {
			return err
		}
		if err := row(values); err != nil {
			return err
		}
	}
	return rows.Err()
}

// name sets what the sessions have from their binding.
func (r *Reader) name(ctx context.Context, sessions []deception.Session, bindings []int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, id := range bindings {
		key, err := r.bindingLocked(ctx, id)
		if err != nil {
			return err
		}
		s := &sessions[i]
		s.Node, s.Segment, s.Decoy, s.Service = key.node, key.segment, key.decoy, key.service
		s.Transport, s.Path, s.Scanner = key.transport, key.path, key.scanner
	}
	return nil
}

func (r *Reader) bindingLocked(ctx context.Context, id int64) (bindingKey, error) {
	key, ok := r.bindings[id]
	if !ok {
		if err := r.loadBindingsLocked(ctx); err != nil {
			return key, err
		}
		key = r.bindings[id]
	}
	return key, nil
}

func (r *Reader) loadBindings(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.loadBindingsLocked(ctx)
}

func (r *Reader) loadBindingsLocked(ctx context.Context) error {
	rows, err := r.db.QueryContext(ctx, "SELECT id, node, segment, decoy, service, transport, path, scanner FROM binding")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		var k bindingKey
		if err := rows.Scan(&id, &k.node, &k.segment, &k.decoy, &k.service, &k.transport, &k.path, &k.scanner); err != nil {
			return err
		}
		r.bindings[id] = k
	}
	return rows.Err()
}
