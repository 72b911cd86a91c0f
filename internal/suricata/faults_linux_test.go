package suricata

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"decoynet/deception"
)

func TestKilledSuricataIsReplaced(t *testing.T) {
	s := begin(t, Config{}, ruleFile(t, needle))
	for n := range uint64(3) {
		until(t, 30*time.Second, "suricata runs", func() bool { st := s.Status(); return st.State == Running && st.Starts == n+1 })
		s.has(t, s.visit(fmt.Sprint("visit ", n), 4000, say{true, "needle"}), 1000001)
		if n < 2 {
			kill(t, s.Status().PID, syscall.SIGKILL)
		}
	}
	until(t, 5*time.Second, "both were told", func() bool {
		return slices.Equal(s.kinds(), []deception.EventKind{
			deception.EventInspectFailed, deception.EventInspectRestored, deception.EventInspectFailed, deception.EventInspectRestored,
		})
	})
	if st := s.Status(); st.Failures != 2 || !strings.Contains(st.LastEnd, "killed") {
		t.Fatalf("status %+v", st)
	}
}

func TestHungSuricataIsReplaced(t *testing.T) {
	s := begin(t, Config{HungAfter: 2 * time.Second}, ruleFile(t, needle))
	s.running(t)
	before := s.Status() // it may have been started twice: Apply's word may come when what it wants is known
	kill(t, before.PID, syscall.SIGSTOP)
	until(t, 30*time.Second, "it was replaced", func() bool {
		st := s.Status()
		return st.Hung == 1 && st.Starts == before.Starts+1 && st.State == Running
	})
	s.has(t, s.visit("alive", 4000, say{true, "needle"}), 1000001)
}

// A feed that says nothing is no fault of Suricata's.
func TestSilentFeedIsNoHang(t *testing.T) {
	s := begin(t, Config{HungAfter: 500 * time.Millisecond})
	s.running(t)
	before := s.Status().Starts
	s.feed.pause(true)
	time.Sleep(2 * time.Second) // four times the limit
	if st := s.Status(); st.Hung != 0 || st.Starts != before {
		t.Fatalf("status %+v", st)
	}
	s.feed.pause(false)
}

func TestClosedFeedIsOpenedAgain(t *testing.T) {
	s := begin(t, Config{}, ruleFile(t, needle))
	s.running(t)
	s.feed.end()
	until(t, 20*time.Second, "it ended with its feed", func() bool { return s.Status().Failures > 0 })
	s.feed = feed(t, s.FIFO())
	until(t, 30*time.Second, "it runs again", func() bool { return s.Status().State == Running })
	s.has(t, s.visit("again", 4000, say{true, "needle"}), 1000001)
}

// A FIFO that somebody puts in the place of ours leaves Suricata without a feed.
func TestReplacedFIFOIsNoticed(t *testing.T) {
	s := begin(t, Config{HungAfter: time.Second}, ruleFile(t, needle))
	s.running(t)
	if err := errors.Join(os.Remove(s.FIFO()), syscall.Mkfifo(s.FIFO(), 0o600)); err != nil {
		t.Fatal(err)
	}
	s.feed.pause(true) // what has the old one open says nothing any more, and does not close it
	s.feed = feed(t, s.FIFO())
	until(t, 30*time.Second, "it reads the new one", func() bool { st := s.Status(); return st.Starts > 1 && st.State == Running })
	s.has(t, s.visit("new", 4000, say{true, "needle"}), 1000001)
}

// What Suricata says of its configuration is what a person reads.
func TestRefusedConfiguration(t *testing.T) {
	real, err := exec.LookPath("suricata")
	if err != nil {
		t.Fatal(err)
	}
	// Its -T and --build-info are real; started for good it gets a setting that it refuses.
	wrapper := filepath.Join(openDir(t), "suricata")
	script := "#!/bin/sh\ncase \"$*\" in *-r*) exec " + real + " \"$@\" --set stream.memcap=much ;; esac\nexec " + real + " \"$@\"\n"
	if err := os.WriteFile(wrapper, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	s := begin(t, Config{Binary: wrapper})
	until(t, 20*time.Second, "the cause is told", func() bool {
		st := s.Status()
		return st.State == Failed && strings.Contains(st.Error, "stream.memcap")
	})
	if kinds := s.kinds(); !slices.Equal(kinds, []deception.EventKind{deception.EventInspectFailed}) {
		t.Fatalf("events %v", kinds)
	}
}

func TestMissingSuricataIsExplained(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := Find(t.Context(), "no-suricata-of-this-name")
	if !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "apt") {
		t.Fatalf("error %v", err)
	}
}

