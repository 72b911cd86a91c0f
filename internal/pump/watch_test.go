package pump

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"
)

// witness is a Watcher that writes down what it is shown.
type witness struct {
	mu   sync.Mutex // guards said
	said []string
}

func (w *witness) say(format string, a ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(w.said, fmt.Sprintf(format, a...))
}

func (w *witness) Data(side int, b []byte, at time.Time) {
	if since := time.Since(at); since < 0 || since > time.Minute {
		w.say("at %v", at)
	}
	w.say("%d %s", side, b)
}

func (w *witness) Fin(side int, total uint64, _ time.Time) { w.say("%d FIN after %d", side, total) }

// Every question stands before its answer, and the ends where they were.
func TestWatched(t *testing.T) {
	const rounds = 100
	var want []string
	for i := range rounds {
		want = append(want, fmt.Sprintf("0 ask %03d", i), fmt.Sprintf("1 ask %03d back", i))
	}
	want = append(want, "0 FIN after 700", "1 late", "1 FIN after 1204")
	for kind, stream := range makers {
		t.Run(kind, func(t *testing.T) {
			w := &witness{}
			r := start(t, stream, Options{Watch: w})
			go func() {
				b := make([]byte, 64)
				for range rounds {
					n, err := r.service.Read(b)
					if err != nil {
						return
					}
					fmt.Fprintf(r.service, "%s back", b[:n])
				}
				_, _ = io.ReadAll(r.service)
				_, _ = io.WriteString(r.service, "late")
				_ = r.service.CloseWrite()
			}()
			for i := range rounds {
				send(t, r.intruder, fmt.Sprintf("ask %03d", i))
				expect(t, r.intruder, fmt.Sprintf("ask %03d back", i))
			}
			finish(t, r.intruder)
			expect(t, r.intruder, "late")
			expectFIN(t, r.intruder)
			r.wait(t)
			if got := strings.Join(w.said, "\n"); got != strings.Join(want, "\n") {
				t.Errorf("the witness saw\n%s\nwant\n%s", got, strings.Join(want, "\n"))
			}
		})
	}
}
