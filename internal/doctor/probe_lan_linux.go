package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"sync"

	"decoynet/deception"
	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/survey"
	"decoynet/internal/kernel/trial"
)

// Bounds of what is asked on a LAN.
const (
	// maxAsked decoy addresses of a segment are asked for; of more, as many,
	// evenly spread.
	maxAsked = 4096
	// twiceBelow so many, each is asked for twice: frames get lost.
	twiceBelow = 1024
	// maxSwept addresses are tried for anybody who answers at all.
	maxSwept = 254
	// maxNeighbours known ones are tried.
	maxNeighbours = 16
)

// readSegments asks on every segment's LAN, all at once.
func (r *reader) readSegments(ctx context.Context) {
	segments := r.facts.segments()
	r.facts.Segments = make([]SegmentFacts, len(segments))
	var wg sync.WaitGroup
	for i, s := range segments {
		r.facts.Segments[i].Name = s.Name
		if s.VLAN != 0 {
			continue // asked for at its trunk
		}
		wg.Go(func() {
			out := &r.facts.Segments[i]
			if err := r.readSegment(ctx, &s, out); err != nil {
				r.unread("lan", s.Name, err)
			}
		})
	}
	r.readTrunks(ctx, &wg)
	wg.Wait()
}

func (r *reader) readSegment(ctx context.Context, s *deception.Segment, out *SegmentFacts) error {
	p := r.facts.Link(s.Parent)
	if p == nil || !p.Ethernet || p.Loopback || !p.Up || len(p.MAC) != 6 {
		return nil // judged by what is known already
	}
	ns, lan, err := r.lan(ctx, s)
	if err != nil {
		out.Create = err
		return nil
	}
	defer ns.Close()
	out.Exists, out.MAC = ns.Name() == netns.SegmentName(s.Name), lan.MAC
	ours := append(r.ourMACs(), lan.MAC)
	near, err := openWire(r.host, p.Index, p.MAC, append(slices.Clone(ours), p.MAC))
	if err != nil {
		return err
	}
	defer near.close()
	far, err := openWire(ns, lan.Index, lan.MAC, append(slices.Clone(ours), p.MAC))
	if err != nil {
		return err
	}
	defer far.close()
	if !p.Carrier || r.Passive {
		return nil
	}
	errPass := r.tryLAN(ctx, s, p, near, far, out)
	return errors.Join(errPass, r.findConflicts(ctx, s, near, out))
}

// lan returns the segment's own link where it stands, and another macvlan on
// the same NIC, which lasts as long as its namespace is open, where it does not.
func (r *reader) lan(ctx context.Context, s *deception.Segment) (*netns.NS, *survey.Link, error) {
	ns, err := netns.Open(netns.SegmentName(s.Name))
	if err == nil {
		links, err := survey.Links(ns)
		if i := slices.IndexFunc(links, func(l survey.Link) bool { return l.Name == link.LANName && l.Up }); i >= 0 && err == nil {
			return ns, &links[i], nil
		}
		ns.Close()
	} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, netns.ErrNotNamespace) {
		return nil, nil, err
	}
	if ns, err = trial.Namespace(); err != nil {
		return nil, nil, err
	}
	status, err := link.Apply(ctx, r.host, ns, link.Desired{Segment: s.Name, Parent: s.Parent, Node: "doctor"})
	if err != nil {
		ns.Close()
		return nil, nil, err
	}
	return ns, &survey.Link{Index: status.Index, Name: link.LANName, MAC: status.MAC}, nil
}

// ourMACs are those of the segments that stand.
func (r *reader) ourMACs() []net.HardwareAddr {
	var out []net.HardwareAddr
	if r.facts.Running == nil {
		return nil
	}
	for _, s := range r.facts.Running.Segments {
		if mac, err := net.ParseMAC(s.MAC); err == nil {
			out = append(out, mac)
		}
	}
	return out
}

// tryLAN asks neighbours under the NIC's own MAC address and under the
// segment's.
func (r *reader) tryLAN(ctx context.Context, s *deception.Segment, p *survey.Link, near, far *wire, out *SegmentFacts) error {
	var gateways []netip.Addr
	for _, n := range s.Subnets {
		if n.Gateway.IsValid() && !r.own(n.Gateway) {
			gateways = append(gateways, n.Gateway)
		}
	}
	sender := r.senders(s, p, out)
	out.LAN.Asked = out.Exists
	near.unicast, far.unicast = true, true
	defer func() { near.unicast = false }() // conflicts are asked for next
	try := func(targets []netip.Addr) error {
		if len(targets) == 0 {
			return nil
		}
		out.LAN.Done = true
		byNIC, err := near.ask(ctx, targets, func(t netip.Addr) netip.Addr { return hostSender(p, t) }, 2)
		if err != nil {
			return fmt.Errorf("ask under the MAC address of %s: %w", p.Name, err)
		}
		bySegment, err := far.ask(ctx, targets, sender, 2)
		if err != nil {
			return fmt.Errorf("ask under the segment's MAC address: %w", err)
		}
		for _, t := range targets {
			_, a := byNIC[t]
			_, b := bySegment[t]
			out.LAN.Parent, out.LAN.Macvlan = out.LAN.Parent || a, out.LAN.Macvlan || b
			if b || a && !out.LAN.Macvlan {
				out.LAN.Neighbour = t
			}
			if !a && !b && slices.Contains(gateways, t) {
				out.LAN.Silent = append(out.LAN.Silent, t)
			}
		}
		return nil
	}
	if err := try(append(gateways, r.knownNeighbours(s, p)...)); err != nil || out.LAN.Parent || out.LAN.Macvlan {
		return err
	}
	return try(r.anybody(s))
}

