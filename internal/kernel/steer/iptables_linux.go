package steer

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/coreos/go-iptables/iptables"
	"golang.org/x/sys/unix"

	"decoynet/deception"
)

// ChainName is the chain, in the mangle table, that iptables steering keeps in
// the namespace; its sets have the same name and the family's number.
const ChainName = "decoynet-steer"

// ipTables steers by one rule a family and transport, which ask a set.
type ipTables struct {
	socks    *sockets
	families []*ipFamily
	limit    int // members of both sets together
	// held is what the sets hold. After a change that broke off it is several:
	// then each member is of one of them, and none is certain to be there.
	held []product
}

// ipFamily is one family's program and set.
type ipFamily struct {
	program *iptables.IPTables
	set     ipset
	onIP    string
}

// variants are what the names of the programs end in. They differ in the kernel
// interface they speak to, of which this kernel may have only one.
var variants = []string{"", "-legacy", "-nft"}

func newIPTables(socks *sockets, lim limits) *ipTables {
	x := &ipTables{socks: socks, limit: lim.members, held: []product{{}}}
	x.families = []*ipFamily{{set: ipset{name: ChainName + "4", family: unix.NFPROTO_IPV4}, onIP: loopback4.String()}}
	if socks.family == unix.AF_INET6 {
		six := ipset{name: ChainName + "6", family: unix.NFPROTO_IPV6}
		x.families = append(x.families, &ipFamily{set: six, onIP: "::ffff:" + loopback4.String()})
	}
	return x
}

