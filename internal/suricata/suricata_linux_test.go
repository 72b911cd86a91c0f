package suricata

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"decoynet/deception"
)

// subject is a Suricata under test with its feed.
type subject struct {
	*Suricata
	feed *feeder

	mu   sync.Mutex // guards told
	told []deception.Event
}

// begin starts a Suricata that is fed. rules are the document's.
func begin(t *testing.T, cfg Config, rules ...string) *subject {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = filepath.Join(closedDir(t), "inspect")
	}
	cfg.Interval = 200 * time.Millisecond
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	sub := &subject{}
	cfg.Event = func(e *deception.Event) {
		sub.mu.Lock()
		defer sub.mu.Unlock()
		sub.told = append(sub.told, *e)
	}
	var err error
	if sub.Suricata, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	sub.feed = feed(t, sub.FIFO())
	t.Cleanup(func() {
		ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
		defer stop()
		if err := sub.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	if err := sub.Apply(t.Context(), &deception.Inspect{Suricata: deception.SuricataManaged, Rules: rules}); err != nil {
		t.Fatal(err)
	}
	return sub
}

// closedDir is a directory as a data directory is: nobody but root may search it.
func closedDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func (s *subject) running(t *testing.T) {
	t.Helper()
	until(t, 30*time.Second, "suricata runs", func() bool { return s.Status().State == Running })
}

// alerts returns which rules an address set off.
func (s *subject) alerts(t *testing.T, source string) []uint32 {
	t.Helper()
	var out []uint32
	for _, e := range events(t, s.EVE()) {
		if e.Type == "alert" && e.Source == source {
			out = append(out, e.Alert.SID)
		}
	}
	return out
}

// visit feeds a whole flow.
func (s *subject) visit(name string, port uint16, parts ...say) (source string) {
	client, server := addresses(name, port)
	for _, frame := range conversation(client, server, parts...) {
		s.feed.frames <- frame
	}
	return client.Addr().String()
}

func ruleFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "own.rules")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

const needle = `alert tcp any any -> any any (msg:"needle"; content:"needle"; sid:1000001; rev:1;)` + "\n"

func TestAlertsOfTheFeed(t *testing.T) {
	s := begin(t, Config{}, ruleFile(t, needle))
	s.running(t)
	source := s.visit("a", 80, say{true, "GET /needle HTTP/1.1\r\nHost: a\r\n\r\n"}, say{false, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"})
	until(t, 10*time.Second, "the alert is written", func() bool {
		for _, sid := range s.alerts(t, source) {
			if sid == 1000001 {
				return true
			}
		}
		return false
	})
	until(t, 10*time.Second, "the flow is an HTTP record with MAC addresses", func() bool {
		for _, e := range events(t, s.EVE()) {
			if e.Type == "http" && e.Source == source && e.Community != "" && e.Ether.Source == "02:01:02:03:04:05" {
				return true
			}
		}
		return false
	})
}
