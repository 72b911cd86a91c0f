package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"slices"
	"sync"
	"time"

	"decoynet/deception"
)

// ErrNoStore says that there is no store at the path.
var ErrNoStore = errors.New("no sessions recorded here yet; is --data right?")

// pageRows is how many sessions one statement reads. Between statements no
// transaction is open: one held while a listing waits in a pager would keep
// the write-ahead log from being used again, and the disk would fill.
const pageRows = 500

// Reader reads a store's file, also while another process writes it.
type Reader struct {
	db   *sql.DB
	path string

	mu       sync.Mutex // guards bindings
	bindings map[int64]bindingKey
}

// OpenReader opens the file for reading. It returns ErrNoStore where there is
// no file or nothing was ever written to it, and ErrSchema where another
// version of the program writes it.
func OpenReader(path string) (*Reader, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", path, ErrNoStore)
	} else if err != nil {
		return nil, fmt.Errorf("open the session store: %w", err)
	}
	name, err := dsn(path, url.Values{
		"mode":    {"ro"},
		"_pragma": {"busy_timeout(5000)", "query_only(1)"},
	})
	if err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", name)
	if err != nil {
		return nil, fmt.Errorf("open the session store: %w", err)
	}
	r := &Reader{db: db, path: path, bindings: make(map[int64]bindingKey)}
	if err := r.check(); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return r, nil
}

func (r *Reader) check() error {
	var version int
	err := r.db.QueryRow("PRAGMA user_version").Scan(&version)
	switch resultCode(err) {
	case codeCantOpen, codeReadOnly: // it reads along in the files -wal and -shm
		return fmt.Errorf("open %s: %w; only the user who runs decoynet may read it", r.path, err)
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", r.path, err)
	}
	switch version {
	case schemaVersion:
		return nil
	case 0:
		return fmt.Errorf("%s: %w", r.path, ErrNoStore)
	}
	return fmt.Errorf("open %s: its schema has version %d, this program knows %d: %w",
		r.path, version, schemaVersion, ErrSchema)
}

// Close closes the file.
func (r *Reader) Close() error { return r.db.Close() }

// Sessions yields what the filter chooses, in the order of the sessions' start,
// newest last. After an error it ends. Sessions that start or end meanwhile may
// or may not be among them.
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
// sessions included.
type Total struct {
	Node, Segment, Decoy, Service string
	Transport                     deception.Transport
	Path                          deception.Path

	Ended, Running                int64
	SourceBytes, DestinationBytes int64     // of ended sessions
	Last                          time.Time // start of the newest ended session
}

// Totals returns the totals of every binding, in the order of their names.
func (r *Reader) Totals(ctx context.Context) ([]Total, error) {
	rows, err := r.db.QueryContext(ctx, `
		SELECT node, segment, decoy, service, transport, path, ended, coalesce(running, 0),
			source_bytes, destination_bytes, last
		FROM binding LEFT JOIN (
			SELECT binding AS b, count(*) AS running
			FROM session INDEXED BY session_running WHERE finish IS NULL GROUP BY binding
		) ON b = id
		ORDER BY node, segment, decoy, service, transport, path`)
	if err != nil {
		return nil, fmt.Errorf("read totals: %w", err)
	}
	defer rows.Close()
	var out []Total
	for rows.Next() {
		var t Total
		var last int64
		if err := rows.Scan(&t.Node, &t.Segment, &t.Decoy, &t.Service, &t.Transport, &t.Path,
			&t.Ended, &t.Running, &t.SourceBytes, &t.DestinationBytes, &last); err != nil {
			return nil, fmt.Errorf("read totals: %w", err)
		}
		if last != 0 {
			t.Last = time.Unix(0, last)
		}
		out = append(out, t)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read totals: %w", err)
	}
	return out, nil
}

// query is a filter made into SQL.
type query struct {
	r    *Reader
	f    Filter
	cond string
	args []any
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
	q := &query{r: r, f: f}
	q.cond, q.args = f.where(ids)
	if q.cond == "" {
		q.cond = "TRUE"
	}
	return q, nil
}

// forward calls do for all sessions, oldest first, until it returns false.
func (q *query) forward(ctx context.Context, do func(deception.Session) bool) error {
	if !q.f.ID.IsZero() {
		page, _, err := q.byID(ctx, []deception.SessionID{q.f.ID})
		each(page, do)
		return err
	}
	from, to := q.f.bounds()
	older, err := q.older(ctx, from)
	if err != nil {
		return err
	}
	for ids := range slices.Chunk(older, pageRows) {
		page, _, err := q.byID(ctx, ids)
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
	from, to := q.f.bounds()
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
			page, _, err := q.byID(ctx, ids)
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

const selectSession = `SELECT id, start, finish, binding, source, source_nat, destination, destination_nat,
	source_bytes, destination_bytes, source_mode, reason, source_head, destination_head FROM session `

// page reads the next sessions between two identifiers. It returns the last
// identifier it looked at, zero where there are no more.
func (q *query) page(ctx context.Context, from, to deception.SessionID, order string) ([]deception.Session, deception.SessionID, error) {
	index := ""
	if q.f.Running != nil && *q.f.Running {
		index = "INDEXED BY session_running "
	}
	text := selectSession + index + "WHERE id > ? AND id < ? AND " + q.cond + " ORDER BY id " + order + " LIMIT ?"
	args := append([]any{from[:], to[:]}, q.args...)
	page, last, n, err := q.r.read(ctx, &q.f, text, append(args, pageRows)...)
	if n < pageRows {
		last = deception.SessionID{}
	}
	return page, last, err
}

// byID reads the chosen ones of these sessions, in the order of identifiers.
func (q *query) byID(ctx context.Context, ids []deception.SessionID) ([]deception.Session, deception.SessionID, error) {
	args := make([]any, 0, len(ids)+len(q.args))
	for i := range ids {
		args = append(args, ids[i][:])
	}
	text := selectSession + "WHERE id IN (" + marks(len(ids)) + ") AND " + q.cond + " ORDER BY id"
	page, last, _, err := q.r.read(ctx, &q.f, text, append(args, q.args...)...)
	return page, last, err
}

// older returns the identifiers before from of sessions that still ran at
// Since, in order.
func (q *query) older(ctx context.Context, from deception.SessionID) ([]deception.SessionID, error) {
	if q.f.Since.IsZero() {
		return nil, nil
	}
	rows, err := q.r.db.QueryContext(ctx, `
		SELECT id FROM session INDEXED BY session_running WHERE finish IS NULL AND id <= ?1 AND id > ?2
		UNION ALL
		SELECT id FROM session INDEXED BY session_long
		WHERE finish - start > 120000000000 AND finish >= ?3 AND id <= ?1 AND id > ?2
		ORDER BY id`, from[:], q.f.After[:], q.f.Since.UnixNano())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []deception.SessionID
	for rows.Next() {
		var id []byte
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		if len(id) == len(deception.SessionID{}) {
			out = append(out, deception.SessionID(id))
		}
	}
	return out, rows.Err()
}
