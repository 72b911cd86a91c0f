package vm

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What the guest's first process finds in its environment, by way of the
// kernel's command line, and what the test finds in its.
const (
	envNonce  = "DECOYNET_VM"       // marks the lines that are ours
	envClock  = "DECOYNET_VM_CLOCK" // seconds since 1970: the machine has no clock
	envInside = "DECOYNET_VM_INSIDE"
)

// Channels: the kernel speaks on the first serial line, the test on the second.
const outputLine = "/dev/ttyS1"

// The test binary is the guest's init. It must not come to its own main function
// then: that would run the tests as process 1, which is nobody's child and has
// everybody's orphans to bury.
func init() {
	nonce := os.Getenv(envNonce)
	if os.Getpid() != 1 || nonce == "" {
		return
	}
	boot(nonce)
	// Resetting the machine is what ends QEMU. Should that fail, so does the
	// kernel, with init gone, and resets it after all (panic=-1).
	fmt.Fprintln(os.Stderr, "reset the machine:", unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART))
	os.Exit(1)
}

// boot makes a Unix system of a bare kernel, runs the test and tells how it ended.
func boot(nonce string) {
	if err := mounts(); err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
		return
	}
	out, err := openOutput()
	if err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
		return
	}
	status, err := runOrder(out, nonce)
	if err != nil {
		say(out, nonce, "error", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	outcome, _ := os.ReadFile(outcomeFile) // absent where the test did not come to Run
	say(out, nonce, "exit", strconv.Itoa(status), string(outcome))
	// Bytes may still be in the line's buffer.
	if err := unix.IoctlSetInt(int(out.Fd()), unix.TCSBRK, 1); err != nil {
		fmt.Fprintln(os.Stderr, "init: drain the output:", err)
	}
}

// say writes a line that the host reads; it also ends an unfinished one.
func say(out *os.File, nonce string, words ...string) {
	fmt.Fprintf(out, "%s%s %s\n", marker, nonce, strings.TrimSpace(strings.Join(words, " ")))
}

// marker begins a line of init's own, wherever in a line it stands.
const marker = "\x1edecoynet-vm "

func mounts() error {
	const plain = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, m := range []struct {
		kind, target, data string
		flags              uintptr
	}{
		{"proc", "/proc", "", plain},
		{"sysfs", "/sys", "", plain},
		{"devtmpfs", "/dev", "mode=755", unix.MS_NOSUID},
		{"devpts", "/dev/pts", "mode=620,ptmxmode=666", unix.MS_NOSUID | unix.MS_NOEXEC},
		{"tmpfs", "/dev/shm", "", unix.MS_NOSUID | unix.MS_NODEV},
		{"tmpfs", "/run", "mode=755", unix.MS_NOSUID | unix.MS_NODEV},
		{"bpf", "/sys/fs/bpf", "mode=700", plain},
		{"cgroup2", "/sys/fs/cgroup", "", plain},
		{"tracefs", "/sys/kernel/tracing", "", plain},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.target, err)
		}
	}
	for link, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		if err := os.Symlink(target, "/dev/"+link); err != nil {
			return err
		}
	}
	// Opening the node is what loads the module, as with udev on a whole system.
	if err := os.MkdirAll("/dev/net", 0o755); err != nil {
		return err
	}
	if err := unix.Mknod("/dev/net/tun", unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))); err != nil {
		return fmt.Errorf("make /dev/net/tun: %w", err)
	}
	// /tmp stays part of the root, in memory like all: the test's working directory
	// may be below it.
	return errors.Join(os.MkdirAll("/run/netns", 0o755), os.Chmod("/tmp", 0o777|os.ModeSticky))
}

// openOutput opens the line to the host, and has the kernel change nothing of
// what is written to it.
func openOutput() (*os.File, error) {
	fd, err := unix.Open(outputLine, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", outputLine, err)
	}
	mode, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("read the mode of %s: %w", outputLine, err)
	}
	mode.Oflag &^= unix.OPOST
	mode.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
	mode.Cflag = mode.Cflag&^unix.CBAUD | unix.B115200
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, mode); err != nil {
		return nil, fmt.Errorf("set the mode of %s: %w", outputLine, err)
	}
	return os.NewFile(uintptr(fd), outputLine), nil
}

// runOrder does what the host has left in the order, and returns the exit status
// as a shell gives it: beyond 128 for a signal.
func runOrder(out *os.File, nonce string) (int, error) {
	const failed = 125
	text, err := os.ReadFile(orderFile)
	if err != nil {
		return failed, err
	}
	var job order
	if err := json.Unmarshal(text, &job); err != nil {
		return failed, fmt.Errorf("read the order: %w", err)
	}
	if err := prepare(job); err != nil {
		return failed, err
	}
	say(out, nonce, "ready")
	child, err := os.StartProcess(testBinary, job.Args, &os.ProcAttr{
		Dir: job.Dir, Env: job.Env,
		Files: []*os.File{nil, out, out},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return failed, fmt.Errorf("start the test: %w", err)
	}
	return bury(child.Pid)
}

// prepare brings about what a system has when a test begins.
func prepare(job order) error {
	seconds, err := strconv.ParseInt(os.Getenv(envClock), 10, 64)
	if err != nil {
		return fmt.Errorf("read the clock that the host gave: %w", err)
	}
	now := unix.NsecToTimespec(time.Unix(seconds, 0).UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	if err := unix.Sethostname([]byte("guest")); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	if len(job.Modules) == 0 {
		return nil
	}
	said, err := exec.Command("/sbin/modprobe", append([]string{"-a"}, job.Modules...)...).CombinedOutput()
	if err == nil && len(said) > 0 {
		err = errors.New("modprobe complains") // busybox's ends with 0 also where a module was not found
	}
	if err != nil {
		return fmt.Errorf("load modules %v: %w: %s", job.Modules, err, said)
	}
	return nil
}

// bury waits for all children, adopted ones too, until the one has ended.
func bury(pid int) (int, error) {
	for {
		var status unix.WaitStatus
		ended, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 125, fmt.Errorf("wait for the test: %w", err)
		case ended == pid && status.Signaled():
			return 128 + int(status.Signal()), nil
		case ended == pid:
			return status.ExitStatus(), nil
		}
	}
}
