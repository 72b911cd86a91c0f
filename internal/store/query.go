package store

import (
	"bytes"
	"context"
	"slices"

	"decoynet/deception"
)

// query is a filter made into SQL.
type query struct {
	r *Reader
	f Filter
	// bindings are those that carry the wanted names, nil where names do not
	// matter.
	bindings []int64
}

// compile returns nil where no session can match.
func (r *Reader) compile(ctx context.Context, f Filter) (*query, error) {
	var ids []int64
	if f.named() {
		if err := r.loadBindings(ctx); err != nil {
			return nil, err
		}
		r.mu.Lock()
		for id, key := range r.bindings {
			if f.matchesKey(&key) {
				ids = append(ids, id)
			}
		}
		r.mu.Unlock()
		if len(ids) == 0 {
			return nil, nil
		}
	}
	return &query{r: r, f: f, bindings: ids}, nil
}

// forward calls do for all sessions, oldest first, until it returns false.
func (q *query) forward(ctx context.Context, do func(deception.Session) bool) error {
	if !q.f.ID.IsZero() {
		page, err := q.byID(ctx, []deception.SessionID{q.f.ID})
		each(page, do)
		return err
	}
	from, to, err := q.bounds(ctx)
	if err != nil {
		return err
	}
	older, err := q.older(ctx, from)
	if err != nil {
		return err
	}
	for ids := range slices.Chunk(older, pageRows) {
		page, err := q.byID(ctx, ids)
		if err != nil {
			return err
		}
		if !each(page, do) {
			return nil
		}
	}
	// The bounds leave both ends out; no session has the identifier from,
	// whose version is none, except where it is q.f.After.
	if bytes.Compare(q.f.After[:], from[:]) > 0 {
		from = q.f.After
	}
	for {
		page, last, err := q.page(ctx, from, to, "ASC")
		if err != nil {
			return err
		}
		if !each(page, do) || last.IsZero() {
			return nil
		}
		from = last
	}
}

// newest returns the last n sessions, oldest first.
func (q *query) newest(ctx context.Context, n int) ([]deception.Session, error) {
	var out []deception.Session
	collect := func(s deception.Session) bool {
		out = append(out, s)
		return len(out) < n
	}
	if !q.f.ID.IsZero() {
		err := q.forward(ctx, collect)
		return out, err
	}
	from, to, err := q.bounds(ctx)
	if err != nil {
		return nil, err
	}
	for more := true; more; {
		page, last, err := q.page(ctx, from, to, "DESC")
		if err != nil {
			return nil, err
		}
		more = each(page, collect) && !last.IsZero()
		to = last
	}
	if len(out) < n {
		older, err := q.older(ctx, from)
		if err != nil {
			return nil, err
		}
		slices.Reverse(older)
		for ids := range slices.Chunk(older, pageRows) {
			page, err := q.byID(ctx, ids)
			if err != nil {
				return nil, err
			}
			slices.Reverse(page)
			if !each(page, collect) {
				break
			}
		}
	}
	slices.Reverse(out)
	return out, nil
}

func each(page []deception.Session, do func(deception.Session) bool) bool {
	for _, s := range page {
		if !do(s) {
			return false
		}
	}
	return true
}

// bounds are the filter's. Where clocks differ, the newest identifier says
// nothing of when its session started.
func (q *query) bounds(ctx context.Context) (from, to deception.SessionID, err error) {
	from, to = q.f.bounds()
	if to == lastID {
		return from, to, nil
	}
	err = q.r.each(ctx, "SELECT 1 FROM session "+q.r.back.hint("session_skewed")+" WHERE flags & 4 = 4 LIMIT 1", nil,
		func([]any) error {
			to = lastID
			return nil
		})
	return from, to, err
}

// page reads the next sessions between two identifiers. It returns the last
// identifier it looked at, zero where there are no more.
func (q *query) page(ctx context.Context, from, to deception.SessionID, order string) ([]deception.Session, deception.SessionID, error) {
	index := ""
	if q.f.Running != nil && *q.f.Running {
		index = q.r.back.hint("session_running")
	}
	var a arguments
	text := "SELECT " + q.r.back.columns() + " FROM session " + index +
		" WHERE id > " + a.add(q.r.back.key(from)) + " AND id < " + a.add(q.r.back.key(to)) +
		" AND " + q.f.where(q.r.back, q.bindings, &a) +
		" ORDER BY id " + order + " LIMIT " + a.add(int64(pageRows))
	page, last, n, err := q.r.read(ctx, &q.f, text, a.values)
	if n < pageRows {
		last = deception.SessionID{}
	}
	return page, last, err
}

// byID reads the chosen ones of these sessions, in the order of identifiers.
func (q *query) byID(ctx context.Context, ids []deception.SessionID) ([]deception.Session, error) {
	var a arguments
	text := "SELECT " + q.r.back.columns() + " FROM session WHERE id IN (" + a.keys(q.r.back, ids) + ")" +
		" AND " + q.f.where(q.r.back, q.bindings, &a) + " ORDER BY id"
	page, _, _, err := q.r.read(ctx, &q.f, text, a.values)
	return page, err
}

// identifiers returns those of the newest sessions with the wanted names.
func (q *query) identifiers(ctx context.Context, most int) (out []deception.SessionID, err error) {
	var a arguments
	text := "SELECT id FROM session WHERE " + q.f.where(q.r.back, q.bindings, &a) + " ORDER BY id DESC LIMIT " + a.add(int64(most))
	err = q.r.each(ctx, text, a.values, func(values []any) error {
		row := rowReader{values: values}
		out = append(out, row.id())
		return row.err
	})
	return out, err
}

// older returns the identifiers before from of sessions that still ran at
// Since, in order.
func (q *query) older(ctx context.Context, from deception.SessionID) ([]deception.SessionID, error) {
	if q.f.Since.IsZero() {
		return nil, nil
	}
	var a arguments
	between := "id <= " + a.add(q.r.back.key(from)) + " AND id > " + a.add(q.r.back.key(q.f.After))
	since := "finish >= " + a.add(q.f.Since.UnixNano())
	text := "SELECT id FROM session " + q.r.back.hint("session_running") + " WHERE finish IS NULL AND " + between +
		" UNION SELECT id FROM session " + q.r.back.hint("session_long") +
		" WHERE finish - start > 120000000000 AND " + since + " AND " + between +
		" UNION SELECT id FROM session " + q.r.back.hint("session_skewed") +
		" WHERE flags & 4 = 4 AND " + since + " AND " + between +
		" ORDER BY id"
	var out []deception.SessionID
	err := q.r.each(ctx, text, a.values, func(values []any) error {
		row := rowReader{values: values}
		out = append(out, row.id())
		return row.err
	})
	return out, err
}
