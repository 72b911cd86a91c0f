package suricata

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"decoynet/deception"

	"golang.org/x/sys/unix"
)

// grace is how long Suricata may take to end in good order.
const grace = 10 * time.Second

// answerTimeout bounds the wait for an answer to a simple command.
const answerTimeout = 2 * time.Second

// attend looks after a process until it ends or has to.
func (s *Suricata) attend(p *process, b *Binary) error {
	tick := time.NewTicker(s.cfg.Interval)
	defer tick.Stop()
	var w watch
	for {
		select {
		case <-p.done:
			return ended(p)
		case <-s.ctx.Done():
			s.end(p)
			return nil
		case <-s.changed:
			s.end(p)
			return nil
		case <-tick.C:
		}
		if w.stuck(p.pid, s.FIFO(), s.cfg.HungAfter) {
			p.kill()
			<-p.done
			s.mu.Lock()
			s.status.Hung++
			s.mu.Unlock()
			return fmt.Errorf("suricata hung: it took nothing of the feed for %v and was killed", s.cfg.HungAfter)
		}
		if w.exchanged(b) {
			s.cfg.Log.Info("suricata's program was exchanged; it is started anew", "path", b.Path)
			s.end(p)
			s.mu.Lock()
			s.status.Upgrades++
			s.mu.Unlock()
			return nil
		}
		s.look(p)
	}
}

// end ends the process in good order. One that is asked to end in the middle of an
// exchange of rules never does (7.0.10), so that is waited for, or not.
func (s *Suricata) end(p *process) {
	s.mu.Lock()
	busy := s.exchanging != ""
	s.mu.Unlock()
	if busy {
		ctx, stop := context.WithTimeout(context.Background(), grace)
		defer stop()
		if s.answers(ctx) != nil {
			p.kill()
			<-p.done
			return
		}
	}
	p.stop(s.FIFO(), grace)
}

// look reads counters and sizes, and rotates the file of events.
func (s *Suricata) look(p *process) {
	ctx, stop := context.WithTimeout(s.ctx, answerTimeout)
	defer stop()
	resident := residentBytes(p.pid)
	s.mu.Lock()
	s.status.Resident = resident
	deaf := s.exchanging != "" // it answers when it has read its rules
	s.mu.Unlock()
	if deaf {
		s.space()
		return
	}
	answer, err := command(ctx, s.home.child(""), "dump-counters")
	if err == nil {
		var c Counters
		if c, err = parseCounters(answer); err == nil {
			s.mu.Lock()
			s.status.Counters = c
			s.mu.Unlock()
		}
	}
	if err == nil || strings.Contains(err.Error(), "refused") { // it has not counted yet, but it answers
		if !p.over() {
			s.works()
		}
	}
	s.space()
	if err := s.rotate(ctx); err != nil {
		s.cfg.Log.Warn("events of suricata cannot be rotated", "error", err)
	}
}

// noSpace is when a disk counts as full: less than a few events have.
const noSpace = 64 << 10

// space tells of a full disk, since Suricata does not: its events are lost then.
func (s *Suricata) space() {
	var st unix.Statfs_t
	if err := unix.Statfs(s.home.child(""), &st); err != nil {
		return
	}
	full := st.Bavail*uint64(st.Bsize) < noSpace
	s.mu.Lock()
	was := s.status.DiskFull
	s.status.DiskFull = full
	s.mu.Unlock()
	switch {
	case full && !was:
		s.cfg.Log.Warn("the disk is full: suricata's events are lost", "dir", s.home.path)
		s.tell(deception.EventInspectFailed, "the disk is full where "+s.home.path+" is: Suricata's events are lost until there is room")
	case was && !full:
		s.tell(deception.EventInspectRestored, "there is room again for Suricata's events")
	}
}

// watch remembers what was seen of a process.
type watch struct {
	read  uint64    // bytes that it has read
	since time.Time // they have not grown, though there was something to read
	// The program on disk looked like this at the last look, when it was not ours.
	next Binary
}

// stuck tells whether the process has read nothing for so long although bytes wait
// in the FIFO, or although another FIFO has taken its place. Heartbeats are there
// every 250 ms, so that a silent network is no sign.
func (w *watch) stuck(pid int, fifo string, after time.Duration) bool {
	read := bytesRead(pid)
	n, replaced := waiting(pid, fifo)
	if read != w.read || n == 0 && !replaced {
		w.read, w.since = read, time.Time{}
		return false
	}
	if w.since.IsZero() {
		w.since = time.Now()
	}
	return time.Since(w.since) >= after
}

