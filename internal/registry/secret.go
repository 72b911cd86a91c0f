package registry

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"strings"
)

// Kinds of secrets, the first part of their text: scanners that look for leaked
// credentials know them by it.
const (
	JoinSecret = "dcn" // of a join token
	UserSecret = "dcu" // of an API user
)

// ErrSecret says that a text is no token of the wanted kind.
var ErrSecret = errors.New("not a token of this kind")

// Secret is a token: text for its holder, identifier and hash for us. The hash is
// a plain SHA-256, since 160 random bits need no slow one.
type Secret struct {
	Text string // as dcn_1f2e3d4c5b6a_...
	ID   string // part of the text, by which it is found
	Hash [sha256.Size]byte
}

var secretEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

const (
	idBytes     = 6
	secretBytes = 20
)

// NewSecret makes a token of the kind.
func NewSecret(kind string) Secret {
	var b [idBytes + secretBytes]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	id := hex.EncodeToString(b[:idBytes])
	secret := secretEncoding.EncodeToString(b[idBytes:])
	return Secret{Text: kind + "_" + id + "_" + secret, ID: id, Hash: sha256.Sum256([]byte(secret))}
}

// ParseSecret reads a token's text. It returns ErrSecret for anything else, a
// token of another kind included.
func ParseSecret(kind, text string) (Secret, error) {
	parts := strings.Split(text, "_")
	if len(parts) != 3 || parts[0] != kind ||
		len(parts[1]) != hex.EncodedLen(idBytes) || len(parts[2]) != secretEncoding.EncodedLen(secretBytes) {
		return Secret{}, ErrSecret
	}
	if _, err := hex.DecodeString(parts[1]); err != nil {
		return Secret{}, ErrSecret
	}
	return Secret{Text: text, ID: parts[1], Hash: sha256.Sum256([]byte(parts[2]))}, nil
}
