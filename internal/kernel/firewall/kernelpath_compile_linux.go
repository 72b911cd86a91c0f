package firewall

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/kernel/conntrack"
)

// Names in the segment's namespace.
const (
	kernelPathClose   = "kernel-path-close"
	kernelPathCounter = "kernel-path-denied"
)

// redirectMap is one of the four maps from decoy address . port to service
// address . port.
type redirectMap struct {
	transport deception.Transport
	is4       bool
}

func (m redirectMap) name() string {
	family := "6"
	if m.is4 {
		family = "4"
	}
	return "kernel-path-" + m.transport.String() + family
}

var redirectMaps = []redirectMap{{deception.TCP, true}, {deception.TCP, false}, {deception.UDP, true}, {deception.UDP, false}}

// Events of a flow that are reported; the numbers are the kernel's
// enum ip_conntrack_events (linux/netfilter/nf_conntrack_common.h).
const (
	eventNew     = 1 << 0
	eventDestroy = 1 << 2
	eventMark    = 1 << 7
)

// compileKernelPath makes the rules of the segment's namespace.
func compileKernelPath(k *KernelPath) (*ruleset, error) {
	want := newRuleset()
	if err := compileRedirects(want, k); err != nil {
		return nil, err
	}
	nat := want.chain("kernel-path-dnat", &hook{kind: nftables.ChainTypeNAT, hook: *nftables.ChainHookPrerouting, priority: *nftables.ChainPriorityNATDest})
	nat.add("not from intruders", notIIF(k.LAN), ret())
	// Six or more events of every TCP connection would be told otherwise.
	nat.add("tell start, close and end", ctSet(expr.CtKeyEVENTMASK, eventNew|eventDestroy|eventMark))
	for _, m := range redirectMaps {
		nat.add("decoys", redirect(m))
	}
	nat.add("no decoy of the kernel path: tell nothing", ctSet(expr.CtKeyEVENTMASK, 0))

	const (
		seenReply = 1 << 1 // IPS_SEEN_REPLY
		dstNAT    = 1 << 5 // IPS_DST_NAT
	)
	redirected := ctStatus(dstNAT, differs(nativeUint32(0)...))
	forward := want.chain("kernel-path-forward", &hook{kind: nftables.ChainTypeFilter, hook: *nftables.ChainHookForward, priority: *nftables.ChainPriorityFilter, drop: true})
	forward.add("closing", tcpAny(tcpFIN|tcpRST), jump(kernelPathClose))
	forward.add("refused", ctState(expr.CtStateBitRELATED), jump(kernelPathClose))
	forward.add("answers", ctReply(), iif(k.Uplink), oif(k.LAN), redirected, accept())
	forward.add("to services", iif(k.LAN), oif(k.Uplink), redirected, accept())

	// The first sign of an end decides: whoever sends a FIN or RST after
	// that only answers it.
	closing := want.chain(kernelPathClose, nil)
	closing.add("known", exprs{ct(expr.CtKeyMARK), differs(nativeUint32(0)...)}, ret())
	closing.add("reset", tcpAny(tcpRST), ctOriginal(), setCtMark(conntrack.MarkClientReset), ret())
	closing.add("reset", tcpAny(tcpRST), setCtMark(conntrack.MarkServiceReset), ret())
	closing.add("closed", tcpAny(tcpFIN), ctOriginal(), setCtMark(conntrack.MarkClientClosed), ret())
	closing.add("closed", tcpAny(tcpFIN), setCtMark(conntrack.MarkServiceClosed), ret())
	for _, e := range []exprs{append(icmp(unix.IPPROTO_ICMP, 3, 3), notFragmentationNeeded()...), icmp(unix.IPPROTO_ICMPV6, 1, 1)} {
		closing.add("refused", e, ctReply(), ctStatus(seenReply, equal(nativeUint32(0)...)), setCtMark(conntrack.MarkUnreachable))
	}

	// The host sends nothing to decoys, and what a service sends to them
	// in the name of its alias must not reach the relay's sockets.
	want.counters[kernelPathCounter] = true
	input := want.chain("kernel-path-input", &hook{kind: nftables.ChainTypeFilter, hook: *nftables.ChainHookInput, priority: *nftables.ChainPriorityFilter})
	input.add("not from the host", notIIF(k.Uplink), accept())
	for _, e := range []exprs{
		icmp(unix.IPPROTO_ICMP, 0, 0), icmp(unix.IPPROTO_ICMP, 3, 3), icmp(unix.IPPROTO_ICMP, 8, 8), icmp(unix.IPPROTO_ICMP, 11, 12),
		icmp(unix.IPPROTO_ICMPV6, 1, 4), icmp(unix.IPPROTO_ICMPV6, 128, 136),
	} {
		input.add("errors, echo and neighbour discovery", e, accept())
	}
	input.add("denied", count(kernelPathCounter), drop())
	return want, nil
}

