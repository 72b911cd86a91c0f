package sense

import (
	"math"
	"testing"
)

func TestDistinct(t *testing.T) {
	for _, n := range []int{0, 1, 4, 5, 12, 13, 100, 384, 385, 500, 1000, 2000, 5000, 10_000, 65_536, 1_000_000} {
		const rounds = 8
		var off, worst float64
		for round := range rounds {
			var d distinct
			var b budget
			for twice := 0; twice < 2; twice++ {
				for i := range n {
					d.add(mix(uint32(round<<24|i)), &b)
				}
			}
			if got := d.count(); n <= 384 {
				if got != uint64(n) || !d.exact() {
					t.Errorf("counted %d of %d, exact %v", got, n, d.exact())
				}
				continue
			}
			if d.exact() || len(d.registers) != 4*tableMost {
				t.Fatalf("%d are counted with %d registers", n, len(d.registers))
			}
			e := float64(d.count())/float64(n) - 1
			off, worst = off+e/rounds, max(worst, math.Abs(e))
			if d.free(&b); b.larger != 0 {
				t.Errorf("%d bytes are not given back", b.larger)
			}
		}
		// The standard error is 2.3 %; of the mean of eight it is 0.8 %.
		if worst > 0.08 || math.Abs(off) > 0.03 {
			t.Errorf("%d: at worst %.1f %% off, %.1f %% in the mean", n, 100*worst, 100*off)
		}
		t.Logf("%d: at worst %.1f %% off, %.1f %% in the mean", n, 100*worst, 100*off)
	}
}

// Where there is no memory to be had, the estimate is a rough one.
func TestDistinctWithoutMemory(t *testing.T) {
	b := budget{larger: tablesMost}
	var d distinct
	for i := range 10_000 {
		d.add(mix(uint32(i)), &b)
	}
	if e := float64(d.count())/10_000 - 1; len(d.registers) != 4*tableFree || math.Abs(e) > 0.2 {
		t.Errorf("with %d registers %.1f %% off", len(d.registers), 100*e)
	}
	if d.free(&b); b.larger != tablesMost {
		t.Errorf("gave back %d bytes that it had not taken", tablesMost-b.larger)
	}
}
