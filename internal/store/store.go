// Package store keeps what decoynet records: sessions, probes, and events about
// the deception network itself.
//
// A store is an SQLite file or a PostgreSQL database. One process writes the
// file, through a Recorder; any number write the database. Any number of
// processes read, through a Reader or with the plain sqlite3 and psql tools,
// whose views "sessions", "probes" and "events" have one column per field in the names of
// the Elastic Common Schema.
//
// Recording is made cheap: a relay carries ten thousand connections a second on
// two cores, so a session may cost no more than a few microseconds. The callers'
// side encodes a session into a chunk of memory under a short lock; a session
// that ends before its start was written becomes one row; a row is small because
// names live in the table binding; and its key, a UUIDv7, makes a second index
// on time needless.
//
// Several parts of decoynet may tell of one session, each what it knows and in
// any order: merge.go holds the rules by which one row comes of it.
//
// All that the two databases have in common, which is nearly everything, is
// written once, against the interface backend below; sqlite.go and postgres.go
// hold the rest.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"decoynet/deception"

	"github.com/pressly/goose/v3"
)

// FileName is the name of the store's file in a data directory.
const FileName = "decoynet.db"

// longSession is the duration beyond which an ended session enters the index
// session_long. The figure stands in the schemas as well.
const longSession = 120 * time.Second

var (
	// ErrNoStore says that there is no store at the path.
	ErrNoStore = errors.New("no sessions recorded here yet; is --data right?")
	// ErrSchema says that the store's schema is not the one this program works
	// with.
	ErrSchema = errors.New("written by another version of decoynet")
	// ErrClosed says that the recorder was closed.
	ErrClosed = errors.New("the session store is closed")
)

// backend is a database that can hold a store. SQL that both databases know is
// not its business.
type backend interface {
	// String names the database in messages. It holds no password.
	String() string
	// prepare creates what is not there and brings the schema up to date. It
	// returns ErrSchema where a newer program did that.
	prepare(ctx context.Context) error
	// connect opens the one connection that a recorder writes by. It lives no
	// longer than ctx.
	connect(ctx context.Context) (connection, error)
	// read opens the database for reading. It returns ErrNoStore and ErrSchema.
	read() (*sql.DB, error)
	// hopeless tells errors that lie in the data, and would come again, from
	// those of the machine.
	hopeless(err error) bool

	dialect
}

// dialect is what differs in the statements.
type dialect interface {
	// columns lists what parseSession takes, of the table session.
	columns() string
	// hint names an index where the database has to be told which one to use;
	// empty: none but the row's number.
	hint(index string) string
	// key is an identifier as an argument of a statement.
	key(id deception.SessionID) any
	// endpoint selects what rowReader.endpoint takes, of a column.
	endpoint(column string) string
	// within writes the condition that the intruder's address lies in the
	// network. It may let more pass (Filter.matches looks again), never less.
	within(a *arguments, network netip.Prefix) string
	// from writes within as the index finding_source has it; empty where the index
	// does not.
	from(a *arguments, network netip.Prefix) string
}

// connection is a backend's connection that writes. It belongs to one goroutine.
type connection interface {
	// transact runs do in a transaction, with no other writer at the same time.
	// What is durable survives a power failure once transact has returned;
	// otherwise the newest transactions may be lost by one. After an error
	// nothing of it is in the database.
	transact(durable bool, do func() error) error
	// usable tells whether the connection can go on after the error.
	usable(err error) bool
	// exec runs a statement of a transaction.
	exec(text string, args ...any) (affected int64, err error)
	// query calls row for every row, with int64, []byte, string or nil for
	// each column. The bytes are the callee's to keep.
	query(text string, args []any, row func(values []any) error) error

	// rows is how many sessions insert and replace like to be given at once.
	rows() int
	// insert writes the sessions whose identifiers are new, and returns the
	// indices of the others, in order.
	insert(sessions []record) (met []int, err error)
	// insertFindings writes the findings whose identifiers are new, with the rows of
	// their rules (0: none), and returns them.
	insertFindings(all []*finding, rules []int64) (fresh []*finding, err error)
	// replace writes the sessions, over what their identifiers hold. All
	// identifiers are different.
	replace(sessions []record) error

	// size returns the bytes in use and those taken from the file system.
	size() (used, taken int64, err error)
	// shrink gives some room back to the file system, and tells whether there
	// is more.
	shrink() (more bool, err error)
	close() error
}

// choose returns the backend that the path names.
func choose(path string) (backend, error) {
	if isURL(path) {
		return newPostgres(path)
	}
	return &sqliteBackend{path: path}, nil
}

// isURL tells the address of a PostgreSQL server from the path of a file.
func isURL(path string) bool {
	return strings.HasPrefix(path, "postgres://") || strings.HasPrefix(path, "postgresql://")
}

//go:embed migrations
var migrations embed.FS

// migrator returns what applies the migrations in a folder.
func migrator(d goose.Dialect, db *sql.DB, folder, table string) (*goose.Provider, error) {
	files, err := fs.Sub(migrations, folder)
	if err != nil {
		return nil, fmt.Errorf("read the embedded schema: %w", err)
	}
	p, err := goose.NewProvider(d, db, files, goose.WithDisableGlobalRegistry(true), goose.WithTableName(table))
	if err != nil {
		return nil, fmt.Errorf("read the embedded schema: %w", err)
	}
	return p, nil
}

// schemaError says that a store has a version that this program does not know.
func schemaError(store fmt.Stringer, version, known int) error {
	return fmt.Errorf("open %s: its schema has version %d, this program knows %d: %w", store, version, known, ErrSchema)
}

// arguments collects the arguments of a statement. Both databases know $1.
type arguments struct{ values []any }

// add returns what stands for the value in the statement.
func (a *arguments) add(v any) string {
	a.values = append(a.values, v)
	return "$" + strconv.Itoa(len(a.values))
}

// keys returns what stands for the identifiers, separated by commas.
func (a *arguments) keys(d dialect, ids []deception.SessionID) string {
	marks := make([]string, len(ids))
	for i, id := range ids {
		marks[i] = a.add(d.key(id))
	}
	return strings.Join(marks, ", ")
}
