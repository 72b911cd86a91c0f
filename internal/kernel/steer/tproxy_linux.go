package steer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/kernel/nft"
)

// TableName is the nftables table, of family inet, that TPROXY steering keeps in
// the namespace.
const TableName = "decoynet-steer"

// chunk is how many set elements a netlink message has, whose attributes end at
// 64 kB.
const chunk = 1000

// tproxy steers by an nftables table in the namespace.
type tproxy struct {
	socks *sockets
	table *nftables.Table
	addrs map[int]*nftables.Set // by bytes of an address: 4, 16
	ports *nftables.Set
	spans []span // what addrs holds
}

var portKey = nftables.MustConcatSetType(nftables.TypeClassID, nftables.TypeInetProto, nftables.TypeInetService)

func openTPROXY(socks *sockets) (*tproxy, error) {
	// The numbers are only good within one transaction. They are given here
	// because the library would draw them from a counter without a lock. The
	// ports are a concatenation without ranges, which kernels before 5.6 know
	// only without the flag that says so.
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: TableName}
	t := &tproxy{
		socks: socks,
		table: table,
		addrs: map[int]*nftables.Set{
			4: {
				Table: table, ID: 1, Name: "addrs4", IsMap: true, Interval: true,
				KeyType: nftables.TypeIPAddr, DataType: nftables.TypeClassID,
			},
			16: {
				Table: table, ID: 2, Name: "addrs6", IsMap: true, Interval: true,
				KeyType: nftables.TypeIP6Addr, DataType: nftables.TypeClassID,
			},
		},
		ports: &nftables.Set{Table: table, ID: 3, Name: "ports", KeyType: portKey},
	}
	if err := t.install(); err != nil {
		return nil, explainTPROXY(err)
	}
	return t, nil
}

// transact fills and commits one transaction, over a connection of its own: an
// answer left over from a failed one cannot confuse the next.
func (t *tproxy) transact(fill func(*nftables.Conn) error) error {
	ns, err := t.socks.namespace()
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	conn, err := nft.Open(ns)
	if err != nil {
		return err
	}
	if err := fill(conn); err != nil {
		return err
	}
	return conn.Flush()
}

// install makes the table with empty sets, in place of one that a killed
// process may have left.
func (t *tproxy) install() error {
	err := t.transact(func(conn *nftables.Conn) error {
		conn.AddTable(t.table) // so that deleting it never fails
		conn.DelTable(t.table)
		conn.AddTable(t.table)
		policy := nftables.ChainPolicyAccept
		chain := conn.AddChain(&nftables.Chain{
			Table: t.table, Name: "prerouting", Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityMangle, Policy: &policy,
		})
		for _, set := range []*nftables.Set{t.addrs[4], t.addrs[16], t.ports} {
			if err := conn.AddSet(set, nil); err != nil {
				return fmt.Errorf("add set %s: %w", set.Name, err)
			}
		}
		conn.AddRule(&nftables.Rule{Table: t.table, Chain: chain, Exprs: t.rule(unix.NFPROTO_IPV4)})
		if t.socks.family == unix.AF_INET6 {
			conn.AddRule(&nftables.Rule{Table: t.table, Chain: chain, Exprs: t.rule(unix.NFPROTO_IPV6)})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("install table %s: %w", TableName, err)
	}
	return nil
}

// Registers as the kernel numbers them: one of 16 bytes, and apart from it those
// of 4 bytes.
const (
	reg128 = unix.NFT_REG_1
	reg32  = unix.NFT_REG32_04
)

// rule is, in the words of nft:
//
//	meta nfproto ipv4 meta priority set ip daddr map @addrs4
//	meta priority . meta l4proto . th dport @ports
//	tproxy ip to 127.0.0.1:PORT accept
//
// The group could go from one lookup to the next in a register, but nft aborts
// when it lists such a rule. So it goes by way of the packet's priority, which
// for a packet to a local address nobody reads any more. Its mark might be read:
// by policy routing, and by answers where fwmark_reflect is set.
//
// The address is named in "tproxy to": without it the kernel would look for a
// listener at an address of the interface.
func (t *tproxy) rule(family byte) []expr.Any {
	offset, set, loopback := uint32(16), t.addrs[4], loopback4.AsSlice()
	if family == unix.NFPROTO_IPV6 {
		mapped := loopback4.As16()
		offset, set, loopback = 24, t.addrs[16], mapped[:]
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg32},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg32, Data: []byte{family}},
		&expr.Payload{
			DestRegister: reg128, Base: expr.PayloadBaseNetworkHeader,
			Offset: offset, Len: uint32(len(loopback)),
		},
		&expr.Lookup{SourceRegister: reg128, DestRegister: reg32, IsDestRegSet: true, SetName: set.Name, SetID: set.ID},
		&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: reg32},
		&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: reg32},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg32 + 1},
		&expr.Payload{DestRegister: reg32 + 2, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg32, SetName: t.ports.Name, SetID: t.ports.ID},
		&expr.Immediate{Register: reg128, Data: loopback},
		&expr.Immediate{Register: reg32, Data: binaryutil.BigEndian.PutUint16(t.socks.port)},
		&expr.TProxy{Family: family, TableFamily: unix.NFPROTO_INET, RegAddr: reg128, RegPort: reg32},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}
}

