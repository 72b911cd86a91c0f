package feed

import (
	"fmt"
	"strings"
	"testing"

	"decoynet/deception"
)

// fillUp has flows wait for a gate that is closed until one of them is lost, and
// returns all of them.
func fillUp(t *testing.T, f *Feed) []*script {
	t.Helper()
	var flows []*script
	block := strings.Repeat("z", 32<<10)
	for f.Lost() == 0 {
		if len(flows) == 10_000 {
			t.Fatalf("%d flows, and none is lost: %+v", len(flows), f.Stats())
		}
		flows = append(flows, tcpFlow(f, fmt.Sprint(1024+len(flows))).server(block))
		f.flush()
	}
	return flows
}

// TestOutputAfterAnother: what an output lost is no matter of the one that comes
// when it has gone.
func TestOutputAfterAnother(t *testing.T) {
	g := &gate{frames: map[string]int{}}
	f := New(Config{Lanes: 1, QueueBytes: 1 << 20})
	defer f.Close()
	f.Add("before", g)
	g.mu.Lock()
	flows := fillUp(t, f)
	g.mu.Unlock()
	waitFor(t, "the queue is empty", func() bool { return f.Stats().Outputs[0].Queued == 0 })
	if err := f.Remove("before"); err != nil {
		t.Fatal(err)
	}
	out := &watched{}
	f.Add("after", out)
	for _, p := range flows {
		p.client(request).end(deception.EndClientClosed)
	}
	fresh := tcpFlow(f, "999")
	fresh.client(request).end(deception.EndClientClosed)
	shown := func() int {
		with := map[uint16]bool{}
		for _, x := range out.all() {
			if x.payload > 0 {
				with[x.from] = true
			}
		}
		return len(with)
	}
	waitFor(t, "all flows are shown", func() bool { return shown() == len(flows)+1 })
	if st := stats(f, "after"); st.Lost != 0 || st.Flows != 1 || st.Reintroduced != uint64(len(flows)) {
		t.Errorf("%+v, want one flow from its beginning, and %d", st, len(flows))
	}
	after := f.Of("after")
	for _, p := range append(flows, fresh) {
		if _, partial, _ := after.Find(p.s.ID.Key()); partial != (p != fresh) {
			t.Errorf("the flow from %s is partial to the new output: %v", p.s.Source, partial)
		}
	}
}

// TestOutputThatDoesNotEnd: an output that hangs when it is removed, and whatever a
// relay still tells it of, does the next one no harm.
func TestOutputThatDoesNotEnd(t *testing.T) {
	g := &gate{frames: map[string]int{}}
	f := New(Config{Lanes: 1, QueueBytes: 1 << 20})
	defer f.Close()
	f.Add("hanging", g)
	hanging := (*f.outputs.Load())[0]
	g.mu.Lock()
	flows := fillUp(t, f)
	if err := f.Remove("hanging"); err == nil {
		t.Error("an output is said to have ended that still writes")
	}
	late := newChunk()
	late.records = append(late.records, record{flow: flows[0].w, kind: kindData})
	late.refs.Store(1)
	hanging.offer(item{chunk: late}) // by a loop that looked at the outputs before
	out := &watched{}
	f.Add("next", out)
	g.mu.Unlock() // now it does what it has still to do, at the same time as the next one
	ends := func() (n int) {
		for _, x := range out.all() {
			if x.payload == len(request) {
				n++
			}
		}
		return n
	}
	for i := range 200 {
		tcpFlow(f, fmt.Sprint(20_000+i)).client(request).end(deception.EndClientClosed)
	}
	waitFor(t, "flows are shown to the next output", func() bool { return ends() == 200 })
	if st := stats(f, "next"); st.Lost != 0 || st.Flows != 200 {
		t.Errorf("%+v", st)
	}
	waitFor(t, "the hanging one has ended", func() bool {
		select {
		case <-hanging.done:
			return true
		default:
			return false
		}
	})
	for i := range maxOutputs {
		f.Add(fmt.Sprint("further ", i), discard{})
	}
	if n := len(f.Stats().Outputs); n != maxOutputs {
		t.Errorf("%d outputs, want %d", n, maxOutputs)
	}
}

// TestFullQueueEmpties: an output whose queue is too small for what came at once
// takes flows again.
func TestFullQueueEmpties(t *testing.T) {
	f := New(Config{Lanes: 1, QueueBytes: 1 << 20})
	defer f.Close()
	f.Add("out", discard{})
	var flows []*script
	f.flushing.Lock() // as where flush is late
	for i := range chunkRecords + 1 {
		flows = append(flows, tcpFlow(f, fmt.Sprint(1+i)))
	}
	f.flushing.Unlock()
	for _, p := range flows {
		p.end(deception.EndClientClosed)
	}
	waitFor(t, "a flow is taken again", func() bool {
		p := tcpFlow(f, "9999")
		defer p.end(deception.EndClientClosed)
		return p.w.Wants(Client)
	})
}

// hesitant is a Writer that stands still when it is flushed, until it is closed.
type hesitant struct {
	discard
	flushing, closed chan struct{}
}

func (w *hesitant) Flush() error {
	select {
	case w.flushing <- struct{}{}:
	default:
	}
	<-w.closed
	return errFull
}

func (w *hesitant) Close() error {
	close(w.closed)
	return nil
}

// TestAbortedFlush: what waits while an output hangs in a flush is lost when it is
// ended, and known to be.
func TestAbortedFlush(t *testing.T) {
	w := &hesitant{flushing: make(chan struct{}, 1), closed: make(chan struct{})}
	f := New(Config{Lanes: 1})
	defer f.Close()
	f.Add("out", w)
	shown := tcpFlow(f, "4000").client(request)
	f.flush()
	<-w.flushing // that of the time before it was written, or after
	waits := tcpFlow(f, "4001").client(request)
	if err := f.Remove("out"); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*script{shown, waits} {
		if _, partial, _ := f.Of("out").Find(p.s.ID.Key()); !partial {
			t.Errorf("the flow from %s is not known to be partial", p.s.Source)
		}
	}
}
