package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"decoynet/deception"
	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/survey"
)

// trunkNamespace holds the VLAN devices of all trunks while decoynet runs.
var trunkNamespace = netns.Trunk

// Bounds of what is asked at a trunk.
const (
	maxTrunkAsked = 2048 // decoy addresses of all its VLANs together
	minVLANAsked  = 16   // of one VLAN, however many there are
	maxGateways   = 4    // of one VLAN
	maxHeardAsked = 2    // hosts that were heard, where no gateway answered
)

// pingSizes are those that something on the way commonly allows, largest first:
// jumbo frames, Ethernet's, less the tags or headers of this and that.
var pingSizes = []int{9000, 4000, 1500, 1496, 1492, 1480, 1472, 1450, 1400, 1280, 576, 64}

// readTrunks listens and asks at all NICs that VLAN segments have.
func (r *reader) readTrunks(ctx context.Context, wg *sync.WaitGroup) {
	byParent := map[string][]*deception.Segment{}
	for _, s := range r.facts.vlanSegments() {
		if byParent[s.Parent] == nil {
			r.facts.Trunks = append(r.facts.Trunks, TrunkFacts{Parent: s.Parent})
		}
		byParent[s.Parent] = append(byParent[s.Parent], &s)
	}
	for i := range r.facts.Trunks {
		t := &r.facts.Trunks[i]
		wg.Go(func() {
			if err := r.readTrunk(ctx, t, byParent[t.Parent]); err != nil {
				r.unread("trunk", t.Parent, err)
			}
		})
	}
}

func (r *reader) readTrunk(ctx context.Context, t *TrunkFacts, segments []*deception.Segment) error {
	nic := r.facts.Link(t.Parent)
	if nic == nil || !nic.Ethernet || nic.Loopback || !nic.Up || !nic.Carrier || len(nic.MAC) != 6 {
		return nil // judged by what is known already
	}
	if r.Passive && r.Listen == 0 {
		return nil
	}
	ours := r.ourMACs()
	for _, s := range segments {
		f := r.facts.segment(s.Name)
		f.VLAN = &VLANFacts{ID: s.VLAN}
		if err := r.identify(s, nic, f); err != nil {
			return err
		}
		ours = append(ours, f.MAC)
	}
	p, err := openPort(r.host, nic, segments, ours)
	if err != nil {
		return err
	}
	began := time.Now()
	if r.Progress != nil && r.Listen > 0 {
		r.Progress(fmt.Sprintf("listening at %s for %s", nic.Name, r.Listen))
	}
	quiet := time.NewTimer(r.Listen)
	defer quiet.Stop()
	errs := make([]error, len(segments))
	if !r.Passive {
		share := uint64(max(maxTrunkAsked/len(segments), minVLANAsked))
		r.each(len(segments), func(i int) { errs[i] = r.askVLAN(ctx, p, segments[i], share) })
	}
	select {
	case <-quiet.C:
	case <-ctx.Done():
	}
	t.Listened = time.Since(began)
	if !r.Passive { // those who were heard meanwhile
		r.each(len(segments), func(i int) { errs[i] = errors.Join(errs[i], r.askHeard(ctx, p, segments[i])) })
	}
	counted := p.close()
	t.Heard = counted.census
	for _, s := range segments {
		f := r.facts.segment(s.Name)
		f.VLAN.Frames, f.VLAN.Strays = t.Heard.Tags[s.VLAN], counted.strays[s.Name]
		if f.VLAN.Frames == 0 {
			f.Probed, f.Total = 0, 0 // nobody can have heard the questions
		}
	}
	return errors.Join(errs...)
}

