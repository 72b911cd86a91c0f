package store

import (
	"bytes"
	"slices"
	"time"

	"decoynet/deception"
)

// mergeMet makes one row of each session in w.met and what the database holds
// of it.
func (w *writer) mergeMet() error {
	for part := range slices.Chunk(w.met, manyIDs) {
		ids := make([]deception.SessionID, len(part))
		for i := range part {
			ids[i] = deception.SessionID(part[i].id)
		}
		rows, err := w.load(ids)
		if err != nil {
			return err
		}
		for i := range part {
			r := &part[i]
			have, ok := rows[ids[i]]
			if !ok { // it was only supposed to have a row, or is deleted by now
				if err := w.insertOne(r, rows); err != nil {
					return err
				}
				continue
			}
			w.discount(r)
			got := r.stored()
			out, changed := merge(have, &got)
			if changed {
				w.account(have, &out)
				*have, have.dirty = out, true
			}
		}
		if err := w.replace(rows); err != nil {
			return err
		}
	}
	return nil
}

// insertOne writes a session that has no row, and adds it to rows.
func (w *writer) insertOne(r *record, rows map[deception.SessionID]*stored) error {
	if _, err := w.conn.insert([]record{*r}); err != nil {
		return err
	}
	w.changed = append(w.changed, r.id...)
	s := r.stored()
	rows[s.ID] = &s
	return nil
}

// account notes what the totals make of a row that changes.
func (w *writer) account(before, after *stored) {
	if before.Running() && !after.Running() {
		w.ended++
	}
	was, is := before.tally(), after.tally()
	w.correct(before.binding, func(sum *tally) { sum.remove(was) })
	w.correct(after.binding, func(sum *tally) { sum.add(is) })
}

// load returns the rows of the sessions, as far as there are any.
func (w *writer) load(ids []deception.SessionID) (map[deception.SessionID]*stored, error) {
	rows := make(map[deception.SessionID]*stored, len(ids))
	var a arguments
	text := "SELECT " + w.back.columns() + " FROM session WHERE id IN (" + a.keys(w.back, padded(ids)) + ")"
	err := w.conn.query(text, a.values, func(values []any) error {
		s, err := parseSession(values)
		if err != nil {
			return err
		}
		rows[s.ID] = &s
		return nil
	})
	return rows, err
}

// padded repeats the last identifier up to one of a few lengths, so that there
// are a few statements to compile.
func padded(ids []deception.SessionID) []deception.SessionID {
	for _, n := range []int{1, 8, 64, manyIDs} {
		if len(ids) <= n {
			return append(slices.Clip(ids), slices.Repeat(ids[len(ids)-1:], n-len(ids))...)
		}
	}
	return ids
}

// replace writes the rows that are dirty, in the order in which they lie.
func (w *writer) replace(rows map[deception.SessionID]*stored) error {
	var dirty []*stored
	for _, row := range rows {
		if row.dirty {
			dirty = append(dirty, row)
		}
	}
	if len(dirty) == 0 {
		return nil
	}
	slices.SortFunc(dirty, func(a, b *stored) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	records := make([]record, len(dirty))
	buf := make([]byte, 0, len(dirty)*recordMax)
	for i, row := range dirty {
		at := len(buf)
		buf = appendRecord(buf, &row.Session, 0, true)
		readRecord(buf[at:], &records[i])
		records[i].bindingID, records[i].flags, records[i].origin = row.binding, row.flags, row.origin
		w.changed = append(w.changed, row.ID[:]...)
	}
	return w.conn.replace(records)
}

// stored is the row that the record makes.
func (r *record) stored() stored {
	s := stored{binding: r.bindingID, flags: r.flags, origin: r.origin}
	s.ID = deception.SessionID(r.id)
	s.Start = time.Unix(0, r.start)
	if r.end != 0 {
		s.End = time.Unix(0, r.end)
	}
	s.Source, s.Destination, s.DestinationNAT = addrPort(r.source), addrPort(r.destination), addrPort(r.destinationNAT)
	if s.SourceNAT = s.Source; !r.same {
		s.SourceNAT = addrPort(r.sourceNAT)
	}
	s.SourceBytes, s.DestinationBytes = r.up, r.down
	s.SourceMode, s.Reason = deception.SourceMode(r.mode), deception.EndReason(r.reason)
	s.SourceHead, s.DestinationHead = r.sourceHead, r.destinationHead
	return s
}
