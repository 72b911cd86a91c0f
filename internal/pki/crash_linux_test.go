package pki

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	roles["saver"] = saveForever
	roles["full"] = fullDisk
}

// fresh makes a node of a new CA.
func fresh(node string) (*CA, *Identity, error) {
	ca, err := NewCA()
	if err != nil {
		return nil, nil, err
	}
	key, csr, err := NewRequest()
	if err != nil {
		return nil, nil, err
	}
	der, err := ca.SignNode(csr, node, 1, 0, time.Now())
	if err != nil {
		return nil, nil, err
	}
	i, err := NewIdentity(IdentityConfig{
		Key: key, Certificate: der, CA: ca.cert.Raw, Controllers: []string{"https://hq:7443"},
	})
	return ca, i, err
}

// saveForever is a process that enrols the machine again and again.
func saveForever() error {
	_, a, errA := fresh("a")
	_, b, errB := fresh("b")
	if err := errors.Join(errA, errB); err != nil {
		return err
	}
	for n := 0; ; n++ {
		if err := errors.Join(a.Save(os.Args[1]), b.Save(os.Args[1])); err != nil {
			return err
		}
		if n == 0 {
			fmt.Println("running")
		}
	}
}

// TestKilledWhileSaving kills a process that enrols, at moments nobody chose. What
// it leaves is a whole identity or none, never half of two.
func TestKilledWhileSaving(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	found := map[string]int{}
	for n := range 15 {
		cmd := role(t, "saver", dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Errorf("run %d: %v", n, err)
		}
		time.Sleep(time.Duration(n*317%5000) * time.Microsecond) // where in a round it dies
		cmd.Process.Kill()
		cmd.Wait()
		i, err := LoadIdentity(dir)
		switch {
		case err == nil:
			found[i.Node()]++
		case errors.Is(err, ErrNoIdentity):
			found["none"]++
		default:
			t.Errorf("run %d: %v", n, err)
		}
	}
	t.Logf("found %v", found)
	_, i, err := fresh("last")
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Save(dir); err != nil {
		t.Fatal(err)
	}
	if left := content(t, dir); len(left) != len(identityFiles) {
		t.Errorf("%d files in the directory after all", len(left))
	}
}

// TestFullDisk runs fullDisk in a mount namespace of its own.
func TestFullDisk(t *testing.T) {
	cmd := role(t, "full", t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// fullDisk saves an identity on a disk of a few pages, fills it, and goes on: what
// is there must stay whole, what is new must be used and called not saved.
func fullDisk() error {
	mount := os.Args[1]
	if err := unix.Mount("decoynet-test", mount, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	ca, i, err := fresh("hq")
	if err != nil {
		return err
	}
	if err := i.Save(mount); err != nil {
		return err
	}
	ballast, err := os.Create(filepath.Join(mount, "ballast"))
	if err != nil {
		return err
	}
	defer ballast.Close()
	for err == nil {
		_, err = ballast.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("fill the disk: %w", err)
	}

	csr, err := i.Request()
	if err != nil {
		return err
	}
	der, err := ca.SignNode(csr, "hq", 2, 0, time.Now())
	if err != nil {
		return err
	}
	if err := i.Update(der); !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("update on a full disk: %v", err)
	}
	if leaf, _ := i.Certificate(); string(leaf.Raw) != string(der) {
		return errors.New("the renewed certificate is not in use")
	}
	_, other, err := fresh("other")
	if err != nil {
		return err
	}
	if err := other.Save(mount); !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("save on a full disk: %v", err)
	}
	if old, err := LoadIdentity(mount); err != nil || old.Node() != "hq" {
		return fmt.Errorf("what was saved before: %v, %w", old, err)
	}
	entries, err := os.ReadDir(mount)
	if err != nil {
		return err
	}
	if want := len([]string{keyFile, certFile, caFile, infoFile, "ballast"}); len(entries) != want {
		return fmt.Errorf("files on the full disk: %v", entries)
	}
	// Room again: the next renewal is saved.
	if err := ballast.Truncate(0); err != nil {
		return err
	}
	if err := i.Update(der); err != nil {
		return fmt.Errorf("update with room again: %w", err)
	}
	if _, err := LoadIdentity(mount); err != nil {
		return err
	}
	return nil
}
