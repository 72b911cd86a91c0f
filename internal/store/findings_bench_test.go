//go:build unix

package store

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/pgtest"
)

// BenchmarkFindings measures findings as a reader of Suricata's file tells them, four
// to a session, one of them an alert, with the sessions themselves: how many a second,
// what they cost, how much they take. EVE=FILE takes documents from a file of events,
// one a line.
func BenchmarkFindings(b *testing.B) {
	b.Run("sqlite", func(b *testing.B) { benchmarkFindings(b, place{path: newPath(b)}) })
	b.Run("postgres", func(b *testing.B) { benchmarkFindings(b, place{path: pgtest.Database(b), pg: true}) })
}

func benchmarkFindings(b *testing.B, at place) {
	documents := [][]byte{
		[]byte(`{"event_type":"http","pkt_src":"wire/pcap","community_id":"1:L1TU3arg3LMSPbp2nsBzqUR3Lc0=","tx_id":0,"http":{"hostname":"192.0.2.7","url":"/login.php?id=%d","http_user_agent":"Mozilla/5.0 (X11; Linux x86_64; rv:102.0) Gecko/20100101 Firefox/102.0","http_content_type":"text/html","http_method":"POST","protocol":"HTTP/1.1","status":200,"length":1834}}`),
		[]byte(alertDocument),
		[]byte(`{"event_type":"fileinfo","pkt_src":"wire/pcap","community_id":"1:L1TU3arg3LMSPbp2nsBzqUR3Lc0=","http":{"hostname":"192.0.2.7","url":"/","http_method":"GET","protocol":"HTTP/1.1","status":200,"length":1834},"app_proto":"http","fileinfo":{"filename":"/","gaps":false,"state":"CLOSED","sha256":"d5579c46dfcc7f18207013e65b44e4cb4e2c2298f4ac457ba8f82743f31e930b","stored":false,"size":1834,"tx_id":0}}`),
		[]byte(`{"event_type":"flow","app_proto":"http","flow":{"pkts_toserver":6,"pkts_toclient":5,"bytes_toserver":823,"bytes_toclient":2391,"start":"2026-03-04T05:06:07.100008+0000","end":"2026-03-04T05:06:07.900008+0000","age":0,"state":"closed","reason":"timeout","alerted":true},"community_id":"1:L1TU3arg3LMSPbp2nsBzqUR3Lc0=","tcp":{"tcp_flags":"1b","tcp_flags_ts":"1b","tcp_flags_tc":"1b","syn":true,"fin":true,"psh":true,"ack":true,"state":"closed","ts_max_regions":1,"tc_max_regions":1}}`),
	}
	if file := os.Getenv("EVE"); file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			b.Fatal(err)
		}
		documents = bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	}
	r, err := OpenRecorder(RecorderConfig{Path: at.path, MaxBytes: -1})
	if err != nil {
		b.Fatal(err)
	}
	empty := r.Stats().FileBytes
	t := newTraffic(false, 0)
	var s deception.Session
	raw := 0
	kinds := []string{"http", deception.KindAlert, deception.KindFile, deception.KindFlow}
	b.ReportAllocs()
	b.ResetTimer()
	before, begun := cpuTime(b), time.Now()
	for i := range b.N {
		if i%4 == 0 {
			t.next(&s)
			r.Ended(&s)
		}
		for !r.Room() {
			time.Sleep(time.Millisecond)
		}
		f := deception.Finding{
			Session: s.ID, Time: s.End.Add(time.Duration(i%4) * time.Millisecond), Node: "hq", Kind: kinds[i%4], Transport: deception.TCP,
			Source: s.Source, Destination: s.Destination, Application: "http", Document: documents[i%len(documents)],
		}
		f.ID = s.ID
		f.ID[15] ^= byte(i%4 + 1)
		if i%4 == 1 {
			f.Alert = &deception.Alert{GID: 1, SID: uint32(2027000 + i%500), Revision: 3, Signature: fmt.Sprint("ET SCAN Possible scan number ", i%500), Category: "Attempted Information Leak", Severity: 2}
		}
		raw += len(f.Document)
		r.Finding(&f)
	}
	if err := r.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
	took, used := time.Since(begun), cpuTime(b)-before
	b.StopTimer()
	if s := r.Stats(); s.LostFindings != 0 || s.Findings != uint64(b.N) {
		b.Fatalf("written %d of %d, lost %d: %v", s.Findings, b.N, s.LostFindings, s.LastError)
	}
	w := testWriter(b, at.path)
	b.ReportMetric(float64(b.N)/took.Seconds(), "findings/s")
	b.ReportMetric(float64(used.Nanoseconds())/float64(b.N), "cpu-ns/finding")
	b.ReportMetric(float64(raw)/float64(b.N), "document-B/finding")
	b.ReportMetric(float64(w.fileBytes-empty)/float64(b.N), "stored-B/finding") // a quarter of a session included
}

// BenchmarkPack measures the packing of one document.
func BenchmarkPack(b *testing.B) {
	b.SetBytes(int64(len(alertDocument)))
	b.ReportAllocs()
	for b.Loop() {
		pack([]byte(alertDocument))
	}
	b.ReportMetric(float64(len(pack([]byte(alertDocument)))), "packed-B")
}
