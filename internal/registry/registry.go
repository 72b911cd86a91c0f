// Package registry keeps what a controller has to remember besides the record:
// documents with their revisions, nodes, join tokens, API users, the audit log
// and the certificate authority.
//
// It lives in an SQLite file, which one controller opens, or in a PostgreSQL
// database, which any number of controllers share. Both are spoken to with the same
// statements; only the migrations differ, in the names of two types.
//
// Every change is one transaction that begins by counting up a single row. The row's
// lock puts the writers of all controllers in one order, its value tells the others
// that there is something new, and the audit entry of a change is written in the same
// transaction: what is in the registry is in the log, and the other way round.
//
// Secrets of join tokens and API users are kept as SHA-256 only. The key of the
// authority is kept as it is: whoever reads the database can make node certificates.
package registry

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
	_ "modernc.org/sqlite" // the driver "sqlite"
)

// FileName is the name of the registry's file in a data directory.
const FileName = "controller.db"

// schemaVersion is the number of the newest migration.
const schemaVersion = 1

const (
	// pollEvery is how often a shared registry is asked whether another
	// controller changed it.
	pollEvery = 200 * time.Millisecond
	// connections bounds what one controller takes of a server's connections.
	connections = 8
	openTimeout = 30 * time.Second
)

// ErrSchema says that a newer version of decoynet has written the registry.
var ErrSchema = errors.New("written by a newer version of decoynet")

//go:embed migrations
var migrations embed.FS

// Registry is an open registry. Its methods may be called from any goroutine.
type Registry struct {
	db       *sql.DB
	postgres bool

	mu      sync.Mutex // guards changed
	changed chan struct{}
}

// IsURL tells whether a location names a PostgreSQL database rather than a file.
func IsURL(location string) bool {
	return strings.HasPrefix(location, "postgres://") || strings.HasPrefix(location, "postgresql://")
}

// Open opens the registry at the location, the path of an SQLite file or the
// postgres:// URL of a database, creates it where there is none, and brings its
// schema up to date. It returns ErrSchema for one of a newer program.
func Open(ctx context.Context, location string) (*Registry, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	r := &Registry{postgres: IsURL(location), changed: make(chan struct{})}
	shown, connect := location, openFile
	if r.postgres {
		shown, connect = redacted(location), openServer
	}
	var err error
	if r.db, err = connect(location); err != nil {
		return nil, fmt.Errorf("open the registry %s: %w", shown, err)
	}
	r.db.SetMaxOpenConns(connections)
	r.db.SetMaxIdleConns(connections)
	r.db.SetConnMaxIdleTime(time.Minute)
	if err := r.migrate(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open the registry %s: %w", shown, err), r.db.Close())
	}
	return r, nil
}

