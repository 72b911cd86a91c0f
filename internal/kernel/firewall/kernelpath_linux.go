package firewall

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"decoynet/deception"
	"decoynet/internal/kernel/conntrack"
)

// Reply says how the host knows the segment that a service's answer belongs to.
type Reply uint8

const (
	// ReplyByMark tracks the flows in the host's namespace too and marks
	// their answers with the connection's mark. It works with every service
	// and costs a second connection tracking. Of two flows with the same
	// addresses and ports at the service, by another segment or the relay, the
	// first one is led, and the second one denied.
	ReplyByMark Reply = iota
	// ReplyByAlias marks answers by the service address that they come from:
	// every Redirect leads to one of the segment's own Aliases. The host needs
	// no connection tracking for it.
	ReplyByAlias
)

// Redirect leads one port of a decoy to a service.
type Redirect struct {
	Transport deception.Transport
	Decoy     netip.AddrPort
	Service   netip.AddrPort // the service or its alias; the family of Decoy
}

// KernelPath is one segment's decoys whose flows stay in the kernel.
type KernelPath struct {
	// Index is the segment's number, 1 to 65534: the lower half of its marks.
	Index uint16
	// HostLink is the host's end of the veth into the segment's namespace;
	// its name begins with SegmentLinkPrefix.
	HostLink string
	// LAN and Uplink are the interfaces in the segment's namespace: towards
	// the intruders, and towards the host. Empty means lan0 and up0.
	LAN, Uplink string
	Redirects   []Redirect
	Reply       Reply
	// Aliases are the pools of service addresses that are this segment's
	// alone; only with ReplyByAlias. The host lets the segment reach all of
	// each pool, so that a withdrawn redirect does not cut its living flows.
	Aliases []netip.Prefix
	// Idle ends a TCP flow that has had no packet for so long; zero means an hour.
	Idle time.Duration
}

// Mark is the mark of the segment's packets and, in the host's namespace,
// connections.
func (k *KernelPath) Mark() uint32 { return MarkTag | uint32(k.Index) }

// ApplyKernelPath writes the rules of one segment's kernel path: in the segment's
// namespace seg DNAT by one map per family and transport, in the host's
// namespace host the way of its answers back. The routes of both (to the services
// through Uplink, for Mark back through HostLink) are not its business.
//
// What is no longer bound is refused to new flows; established ones live on,
// since only a flow's first packet meets the map.
//
// The segment's namespace lets through flows that were redirected, and nothing
// else in any direction. It records in the connection's mark who closed a flow
// first, and cuts connection events down to start, close and end, which package
// conntrack reads; see [conntrack.Tune] for the timeouts that it sets.
func ApplyKernelPath(ctx context.Context, host, seg Namespace, k KernelPath) (Status, error) {
	if err := k.normalise(); err != nil {
		return Status{}, err
	}
	want, err := compileKernelPath(&k)
	if err != nil {
		return Status{}, err
	}
	if err := conntrack.Tune(seg, conntrack.Tuning{Idle: k.Idle}); err != nil {
		return Status{}, err
	}
	compileHost := func(have *ruleset) *ruleset {
		return compileSegmentLink(otherSegments(have, k.HostLink, k.Mark()), &k)
	}
	sc := k.hostScope()
	// New targets are let through before flows are led to them, old ones
	// denied when none is any more.
	added, err := apply(ctx, host, sc, true, compileHost)
	if err != nil {
		return added, err
	}
	changed, err := applyWhole(ctx, seg, kernelPathScope, want)
	total := added.plus(changed)
	if err != nil {
		return total, err
	}
	removed, err := apply(ctx, host, sc, false, compileHost)
	return total.plus(removed), err
}

// RemoveKernelPath takes back what ApplyKernelPath wrote for the segment. Either
// namespace may be nil where it does not exist any more. The sysctls of the
// segment's namespace stay.
func RemoveKernelPath(ctx context.Context, host, seg Namespace, k KernelPath) (Status, error) {
	if err := k.normalise(); err != nil {
		return Status{}, err
	}
	var total Status
	if seg != nil {
		s, err := applyWhole(ctx, seg, kernelPathScope, newRuleset())
		if err != nil {
			return s, err
		}
		total = s
	}
	if host == nil {
		return total, nil
	}
	s, err := apply(ctx, host, k.hostScope(), false, func(have *ruleset) *ruleset {
		return compileSegmentLink(otherSegments(have, k.HostLink, k.Mark()), nil)
	})
	return total.plus(s), err
}

// normalise fills in defaults and refuses what cannot be written as rules.
func (k *KernelPath) normalise() error {
	if k.LAN == "" {
		k.LAN = "lan0"
	}
	if k.Uplink == "" {
		k.Uplink = "up0"
	}
	if k.Idle == 0 {
		k.Idle = time.Hour
	}
	if k.Index == 0 || k.Index == 0xffff {
		return fmt.Errorf("%w: segment index %d; 1 to 65534", ErrInvalid, k.Index)
	}
	for _, name := range []string{k.HostLink, k.LAN, k.Uplink} {
		if err := checkLink(name); err != nil {
			return err
		}
	}
	if len(k.HostLink) <= len(SegmentLinkPrefix) || k.HostLink[:len(SegmentLinkPrefix)] != SegmentLinkPrefix {
		return fmt.Errorf("%w: host link %q; its name begins with %s", ErrInvalid, k.HostLink, SegmentLinkPrefix)
	}
	for _, r := range k.Redirects {
		if err := k.check(r); err != nil {
			return fmt.Errorf("%w: redirect %s %s to %s: %w", ErrInvalid, r.Transport, r.Decoy, r.Service, err)
		}
	}
	return nil
}

func (k *KernelPath) check(r Redirect) error {
	switch {
	case r.Transport != deception.TCP && r.Transport != deception.UDP:
		return errors.New("neither TCP nor UDP")
	case !r.Decoy.IsValid() || !r.Service.IsValid() || r.Decoy.Port() == 0 || r.Service.Port() == 0:
		return errors.New("address or port is missing")
	case r.Decoy.Addr().Is4() != r.Service.Addr().Is4() || r.Decoy.Addr().Is4In6() || r.Service.Addr().Is4In6():
		return errors.New("the families differ")
	}
	if k.Reply == ReplyByAlias && !slices.ContainsFunc(k.Aliases, func(p netip.Prefix) bool { return p.Contains(r.Service.Addr()) }) {
		return errors.New("the service address is in none of the segment's alias pools")
	}
	return nil
}

// targets are the service addresses of one family that the segment may reach.
func (k *KernelPath) targets(is4 bool) []deception.AddrRange {
	var out []deception.AddrRange
	if k.Reply == ReplyByAlias {
		for _, p := range k.Aliases {
			if p.Addr().Is4() == is4 {
				out = append(out, deception.RangeOf(p))
			}
		}
		return deception.SortRanges(out)
	}
	seen := map[netip.Addr]bool{}
	for _, r := range k.Redirects {
		if a := r.Service.Addr(); a.Is4() == is4 && !seen[a] {
			seen[a] = true
			out = append(out, deception.AddrRange{From: a, To: a})
		}
	}
	return deception.SortRanges(out)
}
