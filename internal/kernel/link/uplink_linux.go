package link

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"decoynet/internal/kernel/netns"
)

// applyUplink makes, adopts or removes the veth pair of the kernel path.
func (s *segment) applyUplink() error {
	segLinks, err := byNames(s.segH, UplinkName)
	if err != nil {
		return err
	}
	hostLinks, err := byNames(s.hostH, HostName(s.Segment))
	if err != nil {
		return err
	}
	if !s.Uplink && len(segLinks)+len(hostLinks) == 0 {
		return nil
	}
	// The two addresses only ever meet each other.
	hostMAC := hardwareAddr("uplink host", s.Segment)
	linkMAC := hardwareAddr("uplink segment", s.Segment)
	want := uplinkSpec{HostName: HostName(s.Segment), HostMAC: hostMAC.String(), LinkMAC: linkMAC.String()}
	if want.HostNS, err = s.segH.GetNetNsIdByFd(s.host.FD()); err != nil {
		return fmt.Errorf("look up the host namespace's id: %w", err)
	}
	keep, dropSeg, dropHost, err := planUplink(segLinks, hostLinks, want)
	if err != nil {
		if !s.Uplink {
			return nil // not ours and not in the way
		}
		return err
	}
	if !s.Uplink && keep {
		dropSeg = byName(segLinks, UplinkName)
	}
	if err := s.dropUplink(dropSeg, dropHost); err != nil || !s.Uplink {
		return err
	}
	if !keep {
		if err := s.createUplink(want, hostMAC, linkMAC); err != nil {
			return err
		}
	}
	return s.configureUplink(want, hostMAC, linkMAC)
}

// dropUplink removes old ends. Removing one end of a pair removes the other.
func (s *segment) dropUplink(seg, host *nic) error {
	if seg != nil {
		if err := remove(s.segH, *seg); err != nil {
			return err
		}
		s.changed("%s removed", seg.Name)
	}
	if host != nil {
		if err := remove(s.hostH, *host); err != nil {
			return err
		}
		if seg == nil {
			s.changed("%s removed from the host namespace", host.Name)
		}
	}
	return nil
}

// createUplink makes both ends in the segment namespace, which is ours alone,
// marks them, and only then moves one into the host namespace: nothing of ours
// is ever there without its mark.
func (s *segment) createUplink(want uplinkSpec, hostMAC, linkMAC net.HardwareAddr) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = UplinkName
	attrs.HardwareAddr = linkMAC
	attrs.MTU = s.parent.MTU
	err := s.segH.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: want.HostName, PeerHardwareAddr: hostMAC})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("make a veth pair: %w (modprobe veth)", ErrNotSupported)
	}
	if err != nil {
		return fmt.Errorf("make the veth pair %s, %s: %w", UplinkName, want.HostName, err)
	}
	up, err := claim(s.segH, UplinkName)
	if err != nil {
		return err
	}
	peer, err := claim(s.segH, want.HostName)
	if err != nil {
		return errors.Join(err, remove(s.segH, *up))
	}
	if err := s.segH.LinkSetNsFd(reference(*peer), s.host.FD()); err != nil {
		return errors.Join(fmt.Errorf("move %s to the host namespace: %w", want.HostName, err), remove(s.segH, *up))
	}
	s.changed("%s and %s made", UplinkName, want.HostName)
	return nil
}

// configureUplink sets what either end needs: settings first, so that no
// link-local address appears when it comes up; then up; then the neighbours,
// which the kernel drops whenever an interface goes down.
func (s *segment) configureUplink(want uplinkSpec, hostMAC, linkMAC net.HardwareAddr) error {
	ends := []struct {
		ns   *netns.NS
		h    *netlink.Handle
		name string
		peer net.HardwareAddr
		hops []netip.Addr
	}{
		{s.host, s.hostH, want.HostName, linkMAC, []netip.Addr{NextHopSegment4, NextHopSegment6}},
		{s.seg, s.segH, UplinkName, hostMAC, []netip.Addr{NextHopHost4, NextHopHost6}},
	}
	index := make([]int, len(ends))
	for i, end := range ends {
		if err := set(end.ns, uplinkSysctls(end.name, s.ipv6)); err != nil {
			return err
		}
		l, err := end.h.LinkByName(end.name)
		if err != nil {
			return fmt.Errorf("look for %s: %w", end.name, err)
		}
		n := describe(l)
		if err := s.adjust(end.h, n, s.parent.MTU); err != nil {
			return err
		}
		for _, hop := range end.hops {
			if hop.Is6() && !s.ipv6 {
				continue
			}
			if err := s.neighbour(end.h, n, hop, end.peer); err != nil {
				return err
			}
		}
		index[i] = n.Index
	}
	s.status.Uplink = &UplinkStatus{HostName: want.HostName, HostIndex: index[0], Index: index[1]}
	return s.warnForwarding(want.HostName)
}

