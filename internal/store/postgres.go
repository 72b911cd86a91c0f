package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"decoynet/deception"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

const (
	// postgresVersion is the newest migration.
	postgresVersion = 4
	// postgresTable holds which migrations were applied. It has a name of its
	// own because others keep their tables in the same database.
	postgresTable = "store_migration"

	// lockMigrate and lockWrite are advisory locks of the database: "decoynet"
	// in ASCII, and what follows it. Who writes holds lockWrite for the length
	// of a transaction, which makes many recorders one writer after the other:
	// the rows of the table change come in the order of their numbers, and no
	// two transactions can wait for each other.
	lockMigrate = 0x6465636f796e6574
	lockWrite   = lockMigrate + 1

	postgresConnect = 5 * time.Second
	// postgresLimit bounds a transaction, also with a server that went silent.
	postgresLimit = 60 * time.Second
)

// postgresBackend is a database of a PostgreSQL server.
type postgresBackend struct {
	cfg  *pgx.ConnConfig
	name string
}

func newPostgres(address string) (*postgresBackend, error) {
	cfg, err := pgx.ParseConfig(address)
	if err != nil {
		// The parser's own message repeats the address, and what it does not
		// understand may be a password.
		return nil, fmt.Errorf("bad address of a PostgreSQL database; as postgres://user:password@host:5432/database?sslmode=verify-full: %w", errAddress)
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = postgresConnect
	}
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = "decoynet"
	}
	return &postgresBackend{cfg: cfg, name: Redact(address)}, nil
}

var errAddress = errors.New("it cannot be parsed")

// Redact returns the path of a store as it may be shown: where it is the address
// of a server, without password and options.
func Redact(path string) string {
	if !isURL(path) {
		return path
	}
	u, err := url.Parse(path)
	if err != nil {
		scheme, _, _ := strings.Cut(path, ":")
		return scheme + "://..."
	}
	shown := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	if name := u.User.Username(); name != "" {
		shown.User = url.User(name)
	}
	return shown.String()
}

func (b *postgresBackend) String() string { return b.name }

// failed says what went wrong with which database. pgx keeps passwords out of
// its messages, but a server's own message may hold anything.
func (b *postgresBackend) failed(what string, err error) error {
	if p := b.cfg.Password; p != "" && strings.Contains(err.Error(), p) {
		return fmt.Errorf("%s %s: %w", what, b.name, &maskedError{err, p})
	}
	return fmt.Errorf("%s %s: %w", what, b.name, err)
}

// maskedError is an error without the password in its text.
type maskedError struct {
	err    error
	secret string
}

func (e *maskedError) Error() string { return strings.ReplaceAll(e.err.Error(), e.secret, "***") }
func (e *maskedError) Unwrap() error { return e.err }

func (b *postgresBackend) db() *sql.DB { return stdlib.OpenDB(*b.cfg) }

// prepare brings the schema up to date. Recorders that start at the same time
// take turns.
func (b *postgresBackend) prepare(ctx context.Context) (err error) {
	db := b.db()
	defer func() { err = errors.Join(err, db.Close()) }()
	version, err := b.version(ctx, db)
	if err != nil || version == postgresVersion {
		return err
	}
	lock, err := db.Conn(ctx)
	if err != nil {
		return b.failed("open", err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if _, err := lock.ExecContext(ctx, "SELECT pg_advisory_lock($1)", int64(lockMigrate)); err != nil {
		return b.failed("bring the schema up to date of", err)
	}
	m, err := migrator(goose.DialectPostgres, db, "migrations/postgres", postgresTable)
	if err != nil {
		return err
	}
	if _, err := m.Up(ctx); err != nil {
		return b.failed("bring the schema up to date of", err)
	}
	if _, err := lock.ExecContext(ctx, "SELECT pg_advisory_unlock($1)", int64(lockMigrate)); err != nil {
		return b.failed("bring the schema up to date of", err)
	}
	return nil
}

// version returns the newest migration that was applied, 0 for none. It
// returns ErrSchema for one that this program does not know.
func (b *postgresBackend) version(ctx context.Context, db *sql.DB) (version int, err error) {
	var exists bool
	err = db.QueryRowContext(ctx, "SELECT to_regclass($1) IS NOT NULL", postgresTable).Scan(&exists)
	if err == nil && exists {
		err = db.QueryRowContext(ctx, "SELECT coalesce(max(version_id), 0) FROM "+postgresTable+" WHERE is_applied").Scan(&version)
	}
	if err != nil {
		return 0, b.failed("open", err)
	}
	if version > postgresVersion {
		return 0, schemaError(b, version, postgresVersion)
	}
	return version, nil
}

func (b *postgresBackend) read() (*sql.DB, error) {
	// A plan that is kept is one for any value, and most values of a column are
	// others than people look for: the index that leads to these would stay unused.
	cfg := b.cfg.Copy()
	cfg.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	db := stdlib.OpenDB(*cfg)
	db.SetMaxIdleConns(1)
	version, err := b.version(context.Background(), db)
	switch {
	case err != nil:
	case version == 0:
		err = fmt.Errorf("%s: %w", b.name, ErrNoStore)
	case version != postgresVersion:
		err = schemaError(b, version, postgresVersion)
	default:
		return db, nil
	}
	return nil, errors.Join(err, db.Close())
}

// columns makes an endpoint the text that SQLite holds for one of IPv6.
func (b *postgresBackend) columns() string {
	return fmt.Sprintf(`id, start, finish, binding, %s, %s, %s, %s, source_bytes, destination_bytes,
		source_mode, reason, source_head, destination_head, flags, origin`,
		b.endpoint("source"), b.endpoint("source_nat"), b.endpoint("destination"), b.endpoint("destination_nat"))
}

func (b *postgresBackend) endpoint(column string) string {
	return "host(" + column + ") || ' ' || " + column + "_port"
}

func (b *postgresBackend) hint(string) string { return "" }

func (b *postgresBackend) key(id deception.SessionID) any { return [16]byte(id) }

func (b *postgresBackend) within(a *arguments, network netip.Prefix) string {
	return "source <<= " + a.add(network.Masked())
}

func (b *postgresBackend) from(a *arguments, network netip.Prefix) string {
	r := deception.RangeOf(network)
	if r.From == r.To {
		return "source = " + a.add(r.From)
	}
	return "source BETWEEN " + a.add(r.From) + " AND " + a.add(r.To)
}

// hopeless is true for what the SQL standard calls a data exception (class 22),
// for broken constraints (23) and for what is too large (54).
func (b *postgresBackend) hopeless(err error) bool {
	var e *pgconn.PgError
	if !errors.As(err, &e) || len(e.Code) != 5 {
		return false
	}
	switch e.Code[:2] {
	case "22", "23", "54":
		return true
	}
	return false
}
