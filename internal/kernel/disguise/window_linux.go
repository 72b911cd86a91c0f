package disguise

import (
	"fmt"
	"strconv"
	"strings"

	"decoynet/internal/kernel/netns"
)

// Receive buffers decide what Linux offers in a SYN-ACK (tcp_select_initial_window).
// Half of a new socket's is its first window, for Windows more than 16 bits hold;
// and the window scale is the smallest that makes the largest buffer fit into 16
// bits: seven up to 8 MB, then eight.
const (
	windowsFirstBuffer   = 256 << 10
	windowsLargestBuffer = 8 << 20
	linuxLargestBuffer   = 6 << 20 // Linux's own default
)

// offerWindow makes the kernel of the segment offer the room that the
// personalities do, so that there is little for the programs to lower: a lower
// scale than the kernel's tells the peer of a fraction of the room there is, and a
// higher one would let it send what has to be dropped. Listening sockets that are
// open already keep the first window of theirs.
func offerWindow(ns *netns.NS, t table, st *Status) error {
	windows := t.any(look.windows)
	if !windows && !t.any(func(l look) bool { return l.Personality == personalityLinux }) {
		return nil
	}
	const key = "net/ipv4/tcp_rmem" // of IPv6 too
	value, err := ns.ReadSysctl(key)
	if err != nil {
		return err
	}
	sizes := strings.Fields(value)
	if len(sizes) != 3 {
		return fmt.Errorf("read sysctl %s: %q is not three sizes", key, value)
	}
	first, err := strconv.Atoi(sizes[1])
	if err != nil {
		return fmt.Errorf("read sysctl %s: %w", key, err)
	}
	sizes[2] = strconv.Itoa(linuxLargestBuffer)
	if windows {
		sizes[1] = strconv.Itoa(max(first, windowsFirstBuffer))
		sizes[2] = strconv.Itoa(windowsLargestBuffer)
	}
	want := strings.Join(sizes, "\t")
	if want == value {
		return nil
	}
	if err := ns.Sysctl(map[string]string{key: want}); err != nil {
		return err
	}
	st.Changes = append(st.Changes, "receive buffers set")
	return nil
}
