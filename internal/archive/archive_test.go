package archive

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
)

// usage is what the directory really takes.
func usage(t testing.TB, dir string) (files int, size int64) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // it went since the directory was read
		}
		if err != nil {
			t.Fatal(err)
		}
		files, size = files+1, size+info.Size()
	}
	return files, size
}

func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "inspect", "pcap")
	a := open(t, dir, large)
	put(t, a, newFlow(time.Now(), "192.0.2.66:40000", "192.0.2.10:80").talk(10))
	flush(t, a)
	list, err := listFiles(dir)
	if err != nil || len(list) != 1 {
		t.Fatalf("%d files, %v", len(list), err)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700 | os.ModeDir, filepath.Join(dir, list[0].name): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode() != want {
			t.Errorf("%s has mode %v, %v; want %v", path, st.Mode(), err, want)
		}
	}
}

// The directory never grows beyond the limit; what goes is the oldest.
func TestSizeLimit(t *testing.T) {
	const limit = 4 << 20
	dir := t.TempDir()
	a := open(t, dir, deception.PCAPLimits{MaxBytes: limit})
	begin := time.Now()
	var flows []*flow
	for i := range 3000 { // 9 MB
		f := newFlow(begin.Add(time.Duration(i)*time.Millisecond), fmt.Sprintf("192.0.2.66:%d", 1024+i), "192.0.2.10:80").talk(1400, 1000)
		flows = append(flows, f)
		put(t, a, f)
		if i%100 == 0 {
			flush(t, a)
			if files, size := usage(t, dir); size > limit {
				t.Fatalf("%d bytes in %d files", size, files)
			}
		}
	}
	flush(t, a)
	files, size := usage(t, dir)
	if size > limit || size < limit*3/4 || files < 6 {
		t.Errorf("%d bytes in %d files", size, files)
	}
	kept := 0
	for i := 0; i < len(flows); i += 20 {
		f := flows[i]
		var out bytes.Buffer
		switch found, err := Extract(t.Context(), dir, f.id, f.id.Time(), f.at, &out); {
		case err == nil && found.Packets > 0: // of one, a part may have gone
			kept++
		case !errors.Is(err, ErrNotKept):
			t.Fatal(err)
		case kept > 0:
			t.Fatalf("session %d is not there and an older one is: %v", i, err)
		}
	}
	if kept < 800/20 || kept > 1500/20 {
		t.Errorf("%d of every twentieth of %d sessions are kept", kept, len(flows))
	}
	if s := a.Stats(); s.Expired == 0 || s.Lost != 0 || s.Frames != 30000 {
		t.Errorf("stats %+v", s)
	}

	// A smaller limit is obeyed soon, though nothing comes.
	a.SetLimits(deception.PCAPLimits{MaxBytes: limit / 4})
	within(t, "the archive shrinks", func() bool {
		_, size := usage(t, dir)
		return size <= limit/4
	})
	within(t, "the numbers are told", func() bool {
		files, size := usage(t, dir)
		s := a.Stats()
		return s.Files == files && s.FileBytes == uint64(size) && s.Oldest.After(begin)
	})
}

// Files go by age also while nothing is written, those of earlier processes
// included.
func TestAgeLimit(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir, large)
	put(t, first, newFlow(time.Now(), "192.0.2.66:40000", "192.0.2.10:80").talk(10))
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	a := open(t, dir, deception.PCAPLimits{MaxBytes: 1 << 30, MaxAge: 1500 * time.Millisecond})
	put(t, a, newFlow(time.Now(), "192.0.2.66:40001", "192.0.2.10:80").talk(10))
	flush(t, a)
	if files, _ := usage(t, dir); files == 0 {
		t.Error("gone before its time")
	}
	within(t, "all files are gone", func() bool {
		files, _ := usage(t, dir)
		return files == 0
	})
	f := newFlow(time.Now(), "192.0.2.66:40002", "192.0.2.10:80").talk(10)
	put(t, a, f)
	flush(t, a)
	if _, found := extract(t, dir, f); found.Packets != len(f.frames) {
		t.Errorf("after that, %+v", found)
	}
}

// What nobody flushes is on disk soon all the same.
func TestWrittenSoon(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir, large)
	f := newFlow(time.Now(), "192.0.2.66:40000", "192.0.2.10:80").talk(10)
	put(t, a, f)
	within(t, "the packets are there", func() bool {
		var out bytes.Buffer
		found, err := Extract(t.Context(), dir, f.id, f.id.Time(), f.at, &out)
		return err == nil && found.Packets == len(f.frames)
	})
}

