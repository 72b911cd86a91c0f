package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"strings"
	"time"

	"decoynet/deception"
)

// FindingFilter chooses findings. Zero fields choose all.
type FindingFilter struct {
	Since   time.Time // those of at or after it
	Session deception.SessionID
	Source  netip.Prefix // the intruder's address
	Node    string       // where they were found
	Kind    string       // see deception.Finding
	// Names of where the session belongs; all findings of one match exactly. What
	// belongs to no session on record is not among them.
	Segment, Decoy, Service string

	Alerts   bool   // only what rules said
	SID      uint32 // of this rule
	Severity uint8  // of it or worse; 1 is the worst
	Scanner  string // of this known scanner
	Unknown  bool   // of nobody who is known
	// Limit is the greatest number of findings: the newest ones or, with After, the
	// oldest behind it.
	Limit int
	// After chooses findings that sort behind the identifier, which is the way to
	// read on where a listing stopped.
	After deception.SessionID
}

// where writes the filter's conditions, without those on the listing's order.
func (f *FindingFilter) where(d dialect, a *arguments) string {
	parts := []string{"TRUE"}
	if !f.Since.IsZero() {
		// Identifiers are of the events' time; the first condition is for the index.
		parts = append(parts, "id >= "+a.add(d.key(idAt(f.Since.Add(-clockSkew)))), "time >= "+a.add(f.Since.UnixNano()))
	}
	if !f.Session.IsZero() {
		parts = append(parts, "session = "+a.add(d.key(f.Session)))
	}
	for _, c := range []struct{ column, value string }{{"node", f.Node}, {"kind", f.Kind}, {"scanner", f.Scanner}} {
		if c.value != "" {
			parts = append(parts, c.column+" = "+a.add(c.value))
		}
	}
	if f.Alerts || f.SID != 0 || f.Severity != 0 {
		parts = append(parts, "rule IS NOT NULL")
	}
	if f.SID != 0 {
		parts = append(parts, "rule IN (SELECT id FROM rule WHERE sid = "+a.add(int64(f.SID))+")")
	}
	if f.Severity != 0 {
		parts = append(parts, "rule IN (SELECT id FROM rule WHERE severity <= "+a.add(int64(f.Severity))+")")
	}
	if f.Unknown {
		parts = append(parts, "scanner = ''")
	}
	var names []string
	for _, c := range []struct{ column, value string }{{"segment", f.Segment}, {"decoy", f.Decoy}, {"service", f.Service}} {
		if c.value != "" {
			names = append(names, c.column+" = "+a.add(c.value))
		}
	}
	if names != nil {
		parts = append(parts, "EXISTS (SELECT 1 FROM session AS s WHERE s.id = finding.session AND s.binding IN"+
			" (SELECT id FROM binding WHERE "+strings.Join(names, " AND ")+"))")
	}
	if f.Source.IsValid() {
		parts = append(parts, d.within(a, f.Source))
	}
	return strings.Join(parts, " AND ")
}

// keep checks what where does not.
func (f *FindingFilter) keep(v *deception.Finding) bool {
	return (!f.Source.IsValid() || f.Source.Contains(v.Source.Addr())) && (!f.Unknown || v.Scanner == "")
}

func (r *Reader) findingListing(f FindingFilter) *listing[deception.Finding] {
	l := &listing[deception.Finding]{
		r: r, table: "finding",
		query: `SELECT id, session, time, node, kind, application, transport, ` + r.back.endpoint("source") + `, ` +
			r.back.endpoint("destination") + `, rule, to_service, feed_lost, partial, scanner, document, seq FROM finding `,
		where: func(a *arguments) string { return f.where(r.back, a) },
		by:    func(ctx context.Context) (route, error) { return r.findingRoute(ctx, &f) },
		limit: f.Limit, after: f.After,
		parse: parseFinding,
		id:    func(v *deception.Finding) deception.SessionID { return v.ID },
		fill:  r.place,
	}
	if f.Source.IsValid() || f.Unknown {
		l.keep = f.keep
	}
	return l
}

