package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"
)

// Options are what a guest has beyond what every guest has. The zero value will
// often do.
type Options struct {
	// Modules are loaded before the test begins. The kernel loads most by itself
	// when they are asked for; see network in modules_linux.go for those that
	// every guest has at hand.
	Modules []string
	// Programs are names in PATH, or paths. Every guest has busybox, iproute2,
	// nsenter and bpftool.
	Programs []string
	// Files are files and directories of the host by their paths in the guest,
	// relative ones from the working directory, which has the same path as
	// outside: {"testdata": "testdata"}.
	Files map[string]string
	// Env is the test's further environment, as KEY=VALUE. That of the host does
	// not reach the guest.
	Env []string
	// Memory is in MiB; 512 beyond what the root file system takes if 0.
	Memory int
	// CPUs is 1 if 0.
	CPUs int
	// Timeout bounds all of it, 3 minutes if 0. A test that hangs is ended by
	// the testing package a little earlier, so that it shows where.
	Timeout time.Duration
}

// Inside tells whether this process runs in a guest.
func Inside() bool { return os.Getenv(envInside) != "" }

// Run has the calling test run in a guest, as a whole and from its beginning, so
// it should be the first thing that a test does. Outside it returns false, when
// the test in the guest has ended: its output is then in t's log, and t has failed
// or is skipped where the test in the guest was. Inside it returns true.
//
// Where QEMU, the kernel or a program is not installed the test fails.
func Run(t testing.TB, o Options) bool {
	t.Helper()
	if Inside() {
		t.Cleanup(func() { leaveOutcome(t) })
		return true
	}
	o = o.withDefaults()
	began := time.Now()
	r, err := start(t, o, func(line string) { t.Log(line) })
	if err == nil && r.ended {
		const grain = 10 * time.Millisecond
		t.Logf("made in %v, up in %v, gone after %v and %v of processor time", (time.Since(began) - r.took).Round(grain),
			r.ready.Round(grain), r.took.Round(grain), r.spent.Round(grain))
	}
	if problem := r.problem(err); problem != "" {
		t.Errorf("in a virtual machine: %s", problem)
	}
	if r.outcome == "skipped" {
		t.Skip("skipped in a virtual machine")
	}
	return false
}

func (o Options) withDefaults() Options {
	if o.Timeout == 0 {
		o.Timeout = 3 * time.Minute
	}
	if o.CPUs == 0 {
		o.CPUs = 1
	}
	return o
}

// start makes the guest, runs it and returns when it is gone.
func start(t testing.TB, o Options, line func(string)) (report, error) {
	if runtime.GOARCH != "amd64" {
		return report{}, errors.New("guests are amd64 only, and so is the test's binary to be")
	}
	if err := complete(o); err != nil {
		return report{}, err
	}
	k, err := findKernel("/")
	if err != nil {
		return report{}, err
	}
	job, err := orderFor(t.Name(), o)
	if err != nil {
		return report{}, err
	}
	root, size, err := imageOf(k, o, job)
	if err != nil {
		return report{}, err
	}
	defer root.Close()
	image, err := memory("kernel")
	if err != nil {
		return report{}, err
	}
	defer image.Close()
	elf, err := k.bootImage()
	if err == nil {
		_, err = image.Write(elf)
	}
	if err != nil {
		return report{}, err
	}
	g := &guest{kernel: image, root: root, memory: o.Memory, cpus: o.CPUs, line: line}
	if g.memory == 0 {
		// The archive and what it is unpacked to are there at the same time.
		g.memory = 512 + 2*int(size>>20)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), o.Timeout, fmt.Errorf("it did not end in %v and was killed", o.Timeout))
	defer cancel()
	return g.run(ctx)
}

// orderFor has the guest run the test of that name, verbosely: what is worth
// showing is decided outside.
func orderFor(name string, o Options) (order, error) {
	dir, err := os.Getwd()
	if err != nil {
		return order{}, err
	}
	args := []string{
		testBinary, "-test.run=" + pattern(name), "-test.v=true", "-test.count=1", "-test.paniconexit0",
		// Earlier than the guest is killed, and late enough for its boot.
		"-test.timeout=" + (o.Timeout * 4 / 5).String(),
	}
	if testing.Short() {
		args = append(args, "-test.short")
	}
	env := append([]string{
		envInside + "=1", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "USER=root", "TMPDIR=/tmp", "LANG=C.UTF-8",
	}, o.Env...)
	return order{Args: args, Env: env, Dir: dir, Modules: o.Modules}, nil
}

// pattern matches the one test: each level of a name is matched by itself.
func pattern(name string) string {
	levels := strings.Split(name, "/")
	for i, level := range levels {
		levels[i] = "^" + regexp.QuoteMeta(level) + "$"
	}
	return strings.Join(levels, "/")
}

// problem says why the test must fail outside, or nothing.
func (r report) problem(err error) string {
	switch {
	case err != nil:
		return r.with(err.Error())
	case !r.ended:
		return r.with("it ended before the test did")
	case r.trouble != "":
		return r.with("no test was run: " + r.trouble)
	case r.status > 128:
		return r.with(fmt.Sprintf("the test was killed by signal %d", r.status-128))
	case r.status != 0:
		return fmt.Sprintf("the test ended with status %d; its output is above", r.status)
	case r.outcome == "":
		return r.with("the test did not come to vm.Run")
	}
	return ""
}

// with adds what the machine itself said.
func (r report) with(problem string) string {
	if r.qemu != "" {
		problem += "\nQEMU: " + r.qemu
	}
	if r.console != "" {
		problem += "\nthe end of its console:\n" + r.console
	}
	return problem
}

// leaveOutcome leaves word for init, which only sees how the process ended.
func leaveOutcome(t testing.TB) {
	outcome := "passed"
	switch {
	case t.Failed():
		outcome = "failed"
	case t.Skipped():
		outcome = "skipped"
	}
	if err := os.WriteFile(outcomeFile, []byte(outcome), 0o644); err != nil {
		t.Errorf("tell how the test ended: %v", err)
	}
}
