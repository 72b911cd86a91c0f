package store

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"decoynet/deception"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
)

// sqliteVersion is what the newest migration leaves in PRAGMA user_version.
const sqliteVersion = 5

// busyTimeout is short because the recorder itself tries again, and has to
// notice in between that it is to stop.
const busyTimeout = 250 * time.Millisecond

// sqliteBackend is a file in WAL mode, where readers and the writer do not wait
// for each other.
type sqliteBackend struct{ path string }

func (b *sqliteBackend) String() string { return b.path }

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
func (b *sqliteBackend) prepare(ctx context.Context) (err error) {
	if err := create(b.path); err != nil {
		return fmt.Errorf("create the session store: %w", err)
	}
	name, err := dsn(b.path, writeParams(10*time.Second))
	if err != nil {
		return err
	}
	db, err := sql.Open("sqlite", name)
	if err != nil {
		return fmt.Errorf("open %s: %w", b.path, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var version int
	if err := db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return fmt.Errorf("open %s: %w", b.path, err)
	}
	if version > sqliteVersion {
		return schemaError(b, version, sqliteVersion)
	}
	m, err := migrator(goose.DialectSQLite3, db, "migrations", goose.DefaultTablename)
	if err != nil {
		return err
	}
	if _, err := m.Up(ctx); err != nil {
		return fmt.Errorf("bring the schema of %s up to date: %w", b.path, err)
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

func (b *sqliteBackend) read() (*sql.DB, error) {
	if _, err := os.Stat(b.path); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", b.path, ErrNoStore)
	} else if err != nil {
		return nil, fmt.Errorf("open the session store: %w", err)
	}
	name, err := dsn(b.path, url.Values{
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
	if err := b.check(db); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

func (b *sqliteBackend) check(db *sql.DB) error {
	var version int
	err := db.QueryRow("PRAGMA user_version").Scan(&version)
	switch resultCode(err) {
	case codeCantOpen, codeReadOnly: // it reads along in the files -wal and -shm
		return fmt.Errorf("open %s: %w; only the user who runs decoynet may read it", b.path, err)
	}
	switch {
	case err != nil:
		return fmt.Errorf("open %s: %w", b.path, err)
	case version == 0:
		return fmt.Errorf("%s: %w", b.path, ErrNoStore)
	case version != sqliteVersion:
		return schemaError(b, version, sqliteVersion)
	}
	return nil
}

func (b *sqliteBackend) columns() string {
	return `id, start, finish, binding, source, source_nat, destination, destination_nat,
		source_bytes, destination_bytes, source_mode, reason, source_head, destination_head, flags, origin`
}

func (b *sqliteBackend) endpoint(column string) string { return column }

// hint is needed because without statistics SQLite takes the primary key
// rather than a partial index that leads to a handful of rows.
func (b *sqliteBackend) hint(index string) string {
	if index == "" {
		return "NOT INDEXED"
	}
	return "INDEXED BY " + index
}

func (b *sqliteBackend) key(id deception.SessionID) any { return id[:] }

func (b *sqliteBackend) within(a *arguments, network netip.Prefix) string {
	if !network.Addr().Is4() {
		return "typeof(source) = 'text'"
	}
	r := deception.RangeOf(network)
	between := "source BETWEEN " + a.add(endpoint4(r.From, 0)) + " AND " + a.add(endpoint4(r.To, 65535))
	if r.From.IsUnspecified() { // column writes port 0 of it as text
		return "(" + between + " OR typeof(source) = 'text')"
	}
	return between
}

// from repeats the index's expression word for word, or it would not be used. The
// order of texts is not that of IPv6 addresses, and 0.0.0.0 is in neither order.
func (b *sqliteBackend) from(a *arguments, network netip.Prefix) string {
	const address = "CASE typeof(source) WHEN 'integer' THEN source >> 16 ELSE substr(source, 1, instr(source, ' ') - 1) END"
	r := deception.RangeOf(network)
	switch {
	case r.From.IsUnspecified():
		return ""
	case !r.From.Is4() && r.From == r.To:
		return address + " = " + a.add(r.From.String())
	case !r.From.Is4():
		return ""
	case r.From == r.To:
		return address + " = " + a.add(endpoint4(r.From, 0)>>16)
	}
	return address + " BETWEEN " + a.add(endpoint4(r.From, 0)>>16) + " AND " + a.add(endpoint4(r.To, 0)>>16)
}

func endpoint4(a netip.Addr, port int64) int64 {
	b := a.As4()
	return int64(binary.BigEndian.Uint32(b[:]))<<16 | port
}

// Result codes of SQLite, https://www.sqlite.org/rescode.html: primary ones,
// and the extended one that says that a primary key exists.
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

	codePrimaryKey = codeConstraint | 6<<8
)

// resultCode returns the primary result code of an error of SQLite, or 0.
func resultCode(err error) int { return extendedCode(err) & 0xff }

func extendedCode(err error) int {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return 0
	}
	return e.Code()
}

func (b *sqliteBackend) hopeless(err error) bool {
	switch resultCode(err) {
	case codeTooBig, codeConstraint, codeMismatch, codeRange:
		return true
	}
	return false
}
