package vm

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// report is how a guest came to its end.
type report struct {
	ready   time.Duration // from the start of QEMU to that of the test
	took    time.Duration // until QEMU ended
	spent   time.Duration // of processor time, all of QEMU
	ended   bool          // the test ended; else the guest died or was killed
	status  int           // the test's exit status
	outcome string        // what the test itself said of how it ended: passed, failed, skipped
	trouble string        // what kept init from running the test
	console string        // the kernel's last words
	qemu    string        // what QEMU complained of
}

// guest is a machine that is to be started.
type guest struct {
	kernel, root *os.File
	memory, cpus int
	line         func(string) // takes the test's output
	nonce        string
}

// commandLine is for speed and for a quick end: no search for a disk, no
// protection from itself, no checks of a timer that is emulated anyway. The clock is
// the one whose rate is known: how fast the processor's counter runs is measured at
// boot, and on a busy host wrong, so that a guest's minute was ten seconds.
func (g *guest) commandLine() string {
	return strings.Join([]string{
		"console=ttyS0 quiet loglevel=4 panic=-1 reboot=t",
		"nokaslr mitigations=off random.trust_cpu=on no_timer_check tsc=unstable clocksource=acpi_pm cryptomgr.notests lsm=capability",
		"8250.nr_uarts=2",
		envNonce + "=" + g.nonce,
		envClock + "=" + strconv.FormatInt(time.Now().Unix(), 10),
	}, " ")
}

// arguments are QEMU's. Machine pc boots in 2.6 s, q35 in 3.0; microvm would do
// in 2.4, but under emulation it loses timer interrupts while the kernel is
// calibrating and then waits forever.
func (g *guest) arguments() []string {
	return []string{
		"-machine", "pc", "-accel", "tcg", "-cpu", "max",
		"-m", strconv.Itoa(g.memory), "-smp", strconv.Itoa(g.cpus),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", "/proc/self/fd/3", "-initrd", "/proc/self/fd/4",
		"-serial", "file:/proc/self/fd/5", "-serial", "file:/proc/self/fd/6",
		"-append", g.commandLine(),
	}
}

const emulator = "qemu-system-x86_64"

// run starts the guest and returns when it is gone: by itself, or killed because
// the context ended.
func (g *guest) run(ctx context.Context) (report, error) {
	// The kernel kills QEMU with the thread that started it (PR_SET_PDEATHSIG),
	// also where this process is killed; the thread must be there as long.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	path, err := find(emulator)
	if err != nil {
		return report{}, err
	}
	g.nonce = rand.Text()
	console, consoleEnd, err := os.Pipe()
	if err != nil {
		return report{}, err
	}
	defer console.Close()
	output, outputEnd, err := os.Pipe()
	if err != nil {
		consoleEnd.Close()
		return report{}, err
	}
	defer output.Close()

	cmd := exec.CommandContext(ctx, path, g.arguments()...)
	cmd.ExtraFiles = []*os.File{g.kernel, g.root, consoleEnd, outputEnd}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var complaints bytes.Buffer
	cmd.Stderr, cmd.Stdout = &complaints, &complaints
	began := time.Now()
	err = cmd.Start()
	if err := errors.Join(err, consoleEnd.Close(), outputEnd.Close()); err != nil {
		return report{}, fmt.Errorf("start %s: %w", emulator, err)
	}
	var r report
	var readers sync.WaitGroup
	readers.Go(func() { r.console = lastWords(console) })
	readers.Go(func() { g.read(output, &r, began) })
	// Both pipes end with QEMU, which is alone in having their other ends.
	readers.Wait()
	err = cmd.Wait()
	r.took, r.qemu = time.Since(began), strings.TrimSpace(complaints.String())
	r.spent = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if err != nil && ctx.Err() == nil {
		return r, fmt.Errorf("%s: %w", emulator, err)
	}
	return r, context.Cause(ctx)
}

// read passes the test's output on, line by line, and takes out what init says.
func (g *guest) read(output io.Reader, r *report, began time.Time) {
	lines := bufio.NewReaderSize(output, 1<<16)
	for {
		line, err := lines.ReadString('\n')
		line = strings.TrimRight(line, "\r\n")
		text, own, marked := strings.Cut(line, marker+g.nonce+" ")
		if text != "" || (!marked && err == nil) {
			g.line(text)
		}
		if marked {
			r.note(own, began)
		}
		if err != nil {
			return
		}
	}
}

// note keeps what init said.
func (r *report) note(said string, began time.Time) {
	switch verb, rest, _ := strings.Cut(said, " "); verb {
	case "ready":
		r.ready = time.Since(began)
	case "error":
		r.trouble = rest
	case "exit":
		status, outcome, _ := strings.Cut(rest, " ")
		n, err := strconv.Atoi(status)
		r.status, r.outcome, r.ended = n, outcome, err == nil
	}
}

// lastWords reads to the end and returns the last of it.
func lastWords(console io.Reader) string {
	const most = 4096
	var kept []byte
	buf := make([]byte, 4096)
	for {
		n, err := console.Read(buf)
		kept = append(kept, buf[:n]...)
		if len(kept) > 2*most {
			kept = append(kept[:0], kept[len(kept)-most:]...)
		}
		if err != nil {
			return strings.TrimSpace(strings.ReplaceAll(string(kept), "\r", ""))
		}
	}
}
