package subject

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Usage is what processes have used, or hold, at one moment.
type Usage struct {
	User, System time.Duration // CPU, of all threads and of children that ended
	RSS          uint64        // resident bytes
	Descriptors  int
}

func (u *Usage) add(v Usage) {
	u.User += v.User
	u.System += v.System
	u.RSS += v.RSS
	u.Descriptors += v.Descriptors
}

// clockTick is the unit of the times in /proc: USER_HZ is 100 on every
// architecture Go runs on, whatever the kernel's own HZ.
const clockTick = 10 * time.Millisecond

// UsageOf adds up the usage of a process and of its descendants.
func UsageOf(root int) (Usage, error) {
	var sum Usage
	pids, err := withDescendants(root)
	if err != nil {
		return sum, err
	}
	for _, pid := range pids {
		u, err := usageOfOne(pid)
		if errors.Is(err, fs.ErrNotExist) && pid != root {
			continue // a child that has just ended: its parent's times hold it
		}
		if err != nil {
			return sum, fmt.Errorf("read the usage of process %d: %w", pid, err)
		}
		sum.add(u)
	}
	return sum, nil
}

func withDescendants(root int) ([]int, error) {
	pids := []int{root}
	for i := 0; i < len(pids); i++ {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pids[i]))
		if err != nil {
			if i > 0 && errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return nil, fmt.Errorf("list threads: %w", err)
		}
		for _, task := range tasks {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pids[i], task.Name()))
			if err != nil {
				continue // the thread has ended
			}
			for f := range strings.FieldsSeq(string(b)) {
				if pid, err := strconv.Atoi(f); err == nil && !slices.Contains(pids, pid) {
					pids = append(pids, pid)
				}
			}
		}
	}
	return pids, nil
}

func usageOfOne(pid int) (Usage, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Usage{}, err
	}
	u, err := parseStat(string(b))
	if err != nil {
		return u, err
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return u, err
	}
	u.Descriptors = len(fds)
	return u, nil
}

// Alone is the CPU and memory of a process without its children, those that ended
// included.
func Alone(pid int) (Usage, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Usage{}, fmt.Errorf("read the usage of process %d: %w", pid, err)
	}
	own, _, err := splitStat(string(b))
	return own, err
}

func parseStat(line string) (Usage, error) {
	u, ended, err := splitStat(line)
	u.add(ended)
	return u, err
}

// splitStat reads what a process used itself, and what its children used that ended,
// of proc_pid_stat(5). The command's name may hold anything, so fields are counted
// from its closing bracket.
func splitStat(line string) (own, ended Usage, err error) {
	end := strings.LastIndexByte(line, ')')
	fields := strings.Fields(line[end+1:])
	const utime, stime, cutime, cstime, rss = 14 - 3, 15 - 3, 16 - 3, 17 - 3, 24 - 3
	if end < 0 || len(fields) <= rss {
		return own, ended, fmt.Errorf("unexpected form of %q", line)
	}
	var v [rss + 1]int64
	for _, i := range []int{utime, stime, cutime, cstime, rss} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return own, ended, fmt.Errorf("unexpected form of %q: %w", line, err)
		}
		v[i] = n
	}
	ticks := func(i int) time.Duration { return time.Duration(v[i]) * clockTick }
	own = Usage{User: ticks(utime), System: ticks(stime), RSS: uint64(v[rss]) * uint64(os.Getpagesize())}
	return own, Usage{User: ticks(cutime), System: ticks(cstime)}, nil
}