func compileRedirects(want *ruleset, k *KernelPath) error {
	sets := map[redirectMap]*set{}
	for _, m := range redirectMaps {
		t, err := nftables.ConcatSetType(addrType(m.is4), nftables.TypeInetService)
		if err != nil {
			return fmt.Errorf("type of map %s: %w", m.name(), err)
		}
		sets[m] = want.set(newSet(m.name(), t, t))
	}
	led := make(map[Redirect]netip.AddrPort, len(k.Redirects))
	for _, r := range k.Redirects {
		key := Redirect{Transport: r.Transport, Decoy: r.Decoy}
		if other, twice := led[key]; twice && other != r.Service {
			return fmt.Errorf("%w: %s %s leads to both %s and %s", ErrInvalid, r.Transport, r.Decoy, other, r.Service)
		}
		led[key] = r.Service
		sets[redirectMap{r.Transport, r.Decoy.Addr().Is4()}].add(element{key: concatenated(r.Decoy), val: concatenated(r.Service)})
	}
	return nil
}

// concatenated is address . port, each padded to 32 bits.
func concatenated(a netip.AddrPort) string {
	b := a.Addr().AsSlice()
	b = binary.BigEndian.AppendUint16(b, a.Port())
	return string(append(b, 0, 0))
}

// redirect is `dnat ip to ip daddr . tcp dport map @...`.
func redirect(m redirectMap) exprs {
	port := addrRegs(m.is4)
	return slices.Concat(family(zeroAddr(m.is4)), l4(byte(m.transport)), exprs{
		loadAddr(m.is4, false, reg32(0)),
		&expr.Payload{DestRegister: reg32(port), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg32(0), DestRegister: reg32(0), IsDestRegSet: true, SetName: m.name()},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: natFamily(m.is4), RegAddrMin: reg32(0), RegProtoMin: reg32(port), Specified: true},
	})
}