// parseFinding takes the columns of findingListing but the last. Of an alert it
// knows the number of its rule, which place replaces.
func parseFinding(row *rowReader) (f deception.Finding) {
	f.ID, f.Session, f.Time = row.id(), row.id(), row.time()
	f.Node, f.Kind, f.Application = row.text(), row.text(), row.text()
	f.Transport = deception.Transport(row.number())
	f.Source, f.Destination = row.endpoint(), row.endpoint()
	rule, toService := row.number(), row.number() != 0
	if rule != 0 {
		f.Alert = &deception.Alert{GID: uint32(rule), ToService: toService}
	}
	f.FeedLost, f.Partial, f.Scanner = uint64(row.number()), row.number() != 0, row.text()
	document, err := unpack(row.bytes())
	if err != nil && row.err == nil {
		row.err = fmt.Errorf("finding %s: %w", f.ID, err)
	}
	f.Document = document
	return f
}

// place sets what findings have from their rules and from their sessions, as far as
// these are on record.
func (r *Reader) place(ctx context.Context, all []deception.Finding) error {
	ids := make([]deception.SessionID, 0, len(all))
	for i := range all {
		f := &all[i]
		if f.Alert != nil {
			rule, err := r.rule(ctx, int64(f.Alert.GID))
			if err != nil {
				return err
			}
			rule.ToService = f.Alert.ToService
			*f.Alert = rule
		}
		if !f.Session.IsZero() {
			ids = append(ids, f.Session)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	bindings := make(map[deception.SessionID]int64)
	var a arguments
	err := r.each(ctx, "SELECT id, binding FROM session WHERE id IN ("+a.keys(r.back, ids)+")", a.values, func(values []any) error {
		row := rowReader{values: values}
		id := row.id()
		bindings[id] = row.number()
		return row.err
	})
	if err != nil {
		return err
	}
	for i := range all {
		f := &all[i]
		binding, ok := bindings[f.Session]
		if !ok {
			continue
		}
		key, err := r.binding(ctx, binding)
		if err != nil {
			return err
		}
		f.Of = deception.Place{Node: key.node, Segment: key.segment, Decoy: key.decoy, Service: key.service}
		if f.Scanner == "" {
			f.Scanner = key.scanner
		}
	}
	return nil
}

// binding returns what a row of the table binding stands for.
func (r *Reader) binding(ctx context.Context, id int64) (bindingKey, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bindingLocked(ctx, id)
}

// rule returns a row of the table rule.
func (r *Reader) rule(ctx context.Context, id int64) (deception.Alert, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a, ok := r.rules[id]; ok {
		return a, nil
	}
	// Rows never change and their numbers grow: there may be newer ones.
	err := r.each(ctx, "SELECT id, gid, sid, revision, severity, signature, category FROM rule WHERE id > $1", []any{r.lastRule},
		func(values []any) error {
			row := rowReader{values: values}
			id := row.number()
			r.rules[id] = deception.Alert{
				GID: uint32(row.number()), SID: uint32(row.number()), Revision: uint32(row.number()),
				Severity: uint8(row.number()), Signature: row.text(), Category: row.text(),
			}
			r.lastRule = max(r.lastRule, id)
			return row.err
		})
	if err != nil {
		return deception.Alert{}, err
	}
	a, ok := r.rules[id]
	if !ok {
		return a, fmt.Errorf("rule %d: %w", id, errRow)
	}
	return a, nil
}

// Findings yields what the filter chooses, in the order in which the events happened
// by Suricata's clock, newest last. After an error it ends.
func (r *Reader) Findings(ctx context.Context, f FindingFilter) iter.Seq2[deception.Finding, error] {
	return r.findings(ctx, f, "read findings", func(l *listing[deception.Finding], yield func(deception.Finding) bool) error {
		return l.until(ctx, lastSeq, yield)
	})
}

// WatchFindings yields what Findings does and goes on, until ctx is done, with every
// finding that comes. Limit holds for the first part only.
func (r *Reader) WatchFindings(ctx context.Context, f FindingFilter) iter.Seq2[deception.Finding, error] {
	return r.findings(ctx, f, "watch findings", func(l *listing[deception.Finding], yield func(deception.Finding) bool) error {
		err := l.watch(ctx, yield)
		if ctx.Err() != nil {
			return nil
		}
		return err
	})
}

func (r *Reader) findings(ctx context.Context, f FindingFilter, what string,
	list func(*listing[deception.Finding], func(deception.Finding) bool) error,
) iter.Seq2[deception.Finding, error] {
	return func(yield func(deception.Finding, error) bool) {
		err := list(r.findingListing(f), func(v deception.Finding) bool { return yield(v, nil) })
		if err != nil && !errors.Is(err, errStop) {
			yield(deception.Finding{}, fmt.Errorf("%s: %w", what, err))
		}
	}
}
