package conntrack

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// Namespace is the network namespace whose connections are meant.
type Namespace interface {
	FD() int
	Do(func() error) error
	Name() string
}

// Tuning is how a segment's namespace tracks connections.
type Tuning struct {
	// Idle ends a TCP connection without a packet for so long; at least a
	// second, in whole seconds.
	Idle time.Duration
}

const sysctlDir = "/proc/sys/net/netfilter"

// Tune sets the namespace's sysctls, writing only those that differ. The size of
// the table (nf_conntrack_max) is no namespace's own: only the machine's first one
// can set it, but each namespace may fill that much by itself.
func Tune(ns Namespace, t Tuning) error {
	seconds := func(d time.Duration) string { return strconv.Itoa(max(1, int(d/time.Second))) }
	settings := []struct{ name, value string }{
		{"nf_conntrack_acct", "1"},
		{"nf_conntrack_timestamp", "1"},
		// Events for connections that began before anybody listened, too.
		{"nf_conntrack_events", "1"},
		// Without its first packet a flow is not redirected either.
		{"nf_conntrack_tcp_loose", "0"},
		{"nf_conntrack_tcp_timeout_established", seconds(t.Idle)},
		{"nf_conntrack_tcp_timeout_unacknowledged", seconds(min(t.Idle, 5*time.Minute))},
		{"nf_conntrack_tcp_timeout_syn_sent", "15"},
		{"nf_conntrack_tcp_timeout_syn_recv", "30"},
		{"nf_conntrack_tcp_timeout_last_ack", seconds(timeoutLastAck)},
		{"nf_conntrack_tcp_timeout_time_wait", seconds(timeoutClosed)},
		{"nf_conntrack_tcp_timeout_close", seconds(timeoutClosed)},
	}
	write := func() error {
		for _, s := range settings {
			path := filepath.Join(sysctlDir, s.name)
			old, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if string(bytes.TrimSpace(old)) == s.value {
				continue
			}
			if err := os.WriteFile(path, []byte(s.value), 0o644); err != nil {
				return err
			}
		}
		return nil
	}
	err := ns.Do(write)
	if errors.Is(err, fs.ErrNotExist) {
		// The kernel loads connection tracking when somebody asks for connections.
		if _, err = Dump(ns); err == nil {
			err = ns.Do(write)
		}
	}
	if err != nil {
		return fmt.Errorf("tune connection tracking in namespace %s: %w", ns.Name(), err)
	}
	return nil
}
