package registry

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Results of an audit entry.
const (
	ResultOK     = "ok"
	ResultDenied = "denied"
	ResultFailed = "failed"
)

// Entry is one line of the audit log: who changed, or tried to change, what.
type Entry struct {
	Time   time.Time
	Actor  string // user, node, or the address of who had no name
	Role   string
	Method string // as AdminService/Apply
	Object string
	Result string
	Detail string
	Peer   string // address that the call came from
}

const (
	// entryText is the greatest length of an entry's object or detail, in bytes.
	entryText = 4096
	// DefaultAuditLimit is how many entries ListAudit returns where no limit is
	// given, MaxAuditLimit how many at most.
	DefaultAuditLimit = 1000
	MaxAuditLimit     = 10000
	// auditKept bounds the log. At the rate at which refusals are logged, it is
	// filled by nobody in less than weeks.
	auditKept = 1_000_000
	auditAge  = 2 * 365 * 24 * time.Hour
)

// Audit appends an entry that is about no change here: a refusal, a failure.
func (r *Registry) Audit(ctx context.Context, e Entry) error {
	if err := r.transact(ctx, func(t tx) error { return t.audit(e) }, func() {}); err != nil {
		return fmt.Errorf("write the audit log: %w", err)
	}
	return nil
}

func (t tx) audit(e Entry) error {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	_, err := t.exec(`INSERT INTO controller_audit (at, actor, role, method, object, result, detail, peer)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
		stamp(e.Time), text(e.Actor, 256), e.Role, text(e.Method, 256), text(e.Object, entryText), e.Result,
		text(e.Detail, entryText), e.Peer)
	return err
}

// ok appends the entry of a change that succeeds with its transaction.
func (t tx) ok(e Entry) error {
	e.Result = ResultOK
	return t.audit(e)
}

// ListAudit returns the newest entries since a time, oldest first.
func (r *Registry) ListAudit(ctx context.Context, since time.Time, limit int) ([]Entry, error) {
	if limit <= 0 {
		limit = DefaultAuditLimit
	}
	rows, err := r.db.QueryContext(ctx, r.dialect(`SELECT at, actor, role, method, object, result, detail, peer
		FROM controller_audit WHERE at >= ? ORDER BY sequence DESC LIMIT ?`), stamp(since), min(limit, MaxAuditLimit))
	if err != nil {
		return nil, fmt.Errorf("read the audit log: %w", err)
	}
	defer rows.Close()
	var out []Entry
	for rows.Next() {
		var e Entry
		var at int64
		if err := rows.Scan(&at, &e.Actor, &e.Role, &e.Method, &e.Object, &e.Result, &e.Detail, &e.Peer); err != nil {
			return nil, fmt.Errorf("read the audit log: %w", err)
		}
		e.Time = moment(at)
		out = append(out, e)
	}
	slices.Reverse(out)
	return out, rows.Err()
}

// Prune deletes what is too old to be of use: audit entries older than two years
// or beyond a million, join tokens that expired more than 30 days ago, URLs of
// controllers that were not heard of for 30 days.
func (r *Registry) Prune(ctx context.Context, now time.Time) error {
	err := r.transact(ctx, func(t tx) error {
		for _, s := range []struct {
			statement string
			before    int64
		}{
			{"DELETE FROM controller_audit WHERE at < ?", stamp(now.Add(-auditAge))},
			{"DELETE FROM controller_audit WHERE sequence <= (SELECT max(sequence) FROM controller_audit) - ?", auditKept},
			{"DELETE FROM controller_token WHERE expires_at < ?", stamp(now.Add(-tokenKept))},
			{"DELETE FROM controller_url WHERE seen_at < ?", stamp(now.Add(-urlKept))},
		} {
			if _, err := t.exec(s.statement, s.before); err != nil {
				return err
			}
		}
		return nil
	}, func() {})
	if err != nil {
		return fmt.Errorf("prune the registry: %w", err)
	}
	return nil
}
