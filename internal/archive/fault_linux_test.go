package archive

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"decoynet/deception"
)

func init() {
	roles["writer"] = writerProcess
	roles["disk-full"] = diskFull
}

var talkers atomic.Int64

// talker returns a flow of a few kilobytes, with a 4-tuple of its own.
func talker() *flow {
	n := talkers.Add(1)
	from := fmt.Sprintf("192.0.2.%d:%d", 1+n>>15%200, 1024+n&0x7fff)
	return newFlow(time.Now(), from, "198.51.100.10:80").talk(1400, 1400, 700)
}

func putAll(a *Archive, f *flow) error {
	for i := range f.frames {
		if err := a.Frame(f.times[i], f.frames[i]); err != nil {
			return err
		}
	}
	return nil
}

// writerProcess writes sessions until it is killed, and prints the identifiers of
// those that it knows to be written.
func writerProcess(dir string) error {
	a, err := Open(Config{Dir: dir, Limits: large})
	if err != nil {
		return err
	}
	for {
		var batch []*flow
		for range 50 {
			batch = append(batch, talker())
			if err := putAll(a, batch[len(batch)-1]); err != nil {
				return err
			}
		}
		if err := a.Flush(); err != nil {
			return err
		}
		for _, f := range batch {
			fmt.Println(f.id)
		}
	}
}

// What a killed process had written is there; what it left torn is cut off, and
// does not hurt readers before that.
func TestKilledProcess(t *testing.T) {
	dir := t.TempDir()
	cmd := child("writer", dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var ids []deception.SessionID
	for lines := bufio.NewScanner(out); lines.Scan(); {
		id, err := deception.ParseSessionID(lines.Text())
		if err != nil {
			break // the last line is torn
		}
		if ids = append(ids, id); len(ids) == 500 {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil || len(ids) < 500 {
		t.Fatalf("the writer ended by itself after %d sessions", len(ids))
	}
	check := func() {
		t.Helper()
		for _, i := range []int{0, len(ids) / 2, len(ids) - 1} {
			var text bytes.Buffer
			if found, err := Extract(context.Background(), dir, ids[i], ids[i].Time(), time.Time{}, &text); err != nil || found.Packets != 12 {
				t.Errorf("session %d of %d: %+v, %v", i, len(ids), found, err)
			}
		}
	}
	list, err := listFiles(dir)
	if err != nil || len(list) != 1 {
		t.Fatalf("%d files, %v", len(list), err)
	}
	path := filepath.Join(dir, list[0].name)
	good := list[0].size
	// Torn by a write that the kernel cut, and by a power failure.
	for _, tail := range [][]byte{{1, 2, 3}, append([]byte{1, 2, 3, 4, 0, 0, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0}, make([]byte, 40)...), make([]byte, 5000)} {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(tail); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		check()
		a, err := Open(Config{Dir: dir, Limits: large})
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(path); err != nil || st.Size() != good {
			t.Errorf("after the next start the file has %d bytes, %v; want %d", st.Size(), err, good)
		}
		check()
	}
	if lines := tshark(t, path, "frame.number"); len(lines) < 12*len(ids) {
		t.Errorf("tshark sees %d packets in %s", len(lines), path)
	}
}

// A file system of 1 MB, in a mount namespace that ends with the process.
func TestDiskFull(t *testing.T) {
	cmd := child("disk-full", t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	done := make(chan error, 1)
	go func() { done <- cmd.Run() }()
	select {
	case err := <-done:
		if err != nil {
			t.Fatalf("in a mount namespace (needs root): %v", err)
		}
	case <-time.After(90 * time.Second):
		_ = cmd.Process.Kill()
		t.Fatalf("not over after 90 s: %v", <-done)
	}
}

// diskFull fills the disk under an archive, and makes room again.
func diskFull(dir string) error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := syscall.Mount("decoynet-test", dir, "tmpfs", 0, "size=1m"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	a, err := Open(Config{Dir: filepath.Join(dir, "pcap"), Limits: deception.PCAPLimits{MaxBytes: 64 << 20}})
	if err != nil {
		return err
	}
	put := func() error { return putAll(a, talker()) }
	first := talker()
	if err := errors.Join(putAll(a, first), a.Flush()); err != nil {
		return err
	}
	if err := eventually("the disk is full", func() (bool, error) {
		s := a.Stats()
		return s.Lost > 100 && errors.Is(s.Err, syscall.ENOSPC) && !s.FailingSince.IsZero(), put()
	}); err != nil {
		return fmt.Errorf("%w: %+v", err, a.Stats())
	}
	// What is there can be read, and ends with a whole packet.
	if err := complete(a, first); err != nil {
		return fmt.Errorf("on the full disk: %w", err)
	}
	list, err := listFiles(a.files.dir)
	if err != nil || len(list) == 0 {
		return fmt.Errorf("%d files: %w", len(list), err)
	}
	last := list[len(list)-1]
	if size, err := whole(filepath.Join(a.files.dir, last.name)); err != nil || size != last.size {
		return fmt.Errorf("on the full disk, %d bytes of %d are whole: %w", size, last.size, err)
	}
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT, "size=8m"); err != nil {
		return fmt.Errorf("make room: %w", err)
	}
	if err := eventually("it works again", func() (bool, error) {
		return a.Stats().FailingSince.IsZero(), put()
	}); err != nil {
		return fmt.Errorf("%w: %+v", err, a.Stats())
	}
	later := talker()
	if err := errors.Join(putAll(a, later), a.Flush(), complete(a, first), complete(a, later)); err != nil {
		return fmt.Errorf("with room again: %w", err)
	}
	return a.Close()
}

func complete(a *Archive, f *flow) error {
	var text bytes.Buffer
	found, err := Extract(context.Background(), a.files.dir, f.id, f.id.Time(), f.at, &text)
	if err == nil && found.Packets != len(f.frames) {
		err = fmt.Errorf("%d packets of %d", found.Packets, len(f.frames))
	}
	return err
}
