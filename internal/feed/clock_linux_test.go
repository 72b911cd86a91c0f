package feed

import (
	"bufio"
	"encoding/binary"
	"io"
	"os"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/frame"
)

// TestClockSetBack: the time of a sensor goes on when the machine's clock is set
// back, and what is done by it is done.
func TestClockSetBack(t *testing.T) {
	f := New(Config{Lanes: 1})
	defer f.Close()
	out := &watched{}
	f.Add("out", out)
	f.clock.set.Store(int64(time.Hour))
	f.clock.now()
	now := func() time.Time { return time.Now().Add(time.Duration(f.clock.set.Load())) }
	s := session(deception.TCP, "192.0.2.1:4000", "198.51.100.4:80")
	s.Start = now()
	w := f.Begin(s, 0)
	f.flush()
	waitFor(t, "the flow is shown", func() bool { return len(out.all()) == 3 })
	f.clock.set.Store(0)
	from := time.Now()
	w.Data(Client, []byte(request), now())
	waitFor(t, "what nothing came after is looked at", func() bool { return len(out.all()) == 3+3 })
	passed := time.Since(from)
	frames := out.all()
	if went := time.Duration(frames[5].at - frames[3].at); went < nudgeAfter || went > passed+clockSlack {
		t.Errorf("%s passed for the sensor, want %s at least and %s at most", went, nudgeAfter, passed)
	}
	if jump := time.Duration(frames[3].at - frames[2].at); jump < 0 || jump > passed+time.Since(from)+clockSlack {
		t.Errorf("%s passed for the sensor while the clock was set back", jump)
	}
	if st := stats(f, "out"); !st.StuckSince.IsZero() {
		t.Errorf("it is stuck since %s", st.StuckSince)
	}
}

// TestLateRecord: what a slow loop, or a gateway whose header was late, tells of
// does not move the time.
func TestLateRecord(t *testing.T) {
	out := &watched{}
	st := newStage(t, out)
	s := session(deception.TCP, "192.0.2.1:4000", "198.51.100.4:80")
	w := st.f.Begin(s, 0)
	for _, late := range []time.Duration{0, 3 * time.Second, 0, time.Millisecond, time.Minute, time.Millisecond, -time.Hour, 0} {
		w.Data(Client, []byte("x"), s.Start.Add(-late))
		st.play()
	}
	frames := out.all()
	for i, x := range frames {
		if i > 0 && x.at < frames[i-1].at {
			t.Errorf("frame %d is older than the one before", i)
		}
		if ahead := x.at - time.Now().UnixNano(); ahead > int64(clockSlack) {
			t.Errorf("frame %d is of a time that comes in %s", i, time.Duration(ahead))
		}
	}
}

// TestHeartbeatsGoOn: so does the time in heartbeats.
func TestHeartbeatsGoOn(t *testing.T) {
	fifo, path := newFIFO(t)
	opened := make(chan *os.File, 1)
	go func() {
		reader, err := os.Open(path)
		if err != nil {
			t.Error(err)
		}
		opened <- reader
	}()
	before := session(deception.TCP, "192.0.2.1:1", "192.0.2.2:2")
	header := frame.NewHeader(deception.TCP, frame.MAC{2}, frame.MAC{6}, frame.Tags{}, before.Source, before.Destination)
	later := time.Now().Add(time.Hour) // as before the clock was set back
	if err := fifo.Frame(later.UnixNano(), header.TCP(nil, &frame.Segment{Flags: frame.SYN})); err != nil {
		t.Fatal(err)
	}
	reader := <-opened
	defer reader.Close()
	in := bufio.NewReader(reader)
	var last time.Time
	for i := range 4 { // the first is that frame, with the file's header before it
		if err := fifo.Flush(); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if _, err := in.Discard(frame.FileHeaderSize); err != nil {
				t.Fatal(err)
			}
		}
		var head [frame.RecordHeaderSize]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			t.Fatal(err)
		}
		at := time.Unix(int64(binary.LittleEndian.Uint32(head[:])), int64(binary.LittleEndian.Uint32(head[4:]))*1000)
		if _, err := in.Discard(int(binary.LittleEndian.Uint32(head[8:]))); err != nil {
			t.Fatal(err)
		}
		if !at.After(last) {
			t.Errorf("heartbeat %d is of %s, what came before of %s", i, at, last)
		}
		last = at
		time.Sleep(heartbeatEvery)
	}
}
