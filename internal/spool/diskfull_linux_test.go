package spool

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

func init() {
	roles["disk-full"] = diskFull
	roles["read-only"] = readOnly
}

// A file system of 1 MB, in a mount namespace that ends with the process.
func TestDiskFull(t *testing.T)     { inNamespace(t, "disk-full") }
func TestReadOnlyDisk(t *testing.T) { inNamespace(t, "read-only") }

func inNamespace(t *testing.T, role string) {
	cmd := child(t, role, t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	done := make(chan error, 1)
	go func() { done <- cmd.Run() }()
	select {
	case err := <-done:
		if err != nil {
			t.Fatalf("in a mount namespace (needs root): %v", err)
		}
	case <-time.After(90 * time.Second):
		cmd.Process.Kill()
		t.Fatalf("not over after 90 s: %v", <-done)
	}
}

func mountSmall(dir string) error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := syscall.Mount("decoynet-test", dir, "tmpfs", 0, "size=1m"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	return nil
}

// trial is a spool on a small disk and what was put into it.
type trial struct {
	*Spool
	n int // records put

	delivered Tally
}

func (r *trial) put(count int) {
	for range count {
		r.Put(record(r.n, 200))
		r.n++
	}
}

func (r *trial) wait(what string, ok func(Stats) bool) error {
	err := poll(what, func() bool { return ok(r.Stats()) })
	if err != nil {
		return fmt.Errorf("%w: %+v", err, r.Stats())
	}
	return nil
}

// drain takes and acknowledges everything; the records' numbers must rise.
func (r *trial) drain(last int) (count, end int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for r.Stats().Waiting > 0 {
		b, err := r.Next(ctx, 300, 1<<20)
		if err != nil {
			return count, last, err
		}
		for _, rec := range b.Records {
			n, err := number(rec)
			if err != nil {
				return count, last, err
			}
			if n <= last {
				return count, last, fmt.Errorf("record %d after %d", n, last)
			}
			last = n
			one := tally(n, n+1)
			r.delivered.add(&one)
		}
		count += len(b.Records)
		_ = r.Ack(b) // on a full disk the cursor is not written
	}
	return count, last, nil
}

func diskFull(dir string) error {
	if err := mountSmall(dir); err != nil {
		return err
	}
	s, err := Open(Config{Dir: filepath.Join(dir, "spool"), QueueBytes: 64 << 10, Kind: kindOf})
	if err != nil {
		return err
	}
	r := &trial{Spool: s}
	r.put(100)
	if err := r.wait("the first records written", func(st Stats) bool { return st.Written == 100 }); err != nil {
		return err
	}
	filler := filepath.Join(dir, "filler")
	if err := fill(filler); err != nil {
		return err
	}
	if err := r.wait("the disk is full and the memory too", func(st Stats) bool {
		r.put(20)
		return !st.FailingSince.IsZero() && st.Lost > 0
	}); err != nil {
		return err
	}
	st := r.Stats()
	if !errors.Is(st.LastError, syscall.ENOSPC) || st.QueuedBytes > 64<<10 {
		return fmt.Errorf("on the full disk: %+v", st)
	}

	// The controller still gets everything: from disk, and from memory.
	before, last, err := r.drain(-1)
	if err != nil {
		return fmt.Errorf("deliver on the full disk: %w", err)
	}
	if st = r.Stats(); uint64(before)+st.Lost != uint64(r.n) || last != r.n-1 {
		return fmt.Errorf("delivered %d records up to %d of %d, but %+v", before, last, r.n, st)
	}

	want := tally(0, r.n) // less what was delivered
	for i, n := range r.delivered {
		want[i] -= n
	}
	if st.DroppedKinds != want {
		return fmt.Errorf("given up by kind %v, want %v", st.DroppedKinds, want)
	}

	r.put(30)
	if err := os.Remove(filler); err != nil {
		return err
	}
	if err := r.wait("recovered", func(st Stats) bool { return st.FailingSince.IsZero() && st.Queued == 0 }); err != nil {
		return err
	}
	lost := r.Stats().Lost
	if err := r.Close(context.Background()); err != nil {
		return err
	}
	if r.Spool, err = Open(Config{Dir: filepath.Join(dir, "spool")}); err != nil {
		return err
	}
	if st = r.Stats(); st.Waiting != 30 || st.Lost != lost || st.Damaged != 0 || st.DroppedKinds != want {
		return fmt.Errorf("after opening again: %+v, %d were lost before, by kind %v", st, lost, want)
	}
	if count, _, err := r.drain(last); err != nil || count != 30 {
		return fmt.Errorf("%d records after the disk had room again: %w", count, err)
	}

	// Closing does not wait for ever, and says what it could not save.
	if err := fill(filler); err != nil {
		return err
	}
	if err := r.wait("the disk is full again", func(st Stats) bool {
		r.put(20)
		return !st.FailingSince.IsZero()
	}); err != nil {
		return err
	}
	st = r.Stats()
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := r.Close(ctx); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("close: %w", err)
	}
	if after := r.Stats(); after.Lost != st.Lost+uint64(st.Queued) || st.Queued == 0 {
		return fmt.Errorf("after close: %+v, before: %+v", after, st)
	}
	return nil
}

func readOnly(dir string) error {
	if err := mountSmall(dir); err != nil {
		return err
	}
	cfg := Config{Dir: filepath.Join(dir, "spool")}
	s, err := Open(cfg)
	if err != nil {
		return err
	}
	r := &trial{Spool: s}
	r.put(10)
	if err := r.Close(context.Background()); err != nil {
		return err
	}
	remount := func(flags uintptr) error {
		return os.NewSyscallError("remount", syscall.Mount("", dir, "", syscall.MS_REMOUNT|flags, ""))
	}
	if err := remount(syscall.MS_RDONLY); err != nil {
		return err
	}
	if r.Spool, err = Open(cfg); err != nil {
		return fmt.Errorf("open on a read-only disk: %w", err)
	}
	r.put(10)
	if err := r.wait("the failure is known", func(st Stats) bool { return !st.FailingSince.IsZero() }); err != nil {
		return err
	}
	if st := r.Stats(); !errors.Is(st.LastError, syscall.EROFS) || st.Waiting != 20 {
		return fmt.Errorf("on the read-only disk: %+v", st)
	}
	if err := remount(0); err != nil {
		return err
	}
	if err := r.wait("recovered", func(st Stats) bool { return st.FailingSince.IsZero() && st.Queued == 0 }); err != nil {
		return err
	}
	if count, last, err := r.drain(-1); err != nil || count != 20 || last != 19 {
		return fmt.Errorf("%d records up to %d: %w", count, last, err)
	}

	return r.Close(context.Background())
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
