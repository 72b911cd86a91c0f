//go:build unix

package spool

import (
	"errors"
	"os"
	"syscall"
)

// dirLock is held as long as the directory is open. The lock is on the directory
// itself (flock(2)), so that it can be had where nothing can be written.
type dirLock struct{ dir *os.File }

func lockDir(path string) (*dirLock, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return &dirLock{dir}, nil
	}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = ErrLocked
	}
	return nil, errors.Join(err, dir.Close())
}

func (l *dirLock) release() error { return l.dir.Close() }

// syncDir makes new names last.
func (l *dirLock) syncDir() error { return l.dir.Sync() }
