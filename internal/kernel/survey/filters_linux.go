package survey

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/nft"
)

// ours begins the names of decoynet's own tables.
const ours = "decoynet"

// Filters reads the filter chains of the hooks input and forward that are not
// decoynet's, with the chains that they jump to: nftables, which iptables of
// today writes too, and iptables-legacy.
func Filters(ns *netns.NS) ([]Chain, error) {
	native, err := nativeFilters(ns)
	legacy, errLegacy := legacyFilters(ns)
	return append(native, legacy...), errors.Join(err, errLegacy)
}

func nativeFilters(ns *netns.NS) ([]Chain, error) {
	conn, err := nft.Open(ns.FD())
	if err != nil {
		return nil, err
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list filter chains: %w", err)
	}
	links, err := Links(ns)
	if err != nil {
		return nil, err
	}
	names := map[uint32]string{}
	for _, l := range links {
		names[uint32(l.Index)] = l.Name
	}
	var out []Chain
	var errs []error
	for _, c := range chains {
		family, ok := families[c.Table.Family]
		if !ok || c.Table.Name == ours || strings.HasPrefix(c.Table.Name, ours+"-") {
			continue
		}
		hook, relevant := hookOf(c)
		if !relevant {
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			errs = append(errs, fmt.Errorf("list rules of chain %s %s %s: %w", family, c.Table.Name, c.Name, err))
			continue
		}
		chain := Chain{Family: family, Table: c.Table.Name, Name: c.Name, Hook: hook}
		if c.Priority != nil {
			chain.Priority = int(*c.Priority)
		}
		chain.Drop = c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
		d := decoder{conn: conn, table: c.Table, links: names}
		for _, r := range rules {
			chain.Rules = append(chain.Rules, d.decode(r.Exprs)...)
		}
		out = append(out, chain)
	}
	return out, errors.Join(errs...)
}

var families = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
}

// hookOf returns the hook of a base chain, "" of one that is jumped to, and
// whether packets to or through this host can be dropped in it.
func hookOf(c *nftables.Chain) (string, bool) {
	if c.Hooknum == nil || c.Type == "" {
		return "", true
	}
	if c.Type != nftables.ChainTypeFilter {
		return "", false
	}
	switch *c.Hooknum {
	case *nftables.ChainHookInput:
		return "input", true
	case *nftables.ChainHookForward:
		return "forward", true
	}
	return "", false
}

// decoder reads the expressions of rules. What a register holds is followed as
// far as it is a Key.
type decoder struct {
	conn  *nftables.Conn
	table *nftables.Table
	links map[uint32]string

	rule     Rule
	loaded   map[uint32]loaded
	branches []Rule // of a verdict map
	mapped   bool
}

// loaded is what is known of a register's content.
type loaded struct {
	key  Key
	kind expr.MetaKey // of a link: by name or by index
	mask uint32       // of a state
}

// decode returns the rule, or, for one with a verdict map, a rule for each of
// its elements.
func (d *decoder) decode(exprs []expr.Any) []Rule {
	d.rule, d.loaded, d.branches, d.mapped = Rule{}, map[uint32]loaded{}, nil, false
	for _, e := range exprs {
		d.step(e)
	}
	if !d.mapped {
		return []Rule{d.rule}
	}
	for i := range d.branches {
		d.branches[i].Conditions = append(d.branches[i].Conditions, d.rule.Conditions...)
		d.branches[i].Opaque = d.rule.Opaque
	}
	return d.branches
}

