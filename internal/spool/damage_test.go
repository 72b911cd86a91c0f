package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// files returns a spool's segments as they are on disk, oldest first.
func files(t testing.TB, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	if err != nil || len(names) == 0 {
		t.Fatalf("segments in %s: %v, %v", dir, names, err)
	}
	return names
}

// written makes a spool with records 0 to count-1 of that size and closes it.
func written(t testing.TB, cfg Config, count, size int) {
	t.Helper()
	s := open(t, cfg)
	for n := range count {
		s.Put(record(n, size))
	}
	settled(t, s)
	shut(t, s)
}

func edit(t testing.TB, name string, change func(b []byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, change(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A write that was torn at any byte costs the record that it tore, and no other;
// what is put afterwards follows the whole ones.
func TestTornTail(t *testing.T) {
	const count, size = 5, 21
	whole := t.TempDir()
	written(t, Config{Dir: whole}, count, size)
	name := filepath.Base(files(t, whole)[0])
	content, err := os.ReadFile(filepath.Join(whole, name))
	if err != nil {
		t.Fatal(err)
	}
	const frame = frameHeader + size
	if len(content) != segmentHeader+count*frame {
		t.Fatalf("%d bytes", len(content))
	}
	for cut := 0; cut <= len(content); cut++ {
		for _, tail := range [][]byte{nil, {0}, make([]byte, 100), bytes.Repeat([]byte{0xff}, 40)} {
			dir := t.TempDir()
			torn := append(slices.Clone(content[:cut]), tail...)
			if err := os.WriteFile(filepath.Join(dir, name), torn, 0o600); err != nil {
				t.Fatal(err)
			}
			kept, rest := max(0, cut-segmentHeader)/frame, len(torn)
			if cut >= segmentHeader {
				rest -= segmentHeader + kept*frame
			} else if isWhole(torn) { // the tail happens to complete the header
				continue
			}
			s, err := Open(Config{Dir: dir})
			if err != nil {
				t.Fatalf("cut at %d with %d more: %v", cut, len(tail), err)
			}
			st := s.Stats()
			if int(st.Waiting) != kept || int(st.DamagedBytes) != rest || (st.Damaged == 1) != (rest > 0) {
				t.Fatalf("cut at %d with %d more, %d records whole: %+v", cut, len(tail), kept, st)
			}
			s.Put(record(kept, size))
			if diff := cmp.Diff(run(0, kept), take(t, s, 2)); diff != "" {
				t.Fatalf("cut at %d with %d more (-want +got):\n%s", cut, len(tail), diff)
			}
			shut(t, s)
		}
	}
}

func isWhole(b []byte) bool {
	_, err := parseSegmentHeader(b)
	return err == nil
}

// A bad sector in the midst costs the rest of its segment, which is counted, and
// not the segments around it.
func TestDamageInTheMidst(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), MaxBytes: 256 << 10}
	const count, size, frame = 300, 200, 208
	written(t, cfg, count, size)
	names := files(t, cfg.Dir)
	if len(names) < 3 {
		t.Fatalf("%d segments", len(names))
	}
	var first, after int
	for _, p := range []struct {
		name string
		n    *int
	}{{names[1], &first}, {names[2], &after}} {
		if _, err := fmt.Sscanf(filepath.Base(p.name), "%x", p.n); err != nil {
			t.Fatal(err)
		}
	}
	edit(t, names[1], func(b []byte) []byte {
		b[segmentHeader+10*frame+50] ^= 1
		return b
	})
	s := open(t, cfg)
	if st := s.Stats(); st.Waiting != count {
		t.Errorf("before reading: %+v", st)
	}
	want := append(run(0, first+9), run(after, count-1)...)
	if diff := cmp.Diff(want, take(t, s, 7)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	st := s.Stats()
	if st.Damaged != uint64(after-first-10) || st.Dropped != st.Damaged || st.LastError == nil {
		t.Errorf("stats %+v", st)
	}
	shut(t, s)
	if again := open(t, cfg).Stats(); again.Damaged != st.Damaged || again.Waiting != 0 {
		t.Errorf("after opening again: %+v", again)
	}
}

func TestDamagedHeader(t *testing.T) {
	for which := range 3 {
		t.Run(fmt.Sprint("segment ", which), func(t *testing.T) {
			cfg := Config{Dir: t.TempDir(), MaxBytes: 256 << 10}
			written(t, cfg, 200, 200)
			names := files(t, cfg.Dir)
			if len(names) != 3 {
				t.Fatalf("%d segments", len(names))
			}
			edit(t, names[which], func(b []byte) []byte {
				b[3] ^= 1
				return b
			})
			s := open(t, cfg)
			st := s.Stats()
			got := take(t, s, 50)
			lost := 200 - len(got)
			exact := which < 2 // where a segment follows, it tells how many were lost
			if lost == 0 || lost > 100 || int(st.Waiting) != len(got) || exact && int(st.Damaged) != lost || st.Damaged == 0 {
				t.Errorf("%d records; %+v", len(got), st)
			}
		})
	}
}

func TestFileTakenAway(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), MaxBytes: 256 << 10}
	s := open(t, cfg)
	for n := range 200 {
		s.Put(record(n, 200))
	}
	settled(t, s)
	names := files(t, cfg.Dir)
	if len(names) != 3 {
		t.Fatalf("%d segments", len(names))
	}
	if err := os.Remove(names[0]); err != nil {
		t.Fatal(err)
	}
	got := take(t, s, 50)
	if st := s.Stats(); len(got)+int(st.Damaged) != 200 || st.Damaged == 0 {
		t.Errorf("%d records; %+v", len(got), st)
	}
}

