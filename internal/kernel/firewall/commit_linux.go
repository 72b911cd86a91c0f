package firewall

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// elementsPerMessage keeps a message's attribute lengths, 16 bits each, from
// overflowing.
const elementsPerMessage = 1000

// applyWhole brings a scope of table inet decoynet that nobody else writes to
// its desired state.
func applyWhole(ctx context.Context, ns Namespace, word string, want *ruleset) (Status, error) {
	return applyScope(ctx, ns, scope{word: word}, want)
}

// applyScope brings a scope that nobody else writes to its desired state.
func applyScope(ctx context.Context, ns Namespace, sc scope, want *ruleset) (Status, error) {
	state := lock(ns)
	defer state.unlock()
	before, known, err := readGeneration(ns)
	if err != nil {
		return Status{}, err
	}
	now := appliedScope{at: before, digest: want.digest()}
	if known && state.last[sc.word] == now {
		return Status{}, nil
	}
	delete(state.last, sc.word)
	s, err := applyLocked(ctx, ns, sc, false, func(*ruleset) *ruleset { return want })
	if err != nil || !known {
		return s, err
	}
	// Remembered only if no transaction but ours came in between.
	if s.Changed {
		now.at.id++
	}
	if after, known, err := readGeneration(ns); err == nil && known && after == now.at {
		state.last[sc.word] = now
	}
	return s, nil
}

// apply brings the scope to the desired state that compile makes out of what is
// there.
func apply(ctx context.Context, ns Namespace, sc scope, keep bool, compile func(have *ruleset) *ruleset) (Status, error) {
	state := lock(ns)
	defer state.unlock()
	return applyLocked(ctx, ns, sc, keep, compile)
}

// applyLocked must be called with the namespace's lock held. It writes one
// transaction, or none.
func applyLocked(ctx context.Context, ns Namespace, sc scope, keep bool, compile func(have *ruleset) *ruleset) (Status, error) {
	conn, err := open(ns)
	if err != nil {
		return Status{}, err
	}
	have, err := read(ctx, conn, sc)
	if err != nil {
		return Status{}, wrap("read rules", ns, err)
	}
	p := diff(have, compile(have), sc, keep)
	if p.empty() {
		return Status{}, nil
	}
	if err := ctx.Err(); err != nil {
		return Status{}, wrap("write rules", ns, err)
	}
	if err := commit(conn, sc.table(), p); err != nil {
		return Status{}, wrap("write rules", ns, err)
	}
	return p.status(), nil
}

// read returns what the kernel holds of the scope; empty where there is no table.
func read(ctx context.Context, conn *nftables.Conn, sc scope) (*ruleset, error) {
	have := newRuleset()
	table := sc.table()
	exists, err := tableExists(conn, table.Family)
	if err != nil || !exists {
		return have, err
	}
	all := scope{word: sc.word}
	chains, err := conn.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	for _, c := range chains {
		if c.Table.Name != TableName || !all.owns(c.Name) {
			continue
		}
		h := have.chain(c.Name, hookOf(c))
		rules, err := conn.GetRules(table, c)
		if err != nil {
			return nil, fmt.Errorf("list rules of chain %s: %w", c.Name, err)
		}
		for _, r := range rules {
			h.rules = append(h.rules, rule{comment: decodeComment(r.UserData)})
		}
	}
	sets, err := conn.GetSets(table)
	if err != nil {
		return nil, fmt.Errorf("list sets: %w", err)
	}
	for _, s := range sets {
		if s.Anonymous || !all.owns(s.Name) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		elements, err := conn.GetSetElements(s)
		if err != nil {
			return nil, fmt.Errorf("list elements of set %s: %w", s.Name, err)
		}
		have.set(decodeSet(s, elements))
	}
	objects, err := conn.GetNamedObjects(table)
	if err != nil {
		return nil, fmt.Errorf("list counters: %w", err)
	}
	for _, o := range objects {
		if n, ok := o.(*nftables.NamedObj); ok && n.Type == nftables.ObjTypeCounter && all.owns(n.Name) {
			have.counters[n.Name] = true
		}
	}
	return have, nil
}

func hookOf(c *nftables.Chain) *hook {
	if c.Hooknum == nil || c.Priority == nil {
		return nil
	}
	h := &hook{kind: c.Type, hook: *c.Hooknum, priority: *c.Priority}
	h.drop = c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
	return h
}

func decodeSet(s *nftables.Set, elements []nftables.SetElement) *set {
	out := newSet(s.Name, s.KeyType, s.DataType)
	out.interval = s.Interval
	if s.IsMap && out.data.Name == "" {
		out.data = nftables.TypeVerdict
	}
	if !s.Interval {
		for _, e := range elements {
			out.add(decodeElement(s, e))
		}
		return out
	}
	// The kernel holds an interval as a start and, flagged, the first key
	// behind it.
	slices.SortFunc(elements, func(a, b nftables.SetElement) int {
		if c := bytes.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		if a.IntervalEnd == b.IntervalEnd {
			return 0
		}
		if a.IntervalEnd {
			return -1
		}
		return 1
	})
	for i, e := range elements {
		if e.IntervalEnd {
			continue
		}
		d := decodeElement(s, e)
		d.last = strings.Repeat("\xff", len(e.Key))
		if i+1 < len(elements) {
			d.last = string(previousKey(elements[i+1].Key))
		}
		out.add(d)
	}
	return out
}

