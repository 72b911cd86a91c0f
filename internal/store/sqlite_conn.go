package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"modernc.org/sqlite"
)

const (
	// sqliteRows is how many rows one statement carries: measured, 8 rows save
	// a third of a row's cost against 1, and 32 another tenth.
	sqliteRows = 32
	// sqliteColumns are the columns of a session; those behind the first
	// sqliteShort are as the schema's defaults say in almost every row, and
	// every bound parameter costs.
	sqliteColumns = 16
	sqliteShort   = 14

	// vacuumPages is how many free pages one round gives back to the file
	// system, and vacuumAbove the number that is kept for reuse without doing
	// so (16 MB): deleting and recording at the same pace would otherwise move
	// pages for nothing.
	vacuumPages = 512
	vacuumAbove = 4096
)

// sqliteConn talks to the driver without database/sql, whose conversions cost
// as much as SQLite's own work does. Its calls know no context: one that can be
// cancelled costs a goroutine each, and none of them waits for long.
type sqliteConn struct {
	driverConn
	stmt    map[string]driverStmt
	args    []driver.NamedValue // of one insert, reused
	durable bool                // PRAGMA synchronous is full
}

type driverConn interface {
	driver.Conn
	driver.ConnPrepareContext
	driver.ExecerContext
}

type driverStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

func (b *sqliteBackend) connect(context.Context) (connection, error) {
	name, err := dsn(b.path, writeParams(busyTimeout))
	if err != nil {
		return nil, err
	}
	conn, err := (&sqlite.Driver{}).Open(name)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", b.path, err)
	}
	c := &sqliteConn{
		driverConn: conn.(driverConn),
		stmt:       make(map[string]driverStmt),
		args:       make([]driver.NamedValue, sqliteRows*sqliteColumns),
	}
	for i := range c.args {
		c.args[i].Ordinal = i + 1
	}
	return c, nil
}

func (c *sqliteConn) close() error {
	var errs []error
	for _, s := range c.stmt {
		errs = append(errs, s.Close())
	}
	return errors.Join(append(errs, c.Close())...)
}

// prepared returns the statement for the text, compiled once per connection.
func (c *sqliteConn) prepared(text string) (driverStmt, error) {
	if s, ok := c.stmt[text]; ok {
		return s, nil
	}
	s, err := c.PrepareContext(context.Background(), text)
	if err != nil {
		return nil, fmt.Errorf("compile %.40q: %w", text, err)
	}
	c.stmt[text] = s.(driverStmt)
	return c.stmt[text], nil
}

func named(args []any) []driver.NamedValue {
	out := make([]driver.NamedValue, len(args))
	for i, a := range args {
		out[i] = driver.NamedValue{Ordinal: i + 1, Value: a}
	}
	return out
}

func (c *sqliteConn) exec(text string, args ...any) (int64, error) {
	s, err := c.prepared(text)
	if err != nil {
		return 0, err
	}
	res, err := s.ExecContext(context.Background(), named(args))
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func (c *sqliteConn) query(text string, args []any, row func([]any) error) (err error) {
	s, err := c.prepared(text)
	if err != nil {
		return err
	}
	rows, err := s.QueryContext(context.Background(), named(args))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	dest := make([]driver.Value, len(rows.Columns()))
	values := make([]any, len(dest))
	for {
		if err := rows.Next(dest); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		for i, v := range dest {
			values[i] = v
		}
		if err := row(values); err != nil {
			return err
		}
	}
}

func (c *sqliteConn) transact(durable bool, do func() error) error {
	if err := c.synchronise(durable); err != nil {
		return err
	}
	_, err := c.exec("BEGIN IMMEDIATE")
	if err != nil {
		return err
	}
	if err = do(); err == nil {
		_, err = c.exec("COMMIT")
	}
	if err != nil {
		// SQLite may have rolled back by itself (disk full), in which
		// case there is no transaction to end.
		_, _ = c.ExecContext(context.Background(), "ROLLBACK", nil)
	}
	return err
}

// synchronise sets whether a commit waits for the disk. It is compiled each
// time: some PRAGMAs do their work while they are.
func (c *sqliteConn) synchronise(durable bool) error {
	if durable == c.durable {
		return nil
	}
	mode := "NORMAL"
	if durable {
		mode = "FULL"
	}
	if _, err := c.ExecContext(context.Background(), "PRAGMA synchronous = "+mode, nil); err != nil {
		return err
	}
	c.durable = durable
	return nil
}

// usable is false after an input/output error, which can leave a connection
// that refuses all work.
func (c *sqliteConn) usable(err error) bool {
	switch resultCode(err) {
	case codeBusy, codeLocked, codeFull:
		return true
	}
	return false
}

func (c *sqliteConn) rows() int { return sqliteRows }

const (
	shortNames = `(id, start, finish, binding, source, source_nat, destination, destination_nat,
		source_bytes, destination_bytes, source_mode, reason, source_head, destination_head)`
	ifNew = " ON CONFLICT (id) DO NOTHING"
)

var (
	insertMany  = "INSERT INTO session " + shortNames + " VALUES " + tuples(sqliteRows, sqliteShort)
	insertWide  = "INSERT INTO session VALUES " + tuples(sqliteRows, sqliteColumns)
	insertOne   = "INSERT INTO session VALUES " + tuples(1, sqliteColumns) + ifNew
	replaceMany = "INSERT OR REPLACE INTO session VALUES " + tuples(sqliteRows, sqliteColumns)
	replaceOne  = "INSERT OR REPLACE INTO session VALUES " + tuples(1, sqliteColumns)
)

// tuples writes "(?,...),(?,...)".
func tuples(rows, columns int) string {
	row := ",(" + strings.Repeat(",?", columns)[1:] + ")"
	return strings.Repeat(row, rows)[1:]
}

// insert tries many at once, which succeeds where all are new. A statement that
// fails leaves nothing behind.
func (c *sqliteConn) insert(sessions []record) (met []int, err error) {
	if len(sessions) == sqliteRows {
		text, columns := insertMany, sqliteShort
		if slices.ContainsFunc(sessions, isWide) {
			text, columns = insertWide, sqliteColumns
		}
		switch _, err := c.put(text, sessions, columns); {
		case err == nil:
			return nil, nil
		case extendedCode(err) != codePrimaryKey:
			return nil, err
		}
	}
	for i := range sessions {
		n, err := c.put(insertOne, sessions[i:i+1], sqliteColumns)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			met = append(met, i)
		}
	}
	return met, nil
}

