package store

import (
	"context"
	"database/sql"
	"fmt"
	"iter"
	"sync"
	"time"

	"decoynet/deception"
)

// pageRows is how many sessions one statement reads. Between statements no
// transaction is open: one held while a listing waits in a pager would keep
// the write-ahead log from being used again, and the disk would fill.
const pageRows = 500

// Reader reads a store, also while other processes write it.
type Reader struct {
	db   *sql.DB
	back backend

	mu       sync.Mutex // guards the rest
	bindings map[int64]bindingKey
	rules    map[int64]deception.Alert
	lastRule int64 // the greatest number in rules
}

// OpenReader opens a store for reading: the path of a file, or the postgres://
// address of a database. It returns ErrNoStore where there is none or nothing
// was ever written to it, and ErrSchema where another version of the program
// writes it.
func OpenReader(path string) (*Reader, error) {
	back, err := choose(path)
	if err != nil {
		return nil, fmt.Errorf("open the session store: %w", err)
	}
	db, err := back.read()
	if err != nil {
		return nil, err
	}
	return &Reader{db: db, back: back, bindings: make(map[int64]bindingKey), rules: make(map[int64]deception.Alert)}, nil
}

// Close closes the store.
func (r *Reader) Close() error { return r.db.Close() }

// Sessions yields what the filter chooses, in the order of the sessions' start
// by the clocks of the nodes that they began at, newest last. After an error it
// ends. Sessions that start or end meanwhile may or may not be among them.
func (r *Reader) Sessions(ctx context.Context, f Filter) iter.Seq2[deception.Session, error] {
	return func(yield func(deception.Session, error) bool) {
		fail := func(err error) {
			yield(deception.Session{}, fmt.Errorf("read sessions: %w", err))
		}
		q, err := r.compile(ctx, f)
		if err != nil || q == nil {
			if err != nil {
				fail(err)
			}
			return
		}
		if f.Limit > 0 && f.After.IsZero() {
			newest, err := q.newest(ctx, f.Limit)
			if err != nil {
				fail(err)
				return
			}
			for _, s := range newest {
				if !yield(s, nil) {
					return
				}
			}
			return
		}
		left := f.Limit
		if err := q.forward(ctx, func(s deception.Session) bool {
			left--
			return yield(s, nil) && left != 0
		}); err != nil {
			fail(err)
		}
	}
}

// Total is what one binding has seen since the store was created, deleted
// sessions included. A session counts with at most 16 TiB each way.
type Total struct {
	Node, Segment, Decoy, Service string
	Transport                     deception.Transport
	Path                          deception.Path

	Ended, Running                int64
	SourceBytes, DestinationBytes int64     // of ended sessions
	Last                          time.Time // start of the newest ended session
}

func (t *Total) sameBinding(o *Total) bool {
	return t.Node == o.Node && t.Segment == o.Segment && t.Decoy == o.Decoy && t.Service == o.Service &&
		t.Transport == o.Transport && t.Path == o.Path
}

func (t *Total) add(o *Total) {
	const most = 1 << 62 // as totalsUpdate has it
	t.Ended, t.Running = t.Ended+o.Ended, t.Running+o.Running
	t.SourceBytes = min(t.SourceBytes, most) + min(o.SourceBytes, most-1)
	t.DestinationBytes = min(t.DestinationBytes, most) + min(o.DestinationBytes, most-1)
	t.SourceBytes, t.DestinationBytes = min(t.SourceBytes, most), min(t.DestinationBytes, most)
	if o.Last.After(t.Last) {
		t.Last = o.Last
	}
}

// Totals returns the totals of every binding, in the order of their names.
func (r *Reader) Totals(ctx context.Context) ([]Total, error) {
	var out []Total
	err := r.each(ctx, `
		SELECT node, segment, decoy, service, transport, path, ended, coalesce(running, 0),
			source_bytes, destination_bytes, last
		FROM binding LEFT JOIN (
			SELECT binding AS b, count(*) AS running
			FROM session `+r.back.hint("session_running")+` WHERE finish IS NULL GROUP BY binding
		) AS r ON b = id
		WHERE ended > 0 OR running > 0
		ORDER BY node, segment, decoy, service, transport, path`, nil, func(values []any) error {
		row := rowReader{values: values}
		t := Total{
			Node: row.text(), Segment: row.text(), Decoy: row.text(), Service: row.text(),
			Transport: deception.Transport(row.number()), Path: deception.Path(row.text()),
			Ended: row.number(), Running: row.number(),
			SourceBytes: row.number(), DestinationBytes: row.number(), Last: row.time(),
		}
		// What known scanners did stands in rows of its own, next to the others.
		if n := len(out); n > 0 && out[n-1].sameBinding(&t) {
			out[n-1].add(&t)
		} else {
			out = append(out, t)
		}
		return row.err
	})
	if err != nil {
		return nil, fmt.Errorf("read totals: %w", err)
	}
	return out, nil
}
