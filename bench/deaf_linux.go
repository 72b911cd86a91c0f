package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ears are the packet sockets of a process. To measure what listening costs, they
// are given a filter that takes nothing, and later their own again: so both sides
// of the comparison are one process, moments apart.
type ears struct {
	sockets []int
	filters [][]unix.SockFilter
}

// earsOf finds the packet sockets of a process.
func earsOf(pid int) (e *ears, err error) {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(process)
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list descriptors: %w", err)
	}
	e = &ears{}
	seen := map[string]bool{}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	for _, name := range names {
		number, _ := strconv.Atoi(name.Name()) // the kernel wrote it
		// A socket may have two descriptors, as when the process is this one.
		what, err := os.Readlink(dir + "/" + name.Name())
		if err != nil || !strings.HasPrefix(what, "socket:") || seen[what] {
			continue
		}
		seen[what] = true
		fd, err := unix.PidfdGetfd(process, number, 0)
		if errors.Is(err, unix.EBADF) {
			continue // closed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("take descriptor %d of process %d: %w", number, pid, err)
		}
		if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil || domain != unix.AF_PACKET {
			unix.Close(fd)
			continue
		}
		filter, err := filterOf(fd)
		if err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("read the filter of a packet socket: %w", err)
		}
		e.sockets, e.filters = append(e.sockets, fd), append(e.filters, filter)
	}
	if len(e.sockets) == 0 {
		return nil, fmt.Errorf("process %d has no packet socket", pid)
	}
	return e, nil
}

// filterOf reads the program that a socket's filter was made of (SO_GET_FILTER).
func filterOf(fd int) ([]unix.SockFilter, error) {
	var n uint32 // of instructions
	get := func(to unsafe.Pointer) error {
		_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_GET_FILTER, uintptr(to), uintptr(unsafe.Pointer(&n)), 0)
		if e != 0 {
			return os.NewSyscallError("getsockopt", e)
		}
		return nil
	}
	if err := get(nil); err != nil || n == 0 {
		return nil, err
	}
	filter := make([]unix.SockFilter, n)
	return filter, get(unsafe.Pointer(&filter[0]))
}

// listen opens the ears, or closes them.
func (e *ears) listen(on bool) error {
	for i, fd := range e.sockets {
		filter := e.filters[i]
		if !on {
			filter = []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
		}
		program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
			return fmt.Errorf("set the filter of a packet socket: %w", err)
		}
	}
	return nil
}

func (e *ears) close() {
	for _, fd := range e.sockets {
		unix.Close(fd)
	}
}
