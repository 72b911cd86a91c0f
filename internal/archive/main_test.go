package archive

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"decoynet/deception"

	"go.uber.org/goleak"
)

// The test binary becomes a process of another kind: a writer to be killed, a
// test in a mount namespace of its own.
const (
	roleVar = "DECOYNET_ARCHIVE_TEST_ROLE"
	dirVar  = "DECOYNET_ARCHIVE_TEST_DIR"
)

// roles are the other kinds of process.
var roles = map[string]func(dir string) error{}

func TestMain(m *testing.M) {
	name := os.Getenv(roleVar)
	if name == "" {
		goleak.VerifyTestMain(m)
	}
	role, ok := roles[name]
	if !ok {
		fmt.Fprintln(os.Stderr, "unknown role", name)
		os.Exit(2)
	}
	if err := role(os.Getenv(dirVar)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// child starts the test binary as a process of another kind.
func child(role, dir string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVar+"="+role, dirVar+"="+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

var large = deception.PCAPLimits{MaxBytes: 1 << 30}

func open(t testing.TB, dir string, l deception.PCAPLimits) *Archive {
	t.Helper()
	a, err := Open(Config{Dir: dir, Limits: l})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

func put(t testing.TB, a *Archive, flows ...*flow) {
	t.Helper()
	for _, f := range flows {
		for i := range f.frames {
			if err := a.Frame(f.times[i], f.frames[i]); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// flush has everything written.
func flush(t testing.TB, a *Archive) {
	t.Helper()
	if err := a.Flush(); err != nil {
		t.Fatal(err)
	}
}

// extract writes a session's packets to a file and returns its path.
func extract(t testing.TB, dir string, f *flow) (string, Extracted) {
	t.Helper()
	var text bytes.Buffer
	found, err := Extract(t.Context(), dir, f.id, f.id.Time(), f.at, &text)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "session.pcap")
	if err := os.WriteFile(path, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, found
}

// eventually waits for a condition, for 20 seconds at most.
func eventually(what string, condition func() (bool, error)) error {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		ok, err := condition()
		if ok || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within 20 s: %s", what)
		}
	}
}

// flags returns the TCP flags of the file's packets, whatever is wrong with them.
func flags(t testing.TB, path string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "tshark", "-n", "-r", path, "-T", "fields", "-e", "tcp.flags").Output()
	if err != nil {
		t.Fatalf("tshark -r %s: %v", path, err)
	}
	return strings.ReplaceAll(strings.TrimRight(string(out), "\n"), "\n", " ")
}

// tshark returns the fields of the file's packets, a line each, and fails the test
// where anything is wrong with one of them.
func tshark(t testing.TB, path string, fields ...string) []string {
	t.Helper()
	args := []string{"-n", "-r", path, "-T", "fields", "-o", "tcp.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"}
	doubts := []string{"_ws.expert.severity", "_ws.malformed", "ip.checksum.status", "tcp.checksum.status", "udp.checksum.status"}
	for _, f := range append(doubts, fields...) {
		args = append(args, "-e", f)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "tshark", args...)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	for line := range strings.Lines(complaints.String()) {
		if !strings.HasPrefix(line, "Running as user") { // it says so of root
			t.Errorf("tshark -r %s: %s", path, line)
		}
	}
	if err != nil {
		t.Fatalf("tshark -r %s: %v", path, err)
	}
	var lines []string
	for line := range strings.Lines(string(out)) {
		all := strings.SplitN(strings.TrimRight(line, "\n"), "\t", len(doubts)+1)
		for severity := range strings.SplitSeq(all[0], ",") {
			const warning = 0x600000
			if n, err := strconv.Atoi(severity); severity != "" && (err != nil || n >= warning) {
				t.Errorf("tshark complains about a packet, severity %s: %s", severity, line)
			}
		}
		if all[1] != "" || slices.Contains(all[2:len(doubts)], "0") {
			t.Errorf("a packet is malformed or has a bad checksum: %s", line)
		}
		lines = append(lines, all[len(doubts)])
	}
	return lines
}
