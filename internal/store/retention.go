package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"decoynet/deception"
)

const (
	// deleteSlice is how many sessions one transaction deletes: a few
	// milliseconds, during which sessions wait in the queue.
	deleteSlice = 2048
	// between is how often the store is looked through when nothing was left
	// to do the last time.
	between = time.Second
	// keepSeen and maxSeen bound what is kept of sessions that never come.
	keepSeen = 24 * time.Hour
	maxSeen  = 100_000
)

// tend deletes a slice of what is too old or too much, and gives free room
// back. It returns whether more is left to do. With alive it also notes that
// the process lives, where sessions run.
func (w *writer) tend(now time.Time, alive bool) (more bool, err error) {
	defer func() {
		if err != nil && w.conn != nil && !w.conn.usable(err) {
			err = errors.Join(err, w.close())
		}
	}()
	if alive {
		if err := w.noteAlive(now); err != nil {
			return false, err
		}
		if err := w.deleteSeen(now); err != nil {
			return false, fmt.Errorf("delete what was seen of sessions that did not come: %w", err)
		}
		if err := w.endSilentProbes(now); err != nil {
			return false, fmt.Errorf("end probes that nobody tells of any more: %w", err)
		}
	}
	if now.Sub(w.tended) < between {
		return false, nil
	}
	if err := w.open(); err != nil {
		return false, err
	}
	deleted, err := w.deleteSlice(now)
	if err != nil {
		return false, fmt.Errorf("delete old sessions: %w", err)
	}
	free, err := w.conn.shrink()
	if err != nil {
		return false, fmt.Errorf("give free pages back: %w", err)
	}
	more = deleted || free
	if !more {
		w.tended = now
	}
	return more, w.measure()
}

// deleteSlice deletes the oldest ended sessions, events, probes and findings: those past their
// age or, where the file is too large, any. It tells whether there may be more.
func (w *writer) deleteSlice(now time.Time) (more bool, err error) {
	used, _, err := w.conn.size()
	if err != nil {
		return false, err
	}
	switch {
	case w.maxBytes > 0 && used > w.maxBytes:
		return w.deleteBefore(lastID, now.Add(time.Hour))
	case w.retain > 0:
		cutoff := now.Add(-w.retain)
		return w.deleteBefore(idAt(cutoff), cutoff)
	}
	return false, nil
}

// deleteBefore deletes a slice of the sessions before an identifier that had
// ended at a time, with their findings, and of the events, probes and other
// findings: not those that are younger than the youngest of these sessions.
func (w *writer) deleteBefore(id deception.SessionID, ended time.Time) (more bool, err error) {
	d := deletion{w: w, id: id, ended: ended}
	err = w.transact(false, d.run)
	return d.more, err
}

// deletion is the transaction that deletes a slice.
type deletion struct {
	w     *writer
	id    deception.SessionID // what sorts before it may go
	ended time.Time
	more  bool // there may be more to delete
}

func (d *deletion) run() error {
	ids, err := d.oldest("SELECT id FROM session WHERE id < $1 AND finish < $2 ORDER BY id LIMIT $3")
	if err != nil {
		return err
	}
	// Where there are many findings to a session, they set the pace.
	if _, err := d.oldest("SELECT id FROM finding WHERE id < $1 AND time < $2 ORDER BY id LIMIT $3"); err != nil {
		return err
	}
	ids = slices.DeleteFunc(ids, func(id deception.SessionID) bool { return bytes.Compare(id[:], d.id[:]) > 0 })
	if len(ids) > 0 {
		if err := d.sessions(ids[len(ids)-1]); err != nil {
			return err
		}
	}
	for _, text := range []string{
		"DELETE FROM event WHERE id IN (SELECT id FROM event WHERE id <= $1 AND time < $2 ORDER BY id LIMIT $3)",
		"DELETE FROM probe WHERE id IN (SELECT id FROM probe WHERE id <= $1 AND last < $2 ORDER BY id LIMIT $3)",
		"DELETE FROM finding WHERE id IN (SELECT id FROM finding WHERE id <= $1 AND time < $2 ORDER BY id LIMIT $3)",
	} {
		if err := d.slice(text, d.id); err != nil {
			return err
		}
	}
	// What was found in sessions that never came, or came and went. It may come
	// before its session does.
	old := idAt(d.ended.Add(-keepSeen))
	if bytes.Compare(d.id[:], old[:]) < 0 {
		old = d.id
	}
	_, err = d.w.conn.exec(`DELETE FROM analysis WHERE session IN (SELECT a.session FROM analysis AS a WHERE a.session <= $1
		AND NOT EXISTS (SELECT 1 FROM session AS s WHERE s.id = a.session) ORDER BY a.session LIMIT $2)`,
		d.w.back.key(old), int64(deleteSlice))
	return err
}

// oldest returns the identifiers of a slice. Where there are more, nothing behind
// the last of them goes this time.
func (d *deletion) oldest(query string) ([]deception.SessionID, error) {
	ids, err := d.w.identifiers(query, d.w.back.key(d.id), d.ended.UnixNano(), int64(deleteSlice))
	if len(ids) == deleteSlice {
		d.more, d.id = true, ids[len(ids)-1]
	}
	return ids, err
}

// slice deletes what a statement chooses.
func (d *deletion) slice(text string, id deception.SessionID) error {
	n, err := d.w.conn.exec(text, d.w.back.key(id), d.ended.UnixNano(), int64(deleteSlice))
	d.more = d.more || n == deleteSlice
	return err
}

