package store

import (
	"context"
	"errors"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"decoynet/deception"
)

// base lies in the near past, because retention is at work in every test.
var base = time.Now().Add(-time.Hour)

// varied are sessions that differ in everything a session can differ in.
func varied() []*deception.Session {
	ap := netip.MustParseAddrPort
	plain := session(base, 0)

	moved := session(base, 1)
	moved.SourceMode, moved.SourceNAT = deception.SourcePortMoved, netip.AddrPortFrom(moved.Source.Addr(), 7)
	moved.SourceHead, moved.DestinationHead = []byte("\x00\xff\x1b[2J"), []byte("SSH-2.0-OpenSSH\r\n")

	six := session(base, 2)
	six.Source, six.SourceNAT = ap("[2001:db8::1]:65535"), ap("[2001:db8::1]:65535")
	six.Destination, six.DestinationNAT = ap("[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:1"), ap("[fd00::2]:443")
	six.Segment, six.Decoy, six.Path, six.Transport = "büro ✓", "it's \"x\"", deception.PathKernel, deception.UDP
	six.Reason = deception.EndOverload

	refused := session(base, 3)
	refused.SourceNAT, refused.DestinationNAT = netip.AddrPort{}, netip.AddrPort{}
	refused.Node, refused.Reason, refused.End = "", deception.EndRefused, refused.Start

	extreme := session(base, 4)
	extreme.Source, extreme.SourceNAT = ap("0.0.0.0:0"), ap("255.255.255.255:65535")
	extreme.SourceBytes, extreme.DestinationBytes = math.MaxInt64, math.MaxUint64
	extreme.SourceHead = []byte(strings.Repeat("\x00", deception.HeadBytes))
	extreme.SourceMode, extreme.End = deception.SourceMasquerade, extreme.Start.Add(1000*time.Hour)

	samesource := session(base, 5)
	samesource.Source, samesource.SourceNAT = netip.AddrPort{}, ap("0.0.0.0:0")
	return []*deception.Session{plain, moved, six, refused, extreme, samesource}
}

func TestASessionComesBackAsItWas(t *testing.T) { eachBackend(t, testASessionComesBackAsItWas) }

func testASessionComesBackAsItWas(t *testing.T, at place) {
	path := at.path
	r := open(t, RecorderConfig{Path: path})
	want := varied()
	for _, s := range want {
		r.Ended(s)
	}
	closeRecorder(t, r)
	compare(t, want, all(t, openReader(t, path), Filter{}))
	if s := r.Stats(); s.Written != uint64(len(want)) || s.Lost != 0 || s.LastError != nil {
		t.Errorf("stats %+v", s)
	}
}

func TestTheFileIsForItsOwnerOnly(t *testing.T) {
	path := newPath(t)
	r := open(t, RecorderConfig{Path: path})
	r.Ended(session(base, 0))
	closeRecorder(t, r)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %v; it holds what intruders typed", info.Mode())
	}
}

func TestOnlyTheFirstBytesAreKept(t *testing.T) { eachBackend(t, testOnlyTheFirstBytesAreKept) }

func testOnlyTheFirstBytesAreKept(t *testing.T, at place) {
	path := at.path
	r := open(t, RecorderConfig{Path: path})
	s := session(base, 0)
	s.SourceHead = []byte(strings.Repeat("x", deception.HeadBytes+50))
	r.Ended(s)
	closeRecorder(t, r)
	got := all(t, openReader(t, path), Filter{})
	if len(got) != 1 || string(got[0].SourceHead) != strings.Repeat("x", deception.HeadBytes) {
		t.Errorf("got %+v", got)
	}
}

func TestAShortSessionIsOneRowWrittenOnce(t *testing.T) {
	eachBackend(t, testAShortSessionIsOneRowWrittenOnce)
}

func testAShortSessionIsOneRowWrittenOnce(t *testing.T, at place) {
	path := at.path
	r := open(t, RecorderConfig{Path: path, Flush: 50 * time.Millisecond})
	var want []*deception.Session
	for i := range 100 {
		s := session(base, i)
		r.Started(running(s))
		r.Ended(s)
		want = append(want, s)
	}
	closeRecorder(t, r)
	compare(t, want, all(t, openReader(t, path), Filter{}))
	if s := r.Stats(); s.WrittenStarts != 0 || s.Written != 100 {
		t.Errorf("%d starts were written, %d ends", s.WrittenStarts, s.Written)
	}
}

