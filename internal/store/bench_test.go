//go:build unix

package store

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/pgtest"
)

// cpuTime is the CPU time of all threads of the process, in user and kernel
// mode: what recording takes from the relay on the same cores.
func cpuTime(tb testing.TB) time.Duration {
	tb.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// traffic makes sessions as a scan over many decoys does.
type traffic struct {
	pool []deception.Session
	base time.Time
	n    atomic.Uint64
}

func newTraffic(v6 bool, head int) *traffic {
	t := &traffic{base: time.Now(), pool: make([]deception.Session, 4096)}
	for i := range t.pool {
		s := &t.pool[i]
		binary.Read(rand.Reader, binary.BigEndian, s.ID[:])
		s.Node, s.Segment, s.Service = "hq", "office", "web"
		s.Decoy = "decoy-" + strconv.Itoa(i%20)
		s.Transport, s.Path = deception.TCP, deception.PathRelay
		from, decoy, service := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("10.1.0.2")
		if v6 {
			from, decoy, service = netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:2::7"), netip.MustParseAddr("fd00:10::2")
		}
		s.Source = netip.AddrPortFrom(from, uint16(1024+i))
		s.SourceNAT = s.Source
		s.Destination = netip.AddrPortFrom(deception.Nth(decoy, uint64(i)), 80)
		s.DestinationNAT = netip.AddrPortFrom(service, 80)
		s.SourceHead = make([]byte, head)
		s.DestinationHead = make([]byte, head)
		s.SourceBytes, s.DestinationBytes = uint64(head), uint64(head)
		s.Reason = deception.EndClientClosed
	}
	return t
}

// next fills in the session's identity and times, 100 us apart.
func (t *traffic) next(s *deception.Session) {
	n := t.n.Add(1)
	*s = t.pool[n%uint64(len(t.pool))]
	s.Start = t.base.Add(time.Duration(n) * 100 * time.Microsecond)
	binary.BigEndian.PutUint64(s.ID[:8], uint64(s.Start.UnixMilli())<<16|0x7000|n&0xfff)
	binary.BigEndian.PutUint64(s.ID[8:], n*0x9e3779b97f4a7c15>>2|1<<63)
	s.End = s.Start.Add(900 * time.Microsecond)
}

// BenchmarkRecord measures the whole cost of a short session: Started, Ended
// and the row in the file, with everything the writer does around it.
func BenchmarkRecord(b *testing.B) {
	for name, t := range map[string]*traffic{
		"ipv4":          newTraffic(false, 0),
		"ipv6":          newTraffic(true, 0),
		"ipv4+heads=64": newTraffic(false, 64),
	} {
		for _, threads := range []int{1, 2} {
			b.Run(name+"/threads="+strconv.Itoa(threads), func(b *testing.B) { benchmarkRecord(b, t, threads) })
		}
	}
}

func benchmarkRecord(b *testing.B, t *traffic, threads int) {
	r, err := OpenRecorder(RecorderConfig{Path: filepath.Join(b.TempDir(), FileName)})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	before := cpuTime(b)
	var wg sync.WaitGroup
	for range threads {
		wg.Go(func() {
			// In bursts of a flush's worth at 20,000 sessions a second.
			var s deception.Session
			for i := range b.N / threads {
				t.next(&s)
				r.Started(&s)
				r.Ended(&s)
				if i%2048 == 2047 {
					time.Sleep(time.Millisecond)
					for r.Stats().QueuedBytes > DefaultQueueBytes/8 {
						time.Sleep(time.Millisecond)
					}
				}
			}
		})
	}
	wg.Wait()
	if err := r.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	used := cpuTime(b) - before
	b.ReportMetric(float64(used.Nanoseconds())/float64(b.N), "cpu-ns/session")
	if s := r.Stats(); s.Lost != 0 || s.Written != uint64(b.N/threads*threads) {
		b.Fatalf("written %d of %d, lost %d: %v", s.Written, b.N, s.Lost, s.LastError)
	}
}

// BenchmarkRecordAtPace measures the same at the pace of a fast scan, 10,000
// sessions a second, with the pauses in which the writer's batches begin. It
// takes as long as that takes.
func BenchmarkRecordAtPace(b *testing.B) {
	t := newTraffic(false, 0)
	r, err := OpenRecorder(RecorderConfig{Path: filepath.Join(b.TempDir(), FileName)})
	if err != nil {
		b.Fatal(err)
	}
	const burst, pause = 100, 10 * time.Millisecond
	work := func(record bool) time.Duration {
		before, begun := cpuTime(b), time.Now()
		var s, started deception.Session
		for i := range b.N {
			if i%burst == 0 {
				time.Sleep(time.Until(begun.Add(time.Duration(i/burst) * pause)))
			}
			t.next(&s)
			if started = s; record {
				started.End = time.Time{}
				r.Started(&started)
				r.Ended(&s)
			}
		}
		return cpuTime(b) - before
	}
	idle := work(false) // what the pace itself costs
	b.ResetTimer()
	used := work(true)
	before := cpuTime(b)
	if err := r.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
	used += cpuTime(b) - before - idle
	b.ReportMetric(float64(used.Nanoseconds())/float64(b.N), "cpu-ns/session")
	if s := r.Stats(); s.Lost != 0 || s.Written != uint64(b.N) {
		b.Fatalf("written %d of %d, lost %d: %v", s.Written, b.N, s.Lost, s.LastError)
	}
}

// BenchmarkCommit measures deliveries as they come from nodes: a batch after the
// other, each in the database before the next one is made.
//
// "long" sessions run for longer than a batch takes: each is delivered twice, as
// it starts and, a batch later, as it ends.
func BenchmarkCommit(b *testing.B) {
	for _, at := range []string{"sqlite", "postgres"} {
		for _, size := range []int{1000, 2000} {
			for _, kind := range []string{"short", "heads", "long"} {
				b.Run(fmt.Sprintf("%s/batch=%d/%s", at, size, kind), func(b *testing.B) {
					path := filepath.Join(b.TempDir(), FileName)
					if at == "postgres" {
						path = pgtest.Database(b)
					}
					heads := 0
					if kind == "heads" {
						heads = 64
					}
					benchmarkCommit(b, path, newTraffic(false, heads), size, kind == "long")
				})
			}
		}
	}
}

func benchmarkCommit(b *testing.B, path string, t *traffic, size int, long bool) {
	r, err := OpenRecorder(RecorderConfig{Path: path})
	if err != nil {
		b.Fatal(err)
	}
	var batch, last []deception.Session
	before := cpuTime(b)
	begun := time.Now()
	b.ResetTimer()
	for made := 0; made < b.N || len(last) > 0; {
		batch = append(batch[:0], last...)
		last = last[:0]
		for len(batch) < size && made < b.N {
			var s deception.Session
			t.next(&s)
			made++
			if long {
				last = append(last, s)
				s.End = time.Time{}
			}
			batch = append(batch, s)
		}
		if err := r.Commit(context.Background(), Batch{Node: "hq", Sessions: batch}); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/time.Since(begun).Seconds(), "sessions/s")
	b.ReportMetric(float64((cpuTime(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/session")
	if err := r.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
	if s := r.Stats(); s.Written != uint64(b.N) {
		b.Fatalf("written %d of %d: %v", s.Written, b.N, s.LastError)
	}
}

// BenchmarkEnqueue is the part of it that the relay's own thread pays.
func BenchmarkEnqueue(b *testing.B) {
	t := newTraffic(false, 0)
	q := newQueue(1 << 30)
	var s deception.Session
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		t.next(&s)
		q.putStart(&s)
		q.putEnd(&s)
		if i%2048 == 0 {
			for b := q.take(true); !b.empty(); b = q.take(true) {
				q.done()
			}
		}
	}
}