func openIPTables(socks *sockets, lim limits) (*ipTables, error) {
	x := newIPTables(socks, lim)
	if err := x.dropStale(); err != nil {
		return nil, err
	}
	var errs []error
	for _, variant := range variants {
		err := x.install(variant)
		if err == nil {
			return x, nil
		}
		if variant != "" && errors.Is(err, exec.ErrNotFound) {
			continue
		}
		errs = append(errs, err)
		if !errors.Is(err, ErrNotSupported) {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// dropStale removes what a killed process has left. Every mechanism has to: a
// rule of this one drops what it finds no socket for. Sets are made before all
// else and destroyed after it, so that one is there wherever anything is.
func (x *ipTables) dropStale() error {
	stale := false
	err := x.withSets(func(c *ipsetConn) error {
		for _, f := range x.families {
			stale = stale || c.has(&f.set)
		}
		return nil
	})
	if err != nil || !stale {
		return nil // a kernel that cannot be asked has no sets
	}
	var errs []error
	for _, variant := range variants {
		err := x.findPrograms(variant)
		if err == nil {
			err = x.close()
		}
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("remove the rules of a decoynet that was killed: %w", errors.Join(errs...))
}

func (x *ipTables) findPrograms(variant string) error {
	for i, name := range []string{"iptables", "ip6tables"}[:len(x.families)] {
		path, err := lookProgram(name + variant)
		if err != nil {
			return err
		}
		x.families[i].program, err = iptables.New(
			iptables.IPFamily(iptables.Protocol(i)), iptables.Path(path), iptables.Timeout(programTimeout))
		if err != nil {
			return fmt.Errorf("run %s: %w", path, err)
		}
	}
	return nil
}

// install makes sets and rules.
func (x *ipTables) install(variant string) error {
	if err := x.findPrograms(variant); err != nil {
		return explainIPTables(err)
	}
	for _, f := range x.families {
		room := uint32(2*x.limit + len(f.set.lengths)) // old and new side by side, and the placeholders
		err := x.withSets(func(c *ipsetConn) error { return c.create(&f.set, room) })
		if err == nil {
			err = x.socks.enter(func() error { return f.addRules(x.socks.port) })
		}
		if err != nil {
			_ = x.close() // the cause is err
			return explainIPTables(err)
		}
	}
	return nil
}

// programTimeout bounds, in seconds, how long a program waits for another that
// holds the lock they share.
const programTimeout = 10

// lookProgram finds a program also where a plain `su` or a service has left the
// system directories out of PATH.
func lookProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
		if err == nil {
			break
		}
		if p, elsewhere := exec.LookPath(dir + name); elsewhere == nil {
			path, err = p, nil
		}
	}
	return path, err
}

const mangle = "mangle"

// addRules puts the rules, as a whole, in front of what the chain of the kernel
// has already.
//
// The mark stays as it is. The address is named for the same reason as in the
// nftables rule; there is no "socket" match in front for the same reason.
func (f *ipFamily) addRules(port uint16) error {
	if err := f.program.NewChain(mangle, ChainName); err != nil {
		return fmt.Errorf("make chain %s: %w", ChainName, err)
	}
	for _, transport := range []string{"tcp", "udp"} {
		err := f.program.Append(mangle, ChainName, "-p", transport, "-m", "set", "--match-set", f.set.name, "dst,dst",
			"-j", "TPROXY", "--on-ip", f.onIP, "--on-port", strconv.Itoa(int(port)), "--tproxy-mark", "0x0/0x0")
		if err != nil {
			return fmt.Errorf("add the rule for %s: %w", transport, err)
		}
	}
	if err := f.program.Insert(mangle, "PREROUTING", 1, "-j", ChainName); err != nil {
		return fmt.Errorf("lead PREROUTING to chain %s: %w", ChainName, err)
	}
	return nil
}

// dropRules removes the rules, or what is there of them.
func (f *ipFamily) dropRules() error {
	there, err := f.program.ChainExists(mangle, ChainName)
	if err != nil || !there {
		return err
	}
	for {
		err := f.program.Delete(mangle, "PREROUTING", "-j", ChainName)
		if err == nil {
			continue // a killed process may have left more than one
		}
		var e *iptables.Error
		if errors.As(err, &e) && e.IsNotExist() {
			break
		}
		return fmt.Errorf("lead PREROUTING away from chain %s: %w", ChainName, err)
	}
	if err := f.program.ClearAndDeleteChain(mangle, ChainName); err != nil {
		return fmt.Errorf("delete chain %s: %w", ChainName, err)
	}
	return nil
}

// explainIPTables tells what is missing, the kernel's part or the program's,
// from other failures.
func explainIPTables(err error) error {
	missing := NotSupportedError{Mode: deception.SteeringIPTables, Minimum: "2.6.39", Err: err}
	var e *iptables.Error
	switch {
	case errors.Is(err, exec.ErrNotFound):
		missing.Needs = "the programs iptables and ip6tables (package iptables)"
	case errors.Is(err, errIPSetType), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPROTONOSUPPORT):
		missing.Needs = "CONFIG_IP_SET and CONFIG_IP_SET_HASH_NETPORT"
	case errors.As(err, &e) && !strings.Contains(e.Error(), "Permission denied") && !strings.Contains(e.Error(), "xtables lock"):
		missing.Needs = "CONFIG_IP_NF_MANGLE, CONFIG_IP6_NF_MANGLE, CONFIG_NETFILTER_XT_SET and CONFIG_NETFILTER_XT_TARGET_TPROXY"
	default:
		return err
	}
	return &missing
}

// withSets calls f with a connection to the namespace's sets.
func (x *ipTables) withSets(f func(*ipsetConn) error) error {
	ns, err := x.socks.namespace()
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	c, err := dialIPSet(ns)
	if err != nil {
		return err
	}
	defer c.close()
	return f(c)
}

func (x *ipTables) close() error {
	var errs []error
	for _, f := range x.families {
		if err := x.socks.enter(f.dropRules); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, x.withSets(func(c *ipsetConn) error { return c.destroy(&f.set) }))
	}
	return errors.Join(errs...)
}

