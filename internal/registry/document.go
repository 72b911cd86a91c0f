package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// Errors of Apply and Document.
var (
	// ErrNoDocument says that no document was applied yet.
	ErrNoDocument = errors.New("no document was applied yet")
	// ErrRevision says that the document is not at the revision that a change
	// was made for: somebody else applied one meanwhile.
	ErrRevision = errors.New("the document is at another revision by now")
)

// documentsKept is how many documents are kept, the present one included.
const documentsKept = 100

// Document is a document that was applied.
type Document struct {
	Revision string // sequence number and a short hash of the source
	Name     string // of the file, for people
	Source   []byte
	// Machine is the machine that a document of one machine is about: where it does
	// not say so, the host name where it was applied, which is another for the
	// next controller that reads it.
	Machine   string
	AppliedBy string
	AppliedAt time.Time
}

func revision(sequence int64, hash string) string { return fmt.Sprintf("%d-%s", sequence, hash) }

// Apply makes the document (its name, source and machine) the present one and returns
// it with the rest filled in. One that is already present stays as it is, under its
// revision. Where expect is not empty and not the present revision, it returns
// ErrRevision.
func (r *Registry) Apply(ctx context.Context, d Document, expect string, by Entry) (Document, error) {
	sum := sha256.Sum256(d.Source)
	hash := hex.EncodeToString(sum[:4])
	var out Document
	err := r.change(ctx, func(t tx) error {
		present, err := scanDocument(t.row(latestDocument))
		if err != nil && !errors.Is(err, ErrNoDocument) {
			return err
		}
		if expect != "" && expect != present.Revision {
			return fmt.Errorf("%w: %s, not %s", ErrRevision, orNone(present.Revision), expect)
		}
		if err == nil && bytes.Equal(present.Source, d.Source) && present.Machine == d.Machine {
			out = present
			by.Detail = "no change"
			by.Object = out.Revision
			return t.ok(by)
		}
		out = Document{Name: text(d.Name, 512), Source: d.Source, Machine: d.Machine, AppliedBy: by.Actor, AppliedAt: time.Now()}
		var sequence int64
		if err := t.row(`INSERT INTO controller_document (hash, name, source, machine, applied_by, applied_at)
			VALUES (?, ?, ?, ?, ?, ?) RETURNING sequence`,
			hash, out.Name, out.Source, out.Machine, out.AppliedBy, stamp(out.AppliedAt)).Scan(&sequence); err != nil {
			return err
		}
		out.Revision = revision(sequence, hash)
		if _, err := t.exec("DELETE FROM controller_document WHERE sequence <= ?", sequence-documentsKept); err != nil {
			return err
		}
		by.Object = out.Revision
		return t.ok(by)
	})
	if err != nil {
		return Document{}, fmt.Errorf("apply the document: %w", err)
	}
	return out, nil
}

func orNone(revision string) string {
	if revision == "" {
		return "none"
	}
	return revision
}

// Document returns the present document, or ErrNoDocument.
func (r *Registry) Document(ctx context.Context) (Document, error) {
	return scanDocument(r.db.QueryRowContext(ctx, r.dialect(latestDocument)))
}

// Revision returns the present document's revision, "" where there is none.
func (r *Registry) Revision(ctx context.Context) (string, error) {
	var sequence int64
	var hash string
	err := r.db.QueryRowContext(ctx,
		"SELECT sequence, hash FROM controller_document ORDER BY sequence DESC LIMIT 1").Scan(&sequence, &hash)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("read the document's revision: %w", err)
	}
	return revision(sequence, hash), nil
}

const latestDocument = `SELECT sequence, hash, name, source, machine, applied_by, applied_at
	FROM controller_document ORDER BY sequence DESC LIMIT 1`

func scanDocument(row *sql.Row) (Document, error) {
	var d Document
	var sequence, at int64
	var hash string
	err := row.Scan(&sequence, &hash, &d.Name, &d.Source, &d.Machine, &d.AppliedBy, &at)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return Document{}, ErrNoDocument
	case err != nil:
		return Document{}, fmt.Errorf("read the document: %w", err)
	}
	d.Revision, d.AppliedAt = revision(sequence, hash), moment(at)
	return d, nil
}

// LastOf returns the source that somebody applied last under the name, whether or not
// it is the present one. It returns ErrNoDocument where there is none (any more).
func (r *Registry) LastOf(ctx context.Context, actor, name string) ([]byte, error) {
	var source []byte
	err := r.db.QueryRowContext(ctx, r.dialect(`SELECT source FROM controller_document
		WHERE applied_by = ? AND name = ? ORDER BY sequence DESC LIMIT 1`), actor, text(name, 512)).Scan(&source)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, ErrNoDocument
	case err != nil:
		return nil, fmt.Errorf("read the document: %w", err)
	}
	return source, nil
}
