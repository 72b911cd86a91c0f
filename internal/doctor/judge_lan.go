package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"decoynet/deception"
	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/survey"
)

// judgeParents looks at the NICs that segments stand on.
func judgeParents(f *Facts) []Finding {
	var out []Finding
	trunks := map[string]bool{}
	for _, s := range f.segments() {
		found := judgeParent(f, s)
		if s.VLAN != 0 { // once for all VLANs
			if trunks[s.Parent] {
				continue
			}
			trunks[s.Parent] = true
			found.Subject = s.Parent
			if len(f.vlansOf(s.Parent)) == 1 {
				found.Subject = s.Name
			}
		}
		out = append(out, found)
	}
	return out
}

func judgeParent(f *Facts, s deception.Segment) Finding {
	bad := func(what, why, fix, on string) Finding {
		return Finding{Check: "parent", Subject: s.Name, Severity: Problem, What: s.Parent + " " + what, Why: why, Fix: fix, On: on}
	}
	rename := func(name string) string { return fmt.Sprintf("segment %s: parent: %s", s.Name, name) }
	p := f.Link(s.Parent)
	switch {
	case len(f.Links) == 0:
		return Finding{Check: "parent", Subject: s.Name, Severity: Note, What: "links could not be listed"}
	case p == nil:
		return bad("does not exist; interfaces here: "+candidates(f), "the segment stands on it", rename("NIC"), OnDocument)
	case p.Loopback || !p.Ethernet:
		return bad("is no Ethernet interface", "a segment needs a NIC that carries frames of further MAC addresses", rename("NIC"), OnDocument)
	case p.Wireless:
		return bad("is wireless", "an access point drops frames of any MAC address but the station's own", rename("a wired NIC"), OnDocument)
	case p.Master != "" && p.MasterKind != "vrf" && s.VLAN != 0:
		// A VLAN device comes before the port's master in the kernel.
		return bad(fmt.Sprintf("is a port of the %s %s", p.MasterKind, p.Master),
			"a segment's VLAN would be taken away from what is behind it", rename(p.Master), OnDocument)
	case p.Master != "" && p.MasterKind == "openvswitch":
		return bad("is a port of an Open vSwitch", "its frames go to the switch alone",
			fmt.Sprintf("ovs-vsctl add-port BRIDGE %[1]s -- set interface %[1]s type=internal", "decoys0"), "")
	case p.Master != "" && p.MasterKind != "vrf":
		return bad(fmt.Sprintf("is a port of the %s %s", p.MasterKind, p.Master),
			"its frames go there alone: no macvlan can stand on it", rename(p.Master), OnDocument)
	case !p.Up:
		return bad("is down", "no frame passes", "ip link set "+p.Name+" up", "")
	case !p.Carrier:
		return bad("has no carrier", "no frame passes: no cable, or the other end is down", "ethtool "+p.Name, "")
	}
	facts := f.segment(s.Name)
	if facts != nil && facts.Create != nil {
		return bad("refuses a macvlan: "+facts.Create.Error(), "the segment stands on one", "ip -d link show "+p.Name, "")
	}
	n := 0
	for _, o := range f.segments() {
		if o.Parent == s.Parent {
			n++
		}
	}
	what := fmt.Sprintf("%s is up; %d MAC addresses on it, its own and one for each segment", s.Parent, n+1)
	return Finding{Check: "parent", Subject: s.Name, Severity: OK, What: what}
}

func (f *Facts) segment(name string) *SegmentFacts {
	i := slices.IndexFunc(f.Segments, func(s SegmentFacts) bool { return s.Name == name })
	if i < 0 {
		return nil
	}
	return &f.Segments[i]
}

