package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"decoynet/deception"
)

const (
	pollEvery = 250 * time.Millisecond
	// pollBatches is how many batches of changes one poll takes.
	pollBatches = 32
)

// Watch yields what Sessions does and goes on, until ctx is done, with every
// session that starts or ends. Limit holds for the first part only.
//
// A session that starts and ends between two polls appears once, as ended. One
// that changes while the first part is read may appear twice in the same state.
func (r *Reader) Watch(ctx context.Context, f Filter) iter.Seq2[deception.Session, error] {
	return func(yield func(deception.Session, error) bool) {
		w := watch{r: r, f: f, shown: make(map[deception.SessionID]bool)}
		w.f.Limit = 0
		err := w.run(ctx, f, func(s deception.Session) bool { return yield(s, nil) })
		if err != nil && !errors.Is(err, errStop) && ctx.Err() == nil {
			yield(deception.Session{}, fmt.Errorf("watch sessions: %w", err))
		}
	}
}

// watch follows the table change.
type watch struct {
	r   *Reader
	f   Filter
	seq int64     // the newest change seen
	at  time.Time // when it was written
	// shown holds the newest sessions of the first part and whether they had
	// ended, until the first poll is over.
	shown map[deception.SessionID]bool
}

func (w *watch) run(ctx context.Context, first Filter, yield func(deception.Session) bool) error {
	var at int64
	if err := w.r.db.QueryRowContext(ctx, `SELECT coalesce(max(seq), 0), coalesce(max(at), 0) FROM change`).
		Scan(&w.seq, &at); err != nil {
		return err
	}
	w.at = time.Unix(0, at)
	if w.seq == 0 {
		w.at = time.Now()
	}
	recent := w.at.Add(-time.Minute)
	for s, err := range w.r.Sessions(ctx, first) {
		if err != nil {
			return err
		}
		if s.Running() || s.End.After(recent) {
			w.shown[s.ID] = !s.Running()
		}
		if !yield(s) {
			return nil
		}
	}
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		caughtUp, err := w.poll(ctx, func(s deception.Session) bool {
			if ended, ok := w.shown[s.ID]; ok && ended == !s.Running() {
				return true
			}
			return yield(s)
		})
		if err != nil {
			return err
		}
		if !caughtUp {
			continue
		}
		clear(w.shown)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// errStop says that the consumer wants no more.
var errStop = errors.New("stopped")

// poll yields the sessions of the next changes. It returns whether these were
// the newest, and errStop when yield returned false.
func (w *watch) poll(ctx context.Context, yield func(deception.Session) bool) (caughtUp bool, err error) {
	changes, err := w.changes(ctx)
	if err != nil || len(changes) == 0 {
		return true, err
	}
	caughtUp = len(changes) < pollBatches
	first, last := changes[0], changes[len(changes)-1]
	if first.seq == w.seq+1 {
		err = w.byChange(ctx, changes, yield)
	} else {
		err = w.bySearch(ctx, yield)
		caughtUp = false // there are newer ones by now
	}
	w.seq, w.at = last.seq, time.Unix(0, last.at)
	return caughtUp, err
}

// byChange yields the sessions that the changes name.
func (w *watch) byChange(ctx context.Context, changes []change, yield func(deception.Session) bool) error {
	q, err := w.r.compile(ctx, w.f)
	if err != nil || q == nil {
		return err
	}
	for part := range slices.Chunk(distinct(changes), pageRows) {
		page, err := q.byID(ctx, part)
		if err != nil {
			return err
		}
		if !each(page, yield) {
			return errStop
		}
	}
	return nil
}

// bySearch yields all sessions that ran since the newest change seen, when the
// changes behind it are no longer kept.
func (w *watch) bySearch(ctx context.Context, yield func(deception.Session) bool) error {
	f := w.f
	if f.Since.Before(w.at) {
		f.Since = w.at
	}
	for s, err := range w.r.Sessions(ctx, f) {
		if err != nil {
			return err
		}
		if !yield(s) {
			return errStop
		}
	}
	return nil
}

type change struct {
	seq, at  int64
	sessions []byte
}

func (w *watch) changes(ctx context.Context) ([]change, error) {
	rows, err := w.r.db.QueryContext(ctx,
		"SELECT seq, at, sessions FROM change WHERE seq > $1 ORDER BY seq LIMIT $2", w.seq, pollBatches)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []change
	for rows.Next() {
		var c change
		if err := rows.Scan(&c.seq, &c.at, &c.sessions); err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, rows.Err()
}

// distinct returns the identifiers in the changes, each once, in the order of
// their last appearance.
func distinct(changes []change) []deception.SessionID {
	seen := make(map[deception.SessionID]bool)
	var ids []deception.SessionID
	for _, c := range slices.Backward(changes) {
		for end := len(c.sessions); end >= 16; end -= 16 {
			id := deception.SessionID(c.sessions[end-16 : end])
			if !seen[id] {
				seen[id] = true
				ids = append(ids, id)
			}
		}
	}
	slices.Reverse(ids)
	return ids
}
