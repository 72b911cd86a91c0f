package feed

import (
	"fmt"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/frame"
)

// order is a Writer that notes which flows began, and of which data came, in which
// order.
type order struct{ seen []string }

func (w *order) Frame(_ int64, b []byte) error {
	const header = 14 + 4 + 20 // Ethernet, a tag, IPv4
	port := int(b[header])<<8 | int(b[header+1])
	switch flags := b[header+13]; {
	case flags == frame.SYN:
		w.seen = append(w.seen, fmt.Sprint("begin ", port))
	case len(b) > header+60:
		w.seen = append(w.seen, fmt.Sprint("data ", port))
	}
	return nil
}

func (w *order) Flush() error { return nil }

// TestOrderAcrossLanes: a flow that begins because of what another one carried
// comes after that, though other loops of the relay tell of it.
func TestOrderAcrossLanes(t *testing.T) {
	const lanes, flows, first = 3, 6000, 10_000
	out := &order{}
	f := New(Config{Lanes: lanes})
	f.Add("order", out)
	var turns [lanes]chan int
	for lane := range turns {
		turns[lane] = make(chan int)
	}
	done := make(chan struct{})
	data := make([]byte, 1000)
	for lane := range lanes {
		go func() {
			for i := range turns[lane] {
				s := session(deception.TCP, fmt.Sprint("192.0.2.7:", first+i), "198.51.100.4:80")
				s.Start = time.Now()
				w := f.Begin(s, lane)
				w.Data(Client, data, time.Now())
				if i+1 == flows {
					close(done)
					continue
				}
				turns[(lane+1+i%2)%lanes] <- i + 1
				s.End = time.Now()
				w.Close(s, s.End)
			}
		}()
	}
	turns[0] <- 0
	<-done
	for _, c := range turns {
		close(c)
	}
	f.flush()
	waitFor(t, "all is written", func() bool { return stats(f, "order").Queued == 0 })
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if len(out.seen) != 2*flows {
		t.Fatalf("%d beginnings and data, want %d; %d flows lost", len(out.seen), 2*flows, f.Lost())
	}
	for i, got := range out.seen {
		want := fmt.Sprint("begin ", first+i/2)
		if i%2 == 1 {
			want = fmt.Sprint("data ", first+i/2)
		}
		if got != want {
			t.Fatalf("at %d there is %q, want %q", i, got, want)
		}
	}
}
