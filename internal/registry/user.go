package registry

import (
	"cmp"
	"context"
	"crypto/subtle"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Errors about API users.
var (
	// ErrUserExists says that the name is taken.
	ErrUserExists = errors.New("a user of that name exists")
	// ErrNoUser says that there is no such user, or no such token.
	ErrNoUser = errors.New("no such user")
	// ErrLastAdmin says that nobody would be left who may make users.
	ErrLastAdmin = errors.New("the last admin cannot be deleted")
)

// RoleAdmin is the role of which at least one user is kept.
const RoleAdmin = "admin"

// User is a person or script that may use the API.
type User struct {
	Name, Role        string
	Created, LastUsed time.Time
}

// usedEvery is how exactly User.LastUsed is kept.
const usedEvery = time.Minute

// CreateUser makes a user who shows the secret. It returns ErrUserExists where
// the name is taken.
func (r *Registry) CreateUser(ctx context.Context, name, role string, secret Secret, by Entry) error {
	err := r.change(ctx, func(t tx) error {
		n, err := t.exec(`INSERT INTO controller_user (id, hash, name, role, created_at) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (name) DO NOTHING`, secret.ID, secret.Hash[:], name, role, stamp(time.Now()))
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrUserExists
		}
		return t.ok(by)
	})
	if err != nil {
		return fmt.Errorf("create user %s: %w", name, err)
	}
	return nil
}

// ReplaceUser makes a user who shows the secret, in the place of one of the same
// name if there is one.
func (r *Registry) ReplaceUser(ctx context.Context, name, role string, secret Secret, by Entry) error {
	err := r.change(ctx, func(t tx) error {
		if _, err := t.exec(`INSERT INTO controller_user (id, hash, name, role, created_at) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (name) DO UPDATE SET id = excluded.id, hash = excluded.hash, role = excluded.role,
				created_at = excluded.created_at, last_used_at = 0`,
			secret.ID, secret.Hash[:], name, role, stamp(time.Now())); err != nil {
			return err
		}
		return t.ok(by)
	})
	if err != nil {
		return fmt.Errorf("replace user %s: %w", name, err)
	}
	return nil
}

// DeleteUser makes a user's token void. It returns ErrNoUser and ErrLastAdmin.
func (r *Registry) DeleteUser(ctx context.Context, name string, by Entry) error {
	err := r.change(ctx, func(t tx) error {
		n, err := t.exec("DELETE FROM controller_user WHERE name = ?", name)
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrNoUser
		}
		var admins int64
		if err := t.row("SELECT count(*) FROM controller_user WHERE role = ?", RoleAdmin).Scan(&admins); err != nil {
			return err
		}
		if admins == 0 {
			return ErrLastAdmin
		}
		return t.ok(by)
	})
	if err != nil {
		return fmt.Errorf("delete user %s: %w", name, err)
	}
	return nil
}

// UserOf returns the user who shows the secret, or ErrNoUser. The comparison
// takes the same time for every wrong secret.
func (r *Registry) UserOf(ctx context.Context, secret Secret) (User, error) {
	var u User
	var hash []byte
	var created, used int64
	err := r.db.QueryRowContext(ctx,
		r.dialect("SELECT hash, name, role, created_at, last_used_at FROM controller_user WHERE id = ?"), secret.ID).
		Scan(&hash, &u.Name, &u.Role, &created, &used)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return User{}, fmt.Errorf("read the API users: %w", err)
	}
	if subtle.ConstantTimeCompare(hash, secret.Hash[:]) != 1 {
		return User{}, ErrNoUser
	}
	u.Created, u.LastUsed = moment(created), moment(used)
	if now := time.Now(); now.Sub(u.LastUsed) > usedEvery {
		u.LastUsed = now
		// Nobody is refused because a disk is full.
		_, _ = r.db.ExecContext(ctx, r.dialect("UPDATE controller_user SET last_used_at = ? WHERE id = ?"), stamp(now), secret.ID)
	}
	return u, nil
}

// Users returns the API users by name.
func (r *Registry) Users(ctx context.Context) ([]User, error) {
	rows, err := r.db.QueryContext(ctx, "SELECT name, role, created_at, last_used_at FROM controller_user")
	if err != nil {
		return nil, fmt.Errorf("read the API users: %w", err)
	}
	defer rows.Close()
	var out []User
	for rows.Next() {
		var u User
		var created, used int64
		if err := rows.Scan(&u.Name, &u.Role, &created, &used); err != nil {
			return nil, fmt.Errorf("read the API users: %w", err)
		}
		u.Created, u.LastUsed = moment(created), moment(used)
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b User) int { return cmp.Compare(a.Name, b.Name) })
	return out, rows.Err()
}
