package load

import (
	"math/bits"
	"time"
)

// Histogram counts durations in buckets whose width grows with their value:
// 128 to an octave, so a quantile is off by less than one per cent. It never
// allocates while recording.
type Histogram struct {
	counts [octaves * perOctave]uint32
	total  uint64
	max    int64
}

const (
	subBits   = 7
	perOctave = 1 << subBits
	octaves   = 64 - subBits // holds every non-negative int64
)

// Record counts one duration; negative ones count as zero.
func (h *Histogram) Record(d time.Duration) {
	v := max(int64(d), 0)
	h.counts[bucketOf(v)]++
	h.total++
	h.max = max(h.max, v)
}

// Count returns how many durations were recorded.
func (h *Histogram) Count() uint64 { return h.total }

// Max returns the longest recorded duration, exactly.
func (h *Histogram) Max() time.Duration { return time.Duration(h.max) }

// Quantile returns the duration below which the fraction q (0 to 1) of the
// recorded ones lies, 0 where nothing was recorded.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.total == 0 {
		return 0
	}
	rank := uint64(q*float64(h.total-1)) + 1
	var seen uint64
	for i, c := range h.counts {
		if seen += uint64(c); seen >= rank {
			return time.Duration(min(middleOf(i), h.max))
		}
	}
	return h.Max()
}

// bucketOf keeps a value's subBits bits behind its leading one.
func bucketOf(v int64) int {
	if v < perOctave {
		return int(v)
	}
	shift := bits.Len64(uint64(v)) - 1 - subBits
	return (shift+1)<<subBits + int(v>>shift) - perOctave
}

func middleOf(bucket int) int64 {
	if bucket < perOctave {
		return int64(bucket)
	}
	shift := bucket>>subBits - 1
	low := int64(bucket&(perOctave-1)|perOctave) << shift
	return low + int64(1)<<shift/2
}
