package store

import (
	"fmt"
	"strings"
	"time"
)

// count adds an ended session to its binding's totals.
func (w *writer) count(r *record, own bool) {
	w.ended++
	t := tally{1, counted(r.up), counted(r.down), r.start}
	if !own {
		w.correct(r.bindingID, func(sum *tally) { sum.add(t) })
		return
	}
	sum := &w.tallies[r.binding]
	if sum.ended == 0 {
		w.touched = append(w.touched, r.binding)
	}
	sum.add(t)
}

// discount takes back what count did for a session that proved to be known.
func (w *writer) discount(r *record) {
	if r.end == 0 {
		w.began--
		return
	}
	w.ended--
	t := tally{1, counted(r.up), counted(r.down), 0}
	w.correct(r.bindingID, func(sum *tally) { sum.remove(t) })
}

func (w *writer) correct(binding int64, change func(*tally)) {
	sum := w.corrections[binding]
	change(&sum)
	w.corrections[binding] = sum
}

// addTallies writes what became of the totals.
func (w *writer) addTallies() error {
	for _, n := range w.touched {
		w.correct(w.ids[n], func(sum *tally) { sum.add(w.tallies[n]) })
	}
	args := make([]any, 0, 5*len(w.corrections))
	for binding, t := range w.corrections {
		if t != (tally{}) {
			args = append(args, binding, t.ended, t.up, t.down, t.last)
		}
	}
	const most = 64 // rows of one statement
	for len(args) > 0 {
		n := min(len(args), 5*most)
		if err := w.updateTotals(args[:n:n], most); err != nil {
			return err
		}
		args = args[n:]
	}
	return nil
}

// updateTotals adds rows of a binding's identifier and four numbers. There are
// statements for one, eight and most rows; binding 0, of which there is none,
// fills the last of them.
func (w *writer) updateTotals(args []any, most int) error {
	rows := most
	switch {
	case len(args) == 5:
		rows = 1
	case len(args) <= 5*8:
		rows = 8
	}
	for len(args) < 5*rows {
		args = append(args, int64(0))
	}
	text, ok := w.updates[rows]
	if !ok {
		text = totalsUpdate(rows)
		w.updates[rows] = text
	}
	_, err := w.conn.exec(text, args...)
	return err
}

// totalsUpdate writes the statement for so many rows. Both databases call the
// columns of VALUES column1 and so on. Beyond 2^62 bytes a sum stands still.
func totalsUpdate(rows int) string {
	var values strings.Builder
	for i := range 5 * rows {
		switch {
		case i == 0:
			values.WriteString("(")
		case i%5 == 0:
			values.WriteString("), (")
		default:
			values.WriteString(", ")
		}
		fmt.Fprintf(&values, "CAST($%d AS bigint)", i+1)
	}
	return `UPDATE binding SET ended = ended + column2,
		source_bytes = CASE WHEN column3 > 0 AND source_bytes > 4611686018427387904 THEN source_bytes ELSE source_bytes + column3 END,
		destination_bytes = CASE WHEN column4 > 0 AND destination_bytes > 4611686018427387904 THEN destination_bytes ELSE destination_bytes + column4 END,
		last = CASE WHEN last < column5 THEN column5 ELSE last END
		FROM (VALUES ` + values.String() + `)) AS more WHERE id = column1`
}

// logChange tells followers what is new, and the next run that this one lived.
func (w *writer) logChange() error {
	if len(w.changed) == 0 {
		return nil
	}
	now := time.Now().UnixNano()
	if _, err := w.conn.exec(`INSERT INTO change (seq, at, sessions)
		SELECT coalesce(max(seq), 0) + 1, $1, $2 FROM change`, now, w.changed); err != nil {
		return err
	}
	if _, err := w.conn.exec("DELETE FROM change WHERE seq <= (SELECT max(seq) FROM change) - $1", int64(keptChanges)); err != nil {
		return err
	}
	_, err := w.conn.exec("UPDATE reporter SET alive = $1 WHERE id = $2", now, w.me)
	return err
}
