package archive

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decoynet/deception"

	"github.com/google/go-cmp/cmp"
)

// Two sessions with the same addresses and ports at the same time, in two VLANs,
// and an IPv6 and a UDP one come out apart, whole and in order.
func TestSessionsComeOutApart(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir, large)
	now := time.Now()
	one := newFlow(now, "192.0.2.66:40000", "192.0.2.10:80", 1).talk(100, 1400)
	two := newFlow(now, "192.0.2.66:40000", "192.0.2.10:80", 2, 1).talk(7)
	six := newFlow(now, "[2001:db8::66]:40000", "[2001:db8::10]:80").talk(1440, 3, 1)
	udp := newFlow(now, "192.0.2.66:40000", "192.0.2.10:161")
	udp.datagram(0, []byte("a request"))
	udp.datagram(1, []byte("its answer"))
	flows := []*flow{one, two, six, udp}
	for i := range 13 { // interleaved
		for _, f := range flows {
			if i < len(f.frames) {
				put(t, a, &flow{frames: f.frames[i : i+1], times: f.times[i : i+1]})
			}
		}
	}
	flush(t, a)
	for name, tt := range map[string]struct {
		f    *flow
		want []string
	}{
		"one": {one, []string{"0x0002\t0", "0x0012\t0", "0x0010\t0", "0x0018\t100", "0x0010\t0", "0x0018\t1400", "0x0010\t0", "0x0011\t0", "0x0011\t0", "0x0010\t0"}},
		"two": {two, []string{"0x0002\t0", "0x0012\t0", "0x0010\t0", "0x0018\t7", "0x0010\t0", "0x0011\t0", "0x0011\t0", "0x0010\t0"}},
		"six": {six, []string{"0x0002\t0", "0x0012\t0", "0x0010\t0", "0x0018\t1440", "0x0010\t0", "0x0018\t3", "0x0010\t0", "0x0018\t1", "0x0010\t0", "0x0011\t0", "0x0011\t0", "0x0010\t0"}},
		"udp": {udp, []string{"\t", "\t"}},
	} {
		path, found := extract(t, dir, tt.f)
		var want []string
		for i, text := range tt.want { // without a VLAN
			want = append(want, fmt.Sprintf("%s\t%s\t%d.%09d\t", text, macOf(tt.f.frames[i]), tt.f.times[i]/1e9, tt.f.times[i]%1e9))
		}
		if diff := cmp.Diff(want, tshark(t, path, "tcp.flags", "tcp.len", "eth.dst", "frame.time_epoch", "vlan.id")); diff != "" {
			t.Errorf("%s differs (-want +got):\n%s", name, diff)
		}
		if found.Packets != len(tt.want) || found.Capped {
			t.Errorf("%s: %+v", name, found)
		}
	}
}

func macOf(frame []byte) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", frame[0], frame[1], frame[2], frame[3], frame[4], frame[5])
}

// Frames that came late stand where they belong.
func TestOrderIsThatOfTime(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir, large)
	f := newFlow(time.Now(), "192.0.2.66:40000", "192.0.2.10:80").talk(10, 20, 30)
	late := *f
	late.frames, late.times = nil, nil
	for i := len(f.frames) - 1; i >= 0; i-- {
		late.frames, late.times = append(late.frames, f.frames[i]), append(late.times, f.times[i])
	}
	put(t, a, &late)
	flush(t, a)
	path, _ := extract(t, dir, f)
	if got := tshark(t, path, "tcp.len"); strings.Join(got, " ") != "0 0 0 10 0 20 0 30 0 0 0 0" {
		t.Errorf("lengths %v", got)
	}
}

func TestNotKeptSaysWhy(t *testing.T) {
	now := time.Now()
	f := newFlow(now, "192.0.2.66:40000", "192.0.2.10:80").talk(10)
	old := newFlow(now.Add(-48*time.Hour), "192.0.2.66:40000", "192.0.2.10:80").talk(10)
	other := newFlow(now, "192.0.2.66:40000", "192.0.2.10:80").talk(10)
	fails := func(dir string, f *flow, says string) {
		t.Helper()
		var out bytes.Buffer
		if _, err := Extract(t.Context(), dir, f.id, f.id.Time(), f.at, &out); !errors.Is(err, ErrNotKept) || !strings.Contains(err.Error(), says) || out.Len() > 0 {
			t.Errorf("error %v, %d bytes; want %s", err, out.Len(), says)
		}
	}
	fails(filepath.Join(t.TempDir(), "none"), f, "this machine keeps no packets")
	dir := t.TempDir()
	fails(dir, f, "this machine keeps no packets")
	a := open(t, dir, large)
	put(t, a, f)
	flush(t, a)
	fails(dir, old, "they expired; the oldest ones here are of "+now.UTC().Format("2006-01-02T15:04"))
	fails(dir, other, "analysis was off")
}

// A session's times are its own machine's; those of the packets are the gateway's.
func TestWrongClock(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir, large)
	f := newFlow(time.Now(), "192.0.2.66:40000", "192.0.2.10:80").talk(10)
	put(t, a, f)
	flush(t, a)
	for _, off := range []time.Duration{-20 * time.Hour, 20 * time.Hour} {
		var out bytes.Buffer
		if found, err := Extract(t.Context(), dir, f.id, f.id.Time().Add(off), f.at.Add(off), &out); err != nil || found.Packets != len(f.frames) {
			t.Errorf("with a clock that is %v off: %+v, %v", off, found, err)
		}
	}
}

// Extraction works while the archive is written to, and takes what was flushed.
func TestExtractWhileWriting(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir, deception.PCAPLimits{MaxBytes: 2 << 20})
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				put(t, a, newFlow(time.Now(), "192.0.2.66:40000", "192.0.2.10:80").talk(1000, 1000))
			}
		}
	}()
	for range 20 {
		f := newFlow(time.Now(), "192.0.2.66:40001", "192.0.2.10:80").talk(10, 20)
		put(t, a, f)
		flush(t, a)
		var out bytes.Buffer
		found, err := Extract(t.Context(), dir, f.id, f.id.Time(), f.at, &out)
		// It may have expired in this moment: the limit is a few thousand sessions.
		if err != nil && !errors.Is(err, ErrNotKept) || err == nil && found.Packets > len(f.frames) {
			t.Errorf("%+v, %v", found, err)
		}
	}
	close(stop)
	<-done
}

// Whatever else lies in the directory is passed over.
func TestForeignFiles(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"notes.txt": "hello", "20260101T000000.000000000Z.pcap": "no pcap at all, and longer than a header",
		"20260101T000000.000000001Z.pcap": "short", "x.pcap": "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a := open(t, dir, large)
	f := newFlow(time.Now(), "192.0.2.66:40000", "192.0.2.10:80").talk(10)
	put(t, a, f)
	flush(t, a)
	if _, found := extract(t, dir, f); found.Packets != len(f.frames) {
		t.Errorf("found %+v", found)
	}
	if _, err := os.Stat(filepath.Join(dir, "notes.txt")); err != nil {
		t.Error(err)
	}
}