// identify finds out which MAC address the segment has, or is to have.
func (r *reader) identify(s *deception.Segment, nic *survey.Link, f *SegmentFacts) error {
	ns, err := netns.Open(netns.SegmentName(s.Name))
	if err == nil {
		defer ns.Close()
		links, err := survey.Links(ns)
		if i := slices.IndexFunc(links, func(l survey.Link) bool { return l.Name == link.LANName && len(l.MAC) == 6 }); i >= 0 && err == nil {
			f.Exists, f.MAC = true, links[i].MAC
			return nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, netns.ErrNotNamespace) {
		return err
	}
	f.MAC, err = link.SegmentMAC(nic.MAC.String(), r.facts.State.Node, s.Name)
	return err
}

// vlanLinks are this host's own devices in the segment's VLAN.
func (r *reader) vlanLinks(s *deception.Segment, nic *survey.Link) []survey.Link {
	return slices.DeleteFunc(slices.Clone(r.facts.Links), func(l survey.Link) bool { return l.VLAN != s.VLAN || l.Parent != nic.Index })
}

// askVLAN asks a VLAN's gateways, and for its decoy addresses. Nothing is asked
// under a decoy's address before nobody has answered for it.
func (r *reader) askVLAN(ctx context.Context, p *port, s *deception.Segment, share uint64) error {
	f := r.facts.segment(s.Name)
	own := r.vlanLinks(s, p.nic)
	mine := func(a netip.Addr) bool {
		return slices.ContainsFunc(own, func(l survey.Link) bool {
			return slices.ContainsFunc(l.Addrs, func(o netip.Prefix) bool { return o.Addr() == a })
		})
	}
	for _, n := range s.Subnets {
		if n.Gateway.IsValid() && !mine(n.Gateway) && len(f.VLAN.Peers) < maxGateways {
			f.VLAN.Peers = append(f.VLAN.Peers, Peer{Addr: n.Gateway, Gateway: true})
		}
	}
	for i := range f.VLAN.Peers {
		if err := r.askPeer(ctx, p, s, &f.VLAN.Peers[i], own); err != nil {
			return err
		}
	}
	ranges := r.decoyRanges(s)
	targets, total := sample(ranges, share)
	rounds := 1
	if len(targets) < twiceBelow {
		rounds = 2
	}
	found, err := p.taken(ctx, s.VLAN, p.nic.MAC, targets, rounds)
	if err != nil {
		return fmt.Errorf("ask for decoy addresses: %w", err)
	}
	f.Total, f.Probed = total, uint64(len(targets))
	for _, t := range targets {
		if mac := found[t]; mac != nil {
			f.Conflicts = append(f.Conflicts, Conflict{t, mac})
		}
	}
	for _, l := range own {
		for _, a := range l.Addrs {
			if slices.ContainsFunc(ranges, func(x deception.AddrRange) bool { return x.Contains(a.Addr()) }) {
				f.Conflicts = append(f.Conflicts, Conflict{a.Addr(), bytes.Clone(l.MAC)})
			}
		}
	}
	for i := range f.VLAN.Peers {
		if err := r.askAsDecoy(ctx, p, s, &f.VLAN.Peers[i]); err != nil {
			return err
		}
	}
	return nil
}

// askHeard asks hosts that were heard where no gateway has answered.
func (r *reader) askHeard(ctx context.Context, p *port, s *deception.Segment) error {
	v := r.facts.segment(s.Name).VLAN
	if slices.ContainsFunc(v.Peers, func(o Peer) bool { return o.answered() }) {
		return nil
	}
	ranges := r.decoyRanges(s)
	for _, a := range p.heard(s.VLAN) {
		decoy := slices.ContainsFunc(ranges, func(x deception.AddrRange) bool { return x.Contains(a) })
		known := slices.ContainsFunc(v.Peers, func(o Peer) bool { return o.Addr == a })
		if decoy || known || len(v.Peers) >= maxGateways+maxHeardAsked {
			continue
		}
		peer := Peer{Addr: a}
		err := r.askPeer(ctx, p, s, &peer, r.vlanLinks(s, p.nic))
		if err == nil {
			err = r.askAsDecoy(ctx, p, s, &peer)
		}
		v.Peers = append(v.Peers, peer)
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) decoyRanges(s *deception.Segment) []deception.AddrRange {
	var out []deception.AddrRange
	for _, d := range r.facts.State.DecoysOf(s.Name) {
		out = append(out, d.Addresses...)
	}
	return out
}

// askPeer asks under the NIC's own MAC address and under the segment's, from
// nobody's address, or from this host's where it has one in that VLAN.
func (r *reader) askPeer(ctx context.Context, p *port, s *deception.Segment, peer *Peer, own []survey.Link) error {
	q := question{vlan: s.VLAN, from: p.nic.MAC, reply: p.nic.MAC, target: peer.Addr}
	for i := range own {
		if a := hostSender(&own[i], peer.Addr); a.IsValid() && a.Is4() && peer.Addr.Is4() {
			q.sender, q.from, q.reply = a, own[i].MAC, own[i].MAC
		}
	}
	mac, err := p.ask(ctx, q)
	if err != nil {
		return err
	}
	peer.NIC, peer.MAC = mac != nil, mac
	segment := r.facts.segment(s.Name).MAC
	mac, err = p.ask(ctx, question{vlan: s.VLAN, from: segment, reply: segment, target: peer.Addr})
	if mac != nil {
		peer.Second, peer.MAC = true, mac
	}
	return err
}

// askAsDecoy asks as a decoy will, and where that is answered, tries how large a
// packet may be; where nothing that came from the segment's MAC address was
// answered, it tries each way alone.
func (r *reader) askAsDecoy(ctx context.Context, p *port, s *deception.Segment, peer *Peer) error {
	mac := r.facts.segment(s.Name).MAC
	if peer.Addr.Is4() {
		decoy, err := r.freeDecoy(ctx, p, s, peer.Addr)
		if err != nil {
			return err
		}
		if peer.Decoy = decoy; decoy.IsValid() {
			got, err := p.ask(ctx, question{vlan: s.VLAN, from: mac, reply: mac, sender: decoy, target: peer.Addr})
			if err != nil {
				return err
			}
			if got != nil {
				peer.AsDecoy, peer.MAC = true, got
				return r.measure(ctx, p, s, peer)
			}
		}
	}
	if peer.passes() || !peer.NIC {
		return nil
	}
	peer.Apart = true
	for _, way := range []struct {
		from, reply net.HardwareAddr
		passed      *bool
	}{{mac, p.nic.MAC, &peer.Out}, {p.nic.MAC, mac, &peer.Back}} {
		got, err := p.ask(ctx, question{vlan: s.VLAN, from: way.from, reply: way.reply, target: peer.Addr})
		if err != nil {
			return err
		}
		*way.passed = got != nil
	}
	return nil
}

// freeDecoy returns a decoy address in the peer's subnet that nobody has
// answered for three times (RFC 5227, section 1.1).
func (r *reader) freeDecoy(ctx context.Context, p *port, s *deception.Segment, peer netip.Addr) (netip.Addr, error) {
	const candidates, probes = 4, 3
	tried := 0
	for _, n := range s.Subnets {
		if !n.Prefix.Contains(peer) {
			continue
		}
		for _, x := range r.decoyRanges(s) {
			for a := x.From; tried < candidates && n.Prefix.Contains(a) && x.Contains(a); a = a.Next() {
				tried++
				found, err := p.taken(ctx, s.VLAN, p.nic.MAC, []netip.Addr{a}, probes)
				if err != nil {
					return netip.Addr{}, err
				}
				if found[a] == nil {
					return a, nil
				}
			}
		}
	}
	return netip.Addr{}, nil
}

// measure finds the largest ping that is answered.
func (r *reader) measure(ctx context.Context, p *port, s *deception.Segment, peer *Peer) error {
	mac := r.facts.segment(s.Name).MAC
	peer.Echo = Echo{Sent: true, Full: p.nic.MTU}
	e := &peer.Echo
	try := func(size int) (bool, error) {
		for range 2 { // a frame may get lost
			reply, ok, err := p.ping(ctx, s.VLAN, mac, peer.MAC, peer.Decoy, peer.Addr, uint16(rand.Uint32()), size)
			if err != nil {
				return false, err
			}
			if ok {
				e.Largest = max(e.Largest, size)
				if reply.fragment {
					e.Fragment = reply.size
				}
				return true, nil
			}
		}
		return false, nil
	}
	smallest := pingSizes[len(pingSizes)-1]
	if ok, err := try(smallest); err != nil || !ok {
		return err
	}
	if ok, err := try(e.Full); err != nil || ok {
		return err
	}
	for _, size := range pingSizes {
		if size >= e.Full || size == smallest {
			continue
		}
		if ok, err := try(size); err != nil || ok {
			return err
		}
	}
	return nil
}
