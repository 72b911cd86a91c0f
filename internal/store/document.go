package store

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"sync"

	"decoynet/deception"
)

// Suricata's documents say the same keys again and again, and are most of what a
// finding takes. Each is packed for itself, with a dictionary of what such
// documents hold: three tenths are left. A byte in front says how it was done.
const (
	packedPlain = 0 // as it is
	packedLZ4   = 1 // a block of LZ4, with the dictionary
)

// documentDict must never change: what was packed with it could not be read any
// more. A better one gets a number of its own.
//
//go:embed document.dict
var documentDict []byte

var dictionary = sync.OnceValue(func() *lzDictionary { return newLZDictionary(documentDict) })

// pack returns the document as it is stored; one that is too long is left out.
func pack(document []byte) []byte {
	if len(document) > deception.FindingBytes {
		document = nil
	}
	out := make([]byte, 1, len(document)/2+16)
	out[0] = packedLZ4
	if out = dictionary().pack(out, document); len(out) > len(document) {
		return append([]byte{packedPlain}, document...)
	}
	return bytes.Clone(out) // without room to spare: it may wait in the queue
}

var errPacked = errors.New("not a document of this program's")

// unpack is the inverse of pack.
func unpack(packed []byte) ([]byte, error) {
	if len(packed) == 0 {
		return nil, fmt.Errorf("unpack nothing: %w", errPacked)
	}
	switch packed[0] {
	case packedPlain:
		return bytes.Clone(packed[1:]), nil
	case packedLZ4:
		out, err := dictionary().unpack(packed[1:], deception.FindingBytes)
		if err != nil {
			return nil, fmt.Errorf("unpack a document: %w", err)
		}
		return out, nil
	}
	return nil, fmt.Errorf("packed as %d: %w", packed[0], errPacked)
}
