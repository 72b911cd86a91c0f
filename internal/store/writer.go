package store

import (
	"context"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"modernc.org/sqlite"
)

const (
	// busyTimeout is short because the recorder itself tries again, and has to
	// notice in between that it is to stop.
	busyTimeout = 250 * time.Millisecond
	// rowsPerInsert is how many rows one statement carries: measured, 8 rows
	// save a third of a row's cost against 1, and 32 another tenth.
	rowsPerInsert = 32
	// keptChanges is how many batches a follower may lag behind before it has
	// to search the table instead.
	keptChanges = 512
)

const sessionColumns = 14

const (
	insertEnds = "INSERT OR REPLACE INTO session VALUES "
	// A start that comes after its end (another thread's) changes nothing.
	insertStarts = "INSERT OR IGNORE INTO session VALUES "
)

// writer is the one connection that writes. It talks to the driver without
// database/sql, whose conversions cost as much as SQLite's own work does.
type writer struct {
	path     string
	retain   time.Duration
	maxBytes int64

	conn connection
	stmt map[string]statement
	args []driver.NamedValue // of one insert, reused

	bindings []int64             // the database's id of each binding number, 0 if not known yet
	tallies  []tally             // per binding number, of this batch
	touched  []uint32            // the numbers in tallies that are not zero
	changed  []byte              // identifiers in this batch
	endedIDs map[uint64]struct{} // fold of the ends since the queue was last empty

	newStarts int // starts that the last batch wrote
	fileBytes int64
	tended    time.Time
}

type tally struct {
	ended          int64
	up, down, last int64
}

type connection interface {
	driver.Conn
	driver.ConnPrepareContext
	driver.ExecerContext
}

type statement interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

func openWriter(path string, retain time.Duration, maxBytes int64) (*writer, error) {
	w := &writer{
		path: path, retain: retain, maxBytes: maxBytes,
		args:     make([]driver.NamedValue, rowsPerInsert*sessionColumns),
		endedIDs: make(map[uint64]struct{}),
	}
	for i := range w.args {
		w.args[i].Ordinal = i + 1
	}
	if err := w.open(); err != nil {
		return nil, err
	}
	return w, nil
}

// open connects, or returns at once where that was done.
func (w *writer) open() error {
	if w.conn != nil {
		return nil
	}
	name, err := dsn(w.path, writeParams(busyTimeout))
	if err != nil {
		return err
	}
	c, err := (&sqlite.Driver{}).Open(name)
	if err != nil {
		return fmt.Errorf("open %s: %w", w.path, err)
	}
	w.conn = c.(connection)
	w.stmt = make(map[string]statement)
	w.bindings = w.bindings[:0]
	if err := w.measure(); err != nil {
		return errors.Join(err, w.close())
	}
	return nil
}

func (w *writer) close() error {
	if w.conn == nil {
		return nil
	}
	var errs []error
	for _, s := range w.stmt {
		errs = append(errs, s.Close())
	}
	errs = append(errs, w.conn.Close())
	w.conn, w.stmt = nil, nil
	return errors.Join(errs...)
}

// prepared returns the statement for the text, compiled once per connection.
func (w *writer) prepared(text string) (statement, error) {
	if s, ok := w.stmt[text]; ok {
		return s, nil
	}
	s, err := w.conn.PrepareContext(context.Background(), text)
	if err != nil {
		return nil, fmt.Errorf("compile %.40q: %w", text, err)
	}
	w.stmt[text] = s.(statement)
	return w.stmt[text], nil
}

func named(args []any) []driver.NamedValue {
	out := make([]driver.NamedValue, len(args))
	for i, a := range args {
		out[i] = driver.NamedValue{Ordinal: i + 1, Value: a}
	}
	return out
}