// exchanged tells whether another program stands in the place of the one that
// runs, and has not changed since the last look: package tools write in steps.
func (w *watch) exchanged(b *Binary) bool {
	if b.Same() {
		w.next = Binary{}
		return false
	}
	next := Binary{Path: b.Path}
	info, err := os.Stat(b.Path)
	if err != nil {
		return false // between two versions
	}
	next.Size, next.Modified = info.Size(), info.ModTime()
	settled := next.Size == w.next.Size && next.Modified.Equal(w.next.Modified)
	w.next = next
	return settled
}

// waiting is how many bytes are in the FIFO that a process has open, and whether
// another one stands in the FIFO's place by now. It is looked at by way of the
// process: as long as that lives, one reader more is nothing that the writer could
// notice.
func waiting(pid int, fifo string) (n int, replaced bool) {
	path, have := openFIFO(pid, fifo)
	if have == nil {
		return 0, false
	}
	if want, err := os.Stat(fifo); err != nil || !os.SameFile(have, want) {
		return 0, true
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, false
	}
	n, err = unix.IoctlGetInt(fd, unix.TIOCINQ)
	unix.Close(fd)
	if err != nil {
		return 0, false
	}
	return n, false
}

// opens tells whether the process has the FIFO open, or one that was in its place.
func opens(pid int, fifo string) bool {
	_, have := openFIFO(pid, fifo)
	return have != nil
}

// openFIFO finds the FIFO of that name among what a process has open; nil: it has none.
func openFIFO(pid int, fifo string) (path string, info os.FileInfo) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", nil
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if to, err := os.Readlink(path); err != nil || filepath.Base(strings.TrimSuffix(to, " (deleted)")) != filepath.Base(fifo) {
			continue
		}
		if info, err := os.Stat(path); err == nil && info.Mode()&fs.ModeNamedPipe != 0 {
			return path, info
		}
	}
	return "", nil
}

// bytesRead is how much a process has read from anything.
func bytesRead(pid int) uint64 { return procNumber(pid, "io", "rchar:") }

func residentBytes(pid int) uint64 { return procNumber(pid, "status", "VmRSS:") << 10 }

// procNumber is numberIn a file about a process, 0 where there is none.
func procNumber(pid int, file, word string) uint64 {
	n, _ := numberIn(fmt.Sprintf("/proc/%d/%s", pid, file), word)
	return n
}

// numberIn reads the number after a word at a line's start in a file of the kernel's.
func numberIn(path, word string) (n uint64, ok bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, word); ok {
			number, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
			n, err := strconv.ParseUint(number, 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// sweep ends each Suricata that runs on this directory: an earlier decoynet's. It is
// known by our configuration's name in its arguments and by the directory that it
// has as descriptor 3, so that no other Suricata is touched.
func (h *home) sweep() (int, error) {
	mine, err := h.dir.Stat()
	if err != nil {
		return 0, fmt.Errorf("look for an earlier suricata: %w", err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, fmt.Errorf("look for an earlier suricata: %w", err)
	}
	var errs []error
	n := 0
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !ours(pid, mine) {
			continue
		}
		n++
		errs = append(errs, endAndWait(pid))
	}
	return n, errors.Join(errs...)
}

func ours(pid int, dir os.FileInfo) bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.Contains(string(line), "\x00"+root+"/"+liveConfig+"\x00") {
		return false
	}
	info, err := os.Stat(fmt.Sprintf("/proc/%d/fd/3", pid))
	return err == nil && os.SameFile(info, dir)
}

// endAndWait kills a process that is not our child. The descriptor makes sure that
// the signal meets no other that got its number.
func endAndWait(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil { // before Linux 5.3
		err = unix.Kill(pid, unix.SIGKILL)
	} else {
		defer unix.Close(fd)
		err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end an earlier suricata (process %d): %w", pid, err)
	}
	for end := time.Now().Add(grace); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d/fd", pid)); err != nil {
			return nil
		}
		if entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid)); err != nil || len(entries) == 0 {
			return nil // it is a zombie that somebody else has to reap
		}
	}
	return fmt.Errorf("end an earlier suricata: process %d is still there after %v; end it", pid, grace)
}