// own tells whether the address is this host's, which no frame is needed for.
func (r *reader) own(a netip.Addr) bool {
	return slices.ContainsFunc(r.facts.Links, func(l survey.Link) bool {
		return slices.ContainsFunc(l.Addrs, func(p netip.Prefix) bool { return p.Addr() == a })
	})
}

// isDecoy tells whether the address is one of ours: at another segment on the
// same NIC it would be answered within this machine.
func (r *reader) isDecoy(a netip.Addr) bool {
	return slices.ContainsFunc(r.facts.State.Decoys, func(d deception.Decoy) bool {
		return slices.ContainsFunc(d.Addresses, func(x deception.AddrRange) bool { return x.Contains(a) })
	})
}

// senders returns the address under which the segment's MAC address asks: a
// decoy's where the segment stands, for that is who we are; otherwise nobody's.
func (r *reader) senders(s *deception.Segment, p *survey.Link, out *SegmentFacts) func(netip.Addr) netip.Addr {
	mac := out.MAC
	return func(t netip.Addr) netip.Addr {
		if t.Is6() {
			return linkLocal(mac) // what the answer is sent to; nobody keeps it for long
		}
		if !out.Exists {
			return netip.Addr{}
		}
		for _, d := range r.facts.State.DecoysOf(s.Name) {
			for _, a := range d.Addresses {
				if a.From.Is4() {
					return a.From
				}
			}
		}
		return netip.Addr{}
	}
}

// hostSender is the NIC's own address, or nobody's.
func hostSender(p *survey.Link, t netip.Addr) netip.Addr {
	for _, a := range p.Addrs {
		if a.Contains(t) || t.Is6() && a.Addr().IsLinkLocalUnicast() && a.Addr().Is6() {
			return a.Addr()
		}
	}
	if t.Is6() {
		return linkLocal(p.MAC)
	}
	return netip.Addr{}
}

// knownNeighbours are those that this host has talked to on the NIC.
func (r *reader) knownNeighbours(s *deception.Segment, p *survey.Link) []netip.Addr {
	list, err := survey.Neighbours(r.host, p.Index)
	if err != nil {
		r.unread("lan", s.Name, err)
		return nil
	}
	var out []netip.Addr
	for _, n := range list {
		if len(n.MAC) == 6 && n.State != "FAILED" && n.State != "INCOMPLETE" && n.State != "NOARP" &&
			!n.Addr.IsMulticast() && !r.isDecoy(n.Addr) && len(out) < maxNeighbours {
			out = append(out, n.Addr)
		}
	}
	return out
}

// anybody are addresses of the segment's first IPv4 subnet that might answer.
func (r *reader) anybody(s *deception.Segment) []netip.Addr {
	for _, n := range s.Subnets {
		if !n.Prefix.Addr().Is4() {
			continue
		}
		var out []netip.Addr
		for a := n.Prefix.Masked().Addr().Next(); n.Prefix.Contains(a) && len(out) < maxSwept; a = a.Next() {
			if !r.own(a) && !r.isDecoy(a) {
				out = append(out, a)
			}
		}
		return out
	}
	return nil
}

// findConflicts asks for the segment's decoy addresses as duplicate address
// detection does. The questions leave by the NIC itself, so that the segment
// does not hear them: a macvlan gets nothing that its NIC sends.
func (r *reader) findConflicts(ctx context.Context, s *deception.Segment, near *wire, out *SegmentFacts) error {
	var ranges []deception.AddrRange
	for _, d := range r.facts.State.DecoysOf(s.Name) {
		ranges = append(ranges, d.Addresses...)
	}
	targets, total := sample(ranges, maxAsked)
	out.Total = total
	rounds := 1
	if len(targets) < twiceBelow {
		rounds = 2
	}
	answers, err := near.ask(ctx, targets, nobody, rounds)
	if err != nil {
		return fmt.Errorf("ask for decoy addresses: %w", err)
	}
	out.Probed = uint64(len(targets))
	for _, t := range targets {
		if mac, ok := answers[t]; ok {
			out.Conflicts = append(out.Conflicts, Conflict{t, mac})
		}
	}
	// Nobody on the wire answers for this host itself.
	for _, l := range r.facts.Links {
		for _, a := range l.Addrs {
			if slices.ContainsFunc(ranges, func(x deception.AddrRange) bool { return x.Contains(a.Addr()) }) {
				out.Conflicts = append(out.Conflicts, Conflict{a.Addr(), bytes.Clone(l.MAC)})
			}
		}
	}
	return nil
}

// sample returns at most n addresses of the ranges, evenly spread, and how many
// there are.
func sample(ranges []deception.AddrRange, n uint64) ([]netip.Addr, uint64) {
	total := uint64(0)
	for _, r := range ranges {
		total += r.Len()
	}
	if total == 0 {
		return nil, 0
	}
	count := min(n, total)
	out := make([]netip.Addr, 0, count)
	before, i := uint64(0), 0
	for k := range count {
		at := k * (total / count) // evenly
		if extra := total % count; extra > 0 {
			at += k * extra / count
		}
		for at-before >= ranges[i].Len() {
			before += ranges[i].Len()
			i++
		}
		out = append(out, deception.Nth(ranges[i].From, at-before))
	}
	return out, total
}
