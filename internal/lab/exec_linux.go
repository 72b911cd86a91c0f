package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command prepares a program to run in the machine, as exec.CommandContext does
// for the host. nsenter(1) turns into the program without a fork, so that
// signals and the exit status are the program's own. It starts in the caller's
// present working directory; setting Dir has no effect.
func (m *Machine) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	wd, err := os.Getwd()
	if err != nil || wd == "/run" || strings.HasPrefix(wd, "/run/") {
		wd = "/" // the machine has a /run of its own
	}
	argv := []string{"-t", strconv.Itoa(m.pid), "-m", "-n", "-u", "--wdns=" + wd, "--"}
	if m.segment != "" {
		argv = append(argv, "ip", "netns", "exec", m.segment)
	}
	cmd := exec.CommandContext(ctx, "nsenter", append(append(argv, name), args...)...)
	cmd.Env = environment(os.Environ(), m)
	// Something the program left behind may hold the output open.
	cmd.WaitDelay = 2 * time.Second
	if err := m.usable(); err != nil {
		cmd.Err = err
	}
	return cmd
}

// environment adds where the program is, and the directories of administration
// tools, which are not in everybody's PATH.
func environment(env []string, m *Machine) []string {
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		path := ""
		for _, e := range env {
			if value, ok := strings.CutPrefix(e, "PATH="); ok {
				path = value
			}
		}
		if !slices.Contains(filepath.SplitList(path), dir) {
			env = append(env, "PATH="+strings.TrimPrefix(path+":"+dir, ":"))
		}
	}
	return append(env, "DECOYNET_LAB="+m.lab.name, "DECOYNET_LAB_MACHINE="+m.name)
}

// Run runs a program in the machine and returns its standard output; the error
// holds the end of its standard error.
func (m *Machine) Run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := m.Command(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		err = fmt.Errorf("run %s in %s: %w", strings.Join(append([]string{name}, args...), " "), m, err)
		if ctx.Err() != nil {
			err = errors.Join(err, context.Cause(ctx))
		}
		if said := tail(stderr.String(), 2000); said != "" {
			err = fmt.Errorf("%w: %s", err, said)
		}
		return stdout.String(), err
	}
	return stdout.String(), nil
}

func tail(s string, most int) string {
	s = strings.TrimSpace(s)
	if len(s) > most {
		s = "..." + s[len(s)-most:]
	}
	return s
}

// Process is a program that runs in the background of a machine.
type Process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error // read after done is closed
}

// Start starts a program in the background, its output going to a log file. A
// program that is not there shows only in how the process ends (status 127).
func (m *Machine) Start(name string, args ...string) (*Process, error) {
	return m.StartCommand(m.Command(context.Background(), name, args...))
}

// StartCommand starts what Command prepared, so that its environment or standard
// input may be set first. Output that is not redirected goes to a log file.
func (m *Machine) StartCommand(cmd *exec.Cmd) (*Process, error) {
	if cmd.Err != nil {
		return nil, cmd.Err
	}
	// The program's name stands behind the last argument of nsenter's own.
	name := filepath.Base(cmd.Args[slices.Index(cmd.Args, "--")+1])
	if m.segment != "" {
		name = filepath.Base(cmd.Args[slices.Index(cmd.Args, "--")+5])
	}
	p := &Process{name: name, cmd: cmd, done: make(chan struct{})}
	p.log = filepath.Join(m.Dir(), fmt.Sprintf("%s-%d.log", name, m.lab.next()))
	log, err := os.Create(p.log)
	if err != nil {
		return nil, fmt.Errorf("make the log of %s: %w", name, err)
	}
	if cmd.Stdout == nil {
		cmd.Stdout = log
	}
	if cmd.Stderr == nil {
		cmd.Stderr = log
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	// A session of its own: the terminal's ^C is for the owner, who stops its
	// lab in order, and Kill reaches the children by the process group.
	cmd.SysProcAttr.Setsid = true
	if err := m.lab.launch(p); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s in %s: %w", name, m, err), log.Close())
	}
	go func() {
		p.err = errors.Join(cmd.Wait(), log.Close())
		close(p.done)
	}()
	return p, nil
}

// launch starts the process unless the lab is closed: Close sweeps only once.
func (l *Lab) launch(p *Process) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	l.processes = append(l.processes, p)
	return nil
}

// PID returns the process id, on the host as in the machine.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// LogPath returns the file that holds the program's output.
func (p *Process) LogPath() string { return p.log }

// Log returns what the program has written so far.
func (p *Process) Log() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the program's end and returns how it ended, an *exec.ExitError
// unless with status 0; or the context's error where that comes first.
func (p *Process) Wait(ctx context.Context) error {
	if err := p.waitDone(ctx); err != nil {
		return err
	}
	return p.err
}

func (p *Process) waitDone(ctx context.Context) error {
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Signal sends a signal to the program alone.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// stopGrace is how long a program may take to end on SIGTERM.
const stopGrace = 10 * time.Second

// Stop asks the program to end (SIGTERM) and waits for it, ten seconds at most
// or as long as the context allows. It returns an error where the program ended
// with a status other than 0, and where it had to be killed.
func (p *Process) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	if p.waitDone(ctx) != nil {
		return errors.Join(fmt.Errorf("%s did not end on SIGTERM: %s", p.name, tail(p.Log(), 2000)), p.Kill())
	}
	var exit *exec.ExitError
	if errors.As(p.err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signal() == syscall.SIGTERM {
			return nil // a program without a handler of its own
		}
	}
	if p.err != nil {
		return fmt.Errorf("stop %s: %w: %s", p.name, p.err, tail(p.Log(), 2000))
	}
	return nil
}

// Kill ends the program and its process group by SIGKILL and waits for it.
func (p *Process) Kill() error {
	select {
	case <-p.done:
		return nil
	default:
	}
	if err := unix.Kill(-p.PID(), unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill %s: %w", p.name, err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(stopGrace):
		return fmt.Errorf("%s (process %d) did not end on SIGKILL", p.name, p.PID())
	}
}

// Logs returns the ends of all log files of the lab, for a test that failed.
func (l *Lab) Logs() string {
	var b strings.Builder
	for _, m := range l.Machines() {
		paths, err := filepath.Glob(filepath.Join(m.Dir(), "*.log"))
		more, err2 := filepath.Glob(filepath.Join(m.Dir(), "*", "*.log"))
		if err != nil || err2 != nil {
			continue // only a bad pattern fails
		}
		for _, path := range append(paths, more...) {
			text, err := os.ReadFile(path)
			if err == nil && len(text) > 0 {
				fmt.Fprintf(&b, "--- %s: %s\n%s\n", m.name, filepath.Base(path), tail(string(text), 4000))
			}
		}
	}
	return b.String()
}
