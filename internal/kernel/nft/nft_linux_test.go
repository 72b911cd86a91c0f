package nft

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"decoynet/internal/kernel/netns/netnstest"
)

// The kernel itself says what it has and what it lacks.
func TestUnsupported(t *testing.T) {
	ns := netnstest.New(t, "nft")
	add := func(family nftables.TableFamily, hook nftables.ChainHook) error {
		conn, err := Open(ns.FD())
		if err != nil {
			t.Fatal(err)
		}
		table := conn.AddTable(&nftables.Table{Family: family, Name: "t"})
		conn.AddChain(&nftables.Chain{Table: table, Name: "c", Type: nftables.ChainTypeFilter, Hooknum: &hook, Priority: nftables.ChainPriorityFilter})
		return conn.Flush()
	}
	if err := add(nftables.TableFamilyINet, *nftables.ChainHookInput); err != nil || !strings.Contains(netnstest.Run(t, ns, "nft", "list", "tables"), "table inet t") {
		t.Errorf("what the kernel has: %v", err)
	}
	const none = 11 // a protocol family that has no netfilter
	if err := add(none, *nftables.ChainHookInput); !Unsupported(err) {
		t.Errorf("a family that no kernel has: %v", err)
	}
	if err := add(nftables.TableFamilyINet, 99); err == nil {
		t.Error("a hook that no kernel has")
	}
	if Unsupported(nil) || Unsupported(fmt.Errorf("write rules: %w", unix.EPERM)) || Unsupported(unix.EBUSY) {
		t.Error("not all that fails is missing")
	}
}
