package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"decoynet/deception"
)

func (c *checker) checkDecoys() {
	lans := map[string][]span[netip.Addr]{}
	for i, d := range c.d.decoys {
		var seg *segmentDraft
		if !d.host {
			seg = refer(c, d.segment, "segment", c.segments, c.d.segments, func(s *segmentDraft) located[string] { return s.name })
		}
		own := make([]span[netip.Addr], len(d.addresses))
		for j, a := range d.addresses {
			own[j] = rangeSpan(a, j, d.name.v)
			if seg != nil && seg.sound {
				c.checkPlace(a, seg)
			}
			// Decoys in the segment host may share an address, each with ports of
			// its own: see checkListeners.
			if d.segment.ok && !d.host {
				lans[d.segment.v] = append(lans[d.segment.v], rangeSpan(a, i, d.name.v))
			}
		}
		for _, x := range clashes(own, netip.Addr.Compare) {
			c.add(x.at, "%s is in this decoy already, as %s in line %d%s; each address once", x.text, x.first.text, x.first.at.line, more(x.others))
		}
	}
	for _, spans := range lans {
		for _, x := range clashes(spans, netip.Addr.Compare) {
			c.add(x.at, "%s overlaps %s of decoy %q (line %d)%s; each address to one decoy",
				x.text, x.first.text, x.first.name, x.first.at.line, more(x.others))
		}
	}
}

// checkPlace sees to it that a decoy's addresses lie in the segment and are
// nobody else's there.
func (c *checker) checkPlace(a located[deception.AddrRange], seg *segmentDraft) {
	p, inside := seg.subnetHolding(a.v.From)
	if inside && !p.Contains(a.v.To) {
		c.add(a.at, "%s reaches beyond the subnet %s of segment %q; a range of its own for each subnet", a.text, p, seg.name.v)
		return
	}
	if !inside {
		c.add(a.at, "%s is outside the subnets of segment %q (%s); addresses inside one of them, or add the subnet", a.text, seg.name.v, seg.subnetList())
		return
	}
	bad := seg.takenIn(a.v)
	slices.SortStableFunc(bad, func(x, y taken) int { return x.From.Compare(y.From) })
	if len(bad) == 0 {
		return
	}
	if a.v.From == a.v.To {
		c.add(a.at, "%s is %s; another address of %s", a.v, bad[0].what, p)
		return
	}
	var what []string
	cut := make([]deception.AddrRange, len(bad))
	for i, t := range bad {
		cut[i] = t.AddrRange
		if i < maxListed {
			what = append(what, fmt.Sprintf("%s (%s)", t.AddrRange, t.what))
		}
	}
	right := "leave them out"
	if left := subtract(a.v, cut); len(left) > 0 && len(left) <= 4 {
		parts := make([]string, len(left))
		for i, r := range left {
			parts[i] = r.String()
		}
		right = "write " + strings.Join(parts, ", ")
	}
	c.add(a.at, "%s takes in %s; %s", a.text, strings.Join(what, " and "), right)
}

// subtract returns what of a range is left without the cuts.
func subtract(r deception.AddrRange, cuts []deception.AddrRange) []deception.AddrRange {
	var out []deception.AddrRange
	from := r.From
	for _, x := range deception.SortRanges(cuts) {
		if !x.Overlaps(r) {
			continue
		}
		if from.Less(x.From) {
			out = append(out, deception.AddrRange{From: from, To: x.From.Prev()})
		}
		from = x.To.Next()
		if !from.IsValid() {
			return out
		}
	}
	if !r.To.Less(from) {
		out = append(out, deception.AddrRange{From: from, To: r.To})
	}
	return out
}

func (c *checker) checkBindings() {
	for _, d := range c.d.decoys {
		var ports []span[uint32]
		for _, b := range d.bind {
			for _, p := range b.ports {
				ports = append(ports, portSpan(p, len(ports)))
			}
			svc := refer(c, b.service, "service", c.services, c.d.services, func(s *serviceDraft) located[string] { return s.name })
			if svc == nil {
				continue
			}
			if svc.soundPorts && !b.blind {
				c.checkTargets(b, svc)
			}
			if svc.soundAddresses {
				c.checkFamilies(d, b, svc)
			}
		}
		for _, x := range clashes(ports, cmp.Compare[uint32]) {
			c.add(x.at, "%s is bound in this decoy already, as %s in line %d; bind each port once", portWord(x.text), x.first.text, x.first.at.line)
		}
	}
}

// checkTargets sees to it that what a binding leads to is there.
func (c *checker) checkTargets(b *bindDraft, svc *serviceDraft) {
	for _, p := range b.ports {
		want, at := p.v, p.at
		if b.target.ok {
			want, at = deception.Port(p.v.Transport, b.target.v), b.target.at
		}
		port, lacks := svc.missing(want)
		if !lacks {
			continue
		}
		text := deception.Port(want.Transport, port).String()
		right := fmt.Sprintf("bind only these, or add %s to the service", text)
		only, one := svc.onlyPort(want.Transport)
		if one && p.v.First == p.v.Last && len(b.ports) == 1 {
			right = fmt.Sprintf("target: %d, or add %s to the service", only, text)
		}
		c.add(at, "service %q has no port %s, it has %s; %s", svc.name.v, text, deception.JoinPorts(values(svc.ports)), right)
	}
}

func (c *checker) checkFamilies(d *decoyDraft, b *bindDraft, svc *serviceDraft) {
	for _, four := range []bool{true, false} {
		if svc.has(four) {
			continue
		}
		for _, a := range d.addresses {
			if a.v.From.Is4() == four {
				f := family(four)
				c.add(b.service.at, "service %q has no %s address, but the decoy has (%s, line %d); give the service one, or put those addresses into a decoy of their own",
					svc.name.v, f, a.text, a.at.line)
				break
			}
		}
	}
}

// checkLimits counts the decoy addresses of the document and of each segment.
func (c *checker) checkLimits() {
	var all uint64
	six := map[string]uint64{}
	for _, d := range c.d.decoys {
		for _, a := range d.addresses {
			before := all
			all = addSaturated(all, a.v.Len())
			if all > MaxDecoyAddresses && before <= MaxDecoyAddresses {
				c.add(a.at, "with %s the document has more than %d decoy addresses; at most so many in one", a.text, MaxDecoyAddresses)
			}
			if a.v.From.Is4() || !d.segment.ok || d.host {
				continue
			}
			before = six[d.segment.v]
			six[d.segment.v] = addSaturated(before, a.v.Len())
			if before <= MaxIPv6PerSegment && six[d.segment.v] > MaxIPv6PerSegment {
				c.add(a.at, "with %s segment %q has more than %d IPv6 decoy addresses; at most so many, since each is an address of its interface",
					a.text, d.segment.v, MaxIPv6PerSegment)
			}
		}
	}
}
