package disguise

import (
	"fmt"
	"strconv"
	"strings"

	"decoynet/internal/kernel/netns"
)

// The receive buffers with which Linux offers what Windows does. Half of a new
// socket's is its first window, which has to be more than 16 bits hold; and the
// window scale is the smallest that makes the largest buffer fit into 16 bits,
// eight (tcp_select_initial_window).
const (
	windowsFirstBuffer   = 256 << 10
	windowsLargestBuffer = 8 << 20
)

// offerWindow makes the kernel of the segment offer as much room as Windows. To
// tell the peer of room that is not there would let it send what has to be dropped.
// Listening sockets that are open already keep the first window of theirs.
func offerWindow(ns *netns.NS, t table, st *Status) error {
	if !t.any(look.windows) {
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
	enough := true
	for i, least := range []int{0, windowsFirstBuffer, windowsLargestBuffer} {
		size, err := strconv.Atoi(sizes[i])
		if err != nil {
			return fmt.Errorf("read sysctl %s: %w", key, err)
		}
		if size < least {
			sizes[i], enough = strconv.Itoa(least), false
		}
	}
	if enough {
		return nil
	}
	if err := ns.Sysctl(map[string]string{key: strings.Join(sizes, "\t")}); err != nil {
		return err
	}
	st.Changes = append(st.Changes, "receive buffers enlarged")
	return nil
}
