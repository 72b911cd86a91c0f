package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"decoynet/deception"
	"decoynet/internal/kernel/firewall"
	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/nft"
)

// arpRate is how many ARP requests a segment answers in a second: more than a
// scanner of a whole /16 sends that wants to hear the answers, and little for a
// switch.
const arpRate = 2000

// applyGuard keeps the host's own services out of reach from trunk ports: from
// parents at which this machine cannot be meant to be reached, since they have no
// address. A link-local address comes by itself. It must be called with mu held.
func (a *Agent) applyGuard(ctx context.Context) error {
	parents := map[string]bool{}
	for _, s := range a.state.Segments {
		parents[s.Parent] = true
	}
	interfaces, err := link.Interfaces(a.host)
	if err != nil {
		return fmt.Errorf("look for the addresses of the segments' parents: %w", err)
	}
	var guarded []string
	for _, i := range interfaces {
		if parents[i.Name] && !slices.ContainsFunc(i.Addresses, func(p netip.Prefix) bool { return !p.Addr().IsLinkLocalUnicast() }) {
			guarded = append(guarded, i.Name)
		}
	}
	if _, err := firewall.ApplyGuard(ctx, a.host, guarded); err != nil {
		return fmt.Errorf("keep this machine's services out of reach from %v: %w", guarded, err)
	}
	return nil
}

// limit bounds the segment's answers. A kernel that has no nftables for ARP is
// no reason to have no segment.
func (s *segment) limit(ctx context.Context) error {
	_, err := firewall.ApplyLimits(ctx, s.ns, firewall.Limits{
		ARP: arpRate, Yield: s.plan.segment.Claim != deception.ClaimUnchecked,
		IPv6: slices.ContainsFunc(s.plan.segment.Subnets, func(sub deception.Subnet) bool { return sub.Prefix.Addr().Is6() }),
	})
	s.warnings = nil
	if nft.Unsupported(err) {
		s.warnings = []string{fmt.Sprintf("segment %s: ARP answers are not limited: this kernel has no nftables for ARP (CONFIG_NF_TABLES_ARP): %v", s.name, err)}
		return nil
	}
	if err != nil {
		return fmt.Errorf("limit ARP answers: %w", err)
	}
	return nil
}