func decodeElement(s *nftables.Set, e nftables.SetElement) element {
	d := element{key: string(e.Key)}
	if !s.IsMap {
		return d
	}
	// A verdict comes as nested attributes, a plain value as itself; the
	// library tells them apart only by the type that it noted as the key's.
	if s.DataType.Name != "" {
		d.val = string(e.Val)
		return d
	}
	attrs, err := netlink.UnmarshalAttributes(e.Val)
	if err != nil {
		return d
	}
	for _, a := range attrs {
		if a.Type == unix.NFTA_VERDICT_CHAIN {
			d.jump = strings.TrimRight(string(a.Data), "\x00")
		}
	}
	return d
}

func nextKey(key []byte) (next []byte, ok bool) {
	next = slices.Clone(key)
	for i := len(next) - 1; i >= 0; i-- {
		next[i]++
		if next[i] != 0 {
			return next, true
		}
	}
	return nil, false
}

func previousKey(key []byte) []byte {
	prev := slices.Clone(key)
	for i := len(prev) - 1; i >= 0; i-- {
		prev[i]--
		if prev[i] != 0xff {
			break
		}
	}
	return prev
}

// commit sends the plan in one transaction. Its order only has to keep every
// reference valid; packets see all of it or nothing.
func commit(conn *nftables.Conn, table *nftables.Table, p *plan) error {
	table = conn.AddTable(table)
	for _, name := range p.flush {
		conn.FlushChain(&nftables.Chain{Table: table, Name: name})
	}
	for _, name := range p.drop {
		conn.DelChain(&nftables.Chain{Table: table, Name: name})
	}
	for _, name := range p.remake {
		conn.DelSet(&nftables.Set{Table: table, Name: name})
	}
	for _, name := range p.newCounters {
		conn.AddObj(&nftables.NamedObj{Table: table, Name: name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
	}
	for i, s := range p.newSets {
		ks := s.kernelSet(table)
		ks.ID = uint32(i + 1) // unique in the transaction; nothing refers to it
		if err := conn.AddSet(ks, nil); err != nil {
			return fmt.Errorf("add set %s: %w", s.name, err)
		}
	}
	for _, c := range p.newChains {
		conn.AddChain(c.kernelChain(table))
	}
	for _, e := range p.delElements {
		if err := sendElements(conn.SetDeleteElements, table, e); err != nil {
			return fmt.Errorf("delete elements of set %s: %w", e.set.name, err)
		}
	}
	for _, e := range p.addElements {
		if err := sendElements(conn.SetAddElements, table, e); err != nil {
			return fmt.Errorf("add elements to set %s: %w", e.set.name, err)
		}
	}
	for _, c := range p.fill {
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{
				Table: table, Chain: &nftables.Chain{Table: table, Name: c.name},
				Exprs: r.exprs, UserData: encodeComment(r.comment),
			})
		}
	}
	// Sets before chains: a verdict map holds a reference to its chains.
	for _, name := range p.delSets {
		conn.DelSet(&nftables.Set{Table: table, Name: name})
	}
	for _, name := range p.delChains {
		conn.DelChain(&nftables.Chain{Table: table, Name: name})
	}
	for _, name := range p.delCounters {
		conn.DeleteObject(&nftables.NamedObj{Table: table, Name: name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
	}
	return conn.Flush()
}

func (c *chain) kernelChain(table *nftables.Table) *nftables.Chain {
	k := &nftables.Chain{Table: table, Name: c.name}
	if c.hook == nil {
		return k
	}
	policy := nftables.ChainPolicyAccept
	if c.hook.drop {
		policy = nftables.ChainPolicyDrop
	}
	k.Type, k.Hooknum, k.Priority, k.Policy = c.hook.kind, &c.hook.hook, &c.hook.priority, &policy
	return k
}

func (s *set) kernelSet(table *nftables.Table) *nftables.Set {
	k := &nftables.Set{Table: table, Name: s.name, KeyType: s.key, DataType: s.data, IsMap: s.data.Name != "", Interval: s.interval, Concatenation: s.concat}
	// Only nft reads it, to print the keys.
	k.KeyByteOrder = binaryutil.BigEndian
	if s.key.Name == nftables.TypeIFName.Name {
		k.KeyByteOrder = binaryutil.NativeEndian
	}
	return k
}

func sendElements(send func(*nftables.Set, []nftables.SetElement) error, table *nftables.Table, change elementChange) error {
	ks := change.set.kernelSet(table)
	for some := range slices.Chunk(change.elements, elementsPerMessage) {
		list := make([]nftables.SetElement, 0, 2*len(some))
		for _, e := range some {
			k := nftables.SetElement{Key: []byte(e.key)}
			switch {
			case e.jump != "":
				k.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: e.jump}
			case e.val != "":
				k.Val = []byte(e.val)
			}
			list = append(list, k)
			if end, ok := nextKey([]byte(e.last)); change.set.interval && ok {
				list = append(list, nftables.SetElement{Key: end, IntervalEnd: true})
			}
		}
		if err := send(ks, list); err != nil {
			return err
		}
	}
	return nil
}

// counters reads our named counters whose names begin with prefix, by the rest
// of their names.
func counters(ctx context.Context, ns Namespace, prefix string) (map[string]Counter, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	conn, err := open(ns)
	if err != nil {
		return nil, err
	}
	out := map[string]Counter{}
	table := scope{}.table()
	exists, err := tableExists(conn, table.Family)
	if err != nil || !exists {
		return out, wrap("list tables", ns, err)
	}
	objects, err := conn.GetNamedObjects(table)
	if err != nil {
		return nil, wrap("list counters", ns, err)
	}
	for _, o := range objects {
		n, ok := o.(*nftables.NamedObj)
		if !ok {
			continue
		}
		name, ok := strings.CutPrefix(n.Name, prefix)
		if c, isCounter := n.Obj.(*expr.Counter); ok && isCounter {
			out[name] = Counter{Packets: c.Packets, Bytes: c.Bytes}
		}
	}
	return out, nil
}

func nativeUint32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
