package enrolled

import (
	"errors"

	"golang.org/x/sys/windows"
)

// isFull tells whether the disk is full.
func isFull(err error) bool {
	return errors.Is(err, windows.ERROR_DISK_FULL) || errors.Is(err, windows.ERROR_HANDLE_DISK_FULL)
}

// isNoRoute tells whether the machine itself knows no way.
func isNoRoute(err error) bool { return errors.Is(err, windows.WSAENETUNREACH) }

// isRefused tells whether nothing listens there.
func isRefused(err error) bool { return errors.Is(err, windows.WSAECONNREFUSED) }

// freeBytes returns what this user may still write in the directory.
func freeBytes(dir string) (uint64, bool) {
	path, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return 0, false
	}
	var free uint64
	if err := windows.GetDiskFreeSpaceEx(path, &free, nil, nil); err != nil {
		return 0, false
	}
	return free, true
}

// privilegedBelow returns 0: any user may open any port.
func privilegedBelow() int { return 0 }