// sessions deletes those up to an identifier: a slice of their findings, and the
// sessions that have none left.
func (d *deletion) sessions(last deception.SessionID) error {
	if err := d.slice(`DELETE FROM finding WHERE id IN (SELECT f.id FROM session AS s JOIN finding AS f ON f.session = s.id
		WHERE f.session <= $1 AND s.finish < $2 ORDER BY f.session LIMIT $3)`, last); err != nil {
		return err
	}
	key, ended := d.w.back.key(last), d.ended.UnixNano()
	const gone = "id <= $1 AND finish < $2 AND NOT EXISTS (SELECT 1 FROM finding AS f WHERE f.session = session.id)"
	if _, err := d.w.conn.exec("DELETE FROM analysis WHERE session IN (SELECT id FROM session WHERE "+gone+")", key, ended); err != nil {
		return err
	}
	_, err := d.w.conn.exec("DELETE FROM session WHERE "+gone, key, ended)
	return err
}

// lastID sorts behind every session.
var lastID = deception.SessionID(bytes.Repeat([]byte{0xff}, len(deception.SessionID{})))

// deleteSeen deletes what egresses saw of sessions that will not come any more.
func (w *writer) deleteSeen(now time.Time) error {
	if err := w.open(); err != nil {
		return err
	}
	count, err := w.number("SELECT count(*) FROM seen")
	if err != nil || count == 0 {
		return err
	}
	return w.transact(false, func() error {
		if _, err := w.conn.exec("DELETE FROM seen WHERE at < $1", now.Add(-keepSeen).UnixNano()); err != nil {
			return err
		}
		_, err := w.conn.exec(`DELETE FROM seen WHERE session IN (
			SELECT session FROM seen ORDER BY at LIMIT $1)`, max(count-maxSeen, 0))
		return err
	})
}

// measure notes the size of the store.
func (w *writer) measure() (err error) {
	_, w.fileBytes, err = w.conn.size()
	return err
}

// noteAlive notes that this run lives, while sessions of it run.
func (w *writer) noteAlive(now time.Time) error {
	return w.transact(false, func() error {
		_, err := w.conn.exec("UPDATE reporter SET alive = $1 WHERE id = $2 AND EXISTS (SELECT 1 FROM session "+
			w.back.hint("session_running")+" WHERE finish IS NULL AND origin = $2)", now.UnixNano(), w.me)
		return err
	})
}

// endLost ends what a dead run of this recorder left running, at the time at
// which it was last alive.
func (w *writer) endLost() error {
	return w.endRunning("origin = $3", w.alive, w.me)
}

// endNode ends what runs on a node, or by its word, and began before a time.
// What is delivered later and began before it is lost too.
func (w *writer) endNode(node string, before int64) error {
	var reporter int64
	err := w.transact(true, func() (err error) {
		if reporter, err = w.reporter("node", node); err != nil {
			return err
		}
		_, err = w.conn.exec("UPDATE reporter SET lost_before = $1 WHERE id = $2 AND lost_before < $1", before, reporter)
		return err
	})
	if err != nil {
		return err
	}
	return w.endRunning(`start < $3 AND (origin = $4 OR binding IN (SELECT id FROM binding WHERE node = $5))`,
		before, before, reporter, node)
}

// endRunning ends the running sessions that fulfil a condition, whose arguments
// are numbered from $3, with the reason lost. It does so slice by slice.
func (w *writer) endRunning(condition string, at int64, args ...any) error {
	text := "SELECT id FROM session " + w.back.hint("session_running") +
		" WHERE finish IS NULL AND id > $1 AND " + condition + " ORDER BY id LIMIT $2"
	var last deception.SessionID
	for {
		n := 0
		err := w.transact(true, func() error {
			w.begin()
			ids, err := w.identifiers(text, append([]any{w.back.key(last), int64(manyIDs)}, args...)...)
			if n = len(ids); err != nil || n == 0 {
				return err
			}
			last = ids[n-1]
			return w.lose(ids, at)
		})
		if err != nil || n < manyIDs {
			return err
		}
	}
}

// lose ends running sessions with the reason lost.
func (w *writer) lose(ids []deception.SessionID, at int64) error {
	rows, err := w.load(ids)
	if err != nil {
		return err
	}
	for _, have := range rows {
		lost := *have
		lost.End, lost.Reason = time.Unix(0, max(at, nanos(have.Start))), deception.EndLost
		out, _ := merge(have, &lost)
		w.account(have, &out)
		*have, have.dirty = out, true
	}
	if err := w.replace(rows); err != nil {
		return err
	}
	if err := w.addTallies(); err != nil {
		return err
	}
	return w.logChange()
}

// identifiers returns those that a query yields.
func (w *writer) identifiers(text string, args ...any) (ids []deception.SessionID, err error) {
	err = w.conn.query(text, args, func(values []any) error {
		row := rowReader{values: values}
		ids = append(ids, row.id())
		return row.err
	})
	return ids, err
}

// Lost ends the sessions that run on a node, or that it says run, and that began
// before a time, with the reason lost: it was started anew then. Sessions that
// began before and come later are lost too, until their end comes. It waits, as
// Commit does, while the database cannot be written to.
func (r *Recorder) Lost(ctx context.Context, node string, before time.Time) error {
	node = clean(node, maxName)
	for wait := firstPause; ; wait = min(2*wait, maxPause) {
		err := r.ask(ctx, func() error { return r.w.endNode(node, nanos(before)) })
		if err == nil {
			return nil
		}
		if errors.Is(err, ErrClosed) || errors.Is(err, ctx.Err()) || r.back.hopeless(err) {
			return fmt.Errorf("end the sessions of node %s: %w", node, err)
		}
		r.failed(fmt.Errorf("end the sessions of node %s: %w", node, err))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// ask runs do on the writer's goroutine.
func (r *Recorder) ask(ctx context.Context, do func() error) error {
	done := make(chan error, 1)
	select {
	case r.asked <- func() { done <- do() }:
		return <-done
	case <-r.ended:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}
