package feed

import (
	"hash/maphash"
	"net/netip"
	"sync"

	"decoynet/deception"
	"decoynet/internal/frame"
)

const tupleShards = 64

// tuple is what a sensor tells flows apart by.
type tuple struct {
	source, destination netip.AddrPort
	transport           deception.Transport
	tags                frame.Tags
}

// tupleTable knows which flow last had which addresses and ports, until its end was
// handed over. An intruder may use a port again at once, and one loop of the relay
// hear of the new flow before another hears of the old one's end: to a sensor the
// old one must end first, or it takes the new one's data for the old one's.
type tupleTable struct {
	seed   maphash.Seed
	shards [tupleShards]struct {
		mu    sync.Mutex // guards flows
		flows map[uint64]*Flow
	}
}

func (t *tupleTable) init() {
	t.seed = maphash.MakeSeed()
	for i := range t.shards {
		t.shards[i].flows = map[uint64]*Flow{}
	}
}

// replace notes a flow and returns the one that had its addresses before, or nil.
// The flow gets that one's lane, so that what is told of both stays in order.
func (t *tupleTable) replace(w *Flow, of tuple) (before *Flow) {
	w.tuple = maphash.Comparable(t.seed, of)
	shard := &t.shards[w.tuple%tupleShards]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if before = shard.flows[w.tuple]; before != nil {
		w.lane = before.lane
	}
	shard.flows[w.tuple] = w
	return before
}

func (t *tupleTable) remove(w *Flow) {
	shard := &t.shards[w.tuple%tupleShards]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if shard.flows[w.tuple] == w {
		delete(shard.flows, w.tuple)
	}
}