func openFile(path string) (*sql.DB, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	// The authority's key is in it, so it is its owner's only; SQLite gives -wal
	// and -shm the same mode.
	f, err := os.OpenFile(abs, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err == nil {
		err = f.Close()
	} else if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	if err != nil {
		return nil, err
	}
	slashed := filepath.ToSlash(abs)
	if !strings.HasPrefix(slashed, "/") { // C:/data becomes /C:/data
		slashed = "/" + slashed
	}
	u := url.URL{Scheme: "file", Path: slashed, RawQuery: url.Values{
		// Taking the lock at once, since a transaction that reads first and then
		// finds another writer has to be given up (SQLITE_BUSY_SNAPSHOT).
		"_txlock": {"immediate"},
		// FULL: a revocation or a used token must not come undone by a power failure.
		"_pragma": {"busy_timeout(10000)", "journal_mode(wal)", "synchronous(full)"},
	}.Encode()}
	return sql.Open("sqlite", u.String())
}

func openServer(location string) (*sql.DB, error) {
	cfg, err := pgx.ParseConfig(location)
	if err != nil {
		return nil, err // pgx leaves passwords out
	}
	if _, ok := cfg.RuntimeParams["application_name"]; !ok {
		cfg.RuntimeParams["application_name"] = "decoynet controller"
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	return stdlib.OpenDB(*cfg), nil
}

// redacted is the URL without its password.
func redacted(location string) string {
	u, err := url.Parse(location)
	if err != nil {
		return "postgres://..."
	}
	q := u.Query()
	if q.Has("password") {
		q.Set("password", "xxxxx")
		u.RawQuery = q.Encode()
	}
	return u.Redacted()
}

func (r *Registry) migrate(ctx context.Context) error {
	dir, dialect := "migrations/sqlite", goose.DialectSQLite3
	options := []goose.ProviderOption{
		goose.WithDisableGlobalRegistry(true),
		// The record may be in the same database and has a table of its own.
		goose.WithTableName("controller_schema"),
	}
	if r.postgres {
		dir, dialect = "migrations/postgres", goose.DialectPostgres
		// Two controllers may start at once on an empty database.
		locker, err := lock.NewPostgresSessionLocker(lock.WithLockID(lockID), lock.WithLockTimeout(1, 20))
		if err != nil {
			return fmt.Errorf("prepare the migrations' lock: %w", err)
		}
		options = append(options, goose.WithSessionLocker(locker))
	}
	files, err := fs.Sub(migrations, dir)
	if err != nil {
		return fmt.Errorf("read the embedded schema: %w", err)
	}
	provider, err := goose.NewProvider(dialect, r.db, files, options...)
	if err != nil {
		return fmt.Errorf("read the embedded schema: %w", err)
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("bring the schema up to date: %w", err)
	}
	version, err := provider.GetDBVersion(ctx)
	if err != nil {
		return fmt.Errorf("read the schema's version: %w", err)
	}
	if version > schemaVersion {
		return fmt.Errorf("its schema has version %d, this program knows %d: %w", version, schemaVersion, ErrSchema)
	}
	return nil
}

// lockID is the advisory lock under which migrations run: "decoynet" in ASCII.
const lockID = 0x6465636f796e6574

// Close closes the registry.
func (r *Registry) Close() error { return r.db.Close() }

// Ping tells whether the registry answers.
func (r *Registry) Ping(ctx context.Context) error {
	_, err := r.Change(ctx)
	return err
}

// Change returns a number that grows with every change, whichever controller
// makes it.
func (r *Registry) Change(ctx context.Context) (int64, error) {
	var n int64
	if err := r.db.QueryRowContext(ctx, "SELECT value FROM controller_change WHERE id = 1").Scan(&n); err != nil {
		return 0, fmt.Errorf("read the registry: %w", err)
	}
	return n, nil
}

// Wait returns as soon as the registry may have changed since Change returned
// seen: at once for a change by this controller, within pollEvery for one by
// another. It returns the context's error when that is done, and an error where
// the database does not answer.
func (r *Registry) Wait(ctx context.Context, seen int64) error {
	for {
		r.mu.Lock()
		changed := r.changed
		r.mu.Unlock()
		now, err := r.Change(ctx)
		if err != nil || now != seen {
			return err
		}
		var poll <-chan time.Time // an SQLite file has no other writer
		if r.postgres {
			poll = time.After(pollEvery)
		}
		select {
		case <-changed:
		case <-poll:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tx is a transaction that changes something.
type tx struct {
	ctx context.Context
	sql *sql.Tx
	r   *Registry
}

// change runs f in a transaction that is ordered with all others, and then wakes
// who waits. The transaction is rolled back where f fails.
func (r *Registry) change(ctx context.Context, f func(tx) error) error {
	return r.transact(ctx, func(t tx) error {
		if _, err := t.exec("UPDATE controller_change SET value = value + 1 WHERE id = 1"); err != nil {
			return err
		}
		return f(t)
	}, r.wake)
}

// transact runs f in a transaction, and then what is to follow its commit.
func (r *Registry) transact(ctx context.Context, f func(tx) error, then func()) error {
	inner, err := r.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := f(tx{ctx, inner, r}); err != nil {
		if rollback := inner.Rollback(); rollback != nil && !errors.Is(rollback, sql.ErrTxDone) {
			err = errors.Join(err, rollback)
		}
		return err
	}
	if err := inner.Commit(); err != nil {
		return err
	}
	then()
	return nil
}

func (r *Registry) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.changed)
	r.changed = make(chan struct{})
}

// exec returns how many rows the statement touched.
func (t tx) exec(statement string, args ...any) (int64, error) {
	res, err := t.sql.ExecContext(t.ctx, t.r.dialect(statement), args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func (t tx) row(statement string, args ...any) *sql.Row {
	return t.sql.QueryRowContext(t.ctx, t.r.dialect(statement), args...)
}

// dialect writes the statement's ? as PostgreSQL wants them. No statement here
// has one inside a literal.
func (r *Registry) dialect(statement string) string {
	if !r.postgres {
		return statement
	}
	var b strings.Builder
	for n := 1; ; n++ {
		before, after, found := strings.Cut(statement, "?")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		b.WriteByte('$')
		b.WriteString(strconv.Itoa(n))
		statement = after
	}
}

// stamp and moment keep a time as nanoseconds since 1970, with 0 for none.
func stamp(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func moment(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

// text makes a string that a database takes: valid UTF-8, without NUL (which
// PostgreSQL refuses), at most limit bytes.
func text(s string, limit int) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + " ..."
	}
	return s
}
