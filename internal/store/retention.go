package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"time"

	"decoynet/deception"
)

const (
	// deleteSlice is how many sessions one transaction deletes: a few
	// milliseconds, during which sessions wait in the queue.
	deleteSlice = 2048
	// vacuumPages is how many free pages one round gives back to the file
	// system, and vacuumAbove the number that is kept for reuse without doing
	// so (16 MB): deleting and recording at the same pace would otherwise move
	// pages for nothing.
	vacuumPages = 512
	vacuumAbove = 4096
	// between is how often the store is looked through when nothing was left
	// to do the last time.
	between = time.Second
)

// tend deletes a slice of what is too old or too much, and gives free pages
// back. It returns whether more is left to do. With alive it also notes that
// the process lives, where sessions run.
func (w *writer) tend(now time.Time, alive bool) (more bool, err error) {
	if alive {
		if err := w.noteAlive(now); err != nil {
			return false, err
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
	free, err := w.giveBack()
	if err != nil {
		return false, fmt.Errorf("give free pages back: %w", err)
	}
	more = deleted == deleteSlice || free > vacuumAbove
	if !more {
		w.tended = now
	}
	return more, w.measure()
}

// deleteSlice deletes the oldest ended sessions: those past their age or, where
// the file is too large, any.
func (w *writer) deleteSlice(now time.Time) (deleted int64, err error) {
	free, err := w.number("PRAGMA freelist_count")
	if err != nil {
		return 0, err
	}
	if err := w.measure(); err != nil {
		return 0, err
	}
	size, err := w.number("PRAGMA page_size")
	if err != nil {
		return 0, err
	}
	var before, ended any
	switch {
	case w.maxBytes > 0 && w.fileBytes-free*size > w.maxBytes:
		before, ended = lastID[:], now.Add(time.Hour).UnixNano()
	case w.retain > 0:
		cutoff := now.Add(-w.retain)
		id := idAt(cutoff)
		before, ended = id[:], cutoff.UnixNano()
	default:
		return 0, nil
	}
	err = w.transact(func() error {
		deleted, err = w.exec(`DELETE FROM session WHERE id IN (
			SELECT id FROM session WHERE id < ? AND finish < ? ORDER BY id LIMIT ?)`,
			before, ended, int64(deleteSlice))
		return err
	})
	return deleted, err
}

// lastID sorts behind every session.
var lastID = func() (id deception.SessionID) {
	for i := range id {
		id[i] = 0xff
	}
	return id
}()

// giveBack returns some free pages to the file system, and how many are left.
func (w *writer) giveBack() (free int64, err error) {
	if err := w.open(); err != nil {
		return 0, err
	}
	free, err = w.number("PRAGMA freelist_count")
	if err != nil || free <= vacuumAbove {
		return free, err
	}
	if _, err = w.exec(fmt.Sprintf("PRAGMA incremental_vacuum(%d)", vacuumPages)); err != nil {
		return free, err
	}
	return free - vacuumPages, nil
}

// measure notes the size of the file.
func (w *writer) measure() error {
	pages, err := w.number("PRAGMA page_count")
	if err != nil {
		return err
	}
	size, err := w.number("PRAGMA page_size")
	if err != nil {
		return err
	}
	w.fileBytes = pages * size
	return nil
}

func (w *writer) noteAlive(now time.Time) error {
	return w.transact(func() error {
		_, err := w.exec(`UPDATE recorder SET alive = ? WHERE EXISTS (
			SELECT 1 FROM session INDEXED BY session_running WHERE finish IS NULL)`, now.UnixNano())
		return err
	})
}

// endLost ends what a dead process left running, at the time at which it was
// last alive.
func (w *writer) endLost() error {
	return w.transact(func() error {
		alive, err := w.number("SELECT alive FROM recorder")
		if err != nil {
			return err
		}
		if w.changed, err = w.runningIDs(); err != nil || len(w.changed) == 0 {
			return err
		}
		if _, err := w.exec(`UPDATE binding SET ended = ended + r.n, source_bytes = source_bytes + r.up,
				destination_bytes = destination_bytes + r.down, last = max(last, r.newest)
			FROM (SELECT binding, count(*) AS n, sum(source_bytes) AS up,
					sum(destination_bytes) AS down, max(start) AS newest
				FROM session INDEXED BY session_running WHERE finish IS NULL GROUP BY binding) AS r
			WHERE binding.id = r.binding`); err != nil {
			return err
		}
		if _, err := w.exec(`UPDATE session INDEXED BY session_running
			SET finish = max(start, ?), reason = ? WHERE finish IS NULL`,
			alive, int64(deception.EndLost)); err != nil {
			return err
		}
		return w.logChange()
	})
}

// runningIDs returns the identifiers of sessions without an end, one behind
// the other.
func (w *writer) runningIDs() (ids []byte, err error) {
	s, err := w.prepared("SELECT id FROM session INDEXED BY session_running WHERE finish IS NULL")
	if err != nil {
		return nil, err
	}
	rows, err := s.QueryContext(context.Background(), nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	var dest [1]driver.Value
	for {
		if err := rows.Next(dest[:]); errors.Is(err, io.EOF) {
			return ids, nil
		} else if err != nil {
			return nil, err
		}
		id, _ := dest[0].([]byte)
		ids = append(ids, id...)
	}
}
