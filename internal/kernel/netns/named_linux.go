package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lockWait bounds the wait for the lock on RunDir, which iproute2 and we hold
// only for the few system calls that make a namespace.
const lockWait = 5 * time.Second

// Ensure opens the namespace of that name and makes it first if there is none;
// created says which. A file that is left at its place without a namespace (a
// lost mount) is replaced.
func Ensure(name string) (ns *NS, created bool, err error) {
	if err := checkName(name); err != nil {
		return nil, false, err
	}
	if ns, err := Open(name); err == nil {
		return ns, false, nil
	}
	unlock, err := lockRunDir()
	if err != nil {
		return nil, false, fmt.Errorf("make network namespace %s: %w", name, err)
	}
	defer unlock()

	// Again, under the lock: somebody else may have made it meanwhile.
	ns, err = Open(name)
	switch {
	case err == nil:
		return ns, false, nil
	case errors.Is(err, ErrNotNamespace):
		if err := os.Remove(filepath.Join(RunDir, name)); err != nil {
			return nil, false, fmt.Errorf("make network namespace %s: %w", name, err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, false, err
	}
	if err := makeNamed(filepath.Join(RunDir, name)); err != nil {
		return nil, false, fmt.Errorf("make network namespace %s: %w", name, err)
	}
	ns, err = Open(name)
	return ns, err == nil, err
}

// makeNamed binds a fresh namespace to path.
func makeNamed(path string) error {
	mountPoint, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0)
	if err != nil {
		return err
	}
	mountPoint.Close()
	err = onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		return os.NewSyscallError("mount", unix.Mount(threadNS, path, "none", unix.MS_BIND, ""))
	})
	if err != nil {
		_ = os.Remove(path) // the mount point that was to be; the cause is err
	}
	return err
}

// lockRunDir makes RunDir if need be, sees to it that it is a shared mount, and
// locks it against others that do the same.
func lockRunDir() (unlock func(), err error) {
	if err := os.MkdirAll(RunDir, 0o755); err != nil {
		return nil, err
	}
	dir, err := os.Open(RunDir)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(lockWait); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(deadline) {
			dir.Close()
			return nil, fmt.Errorf("lock %s: %w", RunDir, err)
		}
	}
	if err := shareRunDir(); err != nil {
		dir.Close()
		return nil, err
	}
	return func() { dir.Close() }, nil
}

// shareRunDir makes RunDir a shared mount. `ip netns exec` runs its command in a
// mount namespace of its own; if RunDir were not shared, a namespace that is
// deleted outside would stay mounted, and so alive, in there. EINVAL says that
// RunDir is no mount point yet; a bind mount onto itself makes it one.
func shareRunDir() error {
	err := unix.Mount("", RunDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) {
		if err := unix.Mount(RunDir, RunDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("make %s a mount point: %w", RunDir, err)
		}
		err = unix.Mount("", RunDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	}
	if err != nil {
		return fmt.Errorf("make %s a shared mount: %w", RunDir, err)
	}
	return nil
}

// List returns the sorted names below RunDir that begin with prefix, those of
// lost mounts included: Delete removes them too.
func List(prefix string) ([]string, error) {
	entries, err := os.ReadDir(RunDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// Delete removes the name. The kernel destroys the namespace, with the virtual
// links in it, once nothing else refers to it (shortly after: cleanup_net is
// asynchronous). It is no error if there is none of that name.
func Delete(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	path := filepath.Join(RunDir, name)
	// More than one mount can lie on the name, when a mount came back by
	// propagation from another mount namespace.
	for range 16 {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // no mount (left) there
		}
		if err != nil {
			return fmt.Errorf("delete network namespace %s: %w", name, os.NewSyscallError("umount", err))
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete network namespace %s: %w", name, err)
	}
	return nil
}
