package suricata

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
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

func (s *subject) kinds() []deception.EventKind {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []deception.EventKind
	for _, e := range s.told {
		out = append(out, e.Kind)
	}
	return out
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
	s.has(t, source, 1000001)
	until(t, 10*time.Second, "the flow is an HTTP record with MAC addresses", func() bool {
		for _, e := range events(t, s.EVE()) {
			if e.Type == "http" && e.Source == source && e.Community != "" && e.Ether.Source == "02:01:02:03:04:05" {
				return true
			}
		}
		return false
	})
}

// has waits until an address has set off a rule.
func (s *subject) has(t *testing.T, source string, sid uint32) {
	t.Helper()
	until(t, 20*time.Second, fmt.Sprintf("rule %d fires for %s", sid, source), func() bool {
		return slices.Contains(s.alerts(t, source), sid)
	})
}

func TestRulesAreExchangedLive(t *testing.T) {
	path := ruleFile(t, needle)
	s := begin(t, Config{}, path)
	s.running(t)
	pid := s.Status().PID
	s.has(t, s.visit("before", 4000, say{true, "needle"}), 1000001)

	write(t, path, needle+`alert tcp any any -> any any (msg:"thread"; content:"thread"; sid:1000002; rev:1;)`+"\n")
	r, err := s.Reload(t.Context())
	if err != nil || !r.Live || r.Rules < 3 {
		t.Fatalf("reload: %+v, %v", r, err)
	}
	t.Logf("exchanged in %.0f ms", r.Millis)
	s.has(t, s.visit("after", 4000, say{true, "thread"}), 1000002)
	if now := s.Status().PID; now != pid {
		t.Fatalf("process %d was replaced by %d", pid, now)
	}
}

func TestOneBadRuleRefusesTheNewSet(t *testing.T) {
	path := ruleFile(t, needle)
	s := begin(t, Config{}, path)
	s.running(t)
	write(t, path, needle+`
alert tcp any any -> any any (msg:"good"; content:"thread"; sid:1000002;)
alert tcp any any -> any any (msg:"bad"; \
   contents:"thread"; sid:1000003;)
`)
	_, err := s.Reload(t.Context())
	var refused *RulesError
	if !errors.As(err, &refused) || !errors.Is(err, ErrRules) {
		t.Fatalf("reload: %v", err)
	}
	if want := path + ":4: unknown rule keyword 'contents'"; !strings.Contains(err.Error(), want) {
		t.Fatalf("%q does not say %q", err, want)
	}
	if st := s.Status(); st.RulesError == "" || st.State != Running || !slices.Contains(s.kinds(), deception.EventRulesRefused) {
		t.Fatalf("status %+v, events %v", st, s.kinds())
	}
	// What was loaded stays in force, also over a restart.
	s.has(t, s.visit("kept", 4000, say{true, "needle thread"}), 1000001)
	kill(t, s.Status().PID, syscall.SIGKILL)
	until(t, 30*time.Second, "it was started anew", func() bool { st := s.Status(); return st.Starts == 2 && st.State == Running })
	source := s.visit("again", 4000, say{true, "needle thread"})
	s.has(t, source, 1000001)
	if got := s.alerts(t, source); slices.Contains(got, 1000002) {
		t.Fatalf("a rule of the refused set fired: %v", got)
	}

	write(t, path, needle)
	if _, err := s.Reload(t.Context()); err != nil || s.Status().RulesError != "" {
		t.Fatalf("mended: %v, %q", err, s.Status().RulesError)
	}
}

func TestFirstSetIsBad(t *testing.T) {
	s := begin(t, Config{}, ruleFile(t, "alert nothing\n"), "/nowhere/at/all")
	s.running(t)
	if st := s.Status(); !strings.Contains(st.RulesError, "/nowhere/at/all") {
		t.Fatalf("status %+v", st)
	}
	s.has(t, s.visit("own", 4000, say{true, "anything"}), 14200001) // decoynet's own rules
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func kill(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	if pid <= 0 {
		t.Fatalf("no process: %d", pid)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
}
