//go:build unix

package spool

import (
	"errors"
	"syscall"
)

// isFull tells whether the file may take more another time: the file system or
// the user's quota is full.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
