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

// familyOf names the address family for filters.
func familyOf(a netip.Addr) string {
	if a.Is4() {
		return "ipv4"
	}
	return "ipv6"
}

// reversePathAt is how the link filters by the reverse path: 0 not at all, 1
// strictly, 2 loosely. The maximum of its own setting and that of all counts.
func reversePathAt(f *Facts, name string) string {
	return max("0", f.setting("net/ipv4/conf/all/rp_filter"), f.setting("net/ipv4/conf", name, "rp_filter"))
}

// judgeReversePath looks at rp_filter where packets with strangers' addresses
// come in. Filtering is right where the way back is the way it came, so it is a
// problem only where it was seen, or is bound, to drop.
func judgeReversePath(f *Facts) []Finding {
	var out []Finding
	add := func(severity Severity, link, what, why, fix string) {
		out = append(out, Finding{Check: "rp_filter", Subject: link, Severity: severity, What: what, Why: why, Fix: fix})
	}
	for _, z := range f.zones() {
		if f.Link(z.Link) == nil || reversePathAt(f, z.Link) != "1" {
			continue
		}
		loose := setCommand("2", "net/ipv4/conf", z.Link, "rp_filter") // overrules 1 in all
		if service := strictDrops(f, &z); service != "" {
			add(Problem, z.Link, fmt.Sprintf("drops the answers of service %s: strict reverse path filtering", service),
				"the way to the service is not through this link, and only what is may come in", loose)
			continue
		}
		add(Note, z.Link, "filters strictly by the reverse path", "answers of a service that is reached through another link would be dropped", loose)
	}
	for i := range f.KernelPaths {
		k := &f.KernelPaths[i]
		same := func(o Finding) bool { return o.Subject == k.Uplink }
		if k.Sent != nil || k.Forwarded || slices.ContainsFunc(out, same) || explained(f, k) {
			continue
		}
		switch {
		case unmarked(f, k):
			add(Problem, k.Uplink, "drops what comes out of the segment: src_valid_mark is off",
				"the way back to an intruder is looked up without the segment's mark, and found to be another",
				setCommand("1", "net/ipv4/conf", k.Uplink, "src_valid_mark"))
		case reversePathDrops(f, k):
			add(Problem, k.Uplink, "drops what comes out of the segment: reverse path filtering",
				"this host's way to an intruder is not through this link", unfilter(f, k.Uplink))
		}
	}
	return out
}

// unmarked tells whether the segment's link has lost the setting that decoynet
// gave it, by which the mark of a packet counts in the lookup of its way back.
func unmarked(f *Facts, k *KernelProbe) bool {
	return k.Target.Addr().Is4() && f.setting("net/ipv4/conf", k.Uplink, "src_valid_mark") == "0"
}

// reversePathDrops tells whether the segment's link can have dropped a packet.
// A link without an address, as that is, lets nothing pass whose way back is
// another, strict or loose (__fib_validate_source).
func reversePathDrops(f *Facts, k *KernelProbe) bool {
	return k.Target.Addr().Is4() && reversePathAt(f, k.Uplink) != "0"
}

// unfilter takes the filter from one link, which needs the setting of all to be
// 0, and leaves that of the other links as it was.
func unfilter(f *Facts, name string) string {
	var out []string
	if all := f.setting("net/ipv4/conf/all/rp_filter"); all != "0" {
		for _, l := range f.Links {
			if !l.Loopback && l.Alias != link.Alias && f.setting("net/ipv4/conf", l.Name, "rp_filter") < all {
				out = append(out, setCommand(all, "net/ipv4/conf", l.Name, "rp_filter"))
			}
		}
		out = append(out, setCommand("0", "net/ipv4/conf/all/rp_filter"))
	}
	if f.setting("net/ipv4/conf", name, "rp_filter") != "0" {
		out = append(out, setCommand("0", "net/ipv4/conf", name, "rp_filter"))
	}
	return strings.Join(out, " && ")
}