// An upgrade replaces the program's file; the new one runs without anybody's doing.
func TestExchangedProgramIsStarted(t *testing.T) {
	dir := openDir(t)
	program := filepath.Join(dir, "suricata")
	install(t, program)
	s := begin(t, Config{Binary: program}, ruleFile(t, needle))
	s.running(t)
	pid := s.Status().PID
	install(t, program)
	until(t, 30*time.Second, "the new one runs", func() bool { st := s.Status(); return st.Upgrades == 1 && st.State == Running && st.PID != pid })
	s.has(t, s.visit("new", 4000, say{true, "needle"}), 1000001)
	if st := s.Status(); st.Failures != 0 {
		t.Fatalf("status %+v", st)
	}
}

// openDir is a directory of programs.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "decoynet-suricata-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// install puts a copy of Suricata to path, as a package tool does.
func install(t *testing.T, path string) {
	t.Helper()
	real, err := exec.LookPath("suricata")
	if err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(real)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close(), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
}

// TestOwner is the decoynet that TestKilledDecoynet kills.
func TestOwner(t *testing.T) {
	dir := os.Getenv("DECOYNET_TEST_INSPECT")
	if dir == "" {
		return // it is no test by itself
	}
	s, err := New(Config{Dir: dir, Interval: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	feed(t, s.FIFO())
	if err := s.Apply(t.Context(), &deception.Inspect{Suricata: deception.SuricataManaged}); err != nil {
		t.Fatal(err)
	}
	until(t, 30*time.Second, "it runs", func() bool { return s.Status().State == Running })
	fmt.Printf("pid %d\n", s.Status().PID)
	select {}
}

func TestKilledDecoynetTakesSuricataAlong(t *testing.T) {
	owner := exec.Command(os.Args[0], "-test.run", "^TestOwner$")
	owner.Env = append(os.Environ(), "DECOYNET_TEST_INSPECT="+filepath.Join(closedDir(t), "inspect"))
	owner.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscanf(out, "pid %d\n", &pid); err != nil {
		t.Fatal(err)
	}
	_ = owner.Process.Kill()
	_ = owner.Wait()
	until(t, 10*time.Second, "suricata ended", func() bool { return !alive(pid) })
}

func alive(pid int) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return !strings.HasPrefix(rest, "Z")
}

// A Suricata on this directory is an earlier decoynet's and is ended; one of
// somebody else's is not, even where its arguments are the same.
func TestLeftoverIsEndedAndOthersAreNot(t *testing.T) {
	dir, other := filepath.Join(closedDir(t), "inspect"), filepath.Join(closedDir(t), "inspect")
	left, foreign := leave(t, dir), leave(t, other)
	s := begin(t, Config{Dir: dir})
	select {
	case <-left.done:
	case <-time.After(10 * time.Second):
		t.Fatal("the leftover runs")
	}
	s.running(t)
	if foreign.over() {
		t.Fatal("somebody else's suricata was ended")
	}
}

// leave starts a Suricata on a directory as decoynet does, and returns it.
func leave(t *testing.T, dir string) *process {
	t.Helper()
	h, err := openHome(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	b, err := Find(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	want := &deception.Inspect{Suricata: deception.SuricataManaged}
	set, err := h.candidate(t.Context(), &b, want)
	if err != nil {
		t.Fatal(err)
	}
	fifo := h.child(fifoName)
	if err := errors.Join(h.promote(set, &b, want), h.freshFIFO(fifo)); err != nil {
		t.Fatal(err)
	}
	p, err := h.start(&b, "-c", root+"/"+liveConfig, "-r", root+"/"+childDir+"/"+fifoName, "--runmode", "single", "-l", root+"/"+childDir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.kill(); <-p.done })
	return p
}

func TestStoppedAndStartedByTheDocument(t *testing.T) {
	s := begin(t, Config{})
	s.running(t)
	if err := s.Apply(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	until(t, 20*time.Second, "it is off", func() bool { st := s.Status(); return st.State == Off && st.PID == 0 })
	if err := s.Apply(context.Background(), &deception.Inspect{Suricata: deception.SuricataManaged, Depth: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	s.running(t)
	if st := s.Status(); st.Failures != 0 || st.Starts != 2 {
		t.Fatalf("status %+v", st)
	}
}

// TestEndsWhileItStarts ends a Suricata that has not opened its feed, and never would:
// nobody writes to it.
func TestEndsWhileItStarts(t *testing.T) {
	s, err := New(Config{Dir: filepath.Join(closedDir(t), "inspect")})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Apply(t.Context(), &deception.Inspect{Suricata: deception.SuricataManaged}); err != nil {
		t.Fatal(err)
	}
	until(t, 30*time.Second, "it is started", func() bool { return s.Status().PID != 0 })
	s.Ending()
	ctx, stop := context.WithTimeout(t.Context(), endsItself)
	defer stop()
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
}
