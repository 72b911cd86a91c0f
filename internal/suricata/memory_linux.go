package suricata

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// availableMemory is how much more this process and its children can have: what the
// machine has, and what the control groups that they are in leave them.
func availableMemory() uint64 {
	left := uint64(math.MaxUint64)
	if n, ok := numberIn("/proc/meminfo", "MemAvailable:"); ok {
		left = n << 10
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
		most, ok := numberIn(filepath.Join(dir, "memory.max"), "") // "max" is no number
		used, ok2 := numberIn(filepath.Join(dir, "memory.current"), "")
		if ok && ok2 {
			inactive, _ := numberIn(filepath.Join(dir, "memory.stat"), "inactive_file ")
			used -= min(used, inactive)
			left = min(left, most-min(most, used))
		}
		if path == "/" || path == "." {
			return left
		}
	}
}

func memoryAdvice() string {
	return fmt.Sprintf("%d MB of memory are free: give the machine more, or use fewer rules", availableMemory()>>20)
}
