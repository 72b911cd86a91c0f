package vm_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"decoynet/internal/lab"
	"decoynet/internal/lab/vm"
)

// told names what TestTold is to do in its guest; without it the test does nothing.
const told = "VM_TEST_TOLD"

var fates = map[string]func(t *testing.T){
	"pass":  func(t *testing.T) { t.Log("all is well") },
	"fail":  func(t *testing.T) { t.Error("as told to fail") },
	"skip":  func(t *testing.T) { t.Skip("as told to skip") },
	"panic": func(*testing.T) { panic("as told to panic") },
	"exit":  func(*testing.T) { os.Exit(7) },
	"chatter": func(t *testing.T) {
		for i := range 2000 {
			t.Logf("line %d %s", i, strings.Repeat("x", 80))
		}
	},
	// Leaves the last line open, and a process that holds the output.
	"unfinished": func(t *testing.T) {
		cmd := exec.Command("sh", "-c", "sleep 3600 & printf 'no end of line'")
		cmd.Stdout = os.Stdout
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
	},
	// Stops the whole process, so that only killing the guest helps.
	"hang": func(t *testing.T) { t.Error(syscall.Kill(os.Getpid(), syscall.SIGSTOP)) },
	"oops": func(t *testing.T) {
		t.Error(os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0))
		time.Sleep(time.Minute)
	},
}

// TestTold is run by others here, in processes of their own.
func TestTold(t *testing.T) {
	fate := os.Getenv(told)
	if fate == "" {
		return
	}
	o := vm.Options{Env: []string{told + "=" + fate}}
	switch fate {
	case "hang":
		o.Timeout = 30 * time.Second
	case "no module":
		o.Modules = []string{"no-such-module"}
	case "no program":
		o.Programs = []string{"no-such-program"}
	case "no file":
		o.Files = map[string]string{"/here": "testdata/no-such-file"}
	case "no memory":
		o.Memory = 24
	}
	if !vm.Run(t, o) {
		return
	}
	fates[fate](t)
}

// tell prepares a process that runs TestTold.
func tell(t *testing.T, fate string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^TestTold$", "-test.v")
	cmd.Env = append(os.Environ(), told+"="+fate, "TMPDIR="+t.TempDir())
	return cmd
}

// TestOutcomes shows how what happens inside comes out. Two guests run at a time.
func TestOutcomes(t *testing.T) {
	for fate, want := range map[string]struct {
		status int
		says   []string
	}{
		"pass":       {0, []string{"all is well", "--- PASS: TestTold", ", up in "}},
		"fail":       {1, []string{"as told to fail", "--- FAIL: TestTold", "the test ended with status 1"}},
		"skip":       {0, []string{"as told to skip", "--- SKIP: TestTold"}},
		"panic":      {1, []string{"panic: as told to panic", "outcome_linux_test.go", "the test ended with status 2"}},
		"exit":       {1, []string{"the test ended with status 7"}},
		"chatter":    {0, []string{"line 0 xxx", "line 1999 xxx"}},
		"unfinished": {0, []string{"no end of line", "--- PASS: TestTold"}},
		"hang":       {1, []string{"it did not end in 30s and was killed"}},
		"oops":       {1, []string{"it ended before the test did", "Kernel panic", "sysrq"}},
		"no module":  {1, []string{"the kernel has no module no-such-module"}},
		"no program": {1, []string{"no-such-program is not installed; type: apt-get install --no-install-recommends no-such-program"}},
		"no file":    {1, []string{"testdata/no-such-file: no such file"}},
		"no memory":  {1, []string{"in a virtual machine: ", "QEMU: "}},
	} {
		t.Run(fate, func(t *testing.T) {
			t.Parallel()
			cmd := tell(t, fate)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if got := cmd.ProcessState.ExitCode(); got != want.status {
				t.Errorf("ended with %d instead of %d", got, want.status)
			}
			for _, text := range want.says {
				if !bytes.Contains(out, []byte(text)) {
					t.Errorf("does not say %q", text)
				}
			}
			if t.Failed() {
				t.Logf("%s", out)
			}
			left, err := os.ReadDir(strings.TrimPrefix(cmd.Env[len(cmd.Env)-1], "TMPDIR="))
			if err != nil || len(left) > 0 {
				t.Errorf("files are left: %v, %v", left, err)
			}
		})
	}
}

// TestKilled kills a test that has a guest: the guest must go with it.
func TestKilled(t *testing.T) {
	cmd := tell(t, "hang")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); !strings.Contains(line, "RUN") {
		t.Fatalf("it says %q, %v", line, err)
	}
	ctx := within(t, time.Minute)
	var guests []int
	if err := lab.Eventually(ctx, 30*time.Second, func() (err error) {
		if guests = emulators(t, cmd.Process.Pid); len(guests) == 0 {
			return errors.New("no guest")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it ended in order")
	}
	if err := lab.Eventually(ctx, 20*time.Second, func() error {
		// A zombie waits for whoever adopted it, which is not ours to see to.
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", guests[0]))
		if err == nil && !strings.Contains(string(stat), ") Z ") {
			return errors.New("the guest lives")
		}
		return nil
	}); err != nil {
		t.Error(errors.Join(err, syscall.Kill(guests[0], syscall.SIGKILL)))
	}
}

// emulators returns the processes of QEMU that the process has started.
func emulators(t *testing.T, parent int) (pids []int) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// "PID (NAME) STATE PARENT ..."; the kernel cuts names to 15 characters.
		f := strings.Fields(string(stat))
		if f[1] == "(qemu-system-x86)" && f[3] == strconv.Itoa(parent) {
			pid, err := strconv.Atoi(f[0])
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestMissing shows what is said where several things are not installed.
func TestMissing(t *testing.T) {
	cmd := tell(t, "no program")
	cmd.Env = append(cmd.Env, "PATH=/nowhere")
	out, err := cmd.CombinedOutput()
	want := "type: apt-get install --no-install-recommends qemu-system-x86 busybox-static "
	if err == nil || !bytes.Contains(out, []byte(want)) {
		t.Errorf("it says (%v):\n%s", err, out)
	}
}
