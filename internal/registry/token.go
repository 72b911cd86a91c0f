package registry

import (
	"context"
	"crypto/subtle"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Why a join token is refused.
var (
	ErrTokenUnknown = errors.New("no such join token")
	ErrTokenExpired = errors.New("the join token has expired")
	ErrTokenUsed    = errors.New("the join token was used before")
)

// tokenKept is how long after its expiry a token is known as expired or used;
// later it is unknown.
const tokenKept = 30 * 24 * time.Hour

// CreateToken makes a join token with which the node can enrol once, until it
// expires.
func (r *Registry) CreateToken(ctx context.Context, node string, expires time.Time, secret Secret, by Entry) error {
	err := r.change(ctx, func(t tx) error {
		if _, err := t.exec(`INSERT INTO controller_token (id, hash, node, created_by, created_at, expires_at)
			VALUES (?, ?, ?, ?, ?, ?)`,
			secret.ID, secret.Hash[:], node, by.Actor, stamp(time.Now()), stamp(expires)); err != nil {
			return err
		}
		return t.ok(by)
	})
	return wrap("create a join token", err)
}

// consume marks the token as used by who is at peer, and returns the node that it
// was made for, which is known (and returned) also where an expired or used token
// was refused.
func (t tx) consume(secret Secret, peer string, now time.Time) (node string, err error) {
	var hash []byte
	var expires, used int64
	err = t.row("SELECT hash, node, expires_at, used_at FROM controller_token WHERE id = ?", secret.ID).
		Scan(&hash, &node, &expires, &used)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", err
	}
	switch {
	case subtle.ConstantTimeCompare(hash, secret.Hash[:]) != 1:
		return "", ErrTokenUnknown
	case used != 0:
		return node, fmt.Errorf("%w, at %s", ErrTokenUsed, moment(used).UTC().Format(time.RFC3339))
	case now.UnixNano() >= expires:
		return node, fmt.Errorf("%w, at %s", ErrTokenExpired, moment(expires).UTC().Format(time.RFC3339))
	}
	_, err = t.exec("UPDATE controller_token SET used_at = ?, used_by = ? WHERE id = ?", stamp(now), peer, secret.ID)
	return node, err
}
