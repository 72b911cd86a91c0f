package feed

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"decoynet/deception"
)

// gate is a Writer that stands still while it is closed.
type gate struct {
	mu     sync.Mutex // held while it is closed
	frames map[string]int
}

func (g *gate) Frame(_ int64, b []byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.frames[string(b[:12])]++
	return nil
}

func (g *gate) Flush() error { return nil }

func tcpFlow(f *Feed, port string) *script {
	return begin(f, session(deception.TCP, "192.0.2.7:"+port, "198.51.100.4:80"))
}

// TestHeavyFlowsGoFirst: where an output is slow, a download does not cost the
// small flows.
func TestHeavyFlowsGoFirst(t *testing.T) {
	g := &gate{frames: map[string]int{}}
	f := New(Config{Lanes: 1, QueueBytes: 16 << 20})
	f.Add("gate", g)
	g.mu.Lock()
	heavy := tcpFlow(f, "40001")
	var small []*script
	block := strings.Repeat("z", 32<<10)
	for heavy.w.Wants(Server) {
		heavy.server(block)
		if heavy.bytes[Server]%(1<<20) == 0 {
			small = append(small, tcpFlow(f, "40002").client(request))
		}
		if heavy.bytes[Server] > 64<<20 {
			t.Fatal("a flow of 64 MB is in a queue of 16")
		}
	}
	if heavy.bytes[Server] < 4<<20 {
		t.Errorf("it was dropped after %d bytes, with the queue not half full", heavy.bytes[Server])
	}
	for range 1000 {
		small = append(small, tcpFlow(f, "40002").client(request))
	}
	g.mu.Unlock()
	waitFor(t, "the queue is empty", func() bool { return f.Stats().Outputs[0].Queued == 0 })
	for _, p := range small {
		if !p.w.Wants(Client) {
			t.Fatal("a small flow was lost")
		}
		p.end(deception.EndClientClosed)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, partial, _ := f.Find(heavy.s.ID.Key()); f.Lost() != 1 || !partial {
		t.Errorf("%d flows lost, the heavy one %v", f.Lost(), partial)
	}
}

// TestNobodyListens: with the only output full, a flow that begins is lost at
// once, and later ones are not.
func TestNobodyListens(t *testing.T) {
	g := &gate{frames: map[string]int{}}
	f := New(Config{Lanes: 1, QueueBytes: 1 << 20})
	f.Add("gate", g)
	g.mu.Lock()
	var flows []*script
	block := strings.Repeat("z", 32<<10)
	for f.full.Load() == 0 && len(flows) < 10_000 {
		flows = append(flows, tcpFlow(f, "40001").server(block))
		f.flush()
	}
	if w := f.Begin(session(deception.TCP, "192.0.2.7:40002", "198.51.100.4:80"), 0); w != nil || w.Wants(Client) {
		t.Errorf("a flow begins with every queue full")
	}
	lost := f.Lost()
	if lost == 0 || lost >= uint64(len(flows)) {
		t.Errorf("%d of %d flows are lost", lost, len(flows))
	}
	g.mu.Unlock()
	waitFor(t, "flows are taken again", func() bool { return f.full.Load() == 0 })
	p := tcpFlow(f, "40003")
	if !p.w.Wants(Client) {
		t.Error("a flow is not wanted, with every queue empty")
	}
	p.client(request).end(deception.EndClientReset)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if f.Lost() != lost {
		t.Errorf("%d flows lost, then %d", lost, f.Lost())
	}
}

// failing is a Writer of a full disk.
type failing struct {
	gate
	failing bool
	fails   int
}

func (w *failing) Frame(at int64, b []byte) error {
	w.mu.Lock()
	failing := w.failing
	w.mu.Unlock()
	if failing {
		w.fails++
		return errFull
	}
	return w.gate.Frame(at, b)
}

var errFull = errors.New("the disk is full")

// TestFailingOutput: what could not be written costs the flow, not the output.
func TestFailingOutput(t *testing.T) {
	w := &failing{gate: gate{frames: map[string]int{}}, failing: true}
	f := New(Config{Lanes: 1})
	f.Add("disk", w)
	p := tcpFlow(f, "40001").client(request)
	waitFor(t, "the flow is lost", func() bool { return !p.w.Wants(Client) })
	w.mu.Lock()
	w.failing = false
	w.mu.Unlock()
	q := tcpFlow(f, "40002").client(request)
	waitFor(t, "the next one is written", func() bool { return f.Stats().Outputs[0].Frames >= 5 })
	p.end(deception.EndClientClosed)
	q.end(deception.EndClientClosed)
	if st := f.Stats().Outputs[0]; st.Errors == 0 || st.Lost != 1 || st.LastError == "" {
		t.Errorf("%+v", st)
	}
	if err := f.Remove("disk"); err != nil {
		t.Fatal(err)
	}
	if f.Begin(q.s, 0) != nil {
		t.Error("a flow begins with no output")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
