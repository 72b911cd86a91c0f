package suricata

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// availableMemory is how much more this process and its children can have: what the
// machine has, and what the control groups that they are in leave them.
func availableMemory() uint64 {
	left := uint64(math.MaxUint64)
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
				n, _ := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
				left = n << 10
			}
		}
	}
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return left
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok { // of version 2
			left = min(left, groupMemory("/sys/fs/cgroup", path))
		}
	}
	return left
}

// groupMemory is what a control group and those above it have left. Pages of files
// that nobody uses now are given up when memory is needed.
func groupMemory(root, path string) uint64 {
	left := uint64(math.MaxUint64)
	for ; ; path = filepath.Dir(path) {
		dir := filepath.Join(root, path)
		most, ok := readNumber(filepath.Join(dir, "memory.max"))
		used, ok2 := readNumber(filepath.Join(dir, "memory.current"))
		if ok && ok2 {
			used -= min(used, inactiveFiles(filepath.Join(dir, "memory.stat")))
			left = min(left, most-min(most, used))
		}
		if path == "/" || path == "." {
			return left
		}
	}
}

func inactiveFiles(path string) uint64 {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "inactive_file "); ok {
			n, _ := strconv.ParseUint(strings.TrimSpace(rest), 10, 64)
			return n
		}
	}
	return 0
}

func readNumber(path string) (uint64, bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	return n, err == nil // "max" is no number
}

func memoryAdvice() string {
	return fmt.Sprintf("%d MB of memory are free: give the machine more, or use fewer rules", availableMemory()>>20)
}
