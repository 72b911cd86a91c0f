package store

import (
	"context"
	"database/sql"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decoynet/internal/pgtest"

	"github.com/jackc/pgx/v5/pgconn"
)

// place is where a test keeps its store.
type place struct {
	path string
	pg   bool
}

// eachBackend runs a test against a store of each kind.
func eachBackend(t *testing.T, test func(t *testing.T, at place)) {
	t.Run("sqlite", func(t *testing.T) { test(t, place{path: newPath(t)}) })
	t.Run("postgres", func(t *testing.T) { test(t, place{path: pgtest.Database(t), pg: true}) })
}

func newPath(t testing.TB) string { return filepath.Join(t.TempDir(), FileName) }

func (p place) either(sqlite, postgres string) string {
	if p.pg {
		return postgres
	}
	return sqlite
}

// tool asks the database's own program, the second witness of what is in it.
// Columns are separated by a space.
func (p place) tool(t testing.TB, query string) string {
	t.Helper()
	if p.pg {
		return run(t, "psql", "-X", "-A", "-t", "-F", " ", "-c", query, p.path)
	}
	return run(t, "sqlite3", "-readonly", "-separator", " ", p.path, query)
}

// run runs a program and returns what it prints.
func run(t testing.TB, program string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, out)
	}
	return strings.TrimSuffix(string(out), "\n")
}

func (p place) intact(t testing.TB) {
	t.Helper()
	if p.pg {
		return
	}
	if got := p.tool(t, "PRAGMA integrity_check"); got != "ok" {
		t.Errorf("integrity_check: %s", got)
	}
}

// second is another connection, as somebody's tool would open it.
// It waits for its turn, since the recorder may be writing at any moment.
func (p place) second(t testing.TB) *sql.Conn {
	t.Helper()
	db, err := sql.Open(p.either("sqlite", "pgx"), p.path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := db.Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if !p.pg {
		execute(t, c, "PRAGMA busy_timeout = 10000")
	}
	t.Cleanup(func() { c.Close(); db.Close() })
	return c
}

// lock keeps the recorder from writing.
func (p place) lock(t testing.TB) (unlock func()) {
	t.Helper()
	c := p.second(t)
	if p.pg {
		execute(t, c, "BEGIN")
		execute(t, c, "LOCK TABLE session")
	} else {
		execute(t, c, "BEGIN EXCLUSIVE")
	}
	return func() { execute(t, c, "ROLLBACK") }
}

// busy tells the error that a lock causes.
func (p place) busy(err error) bool {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code == "55P03" // lock_not_available
	}
	return resultCode(err) == codeBusy
}
