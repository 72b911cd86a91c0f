package store

import (
	"bytes"
	"cmp"
	"context"
	"maps"
	"slices"

	"decoynet/deception"
)

const selectAnalysis = `SELECT session, findings, alerts, severity, application, user_agent, ja3, ja4, ssh, hassh,
	server_name, user_name, partial FROM analysis WHERE session IN (`

// parseAnalysis takes the columns of selectAnalysis.
func parseAnalysis(row *rowReader) (id deception.SessionID, a deception.Analysis) {
	id = row.id()
	a.Findings, a.Alerts, a.Severity = uint64(row.number()), uint64(row.number()), uint8(row.number())
	a.Application = row.text()
	for _, text := range a.Texts() {
		*text = row.text()
	}
	a.Partial = row.number() != 0
	return id, a
}

// addAnalysis adds what later findings say. What is known of the client stays as
// the first one said it; the application is what Suricata knew last.
func addAnalysis(to, more *deception.Analysis) {
	to.Findings, to.Alerts = to.Findings+more.Findings, to.Alerts+more.Alerts
	if more.Severity != 0 && (to.Severity == 0 || more.Severity < to.Severity) {
		to.Severity = more.Severity
	}
	to.Application = cmp.Or(more.Application, to.Application)
	have, got := to.Texts(), more.Texts()
	for i := range have {
		*have[i] = cmp.Or(*have[i], *got[i])
	}
	to.Partial = to.Partial || more.Partial
}

// analyse adds what new findings say of their sessions.
func (w *writer) analyse(fresh []*finding) error {
	says := make(map[deception.SessionID]*deception.Analysis)
	for _, f := range fresh {
		if f.Session.IsZero() {
			continue
		}
		sum := says[f.Session]
		if sum == nil {
			sum = &deception.Analysis{}
			says[f.Session] = sum
		}
		addAnalysis(sum, &f.says)
	}
	ids := slices.SortedFunc(maps.Keys(says), func(a, b deception.SessionID) int { return bytes.Compare(a[:], b[:]) })
	for part := range slices.Chunk(ids, manyIDs) {
		var a arguments
		have := make(map[deception.SessionID]deception.Analysis, len(part))
		err := w.conn.query(selectAnalysis+a.keys(w.back, padded(part))+")", a.values, func(values []any) error {
			row := rowReader{values: values}
			id, known := parseAnalysis(&row)
			have[id] = known
			return row.err
		})
		if err != nil {
			return err
		}
		for _, id := range part {
			sum := have[id]
			addAnalysis(&sum, says[id])
			if err := w.writeAnalysis(id, &sum); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *writer) writeAnalysis(id deception.SessionID, a *deception.Analysis) error {
	args := []any{
		w.back.key(id), int64(min(a.Findings, maxCount)), int64(min(a.Alerts, maxCount)),
		orNull(a.Severity != 0, int64(a.Severity)), orNull(a.Application != "", a.Application),
	}
	for _, text := range a.Texts() {
		args = append(args, orNull(*text != "", *text))
	}
	args = append(args, int64(bit(a.Partial)))
	_, err := w.conn.exec(`INSERT INTO analysis (session, findings, alerts, severity, application, user_agent, ja3, ja4, ssh, hassh,
			server_name, user_name, partial)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) ON CONFLICT (session) DO UPDATE SET
			findings = excluded.findings, alerts = excluded.alerts, severity = excluded.severity,
			application = excluded.application, user_agent = excluded.user_agent, ja3 = excluded.ja3, ja4 = excluded.ja4,
			ssh = excluded.ssh, hassh = excluded.hassh, server_name = excluded.server_name, user_name = excluded.user_name,
			partial = excluded.partial`, args...)
	return err
}

// analyse sets what was found in the sessions. What rules said of a known scanner
// is no alert.
func (r *Reader) analyse(ctx context.Context, sessions []deception.Session) error {
	if len(sessions) == 0 {
		return nil
	}
	ids := make([]deception.SessionID, len(sessions))
	for i := range sessions {
		ids[i] = sessions[i].ID
	}
	found := make(map[deception.SessionID]*deception.Analysis)
	var a arguments
	err := r.each(ctx, selectAnalysis+a.keys(r.back, ids)+")", a.values, func(values []any) error {
		row := rowReader{values: values}
		id, says := parseAnalysis(&row)
		found[id] = &says
		return row.err
	})
	if err != nil {
		return err
	}
	for i := range sessions {
		s := &sessions[i]
		if s.Analysis = found[s.ID]; s.Analysis != nil && s.Scanner != "" {
			s.Analysis.Alerts, s.Analysis.Severity = 0, 0
		}
	}
	return nil
}
