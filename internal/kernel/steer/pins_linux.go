package steer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// pinDir is a BPF file system that is mounted nowhere: one descriptor, which
// keeps all that is pinned in it. It ends with the process, however that ends, and
// everything in it ends with it: no program outlives its sockets.
type pinDir struct {
	mu    sync.Mutex // guards what follows
	users int
	fd    int    // open while there are users
	last  uint64 // the number of the last name
}

// pins is this process's pinDir.
var pins pinDir

// hold opens the file system if nobody else holds it. It fails on Linux before
// 5.2, and in a user namespace, which may not mount it.
func (d *pinDir) hold() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.users == 0 {
		fd, err := mountPins()
		if err != nil {
			return err
		}
		d.fd = fd
	}
	d.users++
	return nil
}

// drop closes the file system behind the last who holds it.
func (d *pinDir) drop() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.users--; d.users > 0 {
		return nil
	}
	if err := unix.Close(d.fd); err != nil {
		return fmt.Errorf("close the BPF file system: %w", err)
	}
	return nil
}

// path returns a name that was not given before. It leads there by way of the
// descriptor, since no path of the file tree does.
func (d *pinDir) path(what string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last++
	return "/proc/self/fd/" + strconv.Itoa(d.fd) + "/" + what + strconv.FormatUint(d.last, 10)
}

// mountPins is a variable for tests of kernels that refuse it.
var mountPins = func() (int, error) {
	config, err := unix.Fsopen("bpf", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open a BPF file system: %w", err)
	}
	defer unix.Close(config)
	if err := unix.FsconfigCreate(config); err != nil {
		return -1, fmt.Errorf("make a BPF file system: %w", err)
	}
	fd, err := unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("mount a BPF file system: %w", err)
	}
	return fd, nil
}

// unpin removes names, empty ones left out.
func unpin(paths ...string) error {
	var errs []error
	for _, p := range paths {
		if p == "" {
			continue
		}
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("unpin BPF object: %w", err))
		}
	}
	return errors.Join(errs...)
}
