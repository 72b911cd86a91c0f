package spool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestOrderAndAcknowledgement(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	for n := range 10 {
		s.Put(record(n, 100))
	}
	b := next(t, s, 4, 1<<20)
	if diff := cmp.Diff(run(0, 3), numbers(t, b.Records)); diff != "" {
		t.Errorf("first batch (-want +got):\n%s", diff)
	}
	again := next(t, s, 4, 1<<20)
	if diff := cmp.Diff(run(0, 3), numbers(t, again.Records)); diff != "" {
		t.Errorf("without Ack, again (-want +got):\n%s", diff)
	}
	if err := s.Ack(b); err != nil {
		t.Fatal(err)
	}
	if err := s.Ack(again); err != nil { // the same records; nothing more goes
		t.Fatal(err)
	}
	if b = next(t, s, 100, 350); len(b.Records) != 3 {
		t.Errorf("%d records of 100 bytes in 350", len(b.Records))
	}
	if b = next(t, s, 100, 1); len(b.Records) != 1 {
		t.Errorf("%d records of 100 bytes in 1; one is always given", len(b.Records))
	}
	settled(t, s)
	st := s.Stats()
	if st.Waiting != 6 || st.Written != 10 || st.Dropped != 0 || !st.FailingSince.IsZero() || st.WaitingBytes != 6*108 {
		t.Errorf("stats %+v", st)
	}
	if st.Acknowledged != 4 {
		t.Errorf("%d acknowledged", st.Acknowledged)
	}
	shut(t, s)

	s = open(t, Config{Dir: dir})
	if got := s.Stats(); got.Waiting != 6 || got.WaitingBytes == 0 {
		t.Errorf("after opening again: %+v", got)
	}
	s.Put(record(10, 0))
	if diff := cmp.Diff(run(4, 10), take(t, s, 3)); diff != "" {
		t.Errorf("after opening again (-want +got):\n%s", diff)
	}
}

func TestNextWaits(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir()})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if b, err := s.Next(ctx, 1, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("of an empty spool: %d records, %v", len(b.Records), err)
	}
	got := make(chan []int)
	go func() {
		b, err := s.Next(context.Background(), 10, 1<<20)
		if err != nil {
			t.Error(err)
		}
		got <- numbers(t, b.Records)
	}()
	eventually(t, "the consumer waits", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.wanted
	})
	s.Put(record(7, 0))
	if n := <-got; !slices.Equal(n, []int{7}) {
		t.Errorf("got %v", n)
	}
	go func() {
		_, err := s.Next(context.Background(), 10, 1<<20)
		for err == nil { // record 7 is still there
			_, err = s.Next(context.Background(), 10, 1<<20)
		}
		if !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		got <- nil
	}()
	shut(t, s)
	<-got
	if err := s.Ack(Batch{}); !errors.Is(err, ErrClosed) {
		t.Errorf("ack after close: %v", err)
	}
	s.Put(record(8, 0))
	if st := s.Stats(); st.Lost != 1 {
		t.Errorf("put after close: %+v", st)
	}
}

func TestOneOpener(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	if _, err := Open(Config{Dir: dir}); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Errorf("second opener: %v", err)
	}
	shut(t, s)
	open(t, Config{Dir: dir})
}

// Everything that is put is delivered in each producer's order, whatever is in
// memory and on disk meanwhile, over many segments and reopenings.
func TestConcurrentPut(t *testing.T) {
	const producers, each = 8, 5000
	dir := t.TempDir()
	s := open(t, Config{Dir: dir, MaxBytes: 64 << 20, QueueBytes: 16 << 20})
	var wg sync.WaitGroup
	for p := range producers {
		wg.Go(func() {
			for n := range each {
				s.Put(record(p*each+n, 8+n%300))
			}
		})
	}
	seen := make([]int, producers)
	total, reopened := 0, 0
	for total < producers*each {
		b := next(t, s, 700, 64<<10)
		for _, n := range numbers(t, b.Records) {
			if p := n / each; n%each != seen[p] {
				t.Fatalf("producer %d: record %d after %d", p, n%each, seen[p])
			}
			seen[n/each]++
		}
		total += len(b.Records)
		if err := s.Ack(b); err != nil {
			t.Fatal(err)
		}
		if total > producers*each/2 && reopened == 0 {
			wg.Wait()
			reopened++
			shut(t, s)
			s = open(t, Config{Dir: dir, MaxBytes: 64 << 20})
		}
	}
	if st := s.Stats(); st.Dropped != 0 || st.Waiting != 0 || reopened != 1 {
		t.Errorf("stats %+v", st)
	}
}

