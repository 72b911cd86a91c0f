package feed

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/frame"
)

// TestLatency: from the relay's read to the reader of the FIFO it takes little
// time, at 200 flows a second.
func TestLatency(t *testing.T) {
	fifo, path := newFIFO(t)
	f := New(Config{Lanes: 2})
	f.Add("fifo", fifo)
	const flows = 600
	took := make(chan []time.Duration)
	go func() {
		var all []time.Duration
		reader, err := os.Open(path) // waits for the FIFO to be opened on the other end
		if err != nil {
			t.Error(err)
		}
		defer reader.Close()
		in := bufio.NewReaderSize(reader, 1<<20)
		_, _ = in.Discard(frame.FileHeaderSize)
		last := int64(0)
		head, body := make([]byte, frame.RecordHeaderSize), make([]byte, 1<<16)
		for {
			if _, err := io.ReadFull(in, head); err != nil {
				break
			}
			at := int64(binary.LittleEndian.Uint32(head))*1e6 + int64(binary.LittleEndian.Uint32(head[4:]))
			if at < last {
				t.Errorf("the time went back by %d µs", last-at)
			}
			last = at
			b := body[:binary.LittleEndian.Uint32(head[8:])]
			if _, err := io.ReadFull(in, b); err != nil {
				break
			}
			if _, when, ok := bytes.Cut(b, []byte("sent at ")); ok {
				all = append(all, time.Since(time.Unix(0, int64(binary.BigEndian.Uint64(when)))))
			}
		}
		took <- all
	}()
	tick := time.NewTicker(time.Second / 200)
	defer tick.Stop()
	for i := range flows {
		<-tick.C
		p := begin(f, session(deception.TCP, fmt.Sprintf("192.0.2.7:%d", 2000+i), "198.51.100.4:80")).client(request)
		p.server("sent at " + string(binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixNano()))))
		p.end(deception.EndClientClosed)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	all := <-took
	if len(all) != flows {
		t.Fatalf("%d flows came, want %d", len(all), flows)
	}
	slices.Sort(all)
	p50, p99 := all[flows/2], all[flows*99/100]
	t.Logf("p50 %s, p99 %s, most %s", p50, p99, all[flows-1])
	if p50 > time.Second {
		t.Errorf("half of what is read takes more than %s to the sensor", p50)
	}
}

// TestFIFOIsRemoved: a FIFO that somebody removed is made again for the next reader.
func TestFIFOIsRemoved(t *testing.T) {
	sensor := newSensor(t, httpRules)
	fifo, path := newFIFO(t)
	f := New(Config{})
	f.Add("fifo", fifo)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "it is made again", func() bool { _, err := os.Stat(path); return err == nil })
	_, wait := sensor.start(t, path)
	s := visit(f, 1)
	waitFor(t, "an alert", func() bool { return sensor.alerts(t, 1, s.ID) == 1 })
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	wait()
	if _, err := NewFIFO(t.TempDir(), nil); err == nil {
		t.Error("a directory was taken for a FIFO")
	}
}
