package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func init() { roles["disk-full"] = diskFullProcess }

// A file system of 4 MB, in a mount namespace that ends with the process.
func TestDiskFull(t *testing.T) {
	cmd := child(t, "disk-full", t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	done := make(chan error, 1)
	go func() { done <- cmd.Run() }()
	select {
	case err := <-done:
		if err != nil {
			t.Fatalf("in a mount namespace (needs root): %v", err)
		}
	case <-time.After(60 * time.Second):
		cmd.Process.Kill()
		t.Fatalf("not over after 60 s: %v", <-done)
	}
}

func diskFullProcess() {
	if err := diskFull(os.Getenv("DECOYNET_STORE_TEST_PATH")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func diskFull(dir string) error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := syscall.Mount("decoynet-test", dir, "tmpfs", 0, "size=4m"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	path := filepath.Join(dir, FileName)
	r, err := OpenRecorder(RecorderConfig{Path: path, Flush: 5 * time.Millisecond, QueueBytes: 256 << 10})
	if err != nil {
		return err
	}
	n := 0
	record := func(count int) {
		for range count {
			s := session(base, n)
			r.Started(running(s))
			r.Ended(s)
			n++
		}
	}
	wait := func(what string, ok func(RecorderStats) bool) error {
		for end := time.Now().Add(20 * time.Second); !ok(r.Stats()); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				return fmt.Errorf("after 20 s still not: %s: %+v", what, r.Stats())
			}
		}
		return nil
	}
	record(100)
	if err := wait("the first sessions written", func(s RecorderStats) bool { return s.Written == 100 }); err != nil {
		return err
	}

	filler := filepath.Join(dir, "filler")
	if err := fill(filler); err != nil {
		return err
	}
	record(500)
	// There may be room for some in the log's last page; then there is none.
	if err := wait("the disk is full", func(s RecorderStats) bool {
		record(100)
		return !s.FailingSince.IsZero() && s.Lost > 0
	}); err != nil {
		return err
	}
	if code := resultCode(r.Stats().LastError); code != codeFull {
		return fmt.Errorf("the failure is %w, code %d", r.Stats().LastError, code)
	}
	if err := os.Remove(filler); err != nil {
		return err
	}
	if err := wait("recovered", func(s RecorderStats) bool { return s.FailingSince.IsZero() && s.Queued == 0 }); err != nil {
		return err
	}
	stats := r.Stats()
	if stats.Written+stats.Lost != uint64(n) {
		return fmt.Errorf("%d sessions, but %+v", n, stats)
	}
	reader, err := OpenReader(path)
	if err != nil {
		return err
	}
	defer reader.Close()
	found := uint64(0)
	for _, err := range reader.Sessions(context.Background(), Filter{}) {
		if err != nil {
			return err
		}
		found++
	}
	if found != stats.Written {
		return fmt.Errorf("%d sessions in the file, %d written", found, stats.Written)
	}
	if err := r.Close(context.Background()); err != nil {
		return err
	}
	return nil
}

// fill takes all the room that is left.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for size := 64 << 10; size > 0; {
		_, err := f.Write(make([]byte, size))
		switch {
		case errors.Is(err, syscall.ENOSPC):
			size /= 2
		case err != nil:
			return err
		}
	}
	return nil
}
