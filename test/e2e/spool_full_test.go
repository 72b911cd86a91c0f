//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"decoynet/internal/lab"
)

// TestSpoolDiskFull runs an agent on a small file system of its own, until it
// is full: flows go on, status tells, and later nothing is missing.
func TestSpoolDiskFull(t *testing.T) {
	t.Parallel()
	b := newBranch(t)
	on := func(name string, args ...string) error {
		_, err := b.Server.Run(t.Context(), name, args...)
		return err
	}
	check(t, os.MkdirAll(b.agentData, 0o700))
	check(t, on("mount", "-t", "tmpfs", "-o", "size=1m,uid=65534,gid=65534,mode=700", "tmpfs", b.agentData))
	b.document(branchDocument)
	b.up()
	b.join()
	b.startAgent()
	b.waitAgent()
	check(t, b.curl())

	fill := filepath.Join(b.agentData, "fill")
	if on("dd", "if=/dev/zero", "of="+fill, "bs=4k") == nil {
		t.Fatal("the disk did not fill")
	}
	slowest := time.Duration(0)
	for range 5 {
		began := time.Now()
		check(t, b.curl())
		slowest = max(slowest, time.Since(began))
	}
	t.Logf("with a full disk the slowest page took %v", slowest.Round(time.Millisecond))

	// Without gateway and controller the agent has something to keep.
	const away = "add table inet away; add chain inet away in { type filter hook input priority -10; }; " +
		"add rule inet away in ip saddr 192.0.2.20 tcp dport { 7443, 7444 } reject with tcp reset"
	_, err := b.Gateway.Run(t.Context(), "nft", away)
	check(t, err)
	sources := map[netip.AddrPort]bool{}
	var conns []*net.TCPConn
	for i := range uint16(20) { // at once: each waits a moment for a gateway
		source := netip.AddrPortFrom(lab.BranchIntruder.V4, 41000+i)
		sources[source] = true
		conn, err := b.Branch.Intruder.DialFrom(t.Context(), "tcp", net.TCPAddrFromAddrPort(source), netip.AddrPortFrom(lab.BranchServer.V4, 80).String())
		switch {
		case err == nil:
			conns = append(conns, conn.(*net.TCPConn))
		case !errors.Is(err, syscall.ECONNRESET): // which is how it ends
			t.Fatal(err)
		}
	}
	for _, conn := range conns {
		endsBy(t, conn, syscall.ECONNRESET)
		check(t, conn.Close())
	}
	eventually(t, 10*time.Second, func() error {
		st, err := b.agentStatus()
		if r := st.Recording; err == nil && (r.FailingSince == "" || r.LastError == "" || r.Queued < len(sources)) {
			err = fmt.Errorf("after %d flows without a gateway, recording is %+v", len(sources), r)
		}
		return err
	})
	st, err := b.agentStatus()
	check(t, err)
	t.Logf("status: %+v", st.Recording)

	check(t, on("rm", fill))
	_, err = b.Gateway.Run(t.Context(), "nft", "delete table inet away")
	check(t, err)
	eventually(t, 20*time.Second, func() error {
		st, err := b.agentStatus()
		if err == nil && (st.Recording.FailingSince != "" || st.Recording.Queued > 0 || st.Recording.Waiting > 0) {
			err = fmt.Errorf("recording is still %+v", st.Recording)
		}
		return err
	})
	if st, err = b.agentStatus(); err != nil || st.Recording.Lost != 0 {
		t.Errorf("lost records: %+v, %v", st.Recording, err)
	}
	list, err := b.records()
	check(t, err)
	for _, s := range list {
		if sources[s.source()] && s.EndReason == "gateway_lost" && s.Node == "crm-1" {
			delete(sources, s.source())
		}
	}
	if len(sources) > 0 {
		t.Errorf("%d of the flows without a gateway are not on record: %v", len(sources), sources)
	}
	eventually(t, 20*time.Second, b.curl)
	ctx := t.Context()
	check(t, b.agent.Stop(ctx))
	check(t, on("umount", b.agentData))
}
