package load

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestHistogram compares its quantiles with those of the sorted samples.
func TestHistogram(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var h Histogram
	samples := make([]time.Duration, 50_000)
	for i := range samples {
		// Spread over five orders of magnitude, as latencies are under load.
		samples[i] = time.Duration(1000 * math.Exp(rnd.Float64()*math.Log(1e5)))
		h.Record(samples[i])
	}
	slices.Sort(samples)
	for _, q := range []float64{0, 0.01, 0.5, 0.9, 0.99, 0.999, 1} {
		want := samples[int(q*float64(len(samples)-1))]
		got := h.Quantile(q)
		if off := math.Abs(float64(got-want)) / float64(want); off > 0.01 {
			t.Errorf("Quantile(%v) = %v, want %v within 1 %%", q, got, want)
		}
	}
	if got, want := h.Max(), samples[len(samples)-1]; got != want {
		t.Errorf("Max() = %v, want %v", got, want)
	}
	if got := h.Count(); got != uint64(len(samples)) {
		t.Errorf("Count() = %d, want %d", got, len(samples))
	}
}

func TestHistogramEdges(t *testing.T) {
	var h Histogram
	if got := h.Quantile(0.5); got != 0 {
		t.Errorf("median of nothing = %v, want 0", got)
	}
	h.Record(-1)
	h.Record(math.MaxInt64)
	if got := h.Quantile(0); got != 0 {
		t.Errorf("Quantile(0) = %v, want 0", got)
	}
	if got := h.Quantile(1); got != math.MaxInt64 && float64(got) < 0.99*math.MaxInt64 {
		t.Errorf("Quantile(1) = %d, want about %d", got, int64(math.MaxInt64))
	}
	// Buckets follow each other without a gap or an overlap.
	last := -1
	for v := int64(0); v < 1<<20; v++ {
		b := bucketOf(v)
		if b != last && b != last+1 {
			t.Fatalf("value %d is in bucket %d, the one before in %d", v, b, last)
		}
		last = b
	}
}

func TestBanner(t *testing.T) {
	var b [bannerLen]byte
	addr := [4]byte{192, 0, 2, 7}
	putBanner(&b, addr, 54321)
	if a, p, ok := parseBanner(b[:]); !ok || a != addr || p != 54321 {
		t.Errorf("parseBanner = %v %d %v, want %v 54321 true", a, p, ok, addr)
	}
	for name, bad := range map[string][]byte{"empty": {}, "short": b[:7], "foreign": []byte("SSH-2.0-")} {
		if _, _, ok := parseBanner(bad); ok {
			t.Errorf("a %s banner was taken", name)
		}
	}
}