// strictDrops names a service whose answers the zone's link drops, or "".
func strictDrops(f *Facts, z *deception.Zone) string {
	for i := range f.State.Services {
		s := &f.State.Services[i]
		if r, known := f.Routes[s.Addr4]; s.Zone == z.Name && s.Addr4.IsValid() && known && !r.Local && r.Dev != z.Link {
			return s.Name
		}
	}
	if f.Running == nil {
		return ""
	}
	for i := range f.Services {
		p := &f.Services[i]
		if p.Zone == z.Name && p.Target.Addr().Is4() && p.Answer != NoAnswer && !p.Delivered &&
			slices.Contains(p.Links, z.Link) && !filtered(f, z, p.Target.Addr()) {
			return p.Service
		}
	}
	return ""
}

// judgeForwarding looks whether this host forwards where the kernel path needs
// it: what comes in at the zone's link must be sent on to the segment, and
// what comes out of the segment to the zone.
func judgeForwarding(f *Facts) []Finding {
	uses := kernelUses(f.State)
	if len(uses) == 0 {
		if f.State != nil && f.setting("net/ipv4/ip_forward") == "1" {
			return []Finding{{
				Check: "forwarding", Severity: Note, What: "this host forwards IPv4, which no decoy here needs",
				Why: "who knows the way can send packets into the zones through it, past the decoys",
			}}
		}
		return nil
	}
	var out []Finding
	seen := map[string]bool{}
	for _, u := range uses {
		uplink := link.HostName(u.Segment)
		for _, is4 := range []bool{true, false} {
			address := u.Service.Addr6
			if is4 {
				address = u.Service.Addr4
			}
			if !address.IsValid() || f.Link(u.Zone.Link) == nil {
				continue
			}
			commands := forwarding4(f, uplink, u.Zone.Link)
			if !is4 {
				commands = forwarding6(f, uplink, u.Zone.Link)
			}
			fix := strings.Join(commands, " && ")
			if fix == "" || seen[fix] {
				continue
			}
			seen[fix] = true
			out = append(out, Finding{
				Check: "forwarding", Subject: u.Zone.Link, Severity: Problem,
				What: fmt.Sprintf("this host does not forward %s between %s and the segment %s", map[bool]string{true: "IPv4", false: "IPv6"}[is4], u.Zone.Link, u.Segment),
				Why:  "decoys with `path: kernel` get no answer", Fix: fix,
			})
		}
	}
	if len(out) == 0 {
		out = append(out, Finding{Check: "forwarding", Severity: OK, What: "this host forwards for the kernel path"})
	}
	return out
}

// forwarding4 returns what has to be set: IPv4 forwards by the setting of the
// link that a packet comes in at.
func forwarding4(f *Facts, uplink, zone string) []string {
	var out []string
	for _, name := range []string{zone, uplink} {
		if f.setting("net/ipv4/conf", name, "forwarding") == "0" {
			out = append(out, setCommand("1", "net/ipv4/conf", name, "forwarding"))
		}
	}
	return out
}

// forwarding6 is the same for IPv6, which forwards by one setting for all
// links, or, since Linux 6.17, by force_forwarding of the link it comes in at.
func forwarding6(f *Facts, uplink, zone string) []string {
	if f.setting("net/ipv6/conf/all/forwarding") != "0" {
		return nil
	}
	var out []string
	for _, name := range []string{zone, uplink} {
		switch f.setting("net/ipv6/conf", name, "force_forwarding") {
		case "0":
			out = append(out, setCommand("1", "net/ipv6/conf", name, "force_forwarding"))
		case "":
			if f.Link(name) != nil {
				return []string{setCommand("1", "net/ipv6/conf/all/forwarding")}
			}
		}
	}
	return out
}

// explained tells whether another check names the cause of what a probe of the
// kernel path met.
func explained(f *Facts, k *KernelProbe) bool {
	z := f.State.Zone(k.Zone)
	commands := forwarding4
	if k.Target.Addr().Is6() {
		commands = forwarding6
	}
	return len(commands(f, k.Uplink, z.Link)) > 0 || len(forwardBlocks(f, k.Uplink, z.Link, familyOf(k.Target.Addr()))) > 0
}

