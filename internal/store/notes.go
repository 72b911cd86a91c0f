package store

import (
	"net/netip"
	"slices"
	"time"

	"decoynet/deception"
)

// notes writes what in a batch is no session, and what was seen before of the
// sessions in it.
func (w *writer) notes(b *batch) error {
	if err := w.seenBefore(); err != nil {
		return err
	}
	if err := w.seen(b.seen); err != nil {
		return err
	}
	if err := w.events(b.events); err != nil {
		return err
	}
	if err := w.probes(b.probes); err != nil {
		return err
	}
	if err := w.findings(b.findings); err != nil {
		return err
	}
	for _, d := range b.deliveries {
		if err := w.seen(d.seen); err != nil {
			return err
		}
		if err := w.events(d.events); err != nil {
			return err
		}
		if err := w.probes(d.probes); err != nil {
			return err
		}
		if err := w.findings(d.findings); err != nil {
			return err
		}
	}
	return nil
}

// seenBefore applies what came before its session did.
func (w *writer) seenBefore() error {
	if len(w.changed) == 0 {
		return nil
	}
	if some, err := w.number("SELECT count(*) FROM (SELECT 1 FROM seen LIMIT 1) AS one"); err != nil || some == 0 {
		return err
	}
	ids := distinct([]change{{sessions: slices.Clone(w.changed)}})
	for part := range slices.Chunk(ids, manyIDs) {
		var a arguments
		var found []deception.SourceSeen
		err := w.conn.query("DELETE FROM seen WHERE session IN ("+a.keys(w.back, padded(part))+
			") RETURNING session, source_nat, source_mode, destination_nat", a.values, func(values []any) error {
			row := rowReader{values: values}
			var s deception.SourceSeen
			s.Session, s.SourceNAT = row.id(), parseSeen(row.text())
			s.SourceMode, s.DestinationNAT = deception.SourceMode(row.number()), parseSeen(row.text())
			found = append(found, s)
			return row.err
		})
		if err == nil {
			err = w.seen(found)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// seen sets what egresses saw in the rows of their sessions, and keeps what has
// none yet.
func (w *writer) seen(all []deception.SourceSeen) error {
	for part := range slices.Chunk(all, manyIDs) {
		ids := make([]deception.SessionID, len(part))
		for i := range part {
			ids[i] = part[i].Session
		}
		rows, err := w.load(ids)
		if err != nil {
			return err
		}
		for i := range part {
			row, ok := rows[part[i].Session]
			if !ok {
				if err := w.keepSeen(&part[i]); err != nil {
					return err
				}
			} else if row.see(&part[i]) {
				row.dirty = true
			}
		}
		if err := w.replace(rows); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) keepSeen(s *deception.SourceSeen) error {
	_, err := w.conn.exec(`INSERT INTO seen (session, at, source_nat, source_mode, destination_nat)
		VALUES ($1, $2, $3, $4, $5) ON CONFLICT (session) DO UPDATE SET at = excluded.at,
		source_nat = excluded.source_nat, source_mode = excluded.source_mode, destination_nat = excluded.destination_nat`,
		w.back.key(s.Session), time.Now().UnixNano(), textSeen(s.SourceNAT),
		int64(min(s.SourceMode, deception.SourceMasquerade)), textSeen(s.DestinationNAT))
	return err
}

func textSeen(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return netip.AddrPortFrom(a.Addr().WithZone(""), a.Port()).String()
}

// parseSeen reads what textSeen wrote.
func parseSeen(s string) netip.AddrPort {
	a, _ := netip.ParseAddrPort(s)
	return a
}

// events writes those that are not there yet.
func (w *writer) events(all []deception.Event) error {
	for i := range all {
		e := &all[i]
		var session any
		if !e.Session.IsZero() {
			session = w.back.key(e.Session)
		}
		source, sourcePort := endpointColumns(e.Source)
		destination, destinationPort := endpointColumns(e.Destination)
		if _, err := w.conn.exec(`INSERT INTO event (id, time, kind, node, segment, decoy, session,
				source, source_port, destination, destination_port, message)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT (id) DO NOTHING`,
			w.back.key(e.ID), nanos(e.Time), string(e.Kind), e.Node, e.Segment, e.Decoy, session,
			source, sourcePort, destination, destinationPort, e.Message); err != nil {
			return err
		}
	}
	return nil
}

func endpointColumns(a netip.AddrPort) (addr, port any) {
	if !a.IsValid() {
		return nil, nil
	}
	return a.Addr().WithZone("").String(), int64(a.Port())
}
