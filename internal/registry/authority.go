package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Authority returns the certificate and key of the certificate authority, in the
// form that create gives them. It calls create once in the registry's life, however
// many controllers start at the same time.
func (r *Registry) Authority(ctx context.Context, create func() (certificate, key []byte, err error)) (certificate, key []byte, err error) {
	const read = "SELECT certificate, key FROM controller_ca WHERE id = 1"
	err = r.db.QueryRowContext(ctx, read).Scan(&certificate, &key)
	if err == nil || !errors.Is(err, sql.ErrNoRows) {
		return certificate, key, wrap("read the authority", err)
	}
	err = r.change(ctx, func(t tx) error {
		err := t.row(read).Scan(&certificate, &key)
		if err == nil || !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if certificate, key, err = create(); err != nil {
			return err
		}
		_, err = t.exec("INSERT INTO controller_ca (id, certificate, key) VALUES (1, ?, ?)", certificate, key)
		return err
	})
	return certificate, key, wrap("make the authority", err)
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// urlKept is how long the URL of a controller that is silent is told to nodes:
// it may be down for repair.
const urlKept = 30 * 24 * time.Hour

// Announce says under which URLs this controller is reached; to be repeated
// every hour or so.
func (r *Registry) Announce(ctx context.Context, urls []string, now time.Time) error {
	known, err := r.URLs(ctx)
	if err != nil {
		return err
	}
	write := r.change
	if !slices.ContainsFunc(urls, func(u string) bool { return !slices.Contains(known, u) }) {
		write = func(ctx context.Context, f func(tx) error) error { return r.transact(ctx, f, func() {}) }
	}
	return wrap("announce the controller's URLs", write(ctx, func(t tx) error {
		for _, u := range slices.Sorted(slices.Values(urls)) {
			if _, err := t.exec(`INSERT INTO controller_url (url, seen_at) VALUES (?, ?)
				ON CONFLICT (url) DO UPDATE SET seen_at = excluded.seen_at`, u, stamp(now)); err != nil {
				return err
			}
		}
		return nil
	}))
}

// URLs returns the URLs under which controllers are reached, sorted.
func (r *Registry) URLs(ctx context.Context) ([]string, error) {
	rows, err := r.db.QueryContext(ctx, "SELECT url FROM controller_url")
	if err != nil {
		return nil, fmt.Errorf("read the controllers' URLs: %w", err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var u string
		if err := rows.Scan(&u); err != nil {
			return nil, fmt.Errorf("read the controllers' URLs: %w", err)
		}
		out = append(out, u)
	}
	slices.Sort(out)
	return out, rows.Err()
}