// judgeKernelPath tells how far packets came on the kernel path.
func judgeKernelPath(f *Facts) []Finding {
	var out []Finding
	good := map[string]bool{}
	for i := range f.KernelPaths {
		k := &f.KernelPaths[i]
		add := func(what, why, fix string) {
			out = append(out, Finding{Check: "kernel path", Subject: k.Segment, Severity: Problem, What: what, Why: why, Fix: fix})
		}
		zone := f.State.Zone(k.Zone).Link
		switch {
		case k.Returned:
			good[k.Segment] = true
		case k.Sent != nil:
			add(fmt.Sprintf("service %s cannot be asked from the segment: %v", k.Service, k.Sent), "", "decoynet reload")
		case f.refuses(k.Service, k.Target) || explained(f, k):
		case !k.Forwarded && (unmarked(f, k) || reversePathDrops(f, k)):
		case !k.Forwarded:
			add(fmt.Sprintf("packets for %s come out of the segment at %s and do not leave at %s", k.Target, k.Uplink, zone),
				"decoys with `path: kernel` get no answer", "nft list ruleset; ip rule; nstat -az IpInAddrErrors TcpExtIPReversePathFilter")
		case !k.Answered:
			add(fmt.Sprintf("%s gets packets from the segment and its answers do not come in at %s", k.Target, zone),
				"decoys with `path: kernel` get no answer", "tcpdump -ni "+zone)
		default:
			add(fmt.Sprintf("answers of %s come in at %s and do not go back into the segment at %s", k.Target, zone, k.Uplink),
				"decoys with `path: kernel` get no answer", "nft list table inet decoynet; ip rule; ip route show table all proto 142")
		}
	}
	for _, s := range f.segments() {
		if good[s.Name] && !slices.ContainsFunc(out, func(o Finding) bool { return o.Subject == s.Name }) {
			out = append(out, Finding{Check: "kernel path", Subject: s.Name, Severity: OK, What: "packets pass both ways between the segment and its services"})
		}
	}
	return out
}

// refuses tells whether the service is known not to answer at that address, in
// which case its decoys are closed on purpose.
func (f *Facts) refuses(service string, target netip.AddrPort) bool {
	for i := range f.Services {
		p := &f.Services[i]
		if p.Service == service && p.Target.Addr().Is4() == target.Addr().Is4() && p.Answer != Accepts && p.Own != Accepts {
			return true
		}
	}
	return false
}

// forwardBlocks returns the chains of others that drop the kernel path's
// packets, in either direction.
func forwardBlocks(f *Facts, uplink, zone, family string) []survey.Chain {
	there := blocking(f.Filters, "forward", packet{in: uplink, out: zone, family: family, transport: "tcp", state: "new"})
	back := blocking(f.Filters, "forward", packet{in: zone, out: uplink, family: family, transport: "tcp", state: "established"})
	for _, c := range back {
		if !slices.ContainsFunc(there, func(o survey.Chain) bool {
			return o.Family == c.Family && o.Table == c.Table && o.Name == c.Name && o.Legacy == c.Legacy
		}) {
			there = append(there, c)
		}
	}
	return there
}

// filtered tells whether a filter of this host drops a zone's answers to it.
func filtered(f *Facts, z *deception.Zone, family netip.Addr) bool {
	return len(inputBlocks(f, z.Link, familyOf(family))) > 0
}

func inputBlocks(f *Facts, zone, family string) []survey.Chain {
	return blocking(f.Filters, "input", packet{in: zone, family: family, transport: "tcp", state: "established"})
}

