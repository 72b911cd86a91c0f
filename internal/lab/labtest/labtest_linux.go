// Package labtest puts labs into tests: opened with a name of their own, closed
// with the test, and checked for what is left of them.
package labtest

import (
	"context"
	"flag"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"decoynet/internal/lab"

	"go.uber.org/goleak"
)

// New opens an empty lab that is closed when the test ends. Where the test has
// failed, the ends of all log files of the lab go into the test's log.
func New(t testing.TB) *lab.Lab {
	t.Helper()
	l, err := lab.New("")
	if err != nil {
		t.Fatal(err)
	}
	closeWith(t, l)
	return l
}

// Office builds the office network for the time of the test.
func Office(t testing.TB) (*lab.Lab, lab.Topology) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	l, topology, err := lab.Office(ctx, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	closeWith(t, l)
	return l, topology
}

func closeWith(t testing.TB, l *lab.Lab) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("logs of lab %s:\n%s", l.Name(), l.Logs())
		}
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
}

// Built fails the test where a building call has failed.
func Built(t testing.TB, l *lab.Lab) {
	t.Helper()
	if err := l.Err(); err != nil {
		t.Fatal(err)
	}
}

// Main is for TestMain: it runs the tests and fails the run where goroutines,
// file descriptors, mounts or labs of this process are left.
func Main(m *testing.M) {
	before, err := held()
	if err != nil {
		fmt.Fprintln(os.Stderr, "labtest:", err)
		os.Exit(1)
	}
	code := m.Run()
	if code == 0 {
		if err := leaks(before); err != nil {
			fmt.Fprintln(os.Stderr, "labtest:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// holdings are what a process can leave behind or hold on to.
type holdings struct {
	files  map[string]bool // of this process: descriptor and target
	mounts string          // on the places that a machine mounts something on
}

var machineMount = regexp.MustCompile(`^\S+ \S+ \S+ \S+ (/run|/sys|/sys/fs/bpf|/etc/passwd|/etc/group|/etc/shadow) .*\n$`)

func held() (holdings, error) {
	h := holdings{files: map[string]bool{}}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return h, err
	}
	for line := range strings.Lines(string(mounts)) {
		if machineMount.MatchString(line) {
			h.mounts += line
		}
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return h, err
	}
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || strings.HasPrefix(target, "anon_inode:") {
			continue // the one that lists the others; the runtime's own poller
		}
		h.files[e.Name()+" -> "+target] = true
	}
	return h, nil
}

func leaks(before holdings) error {
	if err := goleak.Find(); err != nil {
		return fmt.Errorf("goroutines are left: %w", err)
	}
	after, err := held()
	if err != nil {
		return err
	}
	var left []string
	for f := range after.files {
		if !before.files[f] {
			left = append(left, f)
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("file descriptors are left: %v", left)
	}
	if after.mounts != before.mounts {
		return fmt.Errorf("mounts have changed:\n%s\nto:\n%s", before.mounts, after.mounts)
	}
	labs, err := lab.List()
	if err != nil {
		return err
	}
	for _, l := range labs {
		if l.Owner == os.Getpid() {
			return fmt.Errorf("lab %s is still up", l.Name)
		}
	}
	return nil
}

// SideBySide has so many of a package's parallel tests run at the same time, where
// -parallel does not say otherwise. Tests of whole programs wait more than they
// compute. TestMain calls it.
func SideBySide(n int) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = f.Value.Set(strconv.Itoa(n)) // a number
	}
}
