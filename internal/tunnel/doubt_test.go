package tunnel

import (
	"testing"
	"time"
)

// A connection that is not heard of takes new streams only where there is no
// other, long before it is given up.
func TestQuietConnectionsComeLast(t *testing.T) {
	made := func(streams int32, quiet bool) *conn {
		c := newConn(&tape{}, connConfig{dialed: true, silence: clientSilence, streams: MaxStreams, peer: hello{helloVersion, MaxStreams, firstWindow}})
		c.live.Store(streams)
		c.quiet.Store(quiet)
		return c
	}
	busy, silent := made(7, false), made(0, true)
	conns := []*conn{silent, busy}
	if s, err := openOn(conns, false, []byte("header"), false); s == nil || busy.live.Load() != 8 {
		t.Errorf("a stream beside a quiet connection: %v, %v; the other has %d", s, err, busy.live.Load())
	}
	if s, err := openOn([]*conn{silent}, false, nil, false); s != nil || err != nil {
		t.Errorf("nothing but a quiet one, and not asked for it: %v, %v", s, err)
	}
	if s, err := openOn([]*conn{silent}, true, nil, false); s == nil {
		t.Errorf("nothing but a quiet one: %v", err)
	}

	c := made(0, false)
	c.timer = time.NewTimer(time.Hour)
	for range doubtSilence {
		if c.quiet.Load() {
			t.Fatal("quiet too soon")
		}
		c.tick()
	}
	c.timer.Stop()
	if !c.quiet.Load() || c.err != nil {
		t.Errorf("after %v without a byte: quiet %v, %v", doubtSilence*tickEvery, c.quiet.Load(), c.err)
	}

	// One that is heard of, and answers no ping: the way there may be cut.
	c = made(0, false)
	c.timer, c.asked = time.NewTimer(time.Hour), clock()-doubtPatience-time.Millisecond
	c.tick()
	c.timer.Stop()
	if !c.quiet.Load() || c.err != nil {
		t.Errorf("no pong for %v: quiet %v, %v", doubtPatience, c.quiet.Load(), c.err)
	}
}
