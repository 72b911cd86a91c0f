//go:build !linux

package main

import (
	"fmt"
	"os"
)

// dataLock is nothing here: the spool below the data directory keeps a second
// agent away by itself, and there is no kernel state to be shared.
type dataLock struct{}

func lockData(data string) (*dataLock, error) { return lockDirectory(data) }

func lockDirectory(data string) (*dataLock, error) {
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	return &dataLock{}, nil
}

func (*dataLock) release() {}

// checkCapabilities has nothing to check: what needs privileges is not here.
func checkCapabilities() error { return nil }