// Without the cursor what was acknowledged comes again; nothing is missed.
func TestLostCursor(t *testing.T) {
	for name, harm := range map[string]func(t *testing.T, name string){
		"gone":    func(t *testing.T, name string) { os.Remove(name) },
		"empty":   func(t *testing.T, name string) { edit(t, name, func([]byte) []byte { return nil }) },
		"damaged": func(t *testing.T, name string) { edit(t, name, func(b []byte) []byte { b[9] ^= 1; return b }) },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{Dir: t.TempDir()}
			s := open(t, cfg)
			for n := range 10 {
				s.Put(record(n, 0))
			}
			if err := s.Ack(next(t, s, 4, 1<<20)); err != nil {
				t.Fatal(err)
			}
			settled(t, s)
			shut(t, s)
			harm(t, filepath.Join(cfg.Dir, cursorName))
			s = open(t, cfg)
			if diff := cmp.Diff(run(0, 9), take(t, s, 100)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// The cursor of an earlier version is read; what it counted is of no known kind.
func TestOlderCursor(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Kind: kindOf}
	written(t, cfg, 10, 0)
	old := append([]byte("dncursr\x01"), make([]byte, 5*8)...)
	old[8], old[16], old[24] = 4, 5, 6 // acknowledged, full, lost
	old = binary.LittleEndian.AppendUint32(old, crc32.Checksum(old, castagnoli))
	if err := os.WriteFile(filepath.Join(cfg.Dir, cursorName), old, 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, cfg)
	if st := s.Stats(); st.Waiting != 6 || st.Full != 5 || st.Lost != 6 || st.DroppedKinds != (Tally{11}) {
		t.Errorf("%+v", st)
	}
	s.Put(make([]byte, MaxRecord+1)) // of no kind
	s.Put(record(0, MaxRecord+1))
	if diff := cmp.Diff(run(4, 9), take(t, s, 100)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	shut(t, s)
	s = open(t, cfg)
	if st := s.Stats(); st.Dropped != 13 || st.DroppedKinds != (Tally{12, 1}) {
		t.Errorf("opened again: %+v", st)
	}
}

// Where power was lost, the cursor may have reached the disk before the records
// did. What comes later must not be taken for acknowledged.
func TestCursorAheadOfRecords(t *testing.T) {
	cfg := Config{Dir: t.TempDir()}
	s := open(t, cfg)
	for n := range 10 {
		s.Put(record(n, 100))
	}
	settled(t, s)
	if err := s.Ack(next(t, s, 8, 1<<20)); err != nil {
		t.Fatal(err)
	}
	shut(t, s)
	edit(t, files(t, cfg.Dir)[0], func(b []byte) []byte { return b[:segmentHeader+3*108] })
	s = open(t, cfg)
	if st := s.Stats(); st.Waiting != 0 {
		t.Errorf("stats %+v", st)
	}
	for n := 20; n < 25; n++ {
		s.Put(record(n, 100))
	}
	settled(t, s)
	shut(t, s)
	s = open(t, cfg)
	if diff := cmp.Diff(run(20, 24), take(t, s, 2)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNewerVersion(t *testing.T) {
	cfg := Config{Dir: t.TempDir()}
	written(t, cfg, 3, 0)
	edit(t, files(t, cfg.Dir)[0], func(b []byte) []byte {
		b[7]++
		return append(appendHeaderChecksum(slices.Clone(b[:16])), b[segmentHeader:]...)
	})
	if _, err := Open(cfg); !errors.Is(err, ErrNewer) {
		t.Errorf("got %v", err)
	}
	if len(files(t, cfg.Dir)) != 1 {
		t.Error("its file is gone")
	}
}

// Whatever is in a segment, what is read of it is what was framed there, the rest
// is cut and counted, and what is written afterwards can be read. With mend, the
// checksums are made right first as far as the lengths allow, since chance never
// gets them right.
func FuzzSegment(f *testing.F) {
	good := sealed(record(1, 20), nil, record(2, 300))
	f.Add(good, false, uint16(0))
	f.Add(good, true, uint16(9))
	f.Add(good[:len(good)-1], false, uint16(70))
	f.Add(append(slices.Clone(good), make([]byte, 30)...), true, uint16(3))
	f.Add([]byte{0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, false, uint16(0))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte, mend bool, more uint16) {
		b = slices.Clone(b)
		if mend {
			mendFrames(b)
		}
		name := filepath.Join(dir, fmt.Sprintf("%016x%s", 0, segmentSuffix))
		defer os.Remove(name) // a new file is cheaper than one that is cut to nothing (ext4's auto_da_alloc)
		if err := os.WriteFile(name, append(makeSegmentHeader(0), b...), 0o600); err != nil {
			t.Fatal(err)
		}
		want, rest := frames(b)
		d, err := openDisk(dir, DefaultMaxBytes)
		if err != nil {
			t.Fatal(err)
		}
		defer d.close()
		if n, _ := d.waiting(); n != uint64(len(want)) || d.counts.damagedBytes != uint64(len(rest)) || d.next != uint64(len(want)) {
			t.Fatalf("%d records and %d bytes more: %+v", len(want), len(rest), d)
		}
		q := newQueue(1<<20, chunkSize, d.next)
		q.put(record(int(more), int(more)))
		want = append(want, record(int(more), int(more)))
		c := q.take()[0]
		seal(c.buf)
		if err := d.append(c); err != nil {
			t.Fatal(err)
		}
		for len(want) > 0 {
			batch, _, _, err := d.read(3, 1<<20)
			if err != nil || len(batch.Records) == 0 {
				t.Fatalf("%d records left: %d, %v", len(want), len(batch.Records), err)
			}
			for _, r := range batch.Records {
				if !bytes.Equal(r, want[0]) {
					t.Fatalf("got %x, want %x", r, want[0])
				}
				want = want[1:]
			}
			d.ack(batch.end, batch.at)
		}
		if n, _ := d.waiting(); n != 0 {
			t.Fatalf("%d records left: %+v", n, d)
		}
	})
}

// frames returns the whole records that b begins with, and the rest, read in the
// plainest way.
func frames(b []byte) (records [][]byte, rest []byte) {
	for {
		r, n, err := parseFrame(b)
		if err != nil {
			return records, b
		}
		records = append(records, r)
		b = b[n:]
	}
}

func mendFrames(b []byte) {
	for len(b) >= frameHeader {
		n := frameHeader + int(binary.LittleEndian.Uint32(b[4:]))
		if n > len(b) {
			return
		}
		seal(b[:n])
		b = b[n:]
	}
}

// sealed frames the records.
func sealed(records ...[]byte) []byte {
	q := newQueue(1<<20, chunkSize, 0)
	for _, r := range records {
		q.put(r)
	}
	b := q.chunks[0].buf
	seal(b)
	return b
}