func (d *decoder) step(e expr.Any) {
	switch e := e.(type) {
	case *expr.Meta:
		if !e.SourceRegister {
			d.loaded[e.Register] = metaKey(e.Key)
		}
	case *expr.Ct:
		if !e.SourceRegister {
			d.loaded[e.Register] = loaded{}
			if e.Key == expr.CtKeySTATE {
				d.loaded[e.Register] = loaded{key: State}
			}
		}
	case *expr.Payload:
		if e.OperationType == expr.PayloadLoad {
			d.loaded[e.DestRegister] = loaded{}
			// Offset 9 of an IPv4 header is the protocol (RFC 791).
			if e.Base == expr.PayloadBaseNetworkHeader && e.Offset == 9 && e.Len == 1 {
				d.loaded[e.DestRegister] = loaded{key: Transport}
			}
		}
	case *expr.Bitwise:
		from := d.loaded[e.SourceRegister]
		d.loaded[e.DestRegister] = loaded{}
		if from.key == State && len(e.Mask) == 4 {
			d.loaded[e.DestRegister] = loaded{key: State, mask: binary.NativeEndian.Uint32(e.Mask)}
		}
	case *expr.Cmp:
		d.compare(e)
	case *expr.Lookup:
		d.lookup(e)
	case *expr.Verdict:
		d.rule.Verdict, d.rule.Target = verdictOf(e)
	case *expr.Reject:
		d.rule.Verdict = Drop
	case *expr.Match:
		d.match(e)
	case *expr.Target:
		d.rule.Verdict = targetVerdict(e.Name)
	case *expr.Counter, *expr.Log, *expr.Objref, *expr.Notrack, *expr.Immediate, *expr.FlowOffload:
	case *expr.Fib:
		d.loaded[e.Register] = loaded{}
	case *expr.Queue:
		d.rule.Verdict = Unknown
	default:
		d.rule.Opaque = true
	}
}

func metaKey(k expr.MetaKey) loaded {
	switch k {
	case expr.MetaKeyIIFNAME, expr.MetaKeyIIF:
		return loaded{key: InputLink, kind: k}
	case expr.MetaKeyOIFNAME, expr.MetaKeyOIF:
		return loaded{key: OutputLink, kind: k}
	case expr.MetaKeyNFPROTO:
		return loaded{key: Family}
	case expr.MetaKeyL4PROTO:
		return loaded{key: Transport}
	}
	return loaded{}
}

func (d *decoder) compare(e *expr.Cmp) {
	l, ok := d.loaded[e.Register]
	if !ok || l.key == "" || e.Op != expr.CmpOpEq && e.Op != expr.CmpOpNeq {
		d.rule.Opaque = true
		return
	}
	c := Condition{Key: l.key, Not: e.Op == expr.CmpOpNeq}
	if l.mask != 0 && len(e.Data) == 4 && binary.NativeEndian.Uint32(e.Data) == 0 {
		// (state & mask) != 0 says that it is one of them.
		c.Not, c.Values = !c.Not, stateNames(l.mask)
	} else {
		c.Values = d.values(l, e.Data)
	}
	d.condition(c)
}

// condition adds one; with no value it was not understood.
func (d *decoder) condition(c Condition) {
	if len(c.Values) == 0 {
		d.rule.Opaque = true
		return
	}
	d.rule.Conditions = append(d.rule.Conditions, c)
}

// values reads what a register is compared with.
func (d *decoder) values(l loaded, data []byte) []string {
	switch l.key {
	case InputLink, OutputLink:
		if l.kind == expr.MetaKeyIIF || l.kind == expr.MetaKeyOIF {
			if len(data) != 4 || d.links[binary.NativeEndian.Uint32(data)] == "" {
				return nil
			}
			return []string{d.links[binary.NativeEndian.Uint32(data)]}
		}
		name, _, terminated := strings.Cut(string(data), "\x00")
		if !terminated {
			name += "*" // compared as far as given
		}
		return []string{name}
	case Family:
		return one(map[byte]string{unix.NFPROTO_IPV4: "ipv4", unix.NFPROTO_IPV6: "ipv6"}, data)
	case Transport:
		if len(data) == 0 {
			return nil
		}
		return []string{transportName(data[0])}
	case State:
		if len(data) == 4 {
			return stateNames(binary.NativeEndian.Uint32(data))
		}
	}
	return nil
}

