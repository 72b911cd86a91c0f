package steer

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"decoynet/deception"
)

// Probe tells what this kernel can do, by doing it in a namespace without a
// name that is gone when Probe returns.
func Probe() Support {
	ns, err := newScratch()
	if err != nil {
		return Support{SKLookup: err, TPROXY: err, IPTables: err}
	}
	defer unix.Close(ns.fd)
	try := func(mode deception.Steering) error {
		s, err := Open(ns, Config{Mode: mode})
		if err != nil {
			return err
		}
		return s.Close()
	}
	return Support{
		SKLookup: try(deception.SteeringSKLookup), TPROXY: try(deception.SteeringTPROXY),
		IPTables: try(deception.SteeringIPTables),
	}
}

// scratch is a network namespace that lives as long as its descriptor.
type scratch struct{ fd int }

func newScratch() (*scratch, error) {
	s := &scratch{fd: -1}
	err := onThread(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		s.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (s *scratch) FD() int      { return s.fd }
func (s *scratch) Name() string { return "probe" }

func (s *scratch) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(s.fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f on a thread of its own, which is never unlocked and so ends
// with the goroutine, whatever namespace it is in by then.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := errors.New("ended without a result")
		defer func() { done <- err }()
		err = f()
	}()
	return <-done
}