// judgeFilters names the filters of others that drop what decoynet sends or is
// sent.
func judgeFilters(f *Facts) []Finding {
	var out []Finding
	add := func(subject, what, why, fix string) {
		if !slices.ContainsFunc(out, func(o Finding) bool { return o.Fix == fix }) {
			out = append(out, Finding{Check: "filter", Subject: subject, Severity: Problem, What: what, Why: why, Fix: fix})
		}
	}
	for _, u := range kernelUses(f.State) {
		uplink := link.HostName(u.Segment)
		for _, a := range []netip.Addr{u.Service.Addr4, u.Service.Addr6} {
			if !a.IsValid() || passed(f, u, a) {
				continue
			}
			for _, c := range forwardBlocks(f, uplink, u.Zone.Link, familyOf(a)) {
				any := link.HostName("")[:len("dnv-")] + "*"
				add(u.Zone.Link, fmt.Sprintf("%s drops what is forwarded between the segments and %s", chainName(c), u.Zone.Link),
					"decoys with `path: kernel` get no answer",
					allow(f.Filters, c, any, u.Zone.Link)+" && "+allow(f.Filters, c, u.Zone.Link, any))
			}
		}
	}
	for _, z := range f.zones() {
		for _, subnet := range z.Subnets {
			if delivered(f, z.Name, subnet.Addr()) {
				continue
			}
			for _, c := range inputBlocks(f, z.Link, familyOf(subnet.Addr())) {
				add(z.Link, fmt.Sprintf("%s drops services' answers at %s", chainName(c), z.Link),
					"connections through decoys hang; what may come in there is decided by decoynet's own table",
					allow(f.Filters, c, z.Link, ""))
			}
		}
	}
	return out
}

// delivered tells whether a service's answer was seen to reach its socket.
func delivered(f *Facts, zone string, family netip.Addr) bool {
	return slices.ContainsFunc(f.Services, func(p ServiceProbe) bool {
		return p.Zone == zone && p.Target.Addr().Is4() == family.Is4() && p.Delivered
	})
}

// passed tells whether packets were seen to pass both ways, whatever filters
// say.
func passed(f *Facts, u kernelUse, family netip.Addr) bool {
	return slices.ContainsFunc(f.KernelPaths, func(k KernelProbe) bool {
		return k.Segment == u.Segment && k.Service == u.Service.Name && k.Target.Addr().Is4() == family.Is4() && k.Returned
	})
}

func chainName(c survey.Chain) string {
	name := fmt.Sprintf("chain %s %s %s", c.Family, c.Table, c.Name)
	if c.Legacy {
		name += " (iptables-legacy)"
	}
	return name
}

// judgeBridges looks whether frames that only pass a bridge are shown to this
// host's filters.
func judgeBridges(f *Facts) []Finding {
	var on []string
	for _, name := range []string{"iptables", "ip6tables", "arptables"} {
		if f.setting("net/bridge/bridge-nf-call-"+name) == "1" {
			on = append(on, name)
		}
	}
	if len(on) == 0 {
		return nil
	}
	var commands []string
	for _, name := range on {
		commands = append(commands, setCommand("0", "net/bridge/bridge-nf-call-"+name))
	}
	var out []Finding
	look := func(name, whose string) {
		l := f.Link(name)
		if l == nil || l.Kind != "bridge" || slices.ContainsFunc(out, func(o Finding) bool { return o.Subject == name }) {
			return
		}
		finding := Finding{
			Check: "bridge", Subject: name, Severity: Note,
			What: fmt.Sprintf("frames that pass this bridge are shown to %s of this host", strings.Join(on, ", ")),
			Why:  "its filters and connection tracking slow down or drop traffic " + whose + " (containers of Docker or Kubernetes may need it)",
			Fix:  strings.Join(commands, " && "),
		}
		through := packet{in: name, out: name, family: "ipv4", transport: "tcp", state: "new"}
		if blocked := blocking(f.Filters, "forward", through); len(blocked) > 0 && slices.Contains(on, "iptables") {
			finding.Severity = Problem
			finding.What = fmt.Sprintf("%s drops frames that pass this bridge", chainName(blocked[0]))
			finding.Why = "traffic " + whose + " is cut"
		}
		out = append(out, finding)
	}
	for _, z := range f.zones() {
		look(z.Link, "between services of the zone "+z.Name)
	}
	for _, s := range f.segments() {
		look(s.Parent, "of the network that segment "+s.Name+" is in")
	}
	return out
}
