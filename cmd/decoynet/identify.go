package main

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"

	"decoynet/deception"
	"decoynet/internal/store"
)

// sessionName is how a person names a session: by its identifier, or by as much of
// its beginning as no other session on record has.
type sessionName struct {
	text        string
	first, last deception.SessionID // that are named so
}

func parseSessionName(text string) (sessionName, error) {
	first, last, err := deception.ParseSessionPrefix(text)
	return sessionName{text, first, last}, err
}

// whole tells whether it is an identifier, which is one also of a session that is
// not on record.
func (n sessionName) whole() bool { return n.first == n.last }

// sessionRecord is what of a record finds sessions.
type sessionRecord interface {
	Sessions(ctx context.Context, f store.Filter) iter.Seq2[deception.Session, error]
}

// find returns the identifier of the one session that is named so.
func (n sessionName) find(ctx context.Context, r sessionRecord) (deception.SessionID, error) {
	if n.whole() {
		return n.first, nil
	}
	var found []deception.Session
	for s, err := range r.Sessions(ctx, store.Filter{After: before(n.first), Limit: 2}) {
		if err != nil {
			return deception.SessionID{}, err
		}
		if bytes.Compare(s.ID[:], n.first[:]) >= 0 && bytes.Compare(s.ID[:], n.last[:]) <= 0 {
			found = append(found, s)
		}
	}
	switch len(found) {
	case 0:
		return deception.SessionID{}, fmt.Errorf("no session's identifier begins with %s", n.text)
	case 1:
		return found[0].ID, nil
	}
	slices.SortFunc(found, func(a, b deception.Session) int { return strings.Compare(a.ID.String(), b.ID.String()) })
	return deception.SessionID{}, fmt.Errorf("more than one session's identifier begins with %s: %s, %s; give more of it", n.text, found[0].ID, found[1].ID)
}

// before returns the identifier before another one.
func before(id deception.SessionID) deception.SessionID {
	for i := len(id) - 1; i >= 0; i-- {
		id[i]--
		if id[i] != 0xff {
			break
		}
	}
	return id
}
