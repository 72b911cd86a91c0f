//go:build linux

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// visitor is an intruder who comes again and again while recording has trouble.
type visitor struct {
	*relayOffice
	sources []netip.AddrPort
	slowest time.Duration
}

// visit fetches a page. It must not take longer than on any other day.
func (v *visitor) visit() {
	v.t.Helper()
	began := time.Now()
	_, from := v.curl("http://" + at(oneEach[len(v.sources)%2], 80) + "/")
	v.slowest = max(v.slowest, time.Since(began))
	v.sources = append(v.sources, from)
}

// failing tells since when recording fails, "" while it does not.
func (v *visitor) failing() (since string, queued int) {
	v.t.Helper()
	st, err := v.status()
	check(v.t, err)
	r := st.Recording
	if r.FailingSince != "" && (r.LastError == "" || !strings.Contains(strings.Join(st.Problems, "\n"), "sessions cannot be written")) {
		v.t.Errorf("recording fails, and status does not say why: %+v, problems %q", r, st.Problems)
	}
	return r.FailingSince, r.Queued
}

// wantAll waits until recording works again, and wants every visit on record.
func (v *visitor) wantAll() {
	v.t.Helper()
	eventually(v.t, 10*time.Second, func() error {
		if since, queued := v.failing(); since != "" || queued != 0 {
			return fmt.Errorf("recording fails since %q, %d records wait", since, queued)
		}
		return nil
	})
	list, err := v.records()
	check(v.t, err)
	ended := map[netip.AddrPort]int{}
	for _, s := range list {
		if s.EndReason != "" && s.DestBytes > 0 {
			ended[s.source()]++
		}
	}
	for _, from := range v.sources {
		if ended[from] == 0 {
			v.t.Errorf("the visit from %s is not on record", from)
		}
	}
	st, err := v.status()
	check(v.t, err)
	if st.Recording.Lost != 0 || !st.Ready {
		v.t.Errorf("status says that %d sessions were lost, ready %v", st.Recording.Lost, st.Ready)
	}
	v.t.Logf("%d visits, the slowest took %s", len(v.sources), v.slowest.Round(time.Millisecond))
	if v.slowest > 3*time.Second {
		v.t.Errorf("a visit took %s", v.slowest)
	}
}

// TestDatabaseLocked has another process lock the database for ten seconds.
func TestDatabaseLocked(t *testing.T) {
	t.Parallel()
	v := &visitor{relayOffice: newRelayOffice(t, "auto")}
	v.visit()
	v.ended(v.sources[0])

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	files, err := filepath.Glob(filepath.Join(v.data, "*.db"))
	if err != nil || len(files) != 1 {
		t.Fatalf("databases in %s: %v, %v", v.data, files, err)
	}
	lock := exec.CommandContext(ctx, "sqlite3", "-bail", files[0])
	lock.Stdin = strings.NewReader(".timeout 5000\nBEGIN EXCLUSIVE;\n.shell echo locked; sleep 10\nCOMMIT;\n")
	out, err := lock.StdoutPipe()
	check(t, err)
	began := time.Now()
	check(t, lock.Start())
	word := make([]byte, 6)
	if _, err := out.Read(word); err != nil || string(word) != "locked" {
		t.Fatalf("sqlite3 says %q, %v", word, err)
	}
	failed := false
	for time.Since(began) < 9*time.Second {
		v.visit()
		since, queued := v.failing()
		failed = failed || since != "" && queued > 0
		time.Sleep(100 * time.Millisecond)
	}
	if !failed {
		t.Error("status does not show that nothing could be written")
	}
	check(t, lock.Wait())
	v.visit()
	v.wantAll()
	v.down()
}

// TestDiskFull records on a small file system of its own, until it is full.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	v := &visitor{relayOffice: &relayOffice{office: newOffice(t)}}
	v.document(fmt.Sprintf(officeDocument, "auto"))
	on := func(name string, args ...string) error {
		_, err := v.Gateway.Run(t.Context(), name, args...)
		return err
	}
	check(t, on("mkdir", "-p", v.data))
	check(t, on("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", v.data))
	v.up()
	v.visit()
	v.ended(v.sources[0])

	fill := filepath.Join(v.data, "fill")
	if on("dd", "if=/dev/zero", "of="+fill, "bs=4k") == nil {
		t.Fatal("the disk did not fill")
	}
	eventually(t, 30*time.Second, func() error {
		v.visit()
		if since, queued := v.failing(); since == "" || queued == 0 {
			return fmt.Errorf("recording goes on after %d visits", len(v.sources))
		}
		return nil
	})
	for range 20 {
		v.visit()
	}
	if since, queued := v.failing(); since == "" || queued < 20 {
		t.Errorf("with a full disk, recording fails since %q, %d records wait", since, queued)
	}
	check(t, on("rm", fill))
	v.visit()
	v.wantAll()
	v.down()
	check(t, on("umount", v.data))
}
