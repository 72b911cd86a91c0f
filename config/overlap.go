package config

import (
	"cmp"
	"container/heap"
	"slices"
	"sort"
)

// span is a run of values of an ordered kind (addresses, ports), both ends
// included, that stands somewhere in the document.
type span[K any] struct {
	from, to K
	at       pos
	owner    int    // spans of one owner do not clash with each other
	text     string // as written
	name     string // of the owner, for messages
}

// before tells which span stands first in the document. Two that a YAML alias
// made of one place are in the order of their owners.
func (s *span[K]) before(o *span[K]) bool {
	return cmp.Or(s.at.compare(o.at), cmp.Compare(s.owner, o.owner)) < 0
}

// clash is a span together with one that stands before it in the document and
// shares a value with it. others counts what else it meets, before and behind.
type clash[K any] struct {
	span[K]
	first  span[K]
	others int
}

// clashes finds the spans that share a value with a span of another owner. It
// gives one clash for each span that meets another before it in the document:
// the document is read from the top, what stands there first is taken to be
// meant. It sorts and sweeps, so that a million ranges take seconds, not days.
func clashes[K any](spans []span[K], compare func(a, b K) int) []clash[K] {
	sorted := joinOwn(spans, compare)
	byPlace := &spanHeap[K]{less: func(a, b *span[K]) bool { return a.before(b) }}
	fromLast := &spanHeap[K]{less: func(a, b *span[K]) bool { return b.before(a) }}
	var out []clash[K]
	for i := range sorted {
		s := &sorted[i]
		// byPlace holds the open spans, those that reach this one, the first of
		// the document on top; what has ended is dropped when it comes up.
		for byPlace.Len() > 0 && compare(byPlace.top().to, s.from) < 0 {
			heap.Pop(byPlace)
		}
		// fromLast holds the open spans that met none before them yet, the last
		// of the document on top: of those, this span comes before the topmost.
		for fromLast.Len() > 0 && s.before(fromLast.top()) {
			if open := heap.Pop(fromLast).(*span[K]); compare(open.to, s.from) >= 0 {
				out = append(out, clash[K]{span: *open, first: *s})
			}
		}
		if byPlace.Len() > 0 && byPlace.top().before(s) {
			out = append(out, clash[K]{span: *s, first: *byPlace.top()})
		} else {
			heap.Push(fromLast, s)
		}
		heap.Push(byPlace, s)
	}
	countOthers(out, sorted, compare)
	return out
}

// joinOwn sorts the spans, and makes one of those that share a value within an
// owner: that is a fault of its own and hides which owners clash.
func joinOwn[K any](spans []span[K], compare func(a, b K) int) []span[K] {
	sorted := slices.Clone(spans)
	slices.SortStableFunc(sorted, func(a, b span[K]) int {
		return cmp.Or(cmp.Compare(a.owner, b.owner), compare(a.from, b.from))
	})
	joined := sorted[:0]
	for _, s := range sorted {
		if n := len(joined); n > 0 && joined[n-1].owner == s.owner && compare(joined[n-1].to, s.from) >= 0 {
			last := &joined[n-1]
			if compare(last.to, s.to) < 0 {
				last.to = s.to
			}
			if s.at.compare(last.at) < 0 {
				last.at, last.text = s.at, s.text
			}
			continue
		}
		joined = append(joined, s)
	}
	slices.SortStableFunc(joined, func(a, b span[K]) int {
		return cmp.Or(compare(a.from, b.from), a.at.compare(b.at))
	})
	return joined
}

// countOthers fills in how many spans each clash meets beside the one it names:
// all but those that end before it begins or begin after it ends.
func countOthers[K any](found []clash[K], sorted []span[K], compare func(a, b K) int) {
	if len(found) == 0 {
		return
	}
	ends := make([]K, len(sorted))
	for i, s := range sorted {
		ends[i] = s.to
	}
	slices.SortFunc(ends, compare)
	for i := range found {
		c := &found[i]
		begun := sort.Search(len(sorted), func(j int) bool { return compare(sorted[j].from, c.to) > 0 })
		ended := sort.Search(len(ends), func(j int) bool { return compare(ends[j], c.from) >= 0 })
		c.others = begun - ended - 2
	}
}

type spanHeap[K any] struct {
	spans []*span[K]
	less  func(a, b *span[K]) bool
}

func (h *spanHeap[K]) top() *span[K]      { return h.spans[0] }
func (h *spanHeap[K]) Len() int           { return len(h.spans) }
func (h *spanHeap[K]) Less(i, j int) bool { return h.less(h.spans[i], h.spans[j]) }
func (h *spanHeap[K]) Swap(i, j int)      { h.spans[i], h.spans[j] = h.spans[j], h.spans[i] }
func (h *spanHeap[K]) Push(x any)         { h.spans = append(h.spans, x.(*span[K])) }
func (h *spanHeap[K]) Pop() any {
	last := h.spans[len(h.spans)-1]
	h.spans = h.spans[:len(h.spans)-1]
	return last
}
