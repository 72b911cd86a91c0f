package eve

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
)

// BenchmarkEvents is a file of alerts, records and flows, read from the line to the
// finding. What counts is the processor time, whatever else the machine does.
func BenchmarkEvents(b *testing.B) {
	sessions := roster{}
	f := newFolder(b)
	var text strings.Builder
	const lines = 12000
	for n := range lines / 4 {
		s := sessions.add(session(n))
		text.WriteString(record(&s, "alert", n+1, false, "packet", alertMember+page) + "\n")
		text.WriteString(record(&s, "http", n+1, false, "packet", page) + "\n")
		text.WriteString(record(&s, "fileinfo", n+1, true, "packet", page+`,"fileinfo":{"size":4711,"sha256":"`+strings.Repeat("ab", 32)+`"}`) + "\n")
		text.WriteString(record(&s, "flow", n+1, false, "flow", `,"flow":{"pkts_toserver":12,"age":3}`) + "\n")
	}
	f.write(b, "eve.json", text.String())
	b.SetBytes(int64(text.Len() / lines))
	b.ReportAllocs()
	var took time.Duration
	for n := 0; n < b.N; n += lines {
		cfg := f.config(sessions, nil)
		cfg.Checkpoint = f.path(fmt.Sprintf("checkpoint-%d", n))
		cfg.Settle = time.Hour
		count := 0
		cfg.Deliver = func(_ context.Context, list []*deception.Finding) error {
			count += len(list)
			return nil
		}
		r := newReader(cfg)
		began := cpu(b)
		// The first reader of a file without a checkpoint begins at its beginning.
		if err := r.open(time.Now()); err != nil {
			b.Fatal(err)
		}
		drive(b, r, time.Now())
		took += cpu(b) - began
		if count != lines {
			b.Fatalf("%d findings of %d lines: %+v", count, lines, r.Stats())
		}
		r.follow.close()
	}
	rounds := (b.N + lines - 1) / lines
	b.ReportMetric(float64(rounds*lines)/took.Seconds(), "events/cpu-s")
}
