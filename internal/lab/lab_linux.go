package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Errors of a lab's life.
var (
	// ErrPrivilege is returned by New where namespaces may not be made.
	ErrPrivilege = errors.New("a lab makes network namespaces: run it as root (CAP_SYS_ADMIN and CAP_NET_ADMIN)")
	// ErrExists is returned by New where a lab of that name is up.
	ErrExists = errors.New("a lab of this name is up")
	// ErrNotFound is returned by Attach and Remove where no such lab is up.
	ErrNotFound = errors.New("no lab of this name is up")
	// ErrClosed is returned by what is done with a lab after Close.
	ErrClosed = errors.New("the lab is closed")
)

// Lab is a set of machines and switches. Its methods may be used from several
// goroutines, but nothing may be built while it is being closed.
type Lab struct {
	name, dir string
	attached  bool // somebody else's lab: Close only lets go of it

	lock   *os.File // held (flock) while a lab of this name is up
	leash  *os.File // write end of the pipe that the holders read; never written
	reins  *os.File // read end of the same, inherited by every holder
	warden *warden

	mu        sync.Mutex // guards what follows
	err       error
	closed    bool
	machines  []*Machine
	processes []*Process
	servers   []*Server
	serial    int
}

var nameRule = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

var autoName atomic.Int64

// New opens an empty lab. The name must be of letters, digits and hyphens and
// not be in use (ErrExists); with an empty name one is chosen that is not.
func New(name string) (*Lab, error) {
	if unix.Geteuid() != 0 {
		return nil, ErrPrivilege
	}
	if name != "" {
		return open(name)
	}
	for {
		l, err := open(fmt.Sprintf("t%d-%d", os.Getpid(), autoName.Add(1)))
		if !errors.Is(err, ErrExists) {
			return l, err
		}
	}
}

func open(name string) (*Lab, error) {
	if !nameRule.MatchString(name) {
		return nil, fmt.Errorf("bad lab name %q: lower-case letters, digits and hyphens, at most 32", name)
	}
	l := &Lab{name: name, dir: dirOf(name)}
	var err error
	if l.lock, err = acquire(l.dir); err != nil {
		return nil, fmt.Errorf("open lab %q: %w", name, err)
	}
	if err := l.start(); err != nil {
		return nil, fmt.Errorf("open lab %q: %w", name, errors.Join(err, l.release()))
	}
	return l, nil
}

func (l *Lab) start() error {
	// With the lock ours, whatever carries the name's mark is of a dead owner.
	if err := errors.Join(sweep(mark(l.name, "")), emptyDir(l.dir)); err != nil {
		return fmt.Errorf("remove a dead lab of this name: %w", err)
	}
	var err error
	if l.reins, l.leash, err = os.Pipe(); err != nil {
		return fmt.Errorf("make the holders' pipe: %w", err)
	}
	l.warden, err = startWarden(mark(l.name, ""), l.dir, l.lock)
	return err
}

func dirOf(name string) string { return filepath.Join(os.TempDir(), "decoynet-lab-"+name) }

const lockName = ".lock"

// acquire makes the directory and takes the lock in it. The kernel drops the
// lock when this process and the warden, which shares it, have ended.
func acquire(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	deadline := time.Now().Add(5 * time.Second)
	for {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
		if errors.Is(err, os.ErrNotExist) {
			continue // removed between the two calls by an owner that closes
		}
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && sameFile(f, path) {
			return f, errors.Join(f.Truncate(0), writeOwner(f))
		}
		alive := ownerAlive(f)
		if err := f.Close(); err != nil {
			return nil, err
		}
		switch {
		case err == nil:
			// A closing owner had unlinked the file before we locked it:
			// nobody else would find this lock.
		case !errors.Is(err, unix.EWOULDBLOCK):
			return nil, fmt.Errorf("lock %s: %w", path, err)
		case alive || time.Now().After(deadline):
			return nil, ErrExists
		default:
			time.Sleep(10 * time.Millisecond) // the warden of a dead owner is at it
		}
	}
}

func sameFile(f *os.File, path string) bool {
	held, err1 := f.Stat()
	named, err2 := os.Stat(path)
	return err1 == nil && err2 == nil && os.SameFile(held, named)
}

func writeOwner(f *os.File) error {
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
	return err
}

func ownerAlive(f *os.File) bool {
	b := make([]byte, 16)
	n, _ := f.ReadAt(b, 0) // what is not a number means dead, or not yet written
	pid, err := strconv.Atoi(string(b[:n]))
	return err == nil && !errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}

// emptyDir removes everything from the directory but the lock.
func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.Name() != lockName {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// Name returns the lab's name, as Attach takes it.
func (l *Lab) Name() string { return l.name }

// Dir returns the lab's directory, in which every machine has one of its own
// for logs and configurations. Close removes it.
func (l *Lab) Dir() string { return l.dir }

// Err returns the first failure of a building call, or ErrClosed after Close.
func (l *Lab) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil && l.closed {
		return ErrClosed
	}
	return l.err
}

// fail keeps the first failure of a building call.
func (l *Lab) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil && err != nil {
		l.err = fmt.Errorf("lab %s: %w", l.name, err)
	}
}

// Machines returns the machines in the order they were made, switches included.
func (l *Lab) Machines() []*Machine {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*Machine(nil), l.machines...)
}

// Lookup returns the machine (or the namespace of the switch) of that name.
func (l *Lab) Lookup(name string) (*Machine, bool) {
	for _, m := range l.Machines() {
		if m.name == name {
			return m, true
		}
	}
	return nil, false
}

// next returns a number that was not given before in this lab.
func (l *Lab) next() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.serial++
	return l.serial
}

// Close kills every process that was started in the lab, by whomever, and
// removes all of it. It returns what could not be removed, and the failure that
// Err holds. An attached lab stays up: only this process's own part ends.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	err, machines, processes, servers := l.err, l.machines, l.processes, l.servers
	l.mu.Unlock()

	errs := []error{err}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, s := range servers {
		if s.inProcess() {
			errs = append(errs, s.Stop(ctx))
		}
	}
	if l.attached {
		for _, p := range processes {
			errs = append(errs, p.Kill())
		}
	} else {
		errs = append(errs, sweep(mark(l.name, "")))
	}
	for _, p := range processes {
		if p.waitDone(ctx) != nil {
			errs = append(errs, fmt.Errorf("process %d (%s) did not end", p.PID(), p.name))
		}
	}
	for _, m := range machines {
		errs = append(errs, m.letGo(ctx))
	}
	if !l.attached {
		errs = append(errs, l.release())
	}
	return errors.Join(errs...)
}

// release gives back what open took.
func (l *Lab) release() error {
	var errs []error
	if l.warden != nil {
		errs = append(errs, l.warden.dismiss())
	}
	for _, f := range []*os.File{l.leash, l.reins} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	// The lock goes last: until then the name is taken. Once its file is
	// unlinked, the next owner may already be in the directory.
	errs = append(errs, emptyDir(l.dir), os.Remove(l.lock.Name()))
	if err := os.Remove(l.dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !os.IsNotExist(err) {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, l.lock.Close())...)
}

const longestPause = 5 * time.Second

// Eventually calls fn until it returns nil, for at most d, and returns its last
// error. Where a call takes long, the pauses do too: what is waited for needs the
// processor more than who looks at it.
func Eventually(ctx context.Context, d time.Duration, fn func() error) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		began := time.Now()
		err := fn()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %v: %w", d, err)
		case <-time.After(max(pause, min(2*time.Since(began), longestPause))):
		}
	}
}