// A session beyond its limit keeps its beginning and its end, and says so; others
// are whole.
func TestSessionLimit(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir, deception.PCAPLimits{MaxBytes: 1 << 30, SessionBytes: 10_000})
	big := newFlow(time.Now(), "192.0.2.66:40000", "192.0.2.10:80")
	sizes := make([]int, 30)
	for i := range sizes {
		sizes[i] = 1400
	}
	big.talk(sizes...)
	small := newFlow(time.Now(), "192.0.2.66:40001", "192.0.2.10:80").talk(1400, 1400)
	udp := newFlow(time.Now(), "192.0.2.66:40001", "192.0.2.10:161")
	for range 30 {
		udp.datagram(0, make([]byte, 1400))
	}
	flood := newFlow(time.Now(), "[2001:db8::66]:40000", "[2001:db8::10]:80", 7)
	for range 500 {
		flood.segment(0, flagSYN, nil)
	}
	put(t, a, big, small, udp, flood)
	flush(t, a)
	path, found := extract(t, dir, big)
	if !found.Capped || found.Bytes > 11_000 || found.Bytes < 9_000 {
		t.Errorf("found %+v", found)
	}
	// Its end is known by packets that are not there, of which tshark may well warn.
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(text, []byte("decoynet: limit of a session's packets reached")) {
		t.Error("no notice in the file")
	}
	if got := flags(t, path); !strings.HasPrefix(got, "0x0002 0x0012 0x0010 0x0018") || !strings.HasSuffix(got, " 0x0010  0x0011 0x0011") {
		t.Errorf("flags %s", got)
	}
	if _, found := extract(t, dir, small); found.Capped || found.Packets != len(small.frames) {
		t.Errorf("small: %+v", found)
	}
	if _, found := extract(t, dir, udp); !found.Capped || found.Packets != 6+1 {
		t.Errorf("udp: %+v", found)
	}
	// 74 bytes each with its tag: 128 of them, and afterCap more.
	if _, found := extract(t, dir, flood); !found.Capped || found.Packets != 10_000/78+afterCap+1 {
		t.Errorf("flood: %+v", found)
	}
	if s := a.Stats(); s.CappedSessions != 3 || s.Capped == 0 || s.Lost != 0 {
		t.Errorf("stats %+v", s)
	}
}

// The memory for limits is bounded, and the newest sessions stay known.
func TestSessionLimitOfVeryMany(t *testing.T) {
	c := caps{limit: 2000}
	f := newFlow(time.Now(), "192.0.2.66:40001", "192.0.2.10:161")
	f.datagram(0, make([]byte, 1400))
	last := deception.SessionKey{Hi: 1}
	c.take(last, f.frames[0])
	for i := range uint64(3 * capsKept) {
		if v := c.take(deception.SessionKey{Hi: 2, Lo: i}, f.frames[0]); v != keep {
			t.Fatalf("session %d: %v", i, v)
		}
		if i%(capsKept/2) == 0 {
			if v := c.take(last, f.frames[0]); v == keep {
				t.Fatalf("forgotten after %d others", i)
			}
		}
	}
	if n := len(c.newer) + len(c.older); n > 2*capsKept {
		t.Errorf("%d sessions are remembered", n)
	}
}

// Frames that belong to no session could never be found again.
func TestForeignFrames(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir, large)
	for _, f := range [][]byte{nil, make([]byte, 13), make([]byte, 60), make([]byte, maxFrame+1)} {
		if err := a.Frame(time.Now().UnixNano(), f); err != nil {
			t.Error(err)
		}
	}
	if s := a.Stats(); s.Foreign != 4 {
		t.Errorf("stats %+v", s)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.Frame(0, make([]byte, 60)); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if files, _ := usage(t, dir); files != 0 {
		t.Errorf("%d files", files)
	}
}

// Who deletes the archive's files, or all of its directory, stops nothing.
func TestDeletedByOthers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pcap")
	a := open(t, dir, large)
	put(t, a, newFlow(time.Now(), "192.0.2.66:40000", "192.0.2.10:80").talk(10))
	flush(t, a)
	list, err := listFiles(dir)
	if err != nil || len(list) != 1 {
		t.Fatalf("%d files, %v", len(list), err)
	}
	if err := os.Remove(filepath.Join(dir, list[0].name)); err != nil {
		t.Fatal(err)
	}
	a.look(time.Now(), true)
	f := newFlow(time.Now(), "192.0.2.66:40002", "192.0.2.10:80").talk(10)
	put(t, a, f)
	flush(t, a)
	if _, found := extract(t, dir, f); found.Packets != len(f.frames) {
		t.Errorf("found %+v", found)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	a.look(time.Now(), true)
	put(t, a, f)
	within(t, "it is there again", func() bool {
		var out bytes.Buffer
		found, err := Extract(t.Context(), dir, f.id, f.id.Time(), f.at, &out)
		return err == nil && found.Packets == len(f.frames)
	})
}

// The clock may be set back under the archive.
func TestClockSetBack(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir, large)
	now := time.Now()
	later := newFlow(now.Add(time.Hour), "192.0.2.66:40000", "192.0.2.10:80").talk(10)
	earlier := newFlow(now, "192.0.2.66:40001", "192.0.2.10:80").talk(10)
	same := newFlow(now, "192.0.2.66:40002", "192.0.2.10:80").talk(10)
	for _, f := range []*flow{later, earlier, same} {
		put(t, a, f)
		flush(t, a)
		if err := a.files.retire(); err != nil {
			t.Fatal(err)
		}
		a.look(now, true)
	}
	for _, f := range []*flow{later, earlier, same} {
		if _, found := extract(t, dir, f); found.Packets != len(f.frames) {
			t.Errorf("found %+v", found)
		}
	}
}

func within(t testing.TB, what string, condition func() bool) {
	t.Helper()
	if err := eventually(what, func() (bool, error) { return condition(), nil }); err != nil {
		t.Fatal(err)
	}
}
