package firewall

import (
	"context"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"decoynet/deception"
)

// ZoneRules is one zone as the gateway host contains it.
type ZoneRules struct {
	Zone string // its name, by which Denied counts
	Link string // the host's interface behind which the services are
	// Allow lists what services may open towards addresses of the host
	// itself, broadcast and multicast included. An entry for any other address
	// lets nothing out: the routing rule of the zone's link would hand it to
	// this host.
	Allow []deception.Allow
}

// SegmentLinkPrefix begins the names of the host-side interfaces of segments.
const SegmentLinkPrefix = "dnv-"

// ApplyZones contains the zones in the gateway host's namespace ns, all of them
// and no other: a zone that is not listed is not contained any more.
//
// Replies to the egress gateway come in at the zone's link with an intruder's
// address as destination, and a routing rule there makes every destination
// local, so that they find their transparent socket. Without more, a service
// that was broken into could thus reach any listener of the host by sending to
// any address at all. The rules therefore stand in the hook input, behind
// that routing rule: there IPv4 datagrams have been reassembled, the socket has been
// looked up (early demultiplexing), and frames that only pass the bridge between two
// services are not seen even where br_netfilter is on. What is routed
// elsewhere, or everything if that routing rule is missing, goes through the
// hook forward and is dropped there.
//
// Let in are, in this order: answers to transparent sockets, with ICMP errors
// about their packets; to the host's own addresses TCP that begins no
// connection, ICMP errors and echo, UDP to sockets marked [MarkSelf], each only
// where its source is routed to this link; neighbour discovery but router
// advertisements and redirects; and what is declared. All else is counted,
// sampled to nflog [LogGroup] and dropped.
//
// Accepting here does not overrule the host's own filter: where its input
// policy is drop, it must accept what comes in at the link.
func ApplyZones(ctx context.Context, ns Namespace, zones []ZoneRules) (Status, error) {
	want, err := compileZones(zones)
	if err != nil {
		return Status{}, err
	}
	return applyWhole(ctx, ns, zoneScope, want)
}

const (
	zoneInputs   = "zone-inputs"
	zoneForwards = "zone-forwards"
	zoneToHost   = "zone-to-host"
)

func compileZones(zones []ZoneRules) (*ruleset, error) {
	want := newRuleset()
	if len(zones) == 0 {
		return want, nil
	}
	inputs := want.set(newSet(zoneInputs, nftables.TypeIFName, nftables.TypeVerdict))
	forwards := want.set(newSet(zoneForwards, nftables.TypeIFName, nftables.TypeVerdict))
	// Before the usual priority, so that a denied packet costs no other
	// filter anything; a packet must pass all of them in any order.
	before := *nftables.ChainPriorityFilter - 10
	want.chain("zone-input", &hook{kind: nftables.ChainTypeFilter, hook: *nftables.ChainHookInput, priority: before}).
		add("by zone", iifGoto(zoneInputs))
	forward := want.chain("zone-forward", &hook{kind: nftables.ChainTypeFilter, hook: *nftables.ChainHookForward, priority: before})
	// The kernel path's packets first. The segment's namespace lets nothing on
	// but answers of its own flows, and nothing of a segment reached this hook
	// that was not let through before the routing.
	forward.add("kernel path answers", segmentMark(), oifPrefix(SegmentLinkPrefix), accept())
	forward.add("kernel path", iifPrefix(SegmentLinkPrefix), accept())
	forward.add("by zone", iifGoto(zoneForwards))
	compileToHost(want.chain(zoneToHost, nil))

	names, links := map[string]bool{}, map[string]bool{}
	for _, z := range zones {
		if err := checkName("zone", z.Zone); err != nil {
			return nil, err
		}
		if err := checkLink(z.Link); err != nil {
			return nil, fmt.Errorf("zone %s: %w", z.Zone, err)
		}
		if names[z.Zone] || links[z.Link] {
			return nil, fmt.Errorf("%w: zone %s or its link %s is listed twice", ErrInvalid, z.Zone, z.Link)
		}
		names[z.Zone], links[z.Link] = true, true
		if err := compileZone(want, z); err != nil {
			return nil, err
		}
		in, forward := z.chains()
		inputs.add(element{key: string(ifname(z.Link)), jump: in})
		forwards.add(element{key: string(ifname(z.Link)), jump: forward})
	}
	return want, nil
}

func (z *ZoneRules) chains() (in, forward string) {
	return "zone-" + z.Zone + "-in", "zone-" + z.Zone + "-forward"
}

