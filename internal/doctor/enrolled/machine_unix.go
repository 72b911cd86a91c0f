//go:build unix

package enrolled

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// isFull tells whether the file system or the user's quota is full.
func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// isNoRoute tells whether the machine itself knows no way.
func isNoRoute(err error) bool { return errors.Is(err, unix.ENETUNREACH) }

// isRefused tells whether nothing listens there.
func isRefused(err error) bool { return errors.Is(err, unix.ECONNREFUSED) }

// freeBytes returns what this user may still write in the directory.
func freeBytes(dir string) (uint64, bool) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, false
	}
	return uint64(st.Bavail) * uint64(st.Bsize), true
}

// privilegedBelow returns the first port that everybody may open: 1024 but where
// Linux was told otherwise (ip_unprivileged_port_start). macOS asks for no privilege
// at the unspecified address, and for it at others.
func privilegedBelow() int {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			return n
		}
	}
	return 1024
}
