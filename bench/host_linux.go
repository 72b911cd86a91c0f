package main

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"decoynet/internal/lab"
)

// absolute returns the binary's full path, or why there is none to run.
func absolute(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", path, err)
	}
	if _, err := os.Stat(abs); err != nil {
		return "", fmt.Errorf("find the binary: %w", err)
	}
	return abs, nil
}

// laboratory opens a lab for what is measured of decoynet by itself. It returns the
// paths of decoynet and of this program, too, which is what runs at its other end.
func (b *bench) laboratory() (l *lab.Lab, binary, self string, err error) {
	if binary, err = absolute(b.decoynet); err != nil {
		return nil, "", "", err
	}
	if self, err = os.Executable(); err != nil {
		return nil, "", "", fmt.Errorf("find this program: %w", err)
	}
	if l, err = lab.New(""); err != nil {
		return nil, "", "", fmt.Errorf("open a lab: %w", err)
	}
	return l, binary, self, nil
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