func one(names map[byte]string, data []byte) []string {
	if len(data) == 0 || names[data[0]] == "" {
		return nil
	}
	return []string{names[data[0]]}
}

func transportName(b byte) string {
	switch b {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	}
	return fmt.Sprint(b)
}

func stateNames(mask uint32) []string {
	var out []string
	for _, s := range []struct {
		bit  uint32
		name string
	}{
		{expr.CtStateBitINVALID, "invalid"},
		{expr.CtStateBitESTABLISHED, "established"},
		{expr.CtStateBitRELATED, "related"},
		{expr.CtStateBitNEW, "new"},
		{expr.CtStateBitUNTRACKED, "untracked"},
	} {
		if mask&s.bit != 0 {
			out = append(out, s.name)
		}
	}
	return out
}

// lookup reads a set (iifname { "a", "b" }) or a verdict map (ct state vmap
// { established : accept, ... }) of a Key's values.
func (d *decoder) lookup(e *expr.Lookup) {
	l := d.loaded[e.SourceRegister]
	set, err := d.conn.GetSetByName(d.table, e.SetName)
	if err != nil || l.key == "" || set.Interval || set.Concatenation {
		d.unknownLookup(e)
		return
	}
	elements, err := d.conn.GetSetElements(set)
	if err != nil {
		d.unknownLookup(e)
		return
	}
	var all []string
	for _, el := range elements {
		values := d.values(l, el.Key)
		verdict, ok := elementVerdict(el.Val)
		if len(values) == 0 || e.IsDestRegSet && !ok {
			d.unknownLookup(e)
			return
		}
		all = append(all, values...)
		if e.IsDestRegSet {
			r := Rule{Conditions: []Condition{{Key: l.key, Values: values}}}
			r.Verdict, r.Target = verdictOf(&verdict)
			d.branches = append(d.branches, r)
		}
	}
	// The kernel lists elements in an order of its own.
	slices.Sort(all)
	slices.SortFunc(d.branches, func(a, b Rule) int { return strings.Compare(a.Conditions[0].Values[0], b.Conditions[0].Values[0]) })
	if e.IsDestRegSet {
		d.mapped = true
		return
	}
	d.condition(Condition{Key: l.key, Not: e.Invert, Values: all})
}

// elementVerdict reads a verdict map's value, which the library hands on as the
// kernel has sent it: the attributes NFTA_VERDICT_CODE and NFTA_VERDICT_CHAIN.
func elementVerdict(b []byte) (expr.Verdict, bool) {
	var v expr.Verdict
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return v, false
	}
	ad.ByteOrder = binary.BigEndian
	coded := false
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_VERDICT_CODE:
			v.Kind, coded = expr.VerdictKind(int32(ad.Uint32())), true
		case unix.NFTA_VERDICT_CHAIN:
			v.Chain = ad.String()
		}
	}
	return v, coded && ad.Err() == nil
}

// unknownLookup notes a lookup that says nothing: of a map, whose verdict may be
// any, or of a set.
func (d *decoder) unknownLookup(e *expr.Lookup) {
	d.rule.Opaque, d.mapped, d.branches = true, false, nil
	if e.IsDestRegSet && e.DestRegister == unix.NFT_REG_VERDICT {
		d.rule.Verdict = Unknown
	}
	d.loaded[e.DestRegister] = loaded{}
}

func verdictOf(v *expr.Verdict) (Verdict, string) {
	switch v.Kind {
	case expr.VerdictAccept:
		return Accept, ""
	case expr.VerdictDrop:
		return Drop, ""
	case expr.VerdictReturn:
		return Return, ""
	case expr.VerdictJump:
		return Jump, v.Chain
	case expr.VerdictGoto:
		return Goto, v.Chain
	case expr.VerdictContinue, expr.VerdictBreak:
		return Continue, ""
	}
	return Unknown, ""
}
