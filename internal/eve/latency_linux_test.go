package eve

import (
	"slices"
	"syscall"
	"testing"
	"time"
)

// cpu is the processor time that this process has taken.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A line is handed over soon after it was written, and waiting costs next to
// nothing. The bounds are far above what is measured on a machine with nothing
// else to do (10 ms and 0.06 %).
func TestLatencyAndIdleCost(t *testing.T) {
	s := session(1)
	f, k := newFolder(t), newSink()
	cfg := f.config(roster{}, k)
	cfg.Settle = 0
	r := New(cfg)
	defer r.Close()
	var took []time.Duration
	for n := range 40 {
		began := time.Now()
		f.write(t, "eve.json", record(&s, "ssh", n+1, false, "packet", "")+"\n")
		eventually(t, "the event handed over", func() bool { return len(k.all()) > n })
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	if median := took[len(took)/2]; median > time.Second {
		t.Errorf("median %v", median)
	}
	const idle = 2 * time.Second
	before := cpu(t)
	time.Sleep(idle)
	cost := cpu(t) - before
	if cost > idle/50 {
		t.Errorf("%v of processor time in %v of waiting", cost, idle)
	}
	t.Logf("median %v, worst %v; idle %.3f %%", took[len(took)/2], took[len(took)-1], 100*cost.Seconds()/idle.Seconds())
}
