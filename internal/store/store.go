// Package store keeps sessions in an embedded SQLite file.
//
// One process writes the file, through a Recorder; any number of processes read
// it at the same time, through a Reader or with the plain sqlite3 tool, whose
// view "sessions" has one column per field in the names of the Elastic Common
// Schema. The file is in WAL mode, where readers and the writer do not wait for
// each other.
//
// Recording is made cheap: a relay carries ten thousand connections a second on
// two cores, so a session may cost no more than a few microseconds. The callers'
// side encodes a session into a chunk of memory under a short lock; a session
// that ends before its start was written becomes one row; a row is small because
// names live in the table binding; and its key, a UUIDv7, makes a second index
// on time needless.
package store

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
	"strings"
	"time"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
)

// FileName is the name of the store's file in a data directory.
const FileName = "decoynet.db"

// schemaVersion is what the newest migration leaves in PRAGMA user_version.
const schemaVersion = 1

// longSession is the duration beyond which an ended session enters the index
// session_long. The figure stands in the schema as well.
const longSession = 120 * time.Second

//go:embed migrations/*.sql
var migrations embed.FS

// dsn names a database to the driver. PRAGMAs stand in it because they hold for
// one connection only, and database/sql opens connections as it likes.
func dsn(path string, params url.Values) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("resolve %s: %w", path, err)
	}
	slashed := filepath.ToSlash(abs)
	if !strings.HasPrefix(slashed, "/") { // C:/data becomes /C:/data
		slashed = "/" + slashed
	}
	u := url.URL{Scheme: "file", Path: slashed, RawQuery: params.Encode()}
	return u.String(), nil
}

func writeParams(busy time.Duration) url.Values {
	return url.Values{
		"_pragma": {
			fmt.Sprintf("busy_timeout(%d)", busy.Milliseconds()),
			// Before the first table, or it does nothing.
			"auto_vacuum(incremental)",
			"journal_mode(wal)",
			// In WAL mode NORMAL loses at most the newest commits at a power
			// failure and never the file; FULL would be one fsync per batch.
			"synchronous(normal)",
			// A checkpoint cuts the WAL back to this, after a reader held it.
			"journal_size_limit(16777216)",
			"cache_size(-8192)",
		},
	}
}

// prepare creates the file where there is none, and brings its schema up to
// date. What intruders typed (passwords among it) is nobody else's business,
// so the file is for its owner only; SQLite gives -wal and -shm the same mode.
func prepare(ctx context.Context, path string) (err error) {
	if err := create(path); err != nil {
		return fmt.Errorf("create the session store: %w", err)
	}
	name, err := dsn(path, writeParams(10*time.Second))
	if err != nil {
		return err
	}
	db, err := sql.Open("sqlite", name)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()

	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fmt.Errorf("read the embedded schema: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, files, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("read the embedded schema: %w", err)
	}
	if err := checkVersion(ctx, db, path); err != nil {
		return err
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("bring the schema of %s up to date: %w", path, err)
	}
	return nil
}

// create makes an empty file where there is none. It never opens one that
// exists: closing any descriptor of a file gives up the locks that SQLite holds
// on it elsewhere in this process (POSIX, fcntl).
func create(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil
	case err != nil:
		return err
	}
	return f.Close()
}

// checkVersion refuses a file that a newer program has written.
func checkVersion(ctx context.Context, db *sql.DB, path string) error {
	var version int
	if err := db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	if version > schemaVersion {
		return fmt.Errorf("open %s: its schema has version %d, this program knows %d: %w",
			path, version, schemaVersion, ErrSchema)
	}
	return nil
}

// ErrSchema says that the file's schema is not the one this program works with.
var ErrSchema = errors.New("written by another version of decoynet")

// Primary result codes of SQLite, https://www.sqlite.org/rescode.html.
const (
	codeBusy       = 5
	codeLocked     = 6
	codeReadOnly   = 8
	codeFull       = 13
	codeCantOpen   = 14
	codeTooBig     = 18
	codeConstraint = 19
	codeMismatch   = 20
	codeRange      = 25
)

// resultCode returns the primary result code of an error of SQLite, or 0.
func resultCode(err error) int {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return 0
	}
	return e.Code() & 0xff
}
