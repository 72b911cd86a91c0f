package firewall

import (
	"context"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const guardLinks = "guard-links"

// ApplyGuard keeps what comes in at the links from reaching the host's own
// services at addresses of other interfaces, and from being routed. Linux hosts
// answer at every interface for the addresses of all (RFC 1122, section 3.3.4.2,
// calls it the weak end system model), and who is on a trunk port's native VLAN
// would be a neighbour of the host's controller and sshd.
//
// It is for links that have no address: one that gets an address is reachable at
// that address as before. Frames of decoys are not met by it, since their links
// take them before the host's IP layer does.
func ApplyGuard(ctx context.Context, host Namespace, links []string) (Status, error) {
	want := newRuleset()
	if len(links) > 0 {
		set := want.set(newSet(guardLinks, nftables.TypeIFName, nftables.SetDatatype{}))
		for _, name := range links {
			if err := checkLink(name); err != nil {
				return Status{}, err
			}
			set.add(element{key: string(ifname(name))})
		}
		want.counters[guardScope+"-denied"] = true
		deny := exprs{&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: guardScope + "-denied"}, &expr.Verdict{Kind: expr.VerdictDrop}}
		from := exprs{meta(expr.MetaKeyIIFNAME), &expr.Lookup{SourceRegister: 1, SetName: guardLinks}}
		before := *nftables.ChainPriorityFilter - 10
		// Broadcast and multicast are not addresses of another interface.
		elsewhere := slices.Concat(toType(unix.RTN_LOCAL), exprs{
			&expr.Fib{Register: 1, FlagDADDR: true, FlagIIF: true, ResultADDRTYPE: true}, differs(nativeUint32(unix.RTN_LOCAL)...),
		})
		want.chain("guard-input", &hook{kind: nftables.ChainTypeFilter, hook: *nftables.ChainHookInput, priority: before}).
			add("addresses of other interfaces", from, elsewhere, deny)
		want.chain("guard-forward", &hook{kind: nftables.ChainTypeFilter, hook: *nftables.ChainHookForward, priority: before}).
			add("nothing is routed", from, deny)
	}
	return applyWhole(ctx, host, guardScope, want)
}
