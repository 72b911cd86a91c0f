package feed

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"decoynet/deception"
)

// waitFor waits until a condition holds, as long as it takes on a busy machine.
func waitFor(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if is() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// start runs Suricata at a FIFO until the stream ends.
func (s *sensor) start(t testing.TB, fifo string) (pid int, wait func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := s.Command(ctx, fifo)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	t.Cleanup(func() { cancel(); <-ended })
	return cmd.Process.Pid, func() {
		t.Helper()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Error("Suricata did not end with the stream")
		}
	}
}

func count(events []eve, match func(e *eve) bool) int {
	n := 0
	for i := range events {
		if match(&events[i]) {
			n++
		}
	}
	return n
}

func (s *sensor) alerts(t testing.TB, sid int, id deception.SessionID) int {
	t.Helper()
	return count(s.events(t), func(e *eve) bool { return e.Alert.SID == sid && e.session == id })
}

// TestLive: what happens in a flow that still runs is known to Suricata, even
// where it was the last thing that happened for now.
func TestLive(t *testing.T) {
	sensor := newSensor(t, httpRules)
	path := filepath.Join(t.TempDir(), "feed.fifo")
	fifo, err := NewFIFO(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	f := New(Config{Lanes: 2})
	f.Add("fifo", fifo)
	_, wait := sensor.start(t, path)
	s := session(deception.TCP, "192.0.2.7:40001", "198.51.100.4:80")
	flow := begin(f, s).client("GET /secret HTTP/1.1\r\nHost: a\r\n\r\n").
		server("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nhunter2")
	waitFor(t, "an alert while the flow runs", func() bool { return sensor.alerts(t, 1, s.ID) == 1 })
	flow.fin(Client).fin(Server).end(deception.EndClientClosed)
	waitFor(t, "heartbeats", func() bool { return fifo.Stats().Frames > f.Stats().Outputs[0].Frames+3 })
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	wait()
	events := sensor.events(t)
	noEvents(t, events)
	if n := sensor.alerts(t, 2, s.ID); n != 1 {
		t.Errorf("%d alerts of the body, want 1", n)
	}
	if n := count(events, func(e *eve) bool { return e.Type == "flow" && e.App == "http" && e.session == s.ID }); n != 1 {
		t.Errorf("%d flow records with HTTP, want 1", n)
	}
}
