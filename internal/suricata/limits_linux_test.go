package suricata

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"decoynet/deception"

	"golang.org/x/sys/unix"
)

// The events' file is exchanged at its size, and nothing that was written is lost.
func TestRotation(t *testing.T) {
	s := begin(t, Config{RotateBytes: 20_000}, ruleFile(t, needle))
	s.running(t)
	want := make(map[string]bool)
	for n := 0; s.Status().Rotations < 2; n++ {
		source := s.visit(fmt.Sprint("rotation ", n), 4000, say{true, "needle"})
		want[source] = true
		if n > 5000 {
			t.Fatal("no rotation after 5000 flows")
		}
		time.Sleep(5 * time.Millisecond)
	}
	last := s.visit("the last", 4000, say{true, "needle"})
	want[last] = true
	s.has(t, last, 1000001)
	old, err := filepath.Glob(s.EVE() + ".*")
	if err != nil || len(old) != 2 {
		t.Fatalf("%v, %v", old, err)
	}
	for _, path := range append(old, s.EVE()) {
		for _, e := range events(t, path) {
			if e.Type == "alert" && e.Alert.SID == 1000001 {
				delete(want, e.Source)
			}
		}
	}
	if len(want) != 0 {
		t.Fatalf("%d alerts are in none of the files", len(want))
	}
}

