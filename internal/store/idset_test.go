package store

import (
	"math/rand/v2"
	"testing"
)

func TestIDSet(t *testing.T) {
	var s idSet
	for round := range 4 {
		model := make(map[uint64]bool)
		n := []int{10, 3000, maxSet, 10}[round]
		for range n {
			f := rand.Uint64()>>rand.UintN(50) | 1<<rand.UintN(14) // many that are alike
			s.add(f)
			s.add(f)
			model[f] = true
		}
		if s.n != len(model) {
			t.Fatalf("round %d: %d members, want %d", round, s.n, len(model))
		}
		for f := range model {
			if !s.has(f) {
				t.Fatalf("round %d: %x is missing", round, f)
			}
			if other := f ^ 1<<63; s.has(other) != model[other] {
				t.Fatalf("round %d: %x is there: %v", round, other, !model[other])
			}
		}
		s.clear()
		for f := range model {
			if s.has(f) {
				t.Fatalf("round %d: %x is there after clear", round, f)
			}
		}
		if len(s.table) > maxSet {
			t.Errorf("round %d: a table of %d is kept", round, len(s.table))
		}
	}
	if fold(make([]byte, 16)) == 0 {
		t.Error("an identifier folds to the free place's value")
	}
}
