package lab_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decoynet/internal/lab"
	"decoynet/internal/lab/labtest"

	"github.com/google/go-cmp/cmp"
)

// inLab returns the processes that have a mount of the lab, by a look at /proc
// that shares nothing with the package's own.
func inLab(t *testing.T, name string) []string {
	t.Helper()
	out, err := exec.Command("sh", "-c", `grep -ls "decoynet-lab:$1:" /proc/[0-9]*/mountinfo`, "sh", name).Output()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() > 2) {
		t.Fatal(err)
	}
	return strings.Fields(string(out))
}

func TestCloseFindsWhatHides(t *testing.T) {
	l := labtest.New(t)
	m := l.Machine("m")
	labtest.Built(t, l)
	if err := hide(m); err != nil {
		t.Fatal(err)
	}
	if got := inLab(t, l.Name()); len(got) != 2 {
		t.Fatalf("holder and daemon: %v", got)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if got := inLab(t, l.Name()); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

func TestOwnerDies(t *testing.T) {
	for _, kind := range []string{"owner", "panicking"} {
		t.Run(kind, func(t *testing.T) {
			name := fmt.Sprintf("dies-%s-%d", kind, os.Getpid())
			cmd := startOwner(t, kind, name)
			if kind == "owner" {
				if got := inLab(t, name); len(got) != 2 {
					t.Errorf("holder and daemon: %v", got)
				}
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			if err := cmd.Wait(); err == nil {
				t.Error("the owner ended well")
			}
			// The name is free as soon as the remains are swept, and not before.
			l, err := lab.New(name)
			if err != nil {
				t.Fatalf("open a lab of the same name at once: %v", err)
			}
			if got := inLab(t, name); len(got) != 0 {
				t.Errorf("left: %v", got)
			}
			l.Machine("a")
			labtest.Built(t, l)
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(l.Dir()); !os.IsNotExist(err) {
				t.Errorf("directory left: %v", err)
			}
		})
	}
}

func TestOwnerDiesUnnoticed(t *testing.T) {
	ctx := within(t, 20*time.Second)
	name := fmt.Sprintf("unnoticed-%d", os.Getpid())
	cmd := startOwner(t, "owner", name)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	err := lab.Eventually(ctx, 5*time.Second, func() error {
		if got := inLab(t, name); len(got) > 0 {
			return fmt.Errorf("processes left: %v", got)
		}
		if _, err := os.Stat(filepath.Join(os.TempDir(), "decoynet-lab-"+name)); !os.IsNotExist(err) {
			return fmt.Errorf("directory left: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestAttach(t *testing.T) {
	ctx := within(t, 20*time.Second)
	l := labtest.New(t)
	lan := l.Switch("lan")
	a, b := l.Machine("a"), l.Machine("b")
	a.Plug(lan, "eth0", "192.0.2.1/24")
	b.Plug(lan, "eth0", "192.0.2.2/24")
	labtest.Built(t, l)

	out, err := other(t, "attached", l.Name(), "a", "ping", "-c1", "-W1", "192.0.2.2").CombinedOutput()
	if err != nil || !strings.Contains(string(out), " 0% packet loss") {
		t.Errorf("from another process: %v: %s", err, out)
	}
	out, err = other(t, "attached", "none-"+l.Name(), "a", "true").CombinedOutput()
	if err == nil || !strings.Contains(string(out), lab.ErrNotFound.Error()) {
		t.Errorf("attach to nothing: %v: %s", err, out)
	}
	// Having attached and closed has ended nothing here.
	run(t, ctx, a, "ping", "-c1", "-W1", "192.0.2.2")

	labs := must(lab.List())
	for _, info := range labs {
		if info.Name == l.Name() {
			want := lab.Info{Name: l.Name(), Dir: l.Dir(), Owner: os.Getpid(), Machines: []string{"lan", "a", "b"}}
			if diff := cmp.Diff(want, info); diff != "" {
				t.Error(diff)
			}
			return
		}
	}
	t.Errorf("not listed: %v", labs)
}

func TestAttachedLabEndsAlone(t *testing.T) {
	ctx := within(t, 20*time.Second)
	l := labtest.New(t)
	m := l.Machine("m")
	labtest.Built(t, l)
	mine := must(m.Start("sleep", "3600"))

	guest := must(lab.Attach(l.Name()))
	same, ok := guest.Lookup("m")
	if !ok || same.PID() != m.PID() {
		t.Fatalf("machine m: %v", same)
	}
	its := must(same.Start("sleep", "3600"))
	conn, err := same.ListenPacket(ctx, "udp", "127.0.0.1:1234")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := guest.Close(); err != nil {
		t.Error(err)
	}
	if alive(its.PID()) || !alive(mine.PID()) {
		t.Errorf("the guest's process lives: %v, the owner's: %v", alive(its.PID()), alive(mine.PID()))
	}
	refused := must(lab.Attach(l.Name()))
	refused.Machine("another")
	wantCloseError(t, refused)
}

func TestRemove(t *testing.T) {
	for _, kind := range []string{"owner", "stubborn"} {
		t.Run(kind, func(t *testing.T) {
			ctx := within(t, 20*time.Second)
			name := fmt.Sprintf("remove-%s-%d", kind, os.Getpid())
			cmd := startOwner(t, kind, name)
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			grace := 5 * time.Second
			if kind == "stubborn" {
				grace = 200 * time.Millisecond
			}
			// The owner must be reaped for it to be gone: done above.
			if err := lab.Remove(ctx, name, grace); err != nil {
				t.Error(err)
			}
			if got := inLab(t, name); len(got) > 0 {
				t.Errorf("left: %v", got)
			}
			if kind == "stubborn" {
				if !alive(cmd.Process.Pid) {
					t.Error("killed a process that is not of the lab")
				}
				_ = cmd.Process.Kill()
			}
			<-ended
			if err := lab.Remove(ctx, name, grace); !errors.Is(err, lab.ErrNotFound) {
				t.Errorf("remove again: %v", err)
			}
		})
	}
}