func (w *writer) exec(text string, args ...any) (int64, error) {
	s, err := w.prepared(text)
	if err != nil {
		return 0, err
	}
	res, err := s.ExecContext(context.Background(), named(args))
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// number returns the integer that a query yields, 0 where it yields no row.
func (w *writer) number(text string, args ...any) (n int64, err error) {
	s, err := w.prepared(text)
	if err != nil {
		return 0, err
	}
	rows, err := s.QueryContext(context.Background(), named(args))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	var dest [1]driver.Value
	if err := rows.Next(dest[:]); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	n, _ = dest[0].(int64)
	return n, nil
}

// transact runs do in a transaction. After a failure nothing of it is in the
// file, and the connection is as before or will be opened anew.
func (w *writer) transact(do func() error) error {
	if err := w.open(); err != nil {
		return err
	}
	_, err := w.exec("BEGIN IMMEDIATE")
	if err == nil {
		if err = do(); err == nil {
			_, err = w.exec("COMMIT")
		}
		if err != nil {
			// SQLite may have rolled back by itself (disk full), in which
			// case there is no transaction to end.
			_, _ = w.conn.ExecContext(context.Background(), "ROLLBACK", nil)
		}
	}
	if err == nil {
		return nil
	}
	// Numbers taken in a transaction that was rolled back do not exist.
	w.bindings = w.bindings[:0]
	switch resultCode(err) {
	case codeBusy, codeLocked, codeFull:
		return err
	}
	// An input/output error can leave a connection that refuses all work.
	return errors.Join(err, w.close())
}

// write puts a batch into the file, all of it or nothing.
func (w *writer) write(b batch) error {
	w.newStarts = 0
	if err := w.transact(func() error { return w.insertBatch(b) }); err != nil {
		return err
	}
	if b.drained {
		if len(w.endedIDs) > 1<<16 { // a map never shrinks
			w.endedIDs = make(map[uint64]struct{})
		}
		clear(w.endedIDs)
	}
	return nil
}

func (w *writer) insertBatch(b batch) error {
	w.changed = w.changed[:0]
	w.newStarts = 0
	for _, n := range w.touched {
		w.tallies[n] = tally{}
	}
	w.touched = w.touched[:0]
	if n := len(b.keys) - len(w.tallies); n > 0 {
		w.tallies = append(w.tallies, make([]tally, n)...)
	}
	// To know the ends in time, also where nothing of them is left to write.
	wantEnds := b.starts.count > 0 || !b.drained
	if err := w.insertLane(b.ends, b.keys, insertEnds, func(r *record) bool {
		if wantEnds {
			w.endedIDs[fold(r.id)] = struct{}{}
		}
		w.count(r)
		return true
	}); err != nil {
		return err
	}
	if err := w.insertLane(b.starts, b.keys, insertStarts, func(r *record) bool {
		if _, over := w.endedIDs[fold(r.id)]; over {
			return false
		}
		w.newStarts++
		return true
	}); err != nil {
		return err
	}
	if err := w.addTallies(); err != nil {
		return err
	}
	return w.logChange()
}

// fold makes an identifier a cheap key of a map. Two that fall together cost no
// more than the early row of a session that still runs.
func fold(id []byte) uint64 {
	return binary.BigEndian.Uint64(id[:8]) ^ binary.BigEndian.Uint64(id[8:])
}

// count adds an ended session to its binding's totals.
func (w *writer) count(r *record) {
	t := &w.tallies[r.binding]
	if t.ended == 0 {
		w.touched = append(w.touched, r.binding)
	}
	t.ended++
	t.up += int64(r.up)
	t.down += int64(r.down)
	t.last = max(t.last, r.start)
}

func (w *writer) addTallies() error {
	for _, n := range w.touched {
		t := &w.tallies[n]
		if _, err := w.exec(`UPDATE binding SET ended = ended + ?, source_bytes = source_bytes + ?,
			destination_bytes = destination_bytes + ?, last = max(last, ?) WHERE id = ?`,
			t.ended, t.up, t.down, t.last, w.bindings[n]); err != nil {
			return err
		}
	}
	return nil
}

// logChange tells followers what is new, and the next run that this one lived.
func (w *writer) logChange() error {
	if len(w.changed) == 0 {
		return nil
	}
	seq, err := w.number("SELECT coalesce(max(seq), 0) FROM change")
	if err != nil {
		return err
	}
	now := time.Now().UnixNano()
	if _, err := w.exec("INSERT INTO change (seq, at, sessions) VALUES (?, ?, ?)", seq+1, now, w.changed); err != nil {
		return err
	}
	if _, err := w.exec("DELETE FROM change WHERE seq <= ?", seq+1-keptChanges); err != nil {
		return err
	}
	_, err = w.exec("UPDATE recorder SET alive = ?", now)
	return err
}

// insertLane writes the records that keep accepts.
func (w *writer) insertLane(l lane, keys []bindingKey, verb string, keep func(*record) bool) error {
	var r record
	rows := 0
	for _, c := range l.chunks {
		for buf := c.buf; len(buf) > 0; {
			buf = readRecord(buf, &r)
			if !keep(&r) {
				continue
			}
			binding, err := w.binding(r.binding, keys)
			if err != nil {
				return err
			}
			fillRow(w.args[rows*sessionColumns:], &r, binding)
			w.changed = append(w.changed, r.id...)
			if rows++; rows == rowsPerInsert {
				if err := w.insert(verb, rows); err != nil {
					return err
				}
				rows = 0
			}
		}
	}
	for i := range rows {
		for j := range sessionColumns {
			w.args[j].Value = w.args[i*sessionColumns+j].Value
		}
		if err := w.insert(verb, 1); err != nil {
			return err
		}
	}
	return nil
}

// insert writes the first rows of w.args.
func (w *writer) insert(verb string, rows int) error {
	s, err := w.prepared(verb + placeholders[rows])
	if err != nil {
		return err
	}
	_, err = s.ExecContext(context.Background(), w.args[:rows*sessionColumns])
	return err
}

// placeholders holds "(?,...),(?,...)" for the numbers of rows in use.
var placeholders = func() map[int]string {
	row := "(" + strings.Repeat("?,", sessionColumns-1) + "?)"
	return map[int]string{
		1:             row,
		rowsPerInsert: row + strings.Repeat(","+row, rowsPerInsert-1),
	}
}()

// fillRow sets the columns of the table session, in its order.
func fillRow(args []driver.NamedValue, r *record, binding int64) {
	args[0].Value = r.id
	args[1].Value = r.start
	args[2].Value = orNull(r.end != 0, r.end)
	args[3].Value = binding
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
}

func orNull[T any](present bool, v T) any {
	if !present {
		return nil
	}
	return v
}

// binding returns the database's id for a binding number of the queue.
func (w *writer) binding(n uint32, keys []bindingKey) (int64, error) {
	for len(w.bindings) <= int(n) {
		w.bindings = append(w.bindings, 0)
	}
	if w.bindings[n] != 0 {
		return w.bindings[n], nil
	}
	k := &keys[n]
	id := []any{k.node, k.segment, k.decoy, k.service, int64(k.transport), string(k.path)}
	if _, err := w.exec(`INSERT INTO binding (node, segment, decoy, service, transport, path)
		VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`, id...); err != nil {
		return 0, err
	}
	row, err := w.number(`SELECT id FROM binding WHERE node = ? AND segment = ? AND decoy = ?
		AND service = ? AND transport = ? AND path = ?`, id...)
	if err != nil {
		return 0, err
	}
	w.bindings[n] = row
	return row, nil
}
