package feed

import (
	"sync"

	"decoynet/internal/frame"
)

// maxTag is the last VLAN identifier that stands for a network.
const maxTag = 4094

// network is where addresses are unique.
type network struct{ node, segment string }

// tagTable numbers networks in the order of their appearance: two networks may have
// the same addresses in them, and a sensor tells flows apart by their VLAN tags.
type tagTable struct {
	mu      sync.RWMutex // guards numbers
	numbers map[network]int
}

func (t *tagTable) of(node, segment string) frame.Tags {
	n := network{node, segment}
	t.mu.RLock()
	number, known := t.numbers[n]
	t.mu.RUnlock()
	if !known {
		number = t.add(n)
	}
	inner := uint16(number%maxTag + 1)
	if outer := number / maxTag; outer > 0 {
		return frame.Tags{uint16((outer-1)%maxTag + 1), inner}
	}
	return frame.Tags{inner}
}

func (t *tagTable) add(n network) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if number, known := t.numbers[n]; known {
		return number
	}
	if t.numbers == nil {
		t.numbers = map[network]int{}
	}
	t.numbers[n] = len(t.numbers)
	return len(t.numbers) - 1
}
