package archive

import (
	"bytes"
	"fmt"
	"io"
	"testing"
	"time"

	"decoynet/deception"
)

// BenchmarkFrame is what keeping a frame costs, the disk's part included.
func BenchmarkFrame(b *testing.B) {
	for _, limit := range []uint64{0, 1 << 20} {
		b.Run(fmt.Sprintf("session-limit-%d", limit), func(b *testing.B) {
			a, err := Open(Config{Dir: b.TempDir(), Limits: deception.PCAPLimits{MaxBytes: 256 << 20, SessionBytes: limit}})
			if err != nil {
				b.Fatal(err)
			}
			defer a.Close()
			var flows []*flow
			for i := range 1000 {
				flows = append(flows, newFlow(time.Now(), fmt.Sprintf("192.0.2.66:%d", 1024+i), "192.0.2.10:80").talk(1400, 1400, 100))
			}
			b.ReportAllocs()
			bytes, i := 0, 0
			for b.Loop() {
				f := flows[i%len(flows)]
				at := i / len(flows) % len(f.frames)
				if err := a.Frame(f.times[at], f.frames[at]); err != nil {
					b.Fatal(err)
				}
				bytes += len(f.frames[at])
				i++
			}
			b.ReportMetric(float64(bytes)/b.Elapsed().Seconds()/1e6, "MB/s")
		})
	}
}

// BenchmarkExtract takes one session out of an archive of 100,000, at its start, in
// its midst and at its end. So many within one second are more than any gateway
// takes: all of them are of the session's time and are read.
func BenchmarkExtract(b *testing.B) {
	dir := b.TempDir()
	a, err := Open(Config{Dir: dir, Limits: deception.PCAPLimits{MaxBytes: 4 << 30}})
	if err != nil {
		b.Fatal(err)
	}
	defer a.Close()
	const sessions = 100_000
	var chosen []*flow
	var template *flow
	for i := range sessions {
		f := newFlow(time.Now(), fmt.Sprintf("192.0.%d.66:%d", i>>15, 1024+i&0x7fff), "198.51.100.10:80")
		if i%(sessions/2) == 0 || i == sessions-1 {
			f.talk(200, 1400, 300)
			chosen = append(chosen, f)
			put(b, a, f)
			continue
		}
		if template == nil {
			template = newFlow(time.Now(), "192.0.2.66:1000", "198.51.100.10:80").talk(200, 1400, 300)
		}
		w := wanted(f.id)
		for n, frame := range template.frames { // only the MAC addresses matter
			copy(frame, w[n%2][:])
			if err := a.Frame(f.at.UnixNano(), frame); err != nil {
				b.Fatal(err)
			}
		}
	}
	flush(b, a)
	s := a.Stats()
	for i, f := range chosen {
		b.Run(fmt.Sprintf("session-%d", i), func(b *testing.B) {
			for b.Loop() {
				var out bytes.Buffer
				if found, err := Extract(b.Context(), dir, f.id, f.id.Time(), f.at, &out); err != nil || found.Packets != len(f.frames) {
					b.Fatalf("%+v, %v", found, err)
				}
			}
			b.ReportMetric(float64(s.FrameBytes)/1e6, "MB")
		})
	}
	b.Run("none", func(b *testing.B) {
		id := deception.NewSessionID(time.Now())
		for b.Loop() {
			if _, err := Extract(b.Context(), dir, id, id.Time(), time.Now(), io.Discard); err == nil {
				b.Fatal("found")
			}
		}
	})
}

// BenchmarkExtractHour takes a session that spoke once a minute for an hour out of a
// gigabyte of other sessions' packets of that hour: few large ones or many small ones.
func BenchmarkExtractHour(b *testing.B) {
	for _, sessions := range []int{100, 100_000} {
		b.Run(fmt.Sprintf("sessions=%d", sessions), func(b *testing.B) { benchmarkExtractHour(b, sessions) })
	}
}

func benchmarkExtractHour(b *testing.B, sessions int) {
	const (
		total = 1 << 30
		hour  = time.Hour
	)
	dir := b.TempDir()
	begin := time.Now().Add(-hour)
	quiet := newFlow(begin, "192.0.2.66:40000", "192.0.2.10:22")
	quiet.step = time.Minute
	for range 60 {
		quiet.segment(0, flagPSH|flagACK, make([]byte, 40))
	}
	a, err := Open(Config{Dir: dir, Limits: deception.PCAPLimits{MaxBytes: 4 << 30}})
	if err != nil {
		b.Fatal(err)
	}
	template := newFlow(begin, "192.0.2.66:1000", "198.51.100.10:80").talk(300, 1400, 1400, 1400)
	bytesOf := 0 // of a turn
	for _, f := range template.frames {
		bytesOf += len(f) + recordHeader
	}
	turns := total / bytesOf
	keys := make([][2][addresses]byte, sessions)
	for i := range keys {
		keys[i] = wanted(deception.NewSessionID(begin))
	}
	next := 0
	for turn := range turns {
		at := begin.Add(hour * time.Duration(turn) / time.Duration(turns)).UnixNano()
		for ; next < len(quiet.times) && quiet.times[next] <= at; next++ {
			if err := a.Frame(quiet.times[next], quiet.frames[next]); err != nil {
				b.Fatal(err)
			}
		}
		who := turn % sessions
		if sessions > 100 { // one after the other
			who = turn * sessions / turns
		}
		for n, f := range template.frames {
			copy(f, keys[who][n%2][:])
			if err := a.Frame(at, f); err != nil {
				b.Fatal(err)
			}
		}
	}
	flush(b, a)
	if err := a.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		var out bytes.Buffer
		if found, err := Extract(b.Context(), dir, quiet.id, begin, time.Now(), &out); err != nil || found.Packets != next {
			b.Fatalf("%+v of %d, %v", found, next, err)
		}
	}
	b.ReportMetric(float64(a.Stats().FileBytes)/1e6, "MB")
	b.ReportMetric(float64(a.Stats().Files), "files")
}
