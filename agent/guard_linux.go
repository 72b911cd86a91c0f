package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/kernel/firewall"
)

// arpRate is how many ARP requests a segment answers in a second: more than a
// scanner of a whole /16 sends that wants to hear the answers, and little for a
// switch.
const arpRate = 2000

// applyGuard keeps the host's own services out of reach from trunk ports. It must
// be called with mu held.
func (a *Agent) applyGuard(ctx context.Context) error {
	var parents []string
	for _, s := range a.state.Segments {
		if s.Parent != "" && !slices.Contains(parents, s.Parent) && !hasAddress(s.Parent) {
			parents = append(parents, s.Parent)
		}
	}
	if _, err := firewall.ApplyGuard(ctx, a.host, parents); err != nil {
		return fmt.Errorf("keep this machine's services out of reach from %v: %w", parents, err)
	}
	return nil
}

// hasAddress tells whether this machine can be meant to be reached at the
// interface. A link-local address comes by itself.
func hasAddress(name string) bool {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return true // it is not there, or goes away: nothing to guard
	}
	addrs, err := link.Addrs()
	return err != nil || slices.ContainsFunc(addrs, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err != nil || !p.Addr().IsLinkLocalUnicast()
	})
}

// limit bounds the segment's answers. A kernel that has no nftables for ARP is
// no reason to have no segment.
func (s *segment) limit(ctx context.Context) error {
	_, err := firewall.ApplyLimits(ctx, s.ns, firewall.Limits{
		ARP: arpRate, Yield: s.plan.segment.Claim != deception.ClaimUnchecked,
		IPv6: slices.ContainsFunc(s.plan.segment.Subnets, func(sub deception.Subnet) bool { return sub.Prefix.Addr().Is6() }),
	})
	s.warnings = nil
	for _, missing := range []error{unix.ENOENT, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT} {
		if errors.Is(err, missing) {
			s.warnings = []string{fmt.Sprintf("segment %s: ARP answers are not limited: this kernel has no nftables for ARP (CONFIG_NF_TABLES_ARP): %v", s.name, err)}
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("limit ARP answers: %w", err)
	}
	return nil
}