// neighbour makes the permanent entry through which a next hop is reached.
func (s *segment) neighbour(h *netlink.Handle, n nic, hop netip.Addr, mac net.HardwareAddr) error {
	family := unix.AF_INET
	if hop.Is6() {
		family = unix.AF_INET6
	}
	have, err := netns.Dump(func() ([]netlink.Neigh, error) { return h.NeighList(n.Index, family) })
	if err != nil {
		return fmt.Errorf("list neighbours of %s: %w", n.Name, err)
	}
	for _, e := range have {
		if ip, ok := netip.AddrFromSlice(e.IP); ok && ip.Unmap() == hop &&
			e.State == netlink.NUD_PERMANENT && e.HardwareAddr.String() == mac.String() {
			return nil
		}
	}
	err = h.NeighSet(&netlink.Neigh{
		LinkIndex: n.Index, Family: family, State: netlink.NUD_PERMANENT,
		Type: unix.RTN_UNICAST, IP: hop.AsSlice(), HardwareAddr: mac,
	})
	if err != nil {
		return fmt.Errorf("set the neighbour %s of %s: %w", hop, n.Name, err)
	}
	s.changed("%s: neighbour %s", n.Name, hop)
	return nil
}

// warnForwarding tells what keeps the host from forwarding IPv6 that arrives
// from the segment: only the host's owner may change that.
func (s *segment) warnForwarding(name string) error {
	if !s.ipv6 {
		return nil
	}
	all, err := s.host.ReadSysctl("net/ipv6/conf/all/forwarding")
	if err != nil {
		return err
	}
	forced, err := s.host.ReadSysctl("net/ipv6/conf/" + name + "/force_forwarding")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if all == "0" && forced != "1" {
		s.status.Warnings = append(s.status.Warnings,
			"IPv6 is not forwarded by this host (a kernel before 6.17 has no setting per interface): sysctl -w net.ipv6.conf.all.forwarding=1")
	}
	return nil
}

// Owned returns the sorted names of our links in the host namespace.
func Owned(host *netns.NS) ([]string, error) {
	links, err := ownedLinks(host)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(links))
	for i, n := range links {
		names[i] = n.Name
	}
	return names, nil
}

// Remove deletes the links of the segment: those of ours in its namespace, if
// that still exists, and its veth end in the host namespace. The namespace
// itself stays.
func Remove(ctx context.Context, host *netns.NS, segment string) error {
	var errs []error
	for _, step := range []func() error{
		func() error { return removeInside(segment) },
		func() error { return removeOutside(host, segment) },
	} {
		if err := ctx.Err(); err != nil {
			errs = append(errs, err)
			break
		}
		errs = append(errs, step())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove the links of segment %s: %w", segment, err)
	}
	return nil
}

func removeInside(segment string) error {
	ns, err := netns.Open(netns.SegmentName(segment))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, netns.ErrNotNamespace) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	links, err := ownedLinks(ns)
	if err != nil {
		return err
	}
	return removeAll(ns, links)
}

func removeOutside(host *netns.NS, segment string) error {
	links, err := ownedLinks(host)
	if err != nil {
		return err
	}
	if n := byName(links, HostName(segment)); n != nil {
		return removeAll(host, []nic{*n})
	}
	return nil
}

// RemoveOwned deletes every link of ours in the host namespace, whatever segment
// it belonged to: what is left when the segment's namespace was lost.
func RemoveOwned(ctx context.Context, host *netns.NS) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	links, err := ownedLinks(host)
	if err != nil {
		return err
	}
	return removeAll(host, links)
}

func removeAll(ns *netns.NS, links []nic) error {
	h, err := ns.Handle()
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range links {
		errs = append(errs, remove(h, n))
	}
	return errors.Join(errs...)
}

func ownedLinks(ns *netns.NS) ([]nic, error) {
	h, err := ns.Handle()
	if err != nil {
		return nil, err
	}
	links, err := list(h)
	if err != nil {
		return nil, err
	}
	owned := slices.DeleteFunc(links, func(n nic) bool { return !n.ours() })
	slices.SortFunc(owned, func(a, b nic) int { return strings.Compare(a.Name, b.Name) })
	return owned, nil
}