func TestALongSessionIsSeenWhileItRuns(t *testing.T) {
	eachBackend(t, testALongSessionIsSeenWhileItRuns)
}

func testALongSessionIsSeenWhileItRuns(t *testing.T, at place) {
	path := at.path
	r := open(t, RecorderConfig{Path: path})
	reader := openReader(t, path)
	s := session(base, 7)
	s.SourceHead = []byte("hello")
	r.Started(running(s))
	settled(t, r)
	compare(t, []*deception.Session{running(s)}, all(t, reader, Filter{}))
	r.Ended(s)
	settled(t, r)
	compare(t, []*deception.Session{s}, all(t, reader, Filter{}))
	// The start that comes late, from another thread, changes nothing.
	r.Started(running(s))
	settled(t, r)
	compare(t, []*deception.Session{s}, all(t, reader, Filter{}))
	r.Started(s)
	settled(t, r)
	compare(t, []*deception.Session{s}, all(t, reader, Filter{}))
	if st := r.Stats(); st.Written != 1 {
		t.Errorf("stats %+v", st)
	}
}

func TestTheCallerMayReuseWhatItGave(t *testing.T) { eachBackend(t, testTheCallerMayReuseWhatItGave) }

func testTheCallerMayReuseWhatItGave(t *testing.T, at place) {
	path := at.path
	r := open(t, RecorderConfig{Path: path, Flush: 50 * time.Millisecond})
	s := session(base, 0)
	s.SourceHead = []byte("first")
	want := *s
	want.SourceHead = []byte("first")
	r.Ended(s)
	copy(s.SourceHead, "XXXXX")
	*s = deception.Session{}
	closeRecorder(t, r)
	compare(t, []*deception.Session{&want}, all(t, openReader(t, path), Filter{}))
}

func TestManyThreadsRecord(t *testing.T) { eachBackend(t, testManyThreadsRecord) }

