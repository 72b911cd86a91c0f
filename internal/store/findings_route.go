package store

import (
	"context"
	"net/netip"

	"decoynet/deception"
)

// From how many sessions on that carry wanted names, and from how many findings of
// theirs or of a network's on, some are met soon enough where all findings are read.
const (
	manySessions = 1000
	manyFindings = 20_000
)

// findingRoute chooses the index that leads to the fewest findings. Who asks without
// saying since when would else wait for the whole table to be read, just where next
// to nothing is found in it.
func (r *Reader) findingRoute(ctx context.Context, f *FindingFilter) (route, error) {
	if !f.Session.IsZero() {
		return route{index: "finding_session"}, nil
	}
	if f.Source.IsValid() {
		if way, ok, err := r.routeBySource(ctx, f.Source); ok || err != nil {
			return way, err
		}
	}
	if f.Scanner != "" {
		return route{"finding_scanner", func(*arguments) string { return "scanner <> ''" }}, nil
	}
	if f.Since.IsZero() && (f.Segment != "" || f.Decoy != "" || f.Service != "") {
		if way, ok, err := r.routeByName(ctx, f); ok || err != nil {
			return way, err
		}
	}
	if f.Kind != "" && f.Kind != deception.KindFlow {
		return route{"finding_kind", func(*arguments) string { return "kind <> 'flow'" }}, nil
	}
	return route{}, nil
}

// routeBySource leads over the intruders of a network. Those of one address stand in
// order; those of more have to be sorted for every page, and must not be many.
func (r *Reader) routeBySource(ctx context.Context, network netip.Prefix) (way route, ok bool, err error) {
	way = route{"finding_source", func(a *arguments) string { return r.back.from(a, network) }}
	var a arguments
	condition := way.where(&a)
	if condition == "" || network.IsSingleIP() {
		return way, condition != "", nil
	}
	var findings int64
	err = r.db.QueryRowContext(ctx, "SELECT count(*) FROM (SELECT 1 FROM finding "+r.back.hint(way.index)+" WHERE "+condition+
		" LIMIT "+a.add(int64(manyFindings+1))+") AS f", a.values...).Scan(&findings)
	return way, findings <= manyFindings, err
}

// routeByName leads over the sessions that carry the names, unless these are many.
func (r *Reader) routeByName(ctx context.Context, f *FindingFilter) (way route, ok bool, err error) {
	q, err := r.compile(ctx, Filter{Segment: f.Segment, Decoy: f.Decoy, Service: f.Service})
	if err != nil {
		return way, false, err
	}
	var ids []deception.SessionID
	if q != nil {
		if ids, err = q.identifiers(ctx, manySessions); err != nil || len(ids) == manySessions {
			return way, false, err
		}
	}
	if len(ids) == 0 {
		return route{where: func(*arguments) string { return "FALSE" }}, true, nil
	}
	var a arguments
	var findings int64
	err = r.db.QueryRowContext(ctx, "SELECT CAST(coalesce(sum(findings), 0) AS bigint) FROM analysis WHERE session IN ("+a.keys(r.back, ids)+")",
		a.values...).Scan(&findings)
	if err != nil || findings > manyFindings {
		return way, false, err
	}
	return route{"finding_session", func(a *arguments) string { return "session IN (" + a.keys(r.back, ids) + ")" }}, true, nil
}