func compileZone(want *ruleset, z ZoneRules) error {
	counter := "zone-" + z.Zone
	want.counters[counter] = true
	inName, forwardName := z.chains()
	deny := func(c *chain) {
		c.add("denied: sample", sample("decoynet zone="+z.Zone+" "))
		c.add("denied", count(counter), drop())
	}

	in := want.chain(inName, nil)
	// A SYN is never an answer, so a transparent listener, whatever it is
	// bound to, opens no hole.
	in.add("answers to transparent sockets", tcpAnswer(), socketTransparent(), accept())
	// UDP knows no answers: only a socket bound to an intruder's address is
	// taken, which the lookup matches by the service's address as well where it is
	// connected. A transparent server is bound to the wildcard, or to an
	// address of this host.
	in.add("answers to transparent sockets", l4(unix.IPPROTO_UDP), socketTransparent(), socketBound(), notToType(unix.RTN_LOCAL), accept())
	for _, e := range []exprs{icmp(unix.IPPROTO_ICMP, 3, 3), icmp(unix.IPPROTO_ICMP, 11, 12), icmp(unix.IPPROTO_ICMPV6, 1, 4)} {
		in.add("errors about their packets", e, socketTransparent(), accept())
	}
	// IPv6 is reassembled behind this hook. A later fragment amounts to
	// nothing without the first, which has the ports and is judged by them.
	in.add("later IPv6 fragments", laterFragment(), accept())
	in.add("to this host", toType(unix.RTN_LOCAL), jump(zoneToHost))
	in.add("neighbour discovery", icmp(unix.IPPROTO_ICMPV6, 133, 133), onLink(), accept())
	in.add("neighbour discovery", icmp(unix.IPPROTO_ICMPV6, 135, 136), onLink(), accept())
	if len(z.Allow) > 0 {
		allowName := "zone-" + z.Zone + "-allow"
		allow := want.chain(allowName, nil)
		for _, a := range z.Allow {
			if !a.To.IsValid() || len(a.Ports) == 0 {
				return fmt.Errorf("%w: zone %s: allow needs an address and ports", ErrInvalid, z.Zone)
			}
			for _, r := range a.Ports {
				allow.add("declared", toPrefix(a.To), toPorts(r), accept())
			}
		}
		for _, t := range []uint32{unix.RTN_LOCAL, unix.RTN_BROADCAST, unix.RTN_MULTICAST} {
			in.add("declared", toType(t), jump(allowName))
		}
	}
	// Every host announces its multicast groups unasked; not worth an alarm.
	in.add("group membership", l4(unix.IPPROTO_IGMP), drop())
	in.add("group membership", icmp(unix.IPPROTO_ICMPV6, 130, 132), drop())
	in.add("group membership", icmp(unix.IPPROTO_ICMPV6, 143, 143), drop())
	deny(in)

	forward := want.chain(forwardName, nil)
	// Seen here only where br_netfilter is on.
	forward.add("within the zone", oif(z.Link), accept())
	deny(forward)
	return nil
}

// compileToHost fills the chain for packets to addresses of the host itself.
// Whatever was not accepted returns: it may be declared.
func compileToHost(c *chain) {
	// An answer comes from where its question was routed to, so a service
	// cannot slip segments into connections of this host with others.
	c.add("answers", tcpAnswer(), routedBack(), accept())
	for _, e := range []exprs{
		icmp(unix.IPPROTO_ICMP, 0, 0), icmp(unix.IPPROTO_ICMP, 3, 3), icmp(unix.IPPROTO_ICMP, 8, 8), icmp(unix.IPPROTO_ICMP, 11, 12),
		icmp(unix.IPPROTO_ICMPV6, 1, 4), icmp(unix.IPPROTO_ICMPV6, 128, 129),
	} {
		c.add("errors and echo", e, routedBack(), accept())
	}
	c.add("answers", l4(unix.IPPROTO_UDP), socketMark(MarkSelf), routedBack(), accept())
}

// checkName refuses names that nft could not print back.
func checkName(kind, name string) error {
	if name == "" || len(name) > 64 {
		return fmt.Errorf("%w: %s name %q; 1 to 64 characters", ErrInvalid, kind, name)
	}
	for _, r := range name {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '-', r == '_', r == '.':
		default:
			return fmt.Errorf("%w: %s name %q; letters, digits, '-', '_' and '.' only", ErrInvalid, kind, name)
		}
	}
	return nil
}

func checkLink(name string) error {
	if len(name) >= unix.IFNAMSIZ {
		return fmt.Errorf("%w: link name %q; at most %d characters", ErrInvalid, name, unix.IFNAMSIZ-1)
	}
	return checkName("link", name)
}
