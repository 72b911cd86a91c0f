package eve

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// While nobody takes findings, the file is the buffer.
func TestRefusedFindings(t *testing.T) {
	s := session(1)
	f, k := newFolder(t), newSink()
	k.setBusy(true)
	r := New(f.config(roster{}, k))
	var want []string
	for n := range 5 * MaxBatch {
		f.write(t, "eve.json", record(&s, "ssh", n+1, false, "packet", "")+"\n")
		want = append(want, fmt.Sprint(n+1))
	}
	eventually(t, "some refused", func() bool { return r.Stats().Refused >= 2 })
	st := r.Stats()
	if st.Lines > MaxBatch || st.Behind == 0 || st.LastError != nil {
		t.Errorf("while nobody takes findings: %+v", st)
	}
	if _, err := os.Stat(f.path("eve.checkpoint")); err == nil {
		if c, _, err := loadCheckpoint(f.path("eve.checkpoint")); err != nil || c.Offset != 0 {
			t.Errorf("checkpoint %+v, %v", c, err)
		}
	}
	r.Close()
	r = New(f.config(roster{}, k))
	defer r.Close()
	k.setBusy(false)
	eventually(t, "all taken", func() bool { return len(k.all()) >= len(want) })
	if diff := cmp.Diff(want, flows(k.all())); diff != "" {
		t.Error(diff)
	}
	eventually(t, "nothing behind", func() bool { return r.Stats().Behind == 0 })
}

// What was handed over, but may still be in somebody's memory, is handed over again
// after a restart; what has settled is not.
func TestCheckpointSettles(t *testing.T) {
	s := session(1)
	f, k, now := newFolder(t), newSink(), time.Now()
	cfg := f.config(roster{}, k)
	cfg.Settle = time.Second
	line := func(n int) string { return record(&s, "ssh", n, false, "packet", "") + "\n" }
	r := start(t, cfg)
	f.write(t, "eve.json", line(1))
	drive(t, r, now)
	drive(t, r, now.Add(time.Second))
	drive(t, r, now.Add(2*time.Second)) // the first is settled
	f.write(t, "eve.json", line(2))
	drive(t, r, now.Add(2500*time.Millisecond))
	r.follow.close()
	drive(t, start(t, cfg), now)
	if diff := cmp.Diff([]string{"1", "2", "2"}, flows(k.all())); diff != "" {
		t.Error(diff)
	}
	if len(k.findings) != 2 {
		t.Errorf("%d findings", len(k.findings))
	}
}

// The first reader of somebody else's file begins at its end, the next one where
// that has ended.
func TestFromEnd(t *testing.T) {
	s := session(1)
	line := func(n int) string { return record(&s, "ssh", n, false, "packet", "") + "\n" }
	long := record(&s, "ssh", 8, false, "packet", `,"x":"`+strings.Repeat("x", 2*readChunk)+`"`)
	for name, old := range map[string]string{
		"nothing": "", "some lines": line(8) + line(9), "half a line": line(8) + line(1)[:50], "a short half": line(1)[:50],
		"half of a long line": line(9) + long[:readChunk+1000],
	} {
		t.Run(name, func(t *testing.T) {
			f, k := newFolder(t), newSink()
			cfg := f.config(roster{}, k)
			cfg.FromEnd = true
			f.write(t, "eve.json", old)
			r := start(t, cfg)
			drive(t, r, time.Now())
			rest := line(1)
			switch {
			case strings.Contains(name, "long"):
				rest = long[readChunk+1000:] + "\n" + rest
			case strings.Contains(name, "half"):
				rest = rest[50:]
			}
			f.write(t, "eve.json", rest+line(2))
			drive(t, r, time.Now())
			r.follow.close()
			f.write(t, "eve.json", line(3))
			drive(t, start(t, cfg), time.Now())
			if diff := cmp.Diff([]string{"1", "2", "3"}, flows(k.all())); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A checkpoint that cannot be read costs that events are handed over twice.
func TestDamagedCheckpoint(t *testing.T) {
	s := session(1)
	for _, damage := range []string{"", "{", `{"Version":9}`, "\x00\x00\x00\x00", `{"Version":1,"Offset":-1}`, `{"Version":1,"Head":"00"}`} {
		f, k := newFolder(t), newSink()
		f.write(t, "eve.json", record(&s, "ssh", 1, false, "packet", "")+"\n")
		f.write(t, "eve.checkpoint", damage)
		r := start(t, f.config(roster{}, k))
		drive(t, r, time.Now())
		if st := r.Stats(); len(k.all()) != 1 || st.LastError == nil || !strings.Contains(st.LastError.Error(), "eve.checkpoint") {
			t.Errorf("%q: %d findings, %+v", damage, len(k.all()), st)
		}
	}
}

// Suricata's own counters are no findings.
func TestStatsEvents(t *testing.T) {
	f, k := newFolder(t), newSink()
	cfg := f.config(roster{}, k)
	var got []string
	cfg.Stats = func(event []byte) { got = append(got, string(event)) }
	const line = `{"timestamp":"2026-03-04T05:06:07.000001+0000","event_type":"stats","stats":{"uptime":7}}`
	f.write(t, "eve.json", line+"\n")
	drive(t, start(t, cfg), time.Now())
	if diff := cmp.Diff([]string{line}, got); diff != "" || len(k.all()) > 0 {
		t.Errorf("%s%v", diff, k.all())
	}
}

// Where the checkpoint cannot be written, findings are handed over nevertheless.
func TestCheckpointFails(t *testing.T) {
	s := session(1)
	f, k := newFolder(t), newSink()
	r := New(f.config(roster{}, k))
	defer r.Close()
	eventually(t, "a checkpoint", func() bool { return exists(f.path("eve.checkpoint")) })
	if err := os.Mkdir(f.path("eve.checkpoint.new"), 0o700); err != nil {
		t.Fatal(err)
	}
	f.write(t, "eve.json", record(&s, "ssh", 1, false, "packet", "")+"\n")
	eventually(t, "the failure shown", func() bool { return !r.Stats().FailingSince.IsZero() })
	f.write(t, "eve.json", record(&s, "ssh", 2, false, "packet", "")+"\n")
	eventually(t, "both taken", func() bool { return len(k.all()) == 2 })
	if st := r.Stats(); st.FailingSince.IsZero() || !strings.Contains(st.LastError.Error(), "checkpoint") {
		t.Errorf("stats %+v", st)
	}
	if err := os.Remove(f.path("eve.checkpoint.new")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it works again", func() bool { return r.Stats().FailingSince.IsZero() })
	eventually(t, "the checkpoint at the end", func() bool {
		c, _, err := loadCheckpoint(f.path("eve.checkpoint"))
		return err == nil && c.Offset == int64(len(read(t, f.path("eve.json"))))
	})
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
