package steer

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"decoynet/deception"
)

// addressKey is struct address of the BPF program.
type addressKey struct {
	Bits   uint32
	Family uint32
	Addr   [16]byte
}

func keyOf(p netip.Prefix) addressKey {
	k := addressKey{Bits: 32 + uint32(p.Bits()), Family: unix.AF_INET6}
	if p.Addr().Is4() {
		k.Family = unix.AF_INET
	}
	copy(k.Addr[:], p.Addr().AsSlice())
	return k
}

// blockKey is struct block of the BPF program.
type blockKey struct {
	Group     uint32
	Transport uint8
	Index     uint8
	Zero      uint16
}

func blockOf(e portEntry) blockKey {
	return blockKey{Group: uint32(e.tag), Transport: uint8(e.slot.Transport), Index: e.slot.Index}
}

// skLookup steers by a BPF program on the namespace.
type skLookup struct {
	objs    programObjects
	link    *link.NetNsLink
	noBatch bool // the kernel's maps take one entry a call
}

func openSKLookup(socks *sockets, lim limits) (*skLookup, error) {
	ns, err := socks.namespace()
	if err != nil {
		return nil, err
	}
	defer unix.Close(ns)
	k, err := loadSKLookup(socks, lim)
	if err != nil {
		return nil, explainSKLookup(err)
	}
	if k.link, err = link.AttachNetNs(ns, k.objs.DecoynetSteer); err != nil {
		k.objs.Close()
		return nil, explainSKLookup(fmt.Errorf("attach BPF program: %w", err))
	}
	return k, nil
}

func loadSKLookup(socks *sockets, lim limits) (*skLookup, error) {
	// Kernels before 5.11 charge maps to the locked memory of the process.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lift the limit on locked memory: %w", err)
	}
	spec, err := loadProgram()
	if err != nil {
		return nil, fmt.Errorf("read BPF program: %w", err)
	}
	// Twice the limits: old and new entries stand side by side in a change.
	spec.Maps[programMapDecoynetAddrs].MaxEntries = uint32(2 * lim.prefixes)
	spec.Maps[programMapDecoynetPorts].MaxEntries = uint32(2 * lim.slots)
	k := &skLookup{}
	if err := spec.LoadAndAssign(&k.objs, nil); err != nil {
		return nil, fmt.Errorf("load BPF program: %w", err)
	}
	for i, fd := range []int{socks.tcp[0], socks.udp[0]} {
		if err := k.objs.DecoynetSocks.Update(uint32(i), uint64(fd), ebpf.UpdateAny); err != nil {
			k.objs.Close()
			return nil, fmt.Errorf("put socket into sockmap: %w", err)
		}
	}
	return k, nil
}

// explainSKLookup tells a kernel without the feature from other failures, by
// probing for it: load errors alone are ambiguous.
func explainSKLookup(err error) error {
	missing := features.HaveProgramType(ebpf.SkLookup)
	if missing == nil {
		missing = features.HaveMapType(ebpf.SockMap)
	}
	if errors.Is(missing, ebpf.ErrNotSupported) || errors.Is(err, unix.ENOSYS) {
		return &NotSupportedError{
			Mode: deception.SteeringSKLookup, Minimum: "5.9",
			Needs: "CONFIG_BPF_SYSCALL and CONFIG_NET_SOCK_MSG", Err: err,
		}
	}
	return err
}

func (k *skLookup) close() error {
	// The link first: without its program the sockets are out of reach.
	var errs []error
	if err := k.link.Close(); err != nil {
		errs = append(errs, fmt.Errorf("detach BPF program: %w", err))
	}
	if err := k.objs.Close(); err != nil {
		errs = append(errs, fmt.Errorf("close BPF program: %w", err))
	}
	return errors.Join(errs...)
}

// apply writes the change in its order. A group whose ports are not all in gets
// none of its new prefixes; and ports stay while a prefix leads to them.
func (k *skLookup) apply(ctx context.Context, cur *state, c change) (int, error) {
	run := progress{ctx: ctx, failed: map[uint32]*GroupError{}}
	cur.last = c.last
	k.writePorts(&run, cur, c.openPorts)
	for group, t := range c.tags {
		if run.failed[group] == nil && run.err == nil {
			cur.tags[group] = t
		}
	}
	prefixes := c.setPrefixes
	if len(run.failed) > 0 {
		prefixes = nil
		for _, e := range c.setPrefixes {
			if run.failed[e.group] == nil {
				prefixes = append(prefixes, e)
			}
		}
	}
	k.writePrefixes(&run, cur, prefixes)
	k.deletePrefixes(&run, cur, c.dropPrefixes)
	if len(c.setPrefixes)+len(c.dropPrefixes) > 0 && len(c.dropPorts) > 0 {
		awaitLookups()
	}
	k.deletePorts(&run, cur, unused(cur, c, run.failed))
	if run.err == nil {
		for group := range cur.tags {
			if _, stays := c.tags[group]; !stays {
				delete(cur.tags, group)
			}
		}
	}
	return run.writes, run.errors()
}