func natFamily(is4 bool) uint32 {
	if is4 {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

// Names in the host's namespace. The chain and sets of one segment begin with
// segment-LINK; these are shared by all.
const (
	segmentLinks = "segment-links" // link to its chain
	segmentMarks = "segment-marks" // link to its mark, where answers are known by it
)

func segmentAliases(is4 bool) string {
	if is4 {
		return "segment-aliases4"
	}
	return "segment-aliases6"
}

func (k *KernelPath) targetSet(is4 bool) string {
	if is4 {
		return "segment-" + k.HostLink + "-targets4"
	}
	return "segment-" + k.HostLink + "-targets6"
}

// hostScope owns the segment's objects, its elements of the shared maps, and
// the shared objects themselves, which go with their last segment.
func (k *KernelPath) hostScope() scope {
	own := "segment-" + k.HostLink
	shared := []string{"segment-prerouting", segmentLinks, segmentMarks, segmentAliases(true), segmentAliases(false)}
	mark := string(nativeUint32(k.Mark()))
	return scope{
		word: segmentScope,
		object: func(name string) bool {
			return slices.Contains(shared, name) || name == own ||
				name == k.targetSet(true) || name == k.targetSet(false)
		},
		element: func(s *set, e element) bool {
			switch s.name {
			case segmentLinks, segmentMarks:
				return e.key == string(ifname(k.HostLink))
			case segmentAliases(true), segmentAliases(false):
				return e.val == mark
			}
			return true
		},
	}
}

// segments says what of the shared objects other segments need.
type segments struct {
	any, marks, aliases bool
}

// otherSegments reads it from what the kernel holds.
func otherSegments(have *ruleset, link string, mark uint32) segments {
	self := string(ifname(link))
	holds := func(name string, other func(element) bool) bool {
		s := have.sets[name]
		if s == nil {
			return false
		}
		for _, e := range s.elements {
			if other(e) {
				return true
			}
		}
		return false
	}
	byLink := func(e element) bool { return e.key != self }
	byMark := func(e element) bool { return e.val != string(nativeUint32(mark)) }
	return segments{
		any:     holds(segmentLinks, byLink),
		marks:   holds(segmentMarks, byLink),
		aliases: holds(segmentAliases(true), byMark) || holds(segmentAliases(false), byMark),
	}
}

// compileSegmentLink makes the host's side of the segment k, or of none where k
// is nil, beside those that others need. Of the shared maps it holds k's elements
// only.
func compileSegmentLink(others segments, k *KernelPath) *ruleset {
	want := newRuleset()
	if k == nil && !others.any {
		return want
	}
	links := want.set(newSet(segmentLinks, nftables.TypeIFName, nftables.TypeVerdict))
	pre := want.chain("segment-prerouting", &hook{kind: nftables.ChainTypeFilter, hook: *nftables.ChainHookPrerouting, priority: *nftables.ChainPriorityMangle})
	// The prefix spares every other packet of the host the map.
	pre.add("by segment", iifPrefix(SegmentLinkPrefix), iifGoto(segmentLinks))
	pre.add("a segment without rules yet", iifPrefix(SegmentLinkPrefix), drop())
	marks := others.marks || (k != nil && k.Reply == ReplyByMark)
	aliases := others.aliases || (k != nil && k.Reply == ReplyByAlias)
	if marks {
		// Any expression that asks for the connection switches its
		// tracking on for the whole namespace.
		s := want.set(newSet(segmentMarks, nftables.TypeIFName, nftables.TypeMark))
		if k != nil && k.Reply == ReplyByMark {
			s.add(element{key: string(ifname(k.HostLink)), val: string(nativeUint32(k.Mark()))})
		}
		pre.add("answers, by connection", ctTagged(), ctReply(),
			exprs{ct(expr.CtKeyMARK), &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1}})
	}
	if aliases {
		for _, is4 := range []bool{true, false} {
			s := newSet(segmentAliases(is4), addrType(is4), nftables.TypeMark)
			s.interval = true
			if k != nil && k.Reply == ReplyByAlias {
				for _, r := range k.targets(is4) {
					s.add(element{key: string(r.From.AsSlice()), last: string(r.To.AsSlice()), val: string(nativeUint32(k.Mark()))})
				}
			}
			want.set(s)
			pre.add("answers, by alias", family(zeroAddr(is4)), exprs{
				loadAddr(is4, true, 1),
				&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: s.name},
				&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
			})
		}
	}
	if k != nil {
		links.add(element{key: string(ifname(k.HostLink)), jump: "segment-" + k.HostLink})
		compileFromSegment(want, k)
	}
	return want
}

// compileFromSegment makes the chain for what comes out of the segment's
// namespace: flows to its services, and nothing else.
func compileFromSegment(want *ruleset, k *KernelPath) {
	name := "segment-" + k.HostLink
	want.counters[name] = true
	from := want.chain(name, nil)
	// The mark lets a strict rp_filter find the way back into the segment: the
	// kernel looks it up with the packet's mark, as if from the outgoing link.
	marked := exprs{
		&expr.Immediate{Register: 1, Data: nativeUint32(k.Mark())},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}
	if k.Reply == ReplyByMark {
		from.add("established", ctMark(k.Mark()), marked, accept())
		// Its addresses and ports are those of a connection of another segment's, or of
		// the relay's. Marked anew, that one's answers would come here.
		for _, begins := range []exprs{tcpFlags(tcpSYN|tcpACK, equal(tcpSYN)), l4(unix.IPPROTO_UDP)} {
			for _, held := range []exprs{ctTagged(), ctState(expr.CtStateBitESTABLISHED)} {
				from.add("held by another flow", begins, held, count(name), drop())
			}
		}
	}
	for _, is4 := range []bool{true, false} {
		s := newSet(k.targetSet(is4), addrType(is4), nftables.SetDatatype{})
		s.interval = true
		for _, r := range k.targets(is4) {
			s.add(element{key: string(r.From.AsSlice()), last: string(r.To.AsSlice())})
		}
		want.set(s)
		var mark exprs
		if k.Reply == ReplyByMark {
			mark = setCtMark(k.Mark())
		}
		from.add("to services", toSet(is4, s.name), mark, marked, accept())
	}
	from.add("neighbour discovery", icmp(unix.IPPROTO_ICMPV6, 135, 136), onLink(), accept())
	from.add("denied", count(name), drop())
}