func TestReadFilesGo(t *testing.T) {
	dir := filepath.Join(closedDir(t), "inspect")
	h, err := openHome(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	read := map[string]bool{h.child("eve.json.2"): true}
	s := &Suricata{cfg: Config{Read: func(path string) bool { return read[path] }}, home: h}
	s.cfg.setDefaults()
	for n := range 8 {
		write(t, h.child(fmt.Sprintf("eve.json.%d", n)), "x")
	}
	if err := s.prune(); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(h.child("eve.json.*"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range left {
		left[i] = filepath.Base(left[i])
	}
	if want := []string{"eve.json.4", "eve.json.5", "eve.json.6", "eve.json.7"}; !slices.Equal(left, want) || s.Status().Unread != 3 {
		t.Fatalf("left %v, %d unread", left, s.Status().Unread)
	}
}

// A full disk costs events while it is full, and nothing else.
func TestFullDisk(t *testing.T) {
	mount := filepath.Join(closedDir(t), "small")
	if err := os.Mkdir(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("decoynet-test", mount, "tmpfs", 0, "size=4m,mode=700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := begin(t, Config{Dir: filepath.Join(mount, "inspect")}, ruleFile(t, needle))
	s.running(t)
	pid := s.Status().PID
	ballast := filepath.Join(mount, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 8<<20), 0o600); err == nil {
		t.Fatal("the disk is not full")
	}
	for n := range 50 {
		s.visit(fmt.Sprint("full ", n), 4000, say{true, "needle"})
	}
	until(t, 10*time.Second, "all was read", func() bool { return len(s.feed.frames) == 0 })
	until(t, 10*time.Second, "it is told", func() bool {
		return s.Status().DiskFull && slices.Contains(s.kinds(), deception.EventInspectFailed)
	})
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	n := 0
	var source string
	until(t, 20*time.Second, "events are written again", func() bool {
		n++
		source = s.visit(fmt.Sprint("room ", n), 4000, say{true, "needle"})
		time.Sleep(100 * time.Millisecond)
		return slices.Contains(s.alerts(t, source), 1000001)
	})
	until(t, 10*time.Second, "the room is told", func() bool {
		return !s.Status().DiskFull && slices.Contains(s.kinds(), deception.EventInspectRestored)
	})
	if st := s.Status(); st.PID != pid || st.State != Running {
		t.Fatalf("status %+v", st)
	}
}

// The system's rules are taken, without those that this Suricata refuses and those
// whose numbers are taken.
func TestSystemRules(t *testing.T) {
	dir, err := os.MkdirTemp("", "decoynet-rules-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	write(t, filepath.Join(dir, "a.rules"), needle+`
alert tcp any any -> any any (msg:"of another version"; no.such.keyword; content:"x"; sid:2000001;)
alert tcp !$HOME_NET any -> any any (msg:"for one side of an edge"; content:"x"; sid:2000002;)
alert tcp any any -> any any (msg:"thread"; content:"thread"; sid:2000003;)
`)
	before := systemDirs
	systemDirs = append([]string{dir}, before...)
	t.Cleanup(func() { systemDirs = before })
	own := ruleFile(t, `alert tcp any any -> any any (msg:"mine"; content:"mine"; sid:1000001;)`)
	r, err := Check(t.Context(), "", &deception.Inspect{SystemRules: true, Rules: []string{own}})
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, p := range r.Problems {
		if !p.Ignored {
			t.Errorf("not ignored: %s", p)
		}
		said = append(said, p.String())
	}
	all := strings.Join(said, "\n")
	for _, want := range []string{"a.rules:3: unknown rule keyword 'no.such.keyword'"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not in\n%s", want, all)
		}
	}
	if r.Files < 7 || r.Rules < 140 || r.Widened != 1 {
		t.Errorf("%d rules of %d files, %d widened", r.Rules, r.Files, r.Widened)
	}
	t.Logf("%d rules of %d files in %.0f ms; %d left out or taken with reservations", r.Rules, r.Files, r.Millis, len(r.Problems))
}

// With nothing but heartbeats and no rules of others it costs little.
func TestIdleCost(t *testing.T) {
	s := begin(t, Config{})
	s.running(t)
	pid := s.Status().PID
	before := ticks(pid)
	const watched = 5 * time.Second
	time.Sleep(watched)
	spent := time.Duration(ticks(pid)-before) * 10 * time.Millisecond // USER_HZ is 100 on every Linux
	if all := events(t, s.EVE()); len(all) > 0 {
		t.Errorf("%d events of heartbeats, the first is %+v", len(all), all[0])
	}
	resident := residentBytes(pid)
	t.Logf("%d MB resident, %.2f %% of a processor", resident>>20, 100*float64(spent)/float64(watched))
	if resident >= 60<<20 {
		t.Errorf("%d MB resident", resident>>20)
	}
	// 4 to 9 % without timer slack; a machine that is busy otherwise wakes it more often.
	if spent > watched/50 {
		t.Errorf("%v of %v spent on nothing", spent, watched)
	}
	if nice, err := unix.Getpriority(unix.PRIO_PROCESS, pid); err != nil || 20-nice != niceLevel {
		t.Errorf("nice level %d, %v", 20-nice, err)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Uid:\t65534\t65534\t65534\t65534", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
}

func ticks(pid int) uint64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	var user, system uint64
	_, _ = fmt.Sscan(fields[11]+" "+fields[12], &user, &system)
	return user + system
}

func TestCounters(t *testing.T) {
	s := begin(t, Config{}, ruleFile(t, needle))
	s.running(t)
	s.has(t, s.visit("counted", 4000, say{true, "needle"}), 1000001)
	until(t, 30*time.Second, "counters tell of it", func() bool {
		c := s.Status().Counters
		return c.Flows >= 1 && c.Alerts >= 2 && c.Packets > 5 && c.StreamMemory > 0 && c.MemoryDrops == 0
	})
	answer, err := command(t.Context(), s.home.child(""), "dump-counters")
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := json.Unmarshal(answer, &tree); err != nil {
		t.Fatal(err)
	}
	for _, path := range append(memoryDrops, "detect.alert_queue_overflow", "tcp.reassembly_gap", "decoder.invalid", "flow.active") {
		at := any(tree)
		for name := range strings.SplitSeq(path, ".") {
			m, _ := at.(map[string]any)
			at = m[name]
		}
		if _, ok := at.(float64); !ok {
			t.Errorf("suricata has no counter %s", path)
		}
	}
}

func TestParseRelease(t *testing.T) {
	for text, want := range map[string]string{
		"ID=debian\nVERSION_CODENAME=bookworm\n":       "bookworm-backports",
		"ID=debian\nVERSION_CODENAME=trixie\n":         "apt install --no-install-recommends suricata",
		"ID=ubuntu\nID_LIKE=debian\n":                  "ppa:oisf",
		"ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"": "epel-release",
		"ID=fedora\n": "dnf install suricata",
		"":            "suricata.io",
	} {
		if got := Advice(parseRelease(text)); !strings.Contains(got, want) {
			t.Errorf("%q: %q", text, got)
		}
	}
}