func TestOldestMakeRoom(t *testing.T) {
	dir := t.TempDir()
	const maxBytes, size, total = 256 << 10, 200, 5000
	cfg := Config{Dir: dir, MaxBytes: maxBytes, Kind: kindOf}
	s := open(t, cfg)
	for n := range total {
		s.Put(record(n, size))
		if n%100 == 0 {
			settled(t, s)
			if st := s.Stats(); st.FileBytes > maxBytes {
				t.Fatalf("%d bytes on disk: %+v", st.FileBytes, st)
			}
		}
	}
	settled(t, s)
	st := s.Stats()
	if st.Full == 0 || st.Full != st.Dropped || st.Full+st.Waiting != total || st.FileBytes < maxBytes*3/4 {
		t.Errorf("stats %+v", st)
	}
	if diff := cmp.Diff(tally(0, int(st.Full)), st.DroppedKinds); diff != "" {
		t.Errorf("kinds of what was given up (-want +got):\n%s", diff)
	}
	if used := diskUsage(t, dir); used > maxBytes+1024 {
		t.Errorf("%d bytes on disk", used)
	}
	shut(t, s)
	s = open(t, cfg)
	if again := s.Stats(); again.Full != st.Full || again.Waiting != st.Waiting || again.DroppedKinds != st.DroppedKinds {
		t.Errorf("after opening again: %+v, before: %+v", again, st)
	}
	if diff := cmp.Diff(run(int(st.Full), total-1), take(t, s, 500)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A batch in the consumer's hands stays readable when its records make room.
func TestOldestMakeRoomUnderTheConsumer(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir(), MaxBytes: 256 << 10})
	s.Put(record(0, 200))
	settled(t, s)
	b := next(t, s, 10, 1<<20)
	for n := 1; n < 5000; n++ {
		s.Put(record(n, 200))
		if n%100 == 0 {
			settled(t, s)
		}
	}
	settled(t, s) // or records go on making room
	if got := numbers(t, b.Records); !slices.Equal(got, []int{0}) {
		t.Errorf("got %v", got)
	}
	if err := s.Ack(b); err != nil {
		t.Fatal(err)
	}
	st := s.Stats()
	if got := take(t, s, 500); len(got) != int(st.Waiting) || got[0] != int(st.Full) {
		t.Errorf("%d records from %d on; %+v", len(got), got[0], st)
	}
}

func diskUsage(t testing.TB, dir string) (sum int64) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // it went since the directory was read
		}
		if err != nil {
			t.Fatal(err)
		}
		sum += info.Size()
	}
	return sum
}

func TestDeliveredFilesAreRemoved(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir, MaxBytes: 1 << 20})
	for n := range 4000 {
		s.Put(record(n, 200))
	}
	settled(t, s)
	if got := take(t, s, 1000); len(got) != 4000 {
		t.Fatalf("%d records", len(got))
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	if err != nil || len(names) != 1 {
		t.Errorf("left: %v, %v", names, err)
	}
}

func TestLongRecords(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir(), MaxBytes: 8 << 20})
	s.Put(record(0, MaxRecord+1))
	s.Put(record(1, MaxRecord))
	s.Put(nil)
	s.Put(record(3, 300<<10))
	if b := next(t, s, 10, 1000); len(b.Records) != 1 || len(b.Records[0]) != MaxRecord {
		t.Errorf("first: %d records", len(b.Records))
	} else if err := s.Ack(b); err != nil {
		t.Fatal(err)
	}
	settled(t, s)
	if b := next(t, s, 10, 1<<20); len(b.Records) != 2 || len(b.Records[0]) != 0 || len(b.Records[1]) != 300<<10 {
		t.Errorf("then: %d records", len(b.Records))
	}
	if st := s.Stats(); st.Lost != 1 || st.Dropped != 1 {
		t.Errorf("stats %+v", st)
	}
}

// What an agent pays for a spool that has nothing to do, after it had.
func TestIdleMemory(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	s := open(t, Config{Dir: t.TempDir()})
	for n := range 100_000 {
		s.Put(record(n, 200))
		if n%1000 == 0 {
			settled(t, s)
		}
	}
	if got := take(t, s, 2000); len(got) != 100_000 {
		t.Fatalf("%d records", len(got))
	}
	if after := heap(); after > before+1<<20 {
		t.Errorf("%d kB of heap after 100,000 records", (after-before)>>10)
	}
	runtime.KeepAlive(s)
}

func BenchmarkPut(b *testing.B) {
	for _, size := range []int{100, 700} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s := open(b, Config{Dir: b.TempDir()})
			r := record(1, size)
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				s.Put(r)
			}
		})
	}
}

// BenchmarkThrough is the whole way: handed over, written, read, acknowledged.
func BenchmarkThrough(b *testing.B) {
	s := open(b, Config{Dir: b.TempDir(), QueueBytes: 64 << 20})
	r := record(1, 200)
	b.ReportAllocs()
	go func() {
		for range b.N {
			for s.Stats().QueuedBytes > 32<<20 {
				time.Sleep(time.Millisecond)
			}
			s.Put(r)
		}
	}()
	for got := 0; got < b.N; {
		batch := next(b, s, 2000, 1<<20)
		got += len(batch.Records)
		if err := s.Ack(batch); err != nil {
			b.Fatal(err)
		}
	}
	if st := s.Stats(); st.Lost > 0 {
		b.Errorf("%+v", st)
	}
}

// Who asks for room first never makes other records be given up, whatever the
// consumer does, and has room again once it has caught up.
func TestRoom(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir(), MaxBytes: 1 << 20, QueueBytes: 64 << 10})
	n := 0
	for polled := 0; polled < 200; {
		if !s.Room() {
			polled++ // the writer may be about to make some
			time.Sleep(time.Millisecond)
			continue
		}
		s.Put(record(n, 1000))
		n++
	}
	settled(t, s)
	if st := s.Stats(); st.Dropped != 0 || st.FileBytes < 1<<18 || st.FileBytes > 1<<20 {
		t.Errorf("after %d records: %+v", n, st)
	}
	if got := take(t, s, 100); len(got) != n {
		t.Errorf("%d records of %d", len(got), n)
	}
	if !s.Room() {
		t.Errorf("no room in an empty spool: %+v", s.Stats())
	}
}