// apply adds what is missing before it deletes what is too much: in between, a
// port is open where it was or shall be, and each changes once.
func (x *ipTables) apply(ctx context.Context, cur *state, c change) (int, error) {
	run := progress{ctx: ctx, failed: map[uint32]*GroupError{}}
	if run.err = ctx.Err(); run.err != nil {
		return 0, run.err
	}
	next := cur.after(c)
	want := multiply(next)
	for group, n := range want.fit(c.tags, x.limit) {
		run.note(group, fmt.Errorf("%w: %d entries of prefix and port are more than are left of the %d there may be", ErrFull, n, x.limit), nil)
	}
	err := x.withSets(func(conn *ipsetConn) error {
		w := setWriter{run: &run, conn: conn, sets: x.families, group: map[tag]uint32{}}
		for group, t := range c.tags {
			w.group[t] = group
		}
		x.change(&w, want)
		return nil
	})
	if err != nil {
		return run.writes, err
	}
	if run.err == nil {
		for group := range run.failed {
			delete(next.ports, c.tags[group])
		}
		*cur = *next
	}
	return run.writes, run.errors()
}

func (x *ipTables) change(w *setWriter, want product) {
	var certain product
	if len(x.held) == 1 {
		certain = x.held[0]
	}
	if !want.equal(x.held[len(x.held)-1]) {
		x.held = append(x.held, want)
	}
	w.write(ipsetAdd, want.minus(certain))
	if w.run.err != nil {
		return
	}
	// A group that did not get in as a whole is closed.
	want.ports = maps.Clone(want.ports)
	for t, group := range w.group {
		if w.run.failed[group] != nil {
			delete(want.ports, t)
		}
	}
	for _, held := range x.held {
		w.write(ipsetDel, held.minus(want))
	}
	if w.run.err == nil {
		x.held = []product{want}
	}
}

func (p product) equal(o product) bool {
	return slices.Equal(p.pieces, o.pieces) && maps.EqualFunc(p.ports, o.ports, portSet.equal)
}

// setWriter writes members, many to a message.
type setWriter struct {
	run   *progress
	conn  *ipsetConn
	sets  []*ipFamily
	group map[tag]uint32
}

// maxMembers bounds how long one message keeps the kernel.
const maxMembers = 16 * maxRun

func (w *setWriter) write(command int, members iter.Seq[member]) {
	buf := make([]member, 0, chunk)
	entries := 0
	flush := func() {
		if len(buf) > 0 && w.run.err == nil {
			w.send(command, buf)
		}
		buf, entries = buf[:0], 0
	}
	for m := range members {
		if len(buf) >= chunk-1 || entries+m.len() > maxMembers || len(buf) > 0 && buf[0].prefix.Addr().Is4() != m.prefix.Addr().Is4() {
			flush()
		}
		if w.run.err != nil {
			return
		}
		set := w.setOf(m.prefix)
		if set == nil {
			continue // a kernel without the family
		}
		if bits := m.prefix.Bits(); command == ipsetAdd && !set.lengths[bits] {
			set.lengths[bits] = true
			buf = append(buf, keepLength(m.prefix))
		}
		buf = append(buf, m)
		entries += m.len()
	}
	flush()
}

func (w *setWriter) setOf(p netip.Prefix) *ipset {
	for _, f := range w.sets {
		if p.Addr().Is4() == (f.set.family == unix.NFPROTO_IPV4) {
			return &f.set
		}
	}
	return nil
}

// send writes one message, and member by member what it refuses.
func (w *setWriter) send(command int, members []member) {
	if w.run.err = w.run.ctx.Err(); w.run.err != nil {
		return
	}
	set := w.setOf(members[0].prefix)
	if w.conn.write(command, set, members) == nil {
		for _, m := range members {
			w.run.writes += m.len()
		}
		return
	}
	for _, m := range members {
		group, ours := w.group[m.tag]
		if ours && w.run.failed[group] != nil && command == ipsetAdd {
			continue
		}
		err := w.conn.write(command, set, []member{m})
		switch {
		case err == nil:
			w.run.writes += m.len()
		case command == ipsetAdd && ours:
			w.run.note(group, err, nil)
		default:
			w.run.err = err // what is there is not known any more
			return
		}
	}
}
