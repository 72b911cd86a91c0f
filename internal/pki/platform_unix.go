//go:build !windows

package pki

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// What the system says where a connection could not be made or broke.
const (
	errRefused       = syscall.ECONNREFUSED
	errReset         = syscall.ECONNRESET
	errPipe          = syscall.EPIPE
	errAborted       = syscall.ECONNABORTED
	errNoHost        = syscall.EHOSTUNREACH
	errNoNet         = syscall.ENETUNREACH
	errTimeout       = syscall.ETIMEDOUT
	errNotPermitted  = syscall.EPERM
	errAddrNotUsable = syscall.EADDRNOTAVAIL
)

// checkDir refuses a directory in which others could exchange the CA.
func checkDir(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("look at data directory: %w", err)
	}
	if !fi.IsDir() {
		return fmt.Errorf("data directory %s is no directory", dir)
	}
	if fi.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("others may write to the data directory %s (mode %04o) and exchange this node's keys: run `chmod go-w %s`",
			dir, fi.Mode().Perm(), dir)
	}
	return nil
}

// checkPrivate refuses a key that others can read, as ssh does.
func checkPrivate(dir string) error {
	if err := checkDir(dir); err != nil {
		return err
	}
	path := filepath.Join(dir, keyFile)
	fi, err := os.Stat(path)
	if err != nil {
		return nil // reading it says what is wrong
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("others may read this node's key %s (mode %04o): run `chmod 600 %s`, and enrol the machine again if somebody did",
			path, fi.Mode().Perm(), path)
	}
	return nil
}

func makePrivate(f *os.File) error { return f.Chmod(0o600) }

// syncDir makes renames in the directory safe on the disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
