package store

import (
	"context"
	"slices"
	"time"

	"decoynet/deception"
)

// listing reads a table whose rows have an identifier, in the order of which they
// are listed, and a number seq that says when they were last written.
type listing[T any] struct {
	r     *Reader
	table string
	query string // SELECT ... FROM table
	// where writes the conditions, without those on identifier and number.
	where func(a *arguments) string
	// by tells how what the conditions choose is found in the order of identifiers
	// without reading the whole table; nil: that is the way.
	by func(ctx context.Context) (route, error)
	// limit is the greatest number of things: the newest ones or, with after,
	// the oldest behind it.
	limit int
	after deception.SessionID

	parse func(row *rowReader) T // takes all columns but seq, which is the last
	id    func(*T) deception.SessionID
	keep  func(*T) bool // what the conditions do not say; nil: all
	// fill sets what things have from other tables; nil: nothing.
	fill func(ctx context.Context, things []T) error
}

// route is an index and what it wants said before it can be used. It repeats or
// narrows the conditions.
type route struct {
	index string // empty: as the database likes
	where func(a *arguments) string
}

const lastSeq = 1<<63 - 1

// watch yields what there is, and then what is written, until ctx is done. It
// returns errStop when yield returned false.
func (l *listing[T]) watch(ctx context.Context, yield func(T) bool) error {
	var seq int64
	if err := l.r.db.QueryRowContext(ctx, "SELECT coalesce(max(seq), 0) FROM "+l.table).Scan(&seq); err != nil {
		return err
	}
	if err := l.until(ctx, seq, yield); err != nil {
		return err
	}
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		var a arguments
		text := l.query + l.r.back.hint("") + " WHERE seq > " + a.add(seq) + " AND " + l.where(&a) +
			" ORDER BY seq LIMIT " + a.add(int64(pageRows))
		p, err := l.read(ctx, text, a.values)
		if err != nil {
			return err
		}
		if !handed(p.things, yield) {
			return errStop
		}
		if p.rows > 0 {
			seq = p.seq
		}
		if p.rows == pageRows {
			continue
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// until yields what was last written no later than seq says, in the order of
// identifiers. It returns errStop when yield returned false.
func (l *listing[T]) until(ctx context.Context, seq int64, yield func(T) bool) error {
	newest := l.limit > 0 && l.after.IsZero()
	from, to, left := l.after, lastID, l.limit
	var kept []T
	way, err := l.route(ctx)
	if err != nil {
		return err
	}
	for {
		rows := pageRows
		if l.limit > 0 && l.keep == nil {
			rows = min(rows, left)
		}
		var a arguments
		text := l.query + way.index + " WHERE id > " + a.add(l.r.back.key(from)) + " AND id < " + a.add(l.r.back.key(to)) +
			" AND seq <= " + a.add(seq) + " AND " + way.where(&a) + " AND " + l.where(&a) + " ORDER BY id " + order(newest) + " LIMIT " + a.add(int64(rows))
		p, err := l.read(ctx, text, a.values)
		if err != nil {
			return err
		}
		if l.limit > 0 {
			p.things = p.things[:min(len(p.things), left)]
			left -= len(p.things)
		}
		done := p.rows < rows || l.limit > 0 && left == 0
		if newest {
			to = p.last
			if kept = append(kept, p.things...); !done {
				continue
			}
			slices.Reverse(kept)
			p.things = kept
		}
		if !handed(p.things, yield) {
			return errStop
		}
		if done {
			return nil
		}
		from = p.last
	}
}

// route is the listing's, with the hint to the database as its index.
func (l *listing[T]) route(ctx context.Context) (way route, err error) {
	if l.by != nil {
		if way, err = l.by(ctx); err != nil {
			return way, err
		}
	}
	if way.index != "" {
		way.index = l.r.back.hint(way.index)
	}
	if way.where == nil {
		way.where = func(*arguments) string { return "TRUE" }
	}
	return way, nil
}

func handed[T any](things []T, yield func(T) bool) bool {
	for _, v := range things {
		if !yield(v) {
			return false
		}
	}
	return true
}

func order(newestFirst bool) string {
	if newestFirst {
		return "DESC"
	}
	return "ASC"
}

// page is what a statement yields.
type page[T any] struct {
	things []T
	rows   int // those that keep refuses included
	last   deception.SessionID
	seq    int64
}

// read runs a statement that begins with the query.
func (l *listing[T]) read(ctx context.Context, text string, args []any) (p page[T], err error) {
	err = l.r.each(ctx, text, args, func(values []any) error {
		row := rowReader{values: values}
		v := l.parse(&row)
		p.rows, p.last, p.seq = p.rows+1, l.id(&v), row.number()
		p.things = append(p.things, v)
		return row.err
	})
	if err == nil && l.fill != nil {
		err = l.fill(ctx, p.things)
	}
	if l.keep != nil {
		p.things = slices.DeleteFunc(p.things, func(v T) bool { return !l.keep(&v) })
	}
	return p, err
}
