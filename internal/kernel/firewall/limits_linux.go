package firewall

import (
	"context"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Limits bounds how much a segment says unasked for. A forged flood of requests
// must not become a flood of answers on a production network.
type Limits struct {
	ARP uint32 // answers to ARP requests a second, for all decoys of the segment together
}

const (
	arpReply = 2                     // RFC 826, ar$op
	arpOut   = nftables.ChainHook(1) // NF_ARP_OUT of linux/netfilter_arp.h
)

// ApplyLimits writes the limits into the segment's namespace. A burst of twice
// the rate passes. ICMP is limited by the kernel itself, see package link.
func ApplyLimits(ctx context.Context, seg Namespace, l Limits) (Status, error) {
	want := newRuleset()
	want.counters[limitScope+"-arp"] = true
	want.chain(limitScope+"-output", &hook{kind: nftables.ChainTypeFilter, hook: arpOut, priority: *nftables.ChainPriorityFilter}).
		add("ARP answers", exprs{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 6, Len: 2}, equal(0, arpReply),
			&expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(l.ARP), Unit: expr.LimitTimeSecond, Burst: 2 * l.ARP, Over: true},
		}, count(limitScope+"-arp"), drop())
	return applyScope(ctx, seg, scope{word: limitScope, family: nftables.TableFamilyARP}, want)
}
