package feed

import (
	"errors"
	"sync"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/frame"
)

// breaking is a Writer that fails when it is told to.
type breaking struct {
	watched
	set sync.Mutex // guards err
	err error      // of the next frame
}

func (w *breaking) breakWith(err error) {
	w.set.Lock()
	defer w.set.Unlock()
	w.err = err
}

func (w *breaking) Frame(at int64, b []byte) error {
	w.set.Lock()
	err := w.err
	if errors.Is(err, ErrRestart) {
		w.err = nil // once a reader
	}
	w.set.Unlock()
	if err != nil {
		return err
	}
	return w.watched.Frame(at, b)
}

// TestCutDatagrams: flows over UDP and mirrored ones are partial, too, when a reader
// died who may not have looked at what it had, though nothing comes of them any more.
func TestCutDatagrams(t *testing.T) {
	out := &breaking{}
	st := newStage(t, out)
	datagram := begin(st.f, session(deception.UDP, "192.0.2.7:5353", "198.51.100.4:53")).client("question")
	mirrored := session(deception.TCP, "192.0.2.7:5354", "198.51.100.4:80")
	st.f.Know(mirrored)
	header := frame.NewHeader(deception.TCP, frame.MAC{}, frame.MAC{}, frame.Tags{}, mirrored.Source, mirrored.Destination)
	for i := range 3 {
		const ethernet = 14
		st.f.Frame(mirrored, Client, mirrored.Start.UnixNano(), header.TCP(nil, &frame.Segment{Flags: frame.ACK, Seq: uint32(i)})[ethernet:])
	}
	st.play()
	other := tcpFlow(st.f, "5355")
	out.breakWith(ErrRestart)
	st.play()
	for _, s := range []*deception.Session{datagram.s, mirrored} {
		if _, partial, _ := st.f.Find(s.ID.Key()); !partial {
			t.Errorf("the flow from %s is not known to be partial", s.Source)
		}
	}
	if _, partial, _ := st.f.Find(other.s.ID.Key()); partial {
		t.Error("the flow that the new reader saw from its beginning is partial")
	}
	if cut := st.o.cut.Load(); cut != 2 {
		t.Errorf("%d flows were cut, want 2", cut)
	}
	for _, p := range []*script{datagram, other} {
		p.end(deception.EndIdle)
	}
	st.play()
	if n := len(st.o.live); n != 0 {
		t.Errorf("%d flows are open at the end", n)
	}
}

// TestNudgeThatFails: what a failing output was not made to look at costs no later
// nudge of the same flows.
func TestNudgeThatFails(t *testing.T) {
	out := &breaking{}
	st := newStage(t, out)
	var flows []*script
	for _, port := range []string{"4001", "4002", "4003"} {
		flows = append(flows, tcpFlow(st.f, port).client(request))
	}
	st.play()
	now, _ := st.f.clock.now()
	out.breakWith(errFull)
	st.o.nudgeAll(now+int64(time.Second), nudgeAfter)
	out.breakWith(nil)
	for _, p := range flows {
		p.client(request)
	}
	st.play()
	before := len(out.all())
	st.o.nudgeAll(now+int64(time.Minute), nudgeAfter)
	if n := len(out.all()) - before; n != len(flows) {
		t.Errorf("%d nudges, want one of each of %d flows", n, len(flows))
	}
}
