package suricata

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// timerSlack is by how much the kernel may delay Suricata's timers. Where it reads
// a file, two of its threads sleep for 250 us again and again, which is 9 % of a
// processor when nothing happens. No packet waits for a timer.
const timerSlack = 50 * time.Millisecond

// process is one run of Suricata.
type process struct {
	pid    int
	start  time.Time
	output tail
	done   chan struct{} // closed when it is over
	err    error         // how it ended; read after done
	cmd    *exec.Cmd
	opened atomic.Bool // the FIFO, as far as somebody looked
}

// start runs Suricata with the inspect directory as descriptor 3. It ends with
// this process, even where that is killed.
func (h *home) start(b *Binary, args ...string) (*process, error) {
	p := &process{done: make(chan struct{})}
	p.cmd = exec.Command(b.Path, args...)
	p.cmd.Dir = "/"
	p.cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C", "TZ=" + os.Getenv("TZ")}
	p.cmd.ExtraFiles = []*os.File{h.dir}
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	p.cmd.WaitDelay = time.Second
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: h.user, Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	go p.run(h, started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", b.Path, err)
	}
	return p, nil
}

// run is the process's own thread. The kernel sends the signal of a parent's death
// when the thread that forked ends, and what is set here is inherited; the thread
// is never unlocked, so that it ends with this function.
func (p *process) run(h *home, started chan<- error) {
	runtime.LockOSThread()
	if err := h.restrict(); err != nil {
		started <- err
		return
	}
	p.start = time.Now()
	if err := p.cmd.Start(); err != nil {
		started <- err
		return
	}
	p.pid = p.cmd.Process.Pid
	p.outOfMemoryScore(500)
	started <- nil
	p.err = p.cmd.Wait()
	close(p.done)
}

// restrict sets what Suricata inherits from this thread.
func (h *home) restrict() error {
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0); err != nil {
		return fmt.Errorf("set timer slack: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("renounce new privileges: %w", err)
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, niceLevel); err != nil {
		return fmt.Errorf("set priority: %w", err)
	}
	if len(h.cpus) == 0 {
		return nil
	}
	var set unix.CPUSet
	for _, n := range h.cpus {
		set.Set(n)
	}
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("keep suricata to processors %v: %w", h.cpus, err)
	}
	return nil
}

// outOfMemoryScore says who goes first where memory runs out: the relay matters
// more than analysis.
func (p *process) outOfMemoryScore(n int) {
	_ = os.WriteFile("/proc/"+strconv.Itoa(p.pid)+"/oom_score_adj", []byte(strconv.Itoa(n)), 0o644)
}

func (p *process) kill() { _ = p.cmd.Process.Kill() }

// began tells whether Suricata has opened the FIFO. Until then it knows nothing, and
// is deaf: it reads its rules, it waits for the FIFO's first writer, or it has not
// found the FIFO any more, which is nothing that 7.0.10 ends for.
func (p *process) began(fifo string) bool {
	if !p.opened.Load() && opens(p.pid, fifo) {
		p.opened.Store(true)
	}
	return p.opened.Load()
}

// stop ends Suricata in good order, in which it tells of the flows that it knows.
// After grace it is killed, and at once where it knows of none.
func (p *process) stop(fifo string, grace time.Duration) {
	if !p.began(fifo) {
		p.kill()
		<-p.done
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	over := time.After(grace)
	push := time.NewTicker(nudgeAfter)
	defer push.Stop()
	for {
		select {
		case <-p.done:
			return
		case <-over:
			p.kill()
		case <-push.C:
			nudge(fifo)
		}
	}
}

const (
	nudgeAfter = 300 * time.Millisecond
	// batch is how many packets Suricata takes from a file before it looks whether it
	// is to end.
	batch = 64
)

// nudge has a Suricata see its signal that waits for packets, or for the FIFO's
// first writer. A frame that the feed is just writing may be torn by ours; none
// would be looked at any more.
func nudge(fifo string) {
	f, err := os.OpenFile(fifo, os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return // nobody reads
	}
	defer f.Close()
	now := time.Now()
	text := make([]byte, 0, batch/2*76)
	for range batch / 2 { // a write of less than 4096 bytes is whole or not at all
		text = binary.NativeEndian.AppendUint32(text, uint32(now.Unix()))
		text = binary.NativeEndian.AppendUint32(text, uint32(now.Nanosecond()))
		text = binary.NativeEndian.AppendUint32(text, 60)
		text = binary.NativeEndian.AppendUint32(text, 60)
		text = append(text, 2, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0x88, 0xb5) // IEEE 802's type for experiments
		text = append(text, make([]byte, 46)...)
	}
	for range 2 {
		_ = f.SetWriteDeadline(now.Add(nudgeAfter / 2))
		_, _ = f.Write(text)
	}
}

func (p *process) over() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// tail keeps the beginning and the end of what Suricata prints.
type tail struct {
	mu         sync.Mutex // guards the rest
	head, last bytes.Buffer
	line       []byte // its beginning
}

const (
	// headBytes and lastBytes bound the two parts: a set of thousands of bad rules says so
	// at length, two lines a rule.
	headBytes = 8 << 20
	lastBytes = 1 << 20
	// longLine is what is kept of a line whole. Suricata repeats a rule that it refuses
	// in the middle of one.
	longLine = 1 << 10
	longRule = 300
)

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(b)
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			t.line = append(t.line, b...)
			if len(t.line) > 64<<10 {
				t.line = shortLine(t.line)
			}
			break
		}
		t.keep(append(shortLine(append(t.line, b[:i]...)), '\n'))
		t.line, b = t.line[:0], b[i+1:]
	}
	return n, nil
}

// shortLine cuts the middle out of a long line.
func shortLine(line []byte) []byte {
	most := longLine
	if bytes.Contains(line[:min(len(line), 100)], []byte("error parsing signature")) {
		most = longRule
	}
	if len(line) <= most {
		return line
	}
	return slices.Concat(line[:most/2], []byte(" ... "), line[len(line)-most/2:])
}

func (t *tail) keep(line []byte) {
	if t.head.Len() < headBytes {
		t.head.Write(line)
		return
	}
	t.last.Write(line)
	if over := t.last.Len() - lastBytes; over > 0 {
		t.last.Next(over)
	}
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.head.String() + t.last.String() + string(t.line)
}
