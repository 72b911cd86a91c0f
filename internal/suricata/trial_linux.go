package suricata

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// passed tells whether this very set passed the test of this very Suricata, and
// leaves out of it then what was left out.
func (h *home) passed(set *ruleset, b *Binary) bool {
	set.trial.Sum = set.sum(b.Version)
	last := h.lastTrial()
	if last.Sum != set.trial.Sum {
		return false
	}
	set.trial = last
	gone := make(map[Place]bool, len(last.Dropped))
	for _, at := range last.Dropped {
		gone[at] = true
	}
	set.rules = slices.DeleteFunc(set.rules, func(r rule) bool { return gone[r.place] })
	set.problems = problems{more: last.Report.MoreProblems}
	for _, p := range last.Report.Problems {
		set.note(p)
	}
	return true
}

// lastTrial is that of the rules that were good last; zero: there are none.
func (h *home) lastTrial() trial {
	var t trial
	text, err := os.ReadFile(h.file(testedFile))
	if err != nil || json.Unmarshal(text, &t) != nil {
		return trial{}
	}
	return t
}

// remember has passed know the set.
func (h *home) remember(set *ruleset) error {
	text, err := json.Marshal(set.trial)
	if err != nil {
		return fmt.Errorf("note which rules were tested: %w", err)
	}
	return h.replace(testedFile, text)
}

// A process that is to end by itself is given up when it used no processor for
// stallAfter, or after patience: a slow machine takes minutes for a large set, and
// that is no fault.
const (
	stallAfter = time.Minute
	patience   = 30 * time.Minute
)

// finish waits for the end of a process that works and then ends.
func (p *process) finish(ctx context.Context) error {
	ctx, stop := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not done after %v", patience))
	defer stop()
	look := time.NewTicker(stallAfter / 20)
	defer look.Stop()
	used, since := processorTicks(p.pid), time.Now()
	for {
		var err error
		select {
		case <-p.done:
			return nil
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-look.C:
			now := processorTicks(p.pid)
			if now != used {
				used, since = now, time.Now()
			}
			if time.Since(since) < stallAfter {
				continue
			}
			err = fmt.Errorf("suricata did nothing for %v", stallAfter)
		}
		p.kill()
		<-p.done
		return err
	}
}

// peak is how much memory a process had at most that has ended.
func (p *process) peak() uint64 {
	if usage, ok := p.cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		return uint64(usage.Maxrss) << 10
	}
	return 0
}

// killed tells whether a process that has ended was killed by somebody else.
func (p *process) killed() bool {
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// expendable has the kernel end this process before the Suricata that analyses,
// where memory runs out.
func (p *process) expendable() { p.outOfMemoryScore(1000) }

// processorTicks is the processor time that a process has used (proc(5): utime and stime).
func processorTicks(pid int) uint64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 13 {
		return 0
	}
	user, err1 := strconv.ParseUint(fields[11], 10, 64)
	system, err2 := strconv.ParseUint(fields[12], 10, 64)
	if errors.Join(err1, err2) != nil {
		return 0
	}
	return user + system
}
