package feed

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"decoynet/deception"
)

// signal signals a process of the test.
func signal(t testing.TB, pid int, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatalf("signal %d to Suricata: %v", s, err)
	}
}

func newFIFO(t testing.TB) (*FIFO, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "feed.fifo")
	fifo, err := NewFIFO(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fifo.Close() })
	return fifo, path
}

// visit is a whole flow of one request.
func visit(f *Feed, port int) *deception.Session {
	s := session(deception.TCP, fmt.Sprintf("192.0.2.%d:%d", 1+port/60000, 1024+port%60000), "198.51.100.4:80")
	begin(f, s).client(request).server(response).end(deception.EndClientClosed)
	return s
}

func stats(f *Feed, name string) OutputStats {
	for _, o := range f.Stats().Outputs {
		if o.Name == name {
			return o
		}
	}
	return OutputStats{}
}

// TestStuckReader: a Suricata that stands still costs flows of its own output
// only, none in part, and nobody waits. When it goes on it sees what was kept, and
// new flows.
func TestStuckReader(t *testing.T) {
	const queue = 12 << 20
	sensor, out := newSensor(t, httpRules), newPcapFile(t)
	fifo, path := newFIFO(t)
	f := New(Config{Lanes: 2, QueueBytes: queue})
	f.Add("fifo", fifo)
	f.Add("file", out)
	pid, wait := sensor.start(t, path)
	first := visit(f, 0)
	waitFor(t, "the first alert", func() bool { return sensor.alerts(t, 1, first.ID) == 1 })
	signal(t, pid, syscall.SIGSTOP)

	open := begin(f, session(deception.TCP, "192.0.2.200:5000", "198.51.100.4:80")).client(request)
	var visits []*deception.Session
	var slowest time.Duration
	for i := 1; stats(f, "fifo").Lost < 200; i++ {
		if i > 200_000 {
			t.Fatalf("%d flows, and none is lost: %+v", i, f.Stats())
		}
		from := time.Now()
		visits = append(visits, visit(f, i))
		slowest = max(slowest, time.Since(from))
		for stats(f, "file").Queued > queue/8 {
			time.Sleep(time.Millisecond) // the other output is to keep up, however busy the machine
		}
	}
	open.server(response)
	waitFor(t, "it is seen to be stuck", func() bool { return !stats(f, "fifo").StuckSince.IsZero() && !fifo.Stats().StuckSince.IsZero() })
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	t.Logf("%d flows, %d lost, the slowest took %s; heap %d MB", len(visits), f.Lost(), slowest, m.HeapAlloc>>20)
	if st := stats(f, "fifo"); st.Queued > st.Limit || st.Limit != queue/2 {
		t.Errorf("%d of %d bytes wait", st.Queued, st.Limit)
	}
	signal(t, pid, syscall.SIGCONT)
	waitFor(t, "the queue is empty", func() bool { return stats(f, "fifo").Queued == 0 })
	last := visit(f, 300_000)
	open.end(deception.EndClientClosed)
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	wait()
	events := sensor.events(t)
	noEvents(t, events)
	alerts := map[deception.SessionID]int{}
	for _, e := range events {
		if e.Type == "alert" {
			alerts[e.session]++
		}
	}
	partial := uint64(0)
	for _, s := range append(visits, open.s, last) {
		_, lost, known := f.Find(s.ID.Key())
		if !known {
			t.Fatalf("session %s is not known", s.ID)
		}
		if lost {
			partial++
		}
		if _, fifo, _ := f.Of("fifo").Find(s.ID.Key()); fifo != lost {
			t.Errorf("session %s is lost: %v; to the output that stood still: %v", s.ID, lost, fifo)
		}
		if _, file, _ := f.Of("file").Find(s.ID.Key()); file {
			t.Errorf("session %s is lost to the other output", s.ID)
		}
		if s == last && lost {
			t.Error("a flow that began after all is lost")
		}
		if n := alerts[s.ID]; !lost && n != 2 || n > 2 {
			t.Errorf("session %s (lost %v) has %d alerts", s.ID, lost, n)
		}
	}
	if lost := f.Lost(); lost != partial {
		t.Errorf("%d flows are counted as lost, %d are marked", lost, partial)
	}
	if fifo, file := f.Of("fifo").Lost(), f.Of("file").Lost(); fifo != partial || file != 0 {
		t.Errorf("%d flows are lost to one output and %d to the other, want %d and none", fifo, file, partial)
	}
	if st := f.Stats(); len(st.Outputs) != 0 {
		t.Errorf("outputs %+v after the end", st.Outputs)
	}
	whole, err := exec.Command("tcpdump", "-n", "-r", out.file.Name(), "vlan and tcp[tcpflags] == tcp-fin|tcp-ack").Output()
	if err != nil {
		t.Fatal(err)
	}
	if n, want := bytes.Count(whole, []byte{'\n'}), 2*(len(visits)+3); n != want {
		t.Errorf("the other output has %d ends of flows, want %d", n, want)
	}
}

