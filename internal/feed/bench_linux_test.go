package feed

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/frame"
)

// discard is a Writer.
type discard struct{}

func (discard) Frame(int64, []byte) error { return nil }
func (discard) Flush() error              { return nil }

// cpuTime is what the thread of the caller has used.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// keepPace lets an output have the processor, unless its queue is full.
func keepPace(f *Feed) {
	for f.pressed.Load() != 0 && f.full.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
}

// BenchmarkRelaySide is what a relay pays: cpu-ns/op says it also on a machine that
// is busy with other things.
func BenchmarkRelaySide(b *testing.B) {
	at := time.Now()
	run := func(name string, w Writer, bytes int, op func(f *Feed, s *deception.Session) func()) {
		b.Run(name, func(b *testing.B) {
			f := New(Config{Lanes: 1})
			if w != nil {
				f.Add("out", w)
			}
			g, stuck := w.(*gate)
			once := op(f, session(deception.TCP, "192.0.2.7:40001", "198.51.100.4:80"))
			if stuck {
				g.mu.Lock()
				tcpFlow(f, "40002")
				f.flush()
				o := (*f.outputs.Load())[0]
				waitFor(b, "it hangs in a frame", func() bool {
					o.mu.Lock()
					defer o.mu.Unlock()
					return len(o.queue) == 0
				})
				f.full.Or(f.mask.Load())
			}
			runtime.LockOSThread()
			before := cpuTime(b)
			b.SetBytes(int64(bytes))
			b.ReportAllocs()
			for b.Loop() {
				once()
			}
			b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
			b.ReportMetric(float64(f.Lost())/float64(b.N), "lost/op")
			runtime.UnlockOSThread()
			if stuck {
				g.mu.Unlock()
			}
			f.Close()
		})
	}
	data := make([]byte, 64<<10)
	flow := func(f *Feed, s *deception.Session) func() {
		return func() {
			keepPace(f)
			binary.BigEndian.PutUint32(s.ID[4:], rand.Uint32())
			s.End = time.Time{}
			w := f.Begin(s, 0)
			for i := range 4 {
				w.Data(i&1, data[:500], at)
			}
			s.End = at
			w.Close(s, at)
		}
	}
	read := func(n int) func(f *Feed, s *deception.Session) func() {
		return func(f *Feed, s *deception.Session) func() {
			w := f.Begin(s, 0)
			return func() {
				keepPace(f)
				if w.fed[Client].Load() > heavyFlow/2 {
					w = f.Begin(s, 0)
				}
				w.Data(Client, data[:n], at)
			}
		}
	}
	run("flow of four reads/no output", nil, 0, flow)
	run("flow of four reads/an output", discard{}, 0, flow)
	run("flow of four reads/a stuck output", &gate{frames: map[string]int{}}, 0, flow)
	run("read of 500 bytes", discard{}, 500, read(500))
	run("read of 16384 bytes", discard{}, 16384, read(16384))
}

// BenchmarkFIFO writes through a FIFO to a reader that does nothing with it.
func BenchmarkFIFO(b *testing.B) {
	for _, n := range []int{100, 1460} {
		b.Run(fmt.Sprintf("segments of %d bytes", n), func(b *testing.B) {
			fifo, path := newFIFO(b)
			h := frame.NewHeader(deception.TCP, frame.MAC{}, frame.MAC{}, frame.Tags{1},
				session(deception.TCP, "192.0.2.7:40001", "198.51.100.4:80").Source, session(deception.TCP, "192.0.2.7:40001", "198.51.100.4:80").Destination)
			reader, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				b.Fatal(err)
			}
			read := make(chan struct{})
			go func() {
				defer close(read)
				buf := make([]byte, 1<<20)
				for {
					if _, err := reader.Read(buf); err != nil {
						return
					}
				}
			}()
			buf, segment := make([]byte, 0, 2048), frame.Segment{Flags: frame.ACK, Data: make([]byte, n)}
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				buf = h.TCP(buf[:0], &segment)
				if err := fifo.Frame(1e18, buf); err != nil {
					b.Fatal(err)
				}
			}
			if err := fifo.Flush(); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "frames/s")
			reader.Close()
			<-read
		})
	}
}

// BenchmarkOutputSide is what an output pays for a record, by how many lanes told of
// it at the same time: the merge is the difference.
func BenchmarkOutputSide(b *testing.B) {
	for _, lanes := range []int{1, 2, 16} {
		b.Run(fmt.Sprintf("lanes %d", lanes), func(b *testing.B) {
			f := New(Config{Lanes: lanes})
			defer f.Close()
			o := &output{feed: f, w: discard{}, bit: 1, wake: make(chan struct{}, 1), abort: make(chan struct{})}
			o.lanes = make([]source, len(f.lanes))
			o.start(o)
			var batch []item
			for lane := range lanes {
				w := &Flow{feed: f, lane: f.lanes[lane], transport: deception.UDP}
				s := session(deception.UDP, "192.0.2.7:40001", "198.51.100.4:53")
				w.header[Client] = frame.NewHeader(deception.UDP, frame.MAC{}, frame.MAC{}, frame.Tags{1}, s.Source, s.Destination)
				c := &chunk{data: make([]byte, 50)}
				for i := range chunkRecords {
					c.records = append(c.records, record{flow: w, at: int64(i), kind: kindData, n: 50})
				}
				c.refs.Store(1 << 30)
				batch = append(batch, item{chunk: c, lane: lane})
			}
			items := make([]item, 0, lanes)
			for b.Loop() {
				o.writeBatch(append(items[:0], batch...))
			}
			b.ReportMetric(float64(b.Elapsed())/float64(b.N*lanes*chunkRecords), "ns/record")
		})
	}
}
