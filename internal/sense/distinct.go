package sense

import (
	"math"
	"math/bits"
)

// distinct counts different hashes: the first few in place, some hundreds in a
// table, exactly, and more by HyperLogLog in the memory that the table had. The
// zero value is empty.
type distinct struct {
	n         uint32 // how many, while it is exact
	small     [4]uint32
	table     []uint32 // open addressing, 0 is free
	registers []uint8
}

const (
	// tableMost is the largest table; it becomes 2,048 registers, whose standard
	// error is 2.3 % (1.04 / sqrt(2048)).
	tableMost = 512
	// tableFree is the largest one that is always granted: 256 registers, 6.5 %.
	tableFree = 64
	// tablesMost bounds what larger ones hold together.
	tablesMost = 16 << 20
)

// budget is what tables hold, in bytes.
type budget struct{ larger int }

// grant tells whether a table may have that many entries instead of the ones it
// has.
func (b *budget) grant(entries, instead int) bool {
	more := sizeOf(entries) - sizeOf(instead)
	if b.larger+more > tablesMost {
		return false
	}
	b.larger += more
	return true
}

// sizeOf is what a table counts for.
func sizeOf(entries int) int {
	if entries <= tableFree {
		return 0
	}
	return 4 * entries
}

func (d *distinct) exact() bool { return d.registers == nil }

// many tells whether there are at least so many.
func (d *distinct) many(n uint32) bool { return !d.exact() || d.n >= n }

// add counts the hash unless it was counted.
func (d *distinct) add(h uint32, b *budget) {
	if d.registers != nil {
		d.register(h)
		return
	}
	if h == 0 {
		h = 1 // 0 is a free entry
	}
	if d.table == nil {
		for _, have := range d.small[:d.n] {
			if have == h {
				return
			}
		}
		if int(d.n) < len(d.small) {
			d.small[d.n] = h
			d.n++
			return
		}
		d.grow(4*len(d.small), b)
	}
	for i := h; ; i++ {
		switch have := &d.table[i&uint32(len(d.table)-1)]; *have {
		case h:
			return
		case 0:
			if 4*(d.n+1) > 3*uint32(len(d.table)) {
				d.enlarge(b)
				d.add(h, b)
				return
			}
			*have = h
			d.n++
			return
		}
	}
}

// enlarge makes room, or begins to estimate where there is none to be had.
func (d *distinct) enlarge(b *budget) {
	if n := 2 * len(d.table); n <= tableMost && b.grant(n, len(d.table)) {
		d.grow(n, b)
		return
	}
	d.registers = make([]uint8, 4*len(d.table))
	d.each(d.register)
	d.table = nil
}

func (d *distinct) grow(entries int, b *budget) {
	old := *d
	d.table, d.n = make([]uint32, entries), 0
	old.each(func(h uint32) { d.add(h, b) })
}

// each calls do for every hash, while it is exact.
func (d *distinct) each(do func(uint32)) {
	if d.table == nil {
		for _, h := range d.small[:min(int(d.n), len(d.small))] {
			do(h)
		}
		return
	}
	for _, h := range d.table {
		if h != 0 {
			do(h)
		}
	}
}

// free gives the memory back to the budget.
func (d *distinct) free(b *budget) {
	b.larger -= sizeOf(max(len(d.table), len(d.registers)/4))
	*d = distinct{}
}

// register keeps, of the hashes that begin with a register's number, the highest
// rank of the first bit set in the rest.
func (d *distinct) register(h uint32) {
	p := bits.Len(uint(len(d.registers))) - 1
	rank := uint8(bits.LeadingZeros32(h<<p|1<<(p-1))) + 1
	if r := &d.registers[h>>(32-p)]; *r < rank {
		*r = rank
	}
}

// count returns how many there are, about.
func (d *distinct) count() uint64 {
	if d.exact() {
		return uint64(d.n)
	}
	return uint64(estimate(d.registers) + 0.5)
}

// estimate is Ertl's estimator ("New cardinality estimation algorithms for
// HyperLogLog sketches", 2017, algorithm 6): one formula for all sizes, where the
// original has a bias at the seam between two.
func estimate(registers []uint8) float64 {
	m := float64(len(registers))
	most := 32 - (bits.Len(uint(len(registers))) - 1) // of bits behind the number
	var have [34]float64                              // registers by value
	for _, r := range registers {
		have[r]++
	}
	z := m * tau(1-have[most+1]/m)
	for k := most; k >= 1; k-- {
		z = (z + have[k]) / 2
	}
	z += m * sigma(have[0]/m)
	return m * m / (2 * math.Ln2 * z)
}

func sigma(x float64) float64 {
	if x == 1 {
		return math.Inf(1)
	}
	y, z := 1.0, x
	for before := math.NaN(); z != before; {
		x *= x
		before = z
		z += x * y
		y += y
	}
	return z
}

func tau(x float64) float64 {
	if x == 0 || x == 1 {
		return 0
	}
	y, z := 1.0, 1-x
	for before := math.NaN(); z != before; {
		x = math.Sqrt(x)
		before = z
		y /= 2
		z -= (1 - x) * (1 - x) * y
	}
	return z / 3
}
