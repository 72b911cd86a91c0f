package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// mark is the source of the tmpfs on a machine's /run, as mountinfo shows it.
// Mount namespaces that are copied from a machine's (by `ip netns exec`, by
// unshare) carry it on, whatever else a process changes about itself: its
// parent, its session, its environment, its user. With an empty machine it is
// what the marks of all of the lab's machines begin with.
func mark(lab, machine string) string { return markPrefix + lab + ":" + machine }

// markPrefix is what the marks of all labs begin with.
const markPrefix = "decoynet-lab:"

// marked returns the processes in whose mount namespace a mark with this prefix
// is found. This process is never among them.
func marked(prefix string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return nil, fmt.Errorf("read own mount namespace: %w", err)
	}
	seen := map[string]bool{own: false} // mount namespace -> has the mark
	var found []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// Errors below mean that the process is gone, or a zombie.
		ns, err := os.Readlink(filepath.Join("/proc", e.Name(), "ns/mnt"))
		if err != nil {
			continue
		}
		has, ok := seen[ns]
		if !ok {
			mounts, err := os.ReadFile(filepath.Join("/proc", e.Name(), "mountinfo"))
			if err != nil {
				continue
			}
			// Anywhere, not only in the last: a lab may run in a machine of
			// another, and goes with it.
			has = bytes.Contains(mounts, []byte(" "+prefix))
			seen[ns] = has
		}
		if has {
			found = append(found, pid)
		}
	}
	return found, nil
}

// sweep kills every process that carries the mark and returns an error naming
// those that would not die.
func sweep(prefix string) error {
	deadline := time.Now().Add(5 * time.Second)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		left, err := marked(prefix)
		if err != nil {
			return err
		}
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes outlive the lab: %v", left)
		}
		for _, pid := range left {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
		time.Sleep(pause)
	}
}

// warden is the process that sweeps after an owner that could not: it waits on
// a pipe that ends with the owner, even by SIGKILL. A parent-death signal would
// not do: it fires at the end of the *thread* that forked, and would have to be
// set on every process that anybody starts in the lab.
type warden struct {
	cmd  *exec.Cmd
	pipe *os.File
}

// The script reads a line for a good-bye. Without one it does what sweep does;
// grep prints PID/mountinfo of the processes that carry the mark.
const wardenScript = `read _ && exit
cd /proc || exit
n=0
while [ $n -lt 100 ]; do
	pids=$(grep -lsF -- " $1" [0-9]*/mountinfo | cut -d/ -f1)
	[ -n "$pids" ] || break
	kill -9 $pids 2>/dev/null
	n=$((n+1))
	sleep 0.05
done
rm -rf -- "$2"`

// startWarden also gives the warden a share of the lock, so that nobody opens a
// lab of the same name before it is through.
func startWarden(prefix, dir string, lock *os.File) (*warden, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make the warden's pipe: %w", err)
	}
	cmd := exec.Command("/bin/sh", "-c", wardenScript, "decoynet-lab-warden", prefix, dir)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	cmd.Stdin = r
	cmd.ExtraFiles = []*os.File{lock}
	// A session of its own: a ^C meant for the owner must not reach it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	if err := errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("start the warden: %w", errors.Join(err, w.Close()))
	}
	return &warden{cmd: cmd, pipe: w}, nil
}

func (w *warden) dismiss() error {
	_, err := w.pipe.WriteString("bye\n")
	if err := errors.Join(err, w.pipe.Close(), w.cmd.Wait()); err != nil {
		return fmt.Errorf("dismiss the warden: %w", err)
	}
	return nil
}
