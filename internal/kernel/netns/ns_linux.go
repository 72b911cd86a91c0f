package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// threadNS is the calling thread's own network namespace.
const threadNS = "/proc/thread-self/ns/net"

// NS is an open network namespace. It is safe for concurrent use. Close it: an
// open NS keeps the namespace, with every link in it, alive.
type NS struct {
	name string

	mu     sync.RWMutex // guards file and handle; read-held while the descriptor is in use
	file   *os.File     // nil once closed
	handle *netlink.Handle
}

// Open opens the namespace of that name below RunDir, or at that path if there
// is a slash in it (/proc/123/ns/net, /var/run/docker/netns/...). The error
// wraps fs.ErrNotExist if there is none, and ErrNotNamespace if the file is
// something else.
func Open(nameOrPath string) (*NS, error) {
	path := nameOrPath
	if !strings.ContainsRune(nameOrPath, '/') {
		if err := checkName(nameOrPath); err != nil {
			return nil, err
		}
		path = filepath.Join(RunDir, nameOrPath)
	}
	return openPath(path, nameOrPath)
}

// Current opens the namespace of the calling thread; for a process that has not
// moved its threads, the namespace it was started in. Its Name is empty.
func Current() (*NS, error) {
	return openPath(threadNS, "")
}

func openPath(path, name string) (*NS, error) {
	// O_NONBLOCK so that opening a stray FIFO or device cannot hang.
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	kind, err := unix.IoctlRetInt(int(file.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		file.Close()
		return nil, fmt.Errorf("open network namespace %s: %w", path, ErrNotNamespace)
	}
	return &NS{name: name, file: file}, nil
}

// FD returns the namespace's descriptor, or -1 after Close. It stays the NS's
// property.
func (n *NS) FD() int {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.file == nil {
		return -1
	}
	return int(n.file.Fd())
}

// Name returns what the namespace was opened by; empty for Current.
func (n *NS) Name() string { return n.name }

// String names the namespace for a person.
func (n *NS) String() string {
	if n.name == "" {
		return "this process's network namespace"
	}
	return "network namespace " + n.name
}

// Same tells whether both are the same namespace of the kernel, however opened.
func (n *NS) Same(o *NS) (bool, error) {
	var a, b unix.Stat_t
	if err := unix.Fstat(n.FD(), &a); err != nil {
		return false, fmt.Errorf("stat %s: %w", n, err)
	}
	if err := unix.Fstat(o.FD(), &b); err != nil {
		return false, fmt.Errorf("stat %s: %w", o, err)
	}
	return a.Dev == b.Dev && a.Ino == b.Ino, nil
}

// Do runs fn inside the namespace, on an OS thread that nothing else uses
// meanwhile, and returns fn's error. Goroutines that fn starts do not run
// inside. What outlives fn (sockets, open files) stays bound to the namespace.
func (n *NS) Do(fn func() error) error {
	return onOwnThread(func() error {
		if err := n.enter(); err != nil {
			return err
		}
		return fn()
	})
}

func (n *NS) enter() error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.file == nil {
		return fmt.Errorf("enter %s: %w", n, ErrClosed)
	}
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", n, os.NewSyscallError("setns", err))
	}
	return nil
}

// onOwnThread runs fn, which may change its thread's network namespace, on a
// thread of its own and puts that thread back. A thread that cannot be put back
// is never unlocked: the Go runtime then ends it together with its goroutine
// rather than run other code in the wrong namespace.
func onOwnThread(fn func() error) error {
	type outcome struct {
		err      error
		panicked any
		returned bool // false: fn panicked or called runtime.Goexit
	}
	done := make(chan outcome, 1)
	go func() {
		runtime.LockOSThread()
		var out outcome
		defer func() { done <- out }()

		home, err := os.Open(threadNS)
		if err != nil {
			runtime.UnlockOSThread() // nothing was changed yet
			out.err, out.returned = fmt.Errorf("remember the thread's network namespace: %w", err), true
			return
		}
		defer home.Close()
		defer func() {
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
		}()
		defer func() {
			if !out.returned {
				out.panicked = recover()
			}
		}()
		out.err = fn()
		out.returned = true
	}()
	out := <-done
	switch {
	case out.panicked != nil:
		panic(out.panicked)
	case !out.returned:
		runtime.Goexit() // as fn did, for instance by testing.T.FailNow
	}
	return out.err
}

// Handle returns a route netlink handle inside the namespace. It is made once
// and closed by Close.
func (n *NS) Handle() (*netlink.Handle, error) {
	n.mu.RLock()
	h := n.handle
	n.mu.RUnlock()
	if h != nil {
		return h, nil
	}
	// netlink.NewHandleAt would put the thread back into general use even if it
	// could not leave the namespace, hence Do.
	var made *netlink.Handle
	err := n.Do(func() (err error) {
		made, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink in %s: %w", n, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.file == nil:
		made.Close()
		return nil, fmt.Errorf("open netlink in %s: %w", n, ErrClosed)
	case n.handle != nil: // another goroutine was faster
		made.Close()
	default:
		n.handle = made
	}
	return n.handle, nil
}

// Socket makes a socket inside the namespace, close-on-exec. The caller closes
// the descriptor.
func (n *NS) Socket(domain, typ, proto int) (int, error) {
	fd := -1
	err := n.Do(func() (err error) {
		fd, err = unix.Socket(domain, typ|unix.SOCK_CLOEXEC, proto)
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		return -1, fmt.Errorf("open socket in %s: %w", n, err)
	}
	return fd, nil
}

// Close gives up the namespace and the netlink handle. Closing twice is
// harmless.
func (n *NS) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.handle != nil {
		n.handle.Close()
		n.handle = nil
	}
	if n.file == nil {
		return nil
	}
	err := n.file.Close()
	n.file = nil
	return err
}

// Dump runs a dump of the netlink package, and again, a little later each time
// and for half a second at most, while the kernel flags it as interrupted by a
// concurrent change (NLM_F_DUMP_INTR): the list may then lack objects.
func Dump[T any](dump func() ([]T, error)) ([]T, error) {
	const attempts = 10
	for attempt := 1; ; attempt++ {
		list, err := dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || attempt == attempts {
			return list, err
		}
		time.Sleep(time.Millisecond << (attempt - 1))
	}
}
