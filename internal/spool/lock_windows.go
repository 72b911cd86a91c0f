package spool

import (
	"errors"
	"path/filepath"
	"syscall"
)

// dirLock is a file that nobody else can open meanwhile.
type dirLock struct{ file syscall.Handle }

// errSharing is ERROR_SHARING_VIOLATION.
const errSharing = syscall.Errno(32)

func lockDir(path string) (*dirLock, error) {
	name, err := syscall.UTF16PtrFromString(filepath.Join(path, "lock"))
	if err != nil {
		return nil, err
	}
	h, err := syscall.CreateFile(name, syscall.GENERIC_READ|syscall.GENERIC_WRITE, 0, nil,
		syscall.OPEN_ALWAYS, syscall.FILE_ATTRIBUTE_NORMAL, 0)
	if errors.Is(err, errSharing) {
		return nil, ErrLocked
	}
	if err != nil {
		return nil, err
	}
	return &dirLock{h}, nil
}

func (l *dirLock) release() error { return syscall.CloseHandle(l.file) }

// syncDir has nothing to do: NTFS journals names.
func (l *dirLock) syncDir() error { return nil }