// explainTPROXY tells a kernel without the expression from other failures.
func explainTPROXY(err error) error {
	if !nft.Unsupported(err) {
		return err
	}
	return &NotSupportedError{
		Mode: deception.SteeringTPROXY, Minimum: "4.19",
		Needs: "CONFIG_NF_TABLES_INET and CONFIG_NFT_TPROXY", Err: err,
	}
}

func (t *tproxy) close() error {
	err := t.transact(func(conn *nftables.Conn) error { conn.DelTable(t.table); return nil })
	if err != nil && !errors.Is(err, unix.ENOENT) { // that is: someone was faster
		return fmt.Errorf("delete table %s: %w", TableName, err)
	}
	return nil
}

// apply makes the change in one transaction, all of it or nothing, but for the
// ports that nothing leads to any more: these go in a second one.
func (t *tproxy) apply(ctx context.Context, cur *state, c change) (int, error) {
	first := c
	first.dropPorts = nil
	second := change{dropPorts: c.dropPorts, tags: c.tags, last: c.last}
	writes, err := t.commit(ctx, cur, first)
	if err != nil || len(c.dropPorts) == 0 {
		return writes, err
	}
	awaitLookups()
	more, err := t.commit(ctx, cur, second)
	return writes + more, err
}

func (t *tproxy) commit(ctx context.Context, cur *state, c change) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	next, spans := cur.after(c), t.spans
	if len(c.setPrefixes)+len(c.dropPrefixes) > 0 {
		spans = flatten(next.prefixes)
	}
	gone, added := diffSpans(t.spans, spans)
	closed, opened := diffPorts(cur, c)
	writes := len(gone) + len(added) + len(closed) + len(opened)
	if writes > 0 {
		if err := t.write(gone, added, closed, opened); err != nil {
			return 0, err
		}
	}
	*cur, t.spans = *next, spans
	return writes, nil
}

func (t *tproxy) write(gone, added []span, closed, opened []tagPort) error {
	err := t.transact(func(conn *nftables.Conn) error {
		// Deletions first: an interval may only be added where none is.
		var errs []error
		for size, set := range t.addrs {
			errs = append(errs,
				send(conn.SetDeleteElements, set, ofSize(gone, size), spanElements),
				send(conn.SetAddElements, set, ofSize(added, size), spanDataElements))
		}
		return errors.Join(append(errs,
			send(conn.SetDeleteElements, t.ports, closed, portElement),
			send(conn.SetAddElements, t.ports, opened, portElement))...)
	})
	if err != nil {
		return fmt.Errorf("change table %s: %w", TableName, err)
	}
	return nil
}

// send puts items into the transaction, so many to a message as fit.
func send[T any](do func(*nftables.Set, []nftables.SetElement) error, set *nftables.Set, items []T,
	elements func([]nftables.SetElement, T) []nftables.SetElement,
) error {
	buf := make([]nftables.SetElement, 0, chunk+1)
	for i, item := range items {
		buf = elements(buf, item)
		if len(buf) < chunk && i+1 < len(items) {
			continue
		}
		if err := do(set, buf); err != nil {
			return fmt.Errorf("write set %s: %w", set.Name, err)
		}
		buf = buf[:0]
	}
	return nil
}

// ofSize returns the spans of the family whose addresses have so many bytes.
func ofSize(spans []span, size int) []span {
	// IPv4 comes first.
	six, _ := slices.BinarySearchFunc(spans, 128, func(s span, bits int) int { return s.from.BitLen() - bits })
	if size == 4 {
		return spans[:six]
	}
	return spans[six:]
}

// spanElements writes a span as nftables knows intervals: an element where it
// begins and, unless it reaches the family's last address, one behind its end.
func spanElements(out []nftables.SetElement, s span) []nftables.SetElement {
	out = append(out, nftables.SetElement{Key: s.from.AsSlice()})
	if end := s.to.Next(); end.IsValid() {
		out = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
	}
	return out
}

func spanDataElements(out []nftables.SetElement, s span) []nftables.SetElement {
	n := len(out)
	out = spanElements(out, s)
	out[n].Val = binaryutil.NativeEndian.PutUint32(uint32(s.tag))
	return out
}

// tagPort is an open port of a group.
type tagPort struct {
	tag       tag
	transport deception.Transport
	port      uint16
}

func portElement(out []nftables.SetElement, p tagPort) []nftables.SetElement {
	key := make([]byte, 12) // each part is padded to a register
	binary.NativeEndian.PutUint32(key, uint32(p.tag))
	key[4] = byte(p.transport)
	binary.BigEndian.PutUint16(key[8:], p.port)
	return append(out, nftables.SetElement{Key: key})
}

// diffPorts lists the single ports that the change closes and opens.
func diffPorts(cur *state, c change) (closed, opened []tagPort) {
	for _, e := range c.dropPorts {
		closed = appendPorts(closed, e, cur.ports[e.tag][e.slot])
	}
	for _, e := range c.openPorts {
		old := cur.ports[e.tag][e.slot]
		var less, more bitmap
		for i := range old {
			less[i], more[i] = old[i]&^e.bits[i], e.bits[i]&^old[i]
		}
		closed, opened = appendPorts(closed, e, less), appendPorts(opened, e, more)
	}
	return closed, opened
}

func appendPorts(out []tagPort, e portEntry, bits bitmap) []tagPort {
	for i := range blockPorts {
		if bits[i/64]>>(i%64)&1 == 1 {
			out = append(out, tagPort{e.tag, e.slot.Transport, uint16(int(e.slot.Index)*blockPorts + i)})
		}
	}
	return out
}