// unused returns the port entries that may go. After a failure these are not
// those planned: a prefix may still carry a tag that was to be given up, and a
// new tag may have been given up half written.
func unused(cur *state, c change, failed map[uint32]*GroupError) []portEntry {
	if len(failed) == 0 {
		return c.dropPorts
	}
	planned, used := map[tag]bool{}, map[tag]bool{}
	for group, t := range c.tags {
		planned[t], used[cur.tags[group]] = true, true
	}
	for _, t := range cur.prefixes {
		used[t] = true
	}
	var out []portEntry
	for _, e := range c.dropPorts {
		if planned[e.tag] { // in place
			out = append(out, e)
		}
	}
	for t, set := range cur.ports {
		for at := range set {
			if !used[t] {
				out = append(out, portEntry{tag: t, slot: at})
			}
		}
	}
	return out
}

func (k *skLookup) writePorts(run *progress, cur *state, entries []portEntry) {
	keys, values := make([]blockKey, len(entries)), make([]bitmap, len(entries))
	for i, e := range entries {
		keys[i], values[i] = blockOf(e), e.bits
	}
	m := k.objs.DecoynetPorts
	k.each(run, len(entries),
		func(from, to int) (int, error) { return m.BatchUpdate(keys[from:to], values[from:to], nil) },
		func(i int) error { return m.Update(keys[i], values[i], ebpf.UpdateAny) },
		func(i int, err error) { run.note(entries[i].group, err, func() { cur.setPort(entries[i]) }) })
}

func (k *skLookup) deletePorts(run *progress, cur *state, entries []portEntry) {
	keys := make([]blockKey, len(entries))
	for i, e := range entries {
		keys[i] = blockOf(e)
	}
	m := k.objs.DecoynetPorts
	k.each(run, len(entries),
		func(from, to int) (int, error) { return m.BatchDelete(keys[from:to], nil) },
		func(i int) error { return m.Delete(keys[i]) },
		func(i int, err error) { run.note(entries[i].group, err, func() { cur.dropPort(entries[i]) }) })
}

func (k *skLookup) writePrefixes(run *progress, cur *state, entries []prefixEntry) {
	keys, values := make([]addressKey, len(entries)), make([]uint32, len(entries))
	for i, e := range entries {
		keys[i], values[i] = keyOf(e.prefix), uint32(e.tag)
	}
	m := k.objs.DecoynetAddrs
	k.each(run, len(entries),
		func(from, to int) (int, error) { return m.BatchUpdate(keys[from:to], values[from:to], nil) },
		func(i int) error { return m.Update(keys[i], values[i], ebpf.UpdateAny) },
		func(i int, err error) { run.note(entries[i].group, err, func() { cur.setPrefix(entries[i]) }) })
}

func (k *skLookup) deletePrefixes(run *progress, cur *state, entries []prefixEntry) {
	keys := make([]addressKey, len(entries))
	for i, e := range entries {
		keys[i] = keyOf(e.prefix)
	}
	m := k.objs.DecoynetAddrs
	k.each(run, len(entries),
		func(from, to int) (int, error) { return m.BatchDelete(keys[from:to], nil) },
		func(i int) error { return m.Delete(keys[i]) },
		func(i int, err error) { run.note(entries[i].group, err, func() { cur.dropPrefix(entries[i]) }) })
}

// batchSize bounds how long one call keeps the kernel, and how much is written
// after the context is done.
const batchSize = 4096

// each writes n entries in their order, by batch where the kernel can, and tells
// done of each. A failing entry does not stop those behind it.
func (k *skLookup) each(run *progress, n int, batch func(from, to int) (int, error), one func(i int) error,
	done func(i int, err error),
) {
	for i := 0; i < n; {
		if run.err == nil {
			run.err = run.ctx.Err()
		}
		if run.err != nil {
			return
		}
		to := min(i+batchSize, n)
		if k.noBatch {
			for ; i < to; i++ {
				done(i, one(i))
			}
			continue
		}
		wrote, err := batch(i, to)
		if errors.Is(err, ebpf.ErrNotSupported) {
			k.noBatch = true // before 5.6 and, for the trie, before 5.14
			continue
		}
		for end := min(i+wrote, to); i < end; i++ {
			done(i, nil)
		}
		if err != nil && i < to {
			// The batch ends at the entry at fault; alone it gives its own error.
			done(i, one(i))
			i++
		}
	}
}

// progress is the outcome of a change so far.
type progress struct {
	ctx    context.Context
	err    error // the context's: nothing more is written
	failed map[uint32]*GroupError
	writes int
}

func (p *progress) note(group uint32, err error, written func()) {
	switch {
	case err == nil:
		p.writes++
		written()
	case errors.Is(err, ebpf.ErrKeyNotExist): // deleting what is not there
		written()
	case p.failed[group] == nil:
		if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) {
			err = fmt.Errorf("%w: %w", ErrFull, err)
		}
		p.failed[group] = &GroupError{group, err}
	}
}

func (p *progress) errors() error {
	errs := []error{p.err}
	for _, err := range p.failed {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
