package health

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
)

// fakeProbe answers from a table and counts how often it was asked.
type fakeProbe struct {
	mu    sync.Mutex
	errs  map[Port]error
	asked map[string]int
}

func (f *fakeProbe) set(p Port, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errs[p] = err
}

func (f *fakeProbe) probe(_ context.Context, ports []Port, _ time.Duration, _ uint32) map[Port]error {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[Port]error{}
	for _, p := range ports {
		f.asked[p.Service]++
		if err := f.errs[p]; err != nil {
			out[p] = err
		}
	}
	return out
}

func testPort(service string, number uint16) Port {
	return Port{Service: service, Transport: deception.TCP, Address: netip.AddrPortFrom(netip.MustParseAddr("10.1.0.2"), number)}
}

func newChecker(t *testing.T, interval time.Duration) (*Checker, *fakeProbe, *atomic.Int32) {
	t.Helper()
	f := &fakeProbe{errs: map[Port]error{}, asked: map[string]int{}}
	var changes atomic.Int32
	c := New(Config{Interval: interval, Probe: f.probe, Changed: func() { changes.Add(1) }})
	t.Cleanup(c.Close)
	return c, f, &changes
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 5 s: %s", what)
}

func TestWatchKnowsEveryPortBeforeItReturns(t *testing.T) {
	c, f, _ := newChecker(t, time.Hour)
	up, down := testPort("web", 80), testPort("ssh", 22)
	f.set(down, unix.ECONNREFUSED)
	c.Watch(t.Context(), []Port{up, down})
	if !c.Up(up) || c.Up(down) {
		t.Errorf("up = %v, %v; want true, false", c.Up(up), c.Up(down))
	}
	if s := c.States()[down]; s.Err == "" || s.Since.IsZero() {
		t.Errorf("state of a closed port = %+v, want a reason and a time", s)
	}
}

// A refusal closes a port at once, silence only when it lasts.
func TestRefusalAndSilence(t *testing.T) {
	c, f, changes := newChecker(t, 5*time.Millisecond)
	p := testPort("web", 80)
	c.Watch(t.Context(), []Port{p})
	f.set(p, unix.ECONNREFUSED)
	eventually(t, "refused port is down", func() bool { return !c.Up(p) })
	f.set(p, nil)
	eventually(t, "port is up again", func() bool { return c.Up(p) })
	if n := changes.Load(); n != 3 {
		t.Errorf("told of %d changes, want 3 (up, down, up)", n)
	}
	w := &watch{ports: []Port{p}, misses: map[Port]int{}}
	if c.judge(w, p, ErrNoAnswer) || !c.Up(p) {
		t.Error("one lost answer closed the port")
	}
	if !c.judge(w, p, ErrNoAnswer) || c.Up(p) {
		t.Error("two lost answers in a row left the port open")
	}
}

func TestSuspectAsksAtOnce(t *testing.T) {
	c, f, _ := newChecker(t, time.Hour)
	p := testPort("web", 80)
	c.Watch(t.Context(), []Port{p})
	f.set(p, unix.ECONNREFUSED)
	c.Suspect("web")
	c.Suspect("nobody knows this one")
	eventually(t, "suspected service is down", func() bool { return !c.Up(p) })
}

func TestWatchForgetsAndKeeps(t *testing.T) {
	c, f, _ := newChecker(t, time.Hour)
	web, ssh := testPort("web", 80), testPort("ssh", 22)
	c.Watch(t.Context(), []Port{web, ssh})
	c.Watch(t.Context(), []Port{web})
	if _, known := c.States()[ssh]; known || c.Up(ssh) {
		t.Error("a port that is not watched any more is still known")
	}
	if f.asked["web"] != 1 {
		t.Errorf("an unchanged service was asked %d times, want 1", f.asked["web"])
	}
	f.set(web, errors.New("gone"))
	c.Watch(t.Context(), []Port{web, testPort("web", 443)})
	eventually(t, "changed service was asked anew", func() bool { return c.Up(testPort("web", 443)) })
}