const insertFinding = `INSERT INTO finding (id, session, time, node, kind, application, transport, source, destination,
		rule, to_service, feed_lost, partial, scanner, document)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) ` + ifSessionIsNews + `
		source = excluded.source, destination = excluded.destination ` + whereSessionIsNews

func (c *sqliteConn) insertFindings(all []*finding, rules []int64) (fresh []*finding, err error) {
	for i, f := range all {
		n, err := c.exec(insertFinding, f.ID[:], orNull(!f.Session.IsZero(), f.Session[:]), nanos(f.Time), f.Node, f.Kind, f.Application,
			int64(f.Transport), column(appendEndpoint(nil, f.Source)[1:]), column(appendEndpoint(nil, f.Destination)[1:]),
			orNull(rules[i] != 0, rules[i]), int64(bit(f.Alert != nil && f.Alert.ToService)), int64(f.FeedLost), int64(bit(f.Partial)),
			f.Scanner, f.packed)
		if err != nil {
			return nil, err
		}
		if n > 0 {
			fresh = append(fresh, f)
		}
	}
	return fresh, nil
}

func isWide(r record) bool { return r.flags != 0 || r.origin != 0 }

func (c *sqliteConn) replace(sessions []record) error {
	for len(sessions) > 0 {
		text, n := replaceMany, sqliteRows
		if len(sessions) < n {
			text, n = replaceOne, 1
		}
		if _, err := c.put(text, sessions[:n], sqliteColumns); err != nil {
			return err
		}
		sessions = sessions[n:]
	}
	return nil
}

// put runs a statement for the first columns of the sessions.
func (c *sqliteConn) put(text string, sessions []record, columns int) (int64, error) {
	s, err := c.prepared(text)
	if err != nil {
		return 0, err
	}
	for i := range sessions {
		fillRow(c.args[i*columns:(i+1)*columns], &sessions[i])
	}
	res, err := s.ExecContext(context.Background(), c.args[:len(sessions)*columns])
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// fillRow sets the columns of the table session, in its order.
func fillRow(args []driver.NamedValue, r *record) {
	args[0].Value = r.id
	args[1].Value = r.start
	args[2].Value = orNull(r.end != 0, r.end)
	args[3].Value = r.bindingID
	args[4].Value = column(r.source)
	if r.same {
		args[5].Value = int64(0)
	} else {
		args[5].Value = column(r.sourceNAT)
	}
	args[6].Value = column(r.destination)
	args[7].Value = column(r.destinationNAT)
	args[8].Value = int64(r.up)
	args[9].Value = int64(r.down)
	args[10].Value = int64(r.mode)
	args[11].Value = int64(r.reason)
	args[12].Value = orNull(len(r.sourceHead) > 0, r.sourceHead)
	args[13].Value = orNull(len(r.destinationHead) > 0, r.destinationHead)
	if len(args) > sqliteShort {
		args[14].Value = int64(r.flags)
		args[15].Value = orNull(r.origin != 0, r.origin)
	}
}

func orNull[T any](present bool, v T) any {
	if !present {
		return nil
	}
	return v
}

// pragma returns the number that a PRAGMA yields.
func (c *sqliteConn) pragma(name string) (n int64, err error) {
	err = c.query("PRAGMA "+name, nil, func(values []any) error {
		n, _ = values[0].(int64)
		return nil
	})
	return n, err
}

func (c *sqliteConn) size() (used, taken int64, err error) {
	pages, err := c.pragma("page_count")
	if err != nil {
		return 0, 0, err
	}
	free, err := c.pragma("freelist_count")
	if err != nil {
		return 0, 0, err
	}
	size, err := c.pragma("page_size")
	return (pages - free) * size, pages * size, err
}

func (c *sqliteConn) shrink() (more bool, err error) {
	free, err := c.pragma("freelist_count")
	if err != nil || free <= vacuumAbove {
		return false, err
	}
	if _, err = c.exec(fmt.Sprintf("PRAGMA incremental_vacuum(%d)", vacuumPages)); err != nil {
		return false, err
	}
	return free-vacuumPages > vacuumAbove, nil
}
