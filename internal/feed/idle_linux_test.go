package feed

import (
	"testing"
	"time"

	"decoynet/deception"
)

// stage is an output whose clock the test turns.
type stage struct {
	f *Feed
	o *output
}

func newStage(t *testing.T, w Writer) *stage {
	t.Helper()
	f := New(Config{Lanes: 1})
	f.mask.Store(1)
	o := &output{feed: f, name: "stage", w: w, bit: 1, wake: make(chan struct{}, 1), abort: make(chan struct{}), limit: DefaultQueueBytes}
	o.lanes = make([]source, len(f.lanes))
	o.start(o)
	f.outputs.Store(&[]*output{o})
	t.Cleanup(func() {
		f.outputs.Store(&[]*output{})
		f.Close()
	})
	return &stage{f: f, o: o}
}

// play writes what waits.
func (s *stage) play() {
	s.f.flush()
	s.o.writeBatch(s.o.take(nil, true))
	s.o.queued = 0
}

// TestIdleFlows: a shell in which nothing is typed for three hours is still the
// same flow for Suricata, which forgets flows after ten minutes.
func TestIdleFlows(t *testing.T) {
	for _, c := range []struct {
		name       string
		keep       bool
		flows, hit int
	}{{"kept alive", true, 1, 1}, {"and without", false, 2, 0}} {
		t.Run(c.name, func(t *testing.T) {
			sensor, out := newSensor(t, httpRules), newPcapFile(t)
			st := newStage(t, out)
			const hours = 3
			s := session(deception.TCP, "192.0.2.7:40001", "198.51.100.4:80")
			s.Start = s.Start.Add(-hours * time.Hour)
			p := begin(st.f, s).client("GET /first HTTP/1.1\r\nHost: decoy\r\n\r\n").server("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			st.play()
			st.o.looked = p.at.UnixNano()
			idle := 0
			for at := p.at; time.Since(at) > time.Minute; at = at.Add(tickEvery) {
				if before := st.o.frames.Load(); c.keep {
					st.o.keepAlive(at.UnixNano())
					idle += int(st.o.frames.Load() - before)
				}
			}
			if least, most := hours*3600/270-1, hours*3600/240; c.keep && (idle < least || idle > most) {
				t.Errorf("%d frames kept it alive, want %d to %d", idle, least, most)
			}
			p.at = time.Now()
			p.client(request).server(response).end(deception.EndClientClosed)
			st.play()
			if err := out.Close(); err != nil {
				t.Fatal(err)
			}
			events := sensor.read(t, out.file.Name())
			if c.keep {
				noEvents(t, events)
			}
			if n := count(events, func(e *eve) bool { return e.Type == "flow" }); n != c.flows {
				t.Errorf("%d flows, want %d", n, c.flows)
			}
			if n := sensor.alerts(t, 1, s.ID); n != c.hit {
				t.Errorf("%d alerts, want %d", n, c.hit)
			}
		})
	}
}
