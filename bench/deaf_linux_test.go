package main

import (
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestEars closes and opens the ears of a process, here its own, and looks at the
// socket itself.
func TestEars(t *testing.T) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	own := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 12}, {Code: unix.BPF_RET | unix.BPF_A}}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 2, Filter: &own[0]}); err != nil {
		t.Fatal(err)
	}
	e, err := earsOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	if len(e.sockets) != 1 {
		t.Fatalf("%d packet sockets, want 1", len(e.sockets))
	}
	for _, c := range []struct {
		on   bool
		want []unix.SockFilter
	}{{false, []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}}, {true, own}} {
		if err := e.listen(c.on); err != nil {
			t.Fatal(err)
		}
		if got, err := filterOf(fd); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("listening: %v; the filter is %v (%v), want %v", c.on, got, err, c.want)
		}
	}
}
