package firewall

import (
	"context"
	"errors"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Limits bounds what a segment says unasked for, or to whom it should not.
type Limits struct {
	// ARP is how many ARP requests are answered in a second, for all decoys
	// together: a flood of forged requests must not become a flood of answers.
	ARP uint32
	// Yield leaves machines unanswered that ask whether they may take an address
	// (an ARP probe, RFC 5227; with IPv6 also duplicate address detection, RFC
	// 4862): a production host that was told that its address is taken would not
	// come up. Whoever claims the addresses gives up the one that is asked for.
	Yield, IPv6 bool
}

const (
	arpRequest, arpReply = 1, 2 // RFC 826, ar$op
	packetBroadcast      = 1    // PACKET_BROADCAST of linux/if_packet.h
)

// Hooks of linux/netfilter_arp.h.
var (
	arpIn  = nftables.ChainHook(0)
	arpOut = nftables.ChainHook(1)
)

const yieldScope = "yield"

// ApplyLimits writes the limits into the segment's namespace. A burst of twice
// the rate passes. ICMP is limited by the kernel itself, see package link.
func ApplyLimits(ctx context.Context, seg Namespace, l Limits) (Status, error) {
	want := newRuleset()
	want.counters[limitScope+"-arp"] = true
	operation := func(op byte) exprs {
		return exprs{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 6, Len: 2}, equal(0, op)}
	}
	want.chain(limitScope+"-output", &hook{kind: nftables.ChainTypeFilter, hook: arpOut, priority: *nftables.ChainPriorityFilter}).
		add("ARP answers", operation(arpReply), exprs{
			&expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(l.ARP), Unit: expr.LimitTimeSecond, Burst: 2 * l.ARP, Over: true},
		}, count(limitScope+"-arp"), drop())
	if l.Yield {
		want.chain(limitScope+"-input", &hook{kind: nftables.ChainTypeFilter, hook: arpIn, priority: *nftables.ChainPriorityFilter}).
			add("ARP probes", exprs{meta(expr.MetaKeyPKTTYPE), equal(packetBroadcast)}, operation(arpRequest), exprs{
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 14, Len: 4}, equal(0, 0, 0, 0),
			}, drop())
	}
	status, err := applyScope(ctx, seg, scope{word: limitScope, family: nftables.TableFamilyARP}, want)
	if !l.IPv6 {
		return status, err
	}
	detection := newRuleset()
	if l.Yield {
		detection.chain(yieldScope+"-input", &hook{kind: nftables.ChainTypeFilter, hook: *nftables.ChainHookInput, priority: *nftables.ChainPriorityFilter - 10}).
			add("duplicate address detection", ipv6(), exprs{loadAddr(false, true, 1), equal(make([]byte, 16)...)}, icmp(unix.IPPROTO_ICMPV6, 135, 135), drop())
	}
	more, err6 := applyWhole(ctx, seg, yieldScope, detection)
	return status.plus(more), errors.Join(err, err6)
}
