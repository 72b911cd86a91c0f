package feed

import (
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"decoynet/deception"
)

// watched keeps what an output is given.
type watched struct {
	mu     sync.Mutex // guards the rest
	frames []shown
}

// shown is a TCP frame: when, from which port, and how much payload it has.
type shown struct {
	at      int64
	from    uint16
	payload int
}

func (w *watched) Frame(at int64, b []byte) error {
	at, ip := at, b[18:] // behind Ethernet and one tag
	header := int(ip[0]&15) * 4
	tcp := ip[header:]
	w.mu.Lock()
	defer w.mu.Unlock()
	w.frames = append(w.frames, shown{at, binary.BigEndian.Uint16(tcp), int(binary.BigEndian.Uint16(ip[2:])) - header - int(tcp[12]>>4)*4})
	return nil
}

func (w *watched) Flush() error { return nil }

func (w *watched) all() []shown {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]shown(nil), w.frames...)
}

// TestNudgesWait: Suricata is made to look at what it has where nothing comes after
// it, but not while an answer may be on its way: half a transaction is no good.
func TestNudgesWait(t *testing.T) {
	f := New(Config{Lanes: 1})
	defer f.Close()
	out := &watched{}
	f.Add("out", out)
	s := session(deception.TCP, "192.0.2.1:4000", "198.51.100.4:80")
	w := f.Begin(s, 0)
	for range 20 { // at any point of the rounds in which nudges are given
		w.Data(Client, []byte("question"), time.Now())
		time.Sleep(17 * time.Millisecond)
		w.Data(Server, []byte("answer"), time.Now())
		time.Sleep(18 * time.Millisecond)
	}
	nudges := func(least time.Duration) (n int) {
		last := map[uint16]int64{}
		for _, x := range out.all() {
			other := x.from ^ 4000 ^ 80
			switch {
			case x.payload > 0:
				last[x.from] = x.at
			case last[x.from] > last[other]: // it sent the last data, and now an acknowledgement of nothing new
				if since := time.Duration(x.at - last[x.from]); since < least {
					t.Errorf("a nudge %v after the data that it is for", since)
				}
				n++
			}
		}
		return n
	}
	for end := time.Now().Add(10 * time.Second); nudges(nudgeAfter) == 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the last data is never looked at")
		}
	}
	s.Reason = deception.EndClientClosed
	w.Close(s, time.Now())
}