func testManyThreadsRecord(t *testing.T, at place) {
	const threads, each = 8, 3000
	path := at.path
	r := open(t, RecorderConfig{Path: path})
	var wg sync.WaitGroup
	for thread := range threads {
		wg.Go(func() {
			for i := range each {
				s := session(base, thread*each+i)
				s.Decoy = "decoy-" + string(rune('a'+i%26))
				r.Started(running(s))
				r.Ended(s)
			}
		})
	}
	wg.Wait()
	closeRecorder(t, r)
	reader := openReader(t, path)
	got := all(t, reader, Filter{})
	if len(got) != threads*each {
		t.Fatalf("%d sessions", len(got))
	}
	for i := range got {
		if want := session(base, i); got[i].ID != want.ID || got[i].Running() || got[i].SourceBytes != uint64(i) {
			t.Fatalf("session %d is %+v", i, got[i])
		}
	}
	totals, err := reader.Totals(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var ended, bytes int64
	for _, total := range totals {
		ended += total.Ended
		bytes += total.SourceBytes
	}
	if len(totals) != 26 || ended != threads*each || bytes != threads*each*(threads*each-1)/2 {
		t.Errorf("%d bindings, %d ended, %d bytes", len(totals), ended, bytes)
	}
}

func TestTotals(t *testing.T) { eachBackend(t, testTotals) }

func testTotals(t *testing.T, at place) {
	path := at.path
	r := open(t, RecorderConfig{Path: path})
	a, b, c := session(base, 1), session(base, 2), session(base, 3)
	c.Decoy, c.Service = "office-ssh", "ssh"
	r.Started(running(a))
	r.Started(running(c))
	settled(t, r)
	r.Ended(a)
	r.Ended(b)
	settled(t, r)
	got, err := openReader(t, path).Totals(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 {
		t.Fatalf("%+v", got)
	}
	ssh, web := got[0], got[1]
	if ssh.Service != "ssh" || ssh.Running != 1 || ssh.Ended != 0 || !ssh.Last.IsZero() {
		t.Errorf("ssh: %+v", ssh)
	}
	if web.Service != "web" || web.Running != 0 || web.Ended != 2 || web.SourceBytes != 3 ||
		web.DestinationBytes != 6 || !web.Last.Equal(b.Start) || web.Node != "hq" || web.Segment != "office" ||
		web.Decoy != "office-web" || web.Transport != deception.TCP || web.Path != deception.PathRelay {
		t.Errorf("web: %+v", web)
	}
}

func TestPathsMayHoldAnything(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a b?mode=memory&x#%41%zz 'q\"")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, FileName)
	r := open(t, RecorderConfig{Path: path})
	r.Ended(session(base, 0))
	closeRecorder(t, r)
	if got := all(t, openReader(t, path), Filter{}); len(got) != 1 {
		t.Errorf("%d sessions", len(got))
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

func TestOpeningWhatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	_, err := OpenReader(filepath.Join(dir, FileName))
	if !errors.Is(err, ErrNoStore) || !strings.Contains(err.Error(), "no sessions recorded here yet; is --data right?") {
		t.Errorf("no file: %v", err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("a reader left %v", entries)
	}
	empty := filepath.Join(dir, "empty.db")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenReader(empty); !errors.Is(err, ErrNoStore) {
		t.Errorf("empty file: %v", err)
	}
	text := filepath.Join(dir, "text.db")
	if err := os.WriteFile(text, []byte(strings.Repeat("not a database\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenReader(text); err == nil || errors.Is(err, ErrNoStore) {
		t.Errorf("another file: %v", err)
	}
	if _, err := OpenRecorder(RecorderConfig{Path: text}); err == nil {
		t.Error("a recorder opened a text file")
	}
	if _, err := OpenRecorder(RecorderConfig{Path: filepath.Join(dir, "none", FileName)}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

func TestTheFileOfANewerProgramIsRefused(t *testing.T) {
	eachBackend(t, testTheFileOfANewerProgramIsRefused)
}

func testTheFileOfANewerProgramIsRefused(t *testing.T, at place) {
	path := at.path
	closeRecorder(t, open(t, RecorderConfig{Path: path}))
	execute(t, at.second(t), at.either("PRAGMA user_version = 99",
		"INSERT INTO store_migration (version_id, is_applied) VALUES (99, true)"))
	if _, err := OpenReader(path); !errors.Is(err, ErrSchema) {
		t.Errorf("reader: %v", err)
	}
	if _, err := OpenRecorder(RecorderConfig{Path: path}); !errors.Is(err, ErrSchema) {
		t.Errorf("recorder: %v", err)
	}
}

func TestOpeningAgainKeepsWhatThereIs(t *testing.T) { eachBackend(t, testOpeningAgainKeepsWhatThereIs) }

func testOpeningAgainKeepsWhatThereIs(t *testing.T, at place) {
	path := at.path
	for i := range 3 {
		r := open(t, RecorderConfig{Path: path})
		r.Ended(session(base, i))
		closeRecorder(t, r)
	}
	compare(t, []*deception.Session{session(base, 0), session(base, 1), session(base, 2)}, all(t, openReader(t, path), Filter{}))
}

func TestRecordingAfterCloseIsCounted(t *testing.T) { eachBackend(t, testRecordingAfterCloseIsCounted) }

func testRecordingAfterCloseIsCounted(t *testing.T, at place) {
	r := open(t, RecorderConfig{Path: at.path})
	closeRecorder(t, r)
	r.Started(session(base, 1))
	r.Ended(session(base, 1))
	if s := r.Stats(); s.Lost != 1 || s.LostStarts != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestASessionEndedWithoutATimeEndsNow(t *testing.T) {
	eachBackend(t, testASessionEndedWithoutATimeEndsNow)
}

func testASessionEndedWithoutATimeEndsNow(t *testing.T, at place) {
	path := at.path
	r := open(t, RecorderConfig{Path: path})
	s := session(time.Now().Add(-time.Minute), 0)
	s.End = time.Time{}
	r.Ended(s)
	closeRecorder(t, r)
	got := all(t, openReader(t, path), Filter{})
	if len(got) != 1 || got[0].Running() || time.Since(got[0].End) > 10*time.Second || !s.End.IsZero() {
		t.Errorf("got %+v", got)
	}
}

// A start says that a session runs, whatever else the structure holds.
func TestAStartIsNoEnd(t *testing.T) { eachBackend(t, testAStartIsNoEnd) }

func testAStartIsNoEnd(t *testing.T, at place) {
	r := open(t, RecorderConfig{Path: at.path})
	reader := openReader(t, at.path)
	s := session(base, 7)
	r.Started(s)
	settled(t, r)
	if got := all(t, reader, Filter{}); len(got) != 1 || !got[0].Running() || got[0].Reason != deception.EndNone {
		t.Errorf("after its start: %+v", got)
	}
	r.Ended(s)
	settled(t, r)
	compare(t, []*deception.Session{s}, all(t, reader, Filter{}))
	if got := totals(t, reader); len(got) != 1 || got[0].Ended != 1 {
		t.Errorf("totals %+v", got)
	}
}