// TestCloseWithAStuckReader: ending the feed does not take the reader's help.
func TestCloseWithAStuckReader(t *testing.T) {
	for _, c := range []string{"stopped", "none"} {
		t.Run(c, func(t *testing.T) {
			fifo, path := newFIFO(t)
			f := New(Config{Lanes: 1})
			f.Add("fifo", fifo)
			if c == "stopped" {
				reader, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer reader.Close()
			}
			p := begin(f, session(deception.TCP, "192.0.2.7:40001", "198.51.100.4:80"))
			for range 500 {
				p.server(strings.Repeat("z", 10_000))
			}
			waitFor(t, "frames wait", func() bool { return c == "none" || fifo.since.Load() != 0 })
			done := make(chan error, 1)
			go func() { done <- f.Close() }()
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("the feed does not end")
			}
			if _, partial, _ := f.Find(p.s.ID.Key()); f.Lost() != 1 || !partial {
				t.Errorf("%d flows are lost, the one there was is partial: %v", f.Lost(), partial)
			}
			if _, err := os.Stat(path); !os.IsNotExist(err) {
				t.Errorf("the FIFO is still there: %v", err)
			}
		})
	}
}

// TestNewReader: after Suricata was killed the next one is told of flows that run.
func TestNewReader(t *testing.T) {
	fifo, path := newFIFO(t)
	f := New(Config{Lanes: 2})
	f.Add("fifo", fifo)
	first, second := newSensor(t, httpRules), newSensor(t, httpRules)
	pid, wait := first.start(t, path)
	running := begin(f, session(deception.TCP, "192.0.2.7:40001", "198.51.100.4:80")).client(request).server(response)
	idle := begin(f, session(deception.TCP, "192.0.2.7:40002", "198.51.100.4:80"))
	waitFor(t, "an alert of the first Suricata", func() bool { return first.alerts(t, 1, running.s.ID) == 1 })
	over := visit(f, 1)
	waitFor(t, "it is written", func() bool { return stats(f, "fifo").Flows == 3 && stats(f, "fifo").Queued == 0 })
	signal(t, pid, syscall.SIGKILL)
	wait()
	waitFor(t, "it is missed", func() bool { return fifo.Stats().Gone == 1 })
	running.client(request).server(response)
	_, wait = second.start(t, path)
	waitFor(t, "an alert of the second Suricata", func() bool { return second.alerts(t, 1, running.s.ID) == 1 })
	running.end(deception.EndClientClosed)
	idle.client(request).server(response).fin(Server).end(deception.EndServiceClosed)
	waitFor(t, "all is written", func() bool { return stats(f, "fifo").Reintroduced == 2 && stats(f, "fifo").Queued == 0 })
	outputs := f.Stats()
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	wait()
	if st := outputs.Outputs[0]; st.Cut != 3 || st.Reintroduced != 2 || st.Flows != 3 {
		t.Errorf("%+v", st)
	}
	noEvents(t, second.events(t))
	for _, s := range []*deception.Session{running.s, idle.s} {
		if n := second.alerts(t, 2, s.ID); n != 1 {
			t.Errorf("%d alerts of the body of %s, want 1", n, s.Source)
		}
		if _, partial, _ := f.Find(s.ID.Key()); !partial {
			t.Errorf("the flow from %s is not known to be partial", s.Source)
		}
	}
	if _, partial, _ := f.Find(over.ID.Key()); !partial {
		t.Error("a flow that ended just before is not known to be partial")
	}
	if st := fifo.Stats(); st.Readers != 2 || st.Gone != 1 {
		t.Errorf("%+v", st)
	}
}
