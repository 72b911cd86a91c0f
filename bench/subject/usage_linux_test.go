package subject

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseStat(t *testing.T) {
	// The name is meant to confuse: brackets, blanks and what looks like fields.
	line := "4242 (a) R 1 (b) S 1 4242 4242 0 -1 4194560 900 800 0 0 310 120 7 3 20 0 5 0 12345 104857600 2560 18446744073709551615 1 1"
	got, err := parseStat(line)
	if err != nil {
		t.Fatal(err)
	}
	want := Usage{User: 3170 * time.Millisecond, System: 1230 * time.Millisecond, RSS: 2560 * uint64(os.Getpagesize())}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("usage (-want +got):\n%s", diff)
	}
	for _, bad := range []string{"", "1 (x", "1 (x) R 1 2", strings.Replace(line, " 310 ", " many ", 1)} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("parseStat(%q) took it", bad)
		}
	}
}

// TestUsageOf looks at a shell whose child holds memory and descriptors.
func TestUsageOf(t *testing.T) {
	alone := start(t, "exec sleep 30")
	family := start(t, "sleep 30 3<&0 4<&0 5<&0 & exec sleep 30")
	var one, two Usage
	deadline := time.Now().Add(5 * time.Second)
	for {
		var err1, err2 error
		one, err1 = UsageOf(alone)
		two, err2 = UsageOf(family)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		if two.Descriptors == 2*one.Descriptors+3 && two.RSS > one.RSS {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("one process: %+v; two, one with three more descriptors: %+v", one, two)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func start(t *testing.T, script string) int {
	cmd := exec.Command("sh", "-c", script)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if children, err := withDescendants(cmd.Process.Pid); err == nil {
			for _, pid := range children {
				if p, err := os.FindProcess(pid); err == nil {
					_ = p.Kill()
				}
			}
		}
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}