// candidates lists the interfaces that a segment could stand on.
func candidates(f *Facts) string {
	var names []string
	for _, l := range f.Links {
		if l.Ethernet && !l.Loopback && l.Alias != link.Alias && l.Master == "" {
			names = append(names, l.Name)
		}
	}
	if len(names) == 0 {
		return "none"
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// secondMAC is what lets frames of a MAC address pass that is not the virtual
// NIC's own. No command on this machine does.
const secondMAC = "VMware: port group > security: forged transmits, MAC address changes, promiscuous mode: accept; " +
	"Hyper-V: Set-VMNetworkAdapter -VMName NAME -MacAddressSpoofing On; Proxmox and libvirt: no MAC filter on the NIC; " +
	"a switch with port security: allow more addresses; AWS, Azure and Google networks: impossible"

// judgeLAN tells whether frames of the segment's own MAC address pass.
func judgeLAN(f *Facts) []Finding {
	var out []Finding
	for _, s := range f.Segments {
		l := s.LAN
		if !l.Done {
			continue
		}
		add := func(severity Severity, what, why, fix, on string) {
			out = append(out, Finding{Check: "lan", Subject: s.Name, Severity: severity, What: what, Why: why, Fix: fix, On: on})
		}
		switch {
		case l.Macvlan:
			add(OK, fmt.Sprintf("%s answers the segment's own MAC address", l.Neighbour), "", "", "")
		case l.Parent:
			add(Problem, fmt.Sprintf("%s answers the NIC's MAC address, and not a second one", l.Neighbour),
				"decoys have a MAC address of their own: nobody can reach them", secondMAC, "the hypervisor or switch")
		default:
			add(Note, "nobody there answered, so whether frames pass cannot be told", "is it the right NIC?", "", "")
		}
		if len(l.Silent) > 0 && (l.Macvlan || l.Parent) {
			severity := Note
			if l.Asked {
				severity = Problem
			}
			for _, g := range l.Silent {
				add(severity, fmt.Sprintf("the gateway %s answers nobody", g),
					"decoys cannot answer intruders from other networks", fmt.Sprintf("segment %s: subnets: gateway: ADDRESS", s.Name), OnDocument)
			}
		}
	}
	return out
}

// manyConflicts of one MAC address are a router that answers for all.
const manyConflicts = 64

// judgeConflicts tells which decoys are somebody else's addresses.
func judgeConflicts(f *Facts) []Finding {
	var out []Finding
	vlans := SegmentFacts{Name: "VLANs"} // all together: there may be hundreds
	for _, s := range f.Segments {
		byMAC := map[string][]deception.AddrRange{}
		for _, c := range s.Conflicts {
			byMAC[c.MAC.String()] = append(byMAC[c.MAC.String()], deception.AddrRange{From: c.Addr, To: c.Addr})
		}
		for mac, addrs := range byMAC {
			out = append(out, conflict(f.State, s.Name, mac, deception.SortRanges(addrs)))
		}
		if s.VLAN != nil {
			vlans.Probed, vlans.Total = vlans.Probed+s.Probed, vlans.Total+s.Total
			vlans.Conflicts = append(vlans.Conflicts, s.Conflicts...)
			continue
		}
		out = append(out, askedFor(&s)...)
	}
	out = append(out, askedFor(&vlans)...)
	slices.SortStableFunc(out, func(a, b Finding) int { return strings.Compare(a.What, b.What) })
	return out
}

// askedFor says how many decoy addresses were asked for.
func askedFor(s *SegmentFacts) []Finding {
	if s.Probed == 0 {
		return nil
	}
	what := fmt.Sprintf("%d decoy addresses asked for, nobody else has one", s.Probed)
	if len(s.Conflicts) > 0 {
		what = fmt.Sprintf("%d decoy addresses asked for, %d are somebody else's", s.Probed, len(s.Conflicts))
	}
	if s.Probed < s.Total {
		what += fmt.Sprintf("; %d more were not asked for, to be quick and quiet", s.Total-s.Probed)
	}
	return []Finding{{Check: "conflicts", Subject: s.Name, Severity: OK, What: what}}
}

func conflict(state *deception.State, segment, mac string, addrs []deception.AddrRange) Finding {
	n := uint64(0)
	for _, r := range addrs {
		n += r.Len()
	}
	out := Finding{
		Check: "conflicts", Subject: segment, Severity: Problem,
		What: fmt.Sprintf("%s is in use by %s", joinRanges(addrs), mac),
		Why:  "two machines with one address: traffic of the real one breaks",
		Fix:  without(state, segment, addrs), On: OnDocument,
	}
	if n >= manyConflicts {
		out.What = fmt.Sprintf("%s answers for %d decoy addresses: a router that does proxy ARP", mac, n)
		out.Why = "intruders go to it instead of the decoys, as often as it is faster"
		out.Fix, out.On = "switch proxy ARP off for this network", mac
	}
	return out
}

// without writes the decoys' addresses as they are to be in the document.
func without(state *deception.State, segment string, taken []deception.AddrRange) string {
	var parts []string
	for _, d := range state.DecoysOf(segment) {
		var left []deception.AddrRange
		changed := false
		for _, r := range d.Addresses {
			kept := subtract(r, taken)
			changed = changed || len(kept) != 1 || kept[0] != r
			left = append(left, kept...)
		}
		switch {
		case !changed:
		case len(left) == 0:
			parts = append(parts, fmt.Sprintf("decoy %s: remove it", d.Name))
		default:
			parts = append(parts, fmt.Sprintf("decoy %s: addresses: [%s]", d.Name, joinRanges(left)))
		}
	}
	return strings.Join(parts, "; ")
}

// subtract returns what of the range is in none of taken, which are sorted and
// disjoint.
func subtract(r deception.AddrRange, taken []deception.AddrRange) []deception.AddrRange {
	var out []deception.AddrRange
	from := r.From
	for _, t := range taken {
		if !t.Overlaps(deception.AddrRange{From: from, To: r.To}) {
			continue
		}
		if from.Less(t.From) {
			out = append(out, deception.AddrRange{From: from, To: t.From.Prev()})
		}
		if from = t.To.Next(); !from.IsValid() || r.To.Less(from) {
			return out
		}
	}
	return append(out, deception.AddrRange{From: from, To: r.To})
}

func joinRanges(ranges []deception.AddrRange) string {
	parts := make([]string, len(ranges))
	for i, r := range ranges {
		parts[i] = r.String()
	}
	return strings.Join(parts, ", ")
}

// hasAddr tells whether the link has an address in the prefix.
func hasAddr(l *survey.Link, p netip.Prefix) bool {
	return slices.ContainsFunc(l.Addrs, func(a netip.Prefix) bool { return p.Contains(a.Addr()) })
}
