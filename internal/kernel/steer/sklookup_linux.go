package steer

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

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
	socks *sockets
	lim   limits
	room  int // entries that the kernel's port table takes
	// Link and tables are pinned, so that they take no descriptors; where that
	// cannot be, held keeps them.
	pinned skPaths
	held   *skObjects

	noBatch bool // the kernel's maps take one entry a call
}

// skPaths are the names of what is pinned.
type skPaths struct{ link, addrs, ports string }

// skObjects are descriptors of what the kernel has.
type skObjects struct {
	link         link.Link
	addrs, ports *ebpf.Map
}

// The port table begins small and grows: a hash costs 16 bytes for each entry it
// might hold, from the start, and most segments have a few dozen.
const firstRoom = 256

func openSKLookup(socks *sockets, lim limits) (*skLookup, error) {
	k := &skLookup{socks: socks, lim: lim, room: min(firstRoom, 2*lim.slots)}
	objs, err := k.load(k.room, nil)
	if err != nil {
		return nil, explainSKLookup(err)
	}
	defer objs.DecoynetSteer.Close() // the link keeps it
	defer objs.DecoynetSocks.Close() // the program keeps it
	o := &skObjects{addrs: objs.DecoynetAddrs, ports: objs.DecoynetPorts}
	if o.link, err = k.attach(objs.DecoynetSteer); err != nil {
		return nil, explainSKLookup(errors.Join(err, o.close()))
	}
	if k.pinned, err = o.pin(); err != nil {
		k.held = o // older kernels, user namespaces
		return k, nil
	}
	return k, o.close()
}

// load makes a program with a port table of so many entries. The address table
// is a new one where none is given.
func (k *skLookup) load(room int, addrs *ebpf.Map) (*programObjects, error) {
	// Kernels before 5.11 charge maps to the locked memory of the process.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lift the limit on locked memory: %w", err)
	}
	spec, err := programSpec()
	if err != nil {
		return nil, fmt.Errorf("read BPF program: %w", err)
	}
	spec = spec.Copy()
	// Twice the limit: old and new entries stand side by side in a change.
	spec.Maps[programMapDecoynetAddrs].MaxEntries = uint32(2 * k.lim.prefixes)
	spec.Maps[programMapDecoynetPorts].MaxEntries = uint32(room)
	var options ebpf.CollectionOptions
	if addrs != nil {
		options.MapReplacements = map[string]*ebpf.Map{programMapDecoynetAddrs: addrs}
	}
	objs := &programObjects{}
	if err := spec.LoadAndAssign(objs, &options); err != nil {
		return nil, fmt.Errorf("load BPF program: %w", err)
	}
	for i, fd := range []int{k.socks.tcp[0], k.socks.udp[0]} {
		if err := objs.DecoynetSocks.Update(uint32(i), uint64(fd), ebpf.UpdateAny); err != nil {
			return nil, errors.Join(fmt.Errorf("put socket into sockmap: %w", err), objs.Close())
		}
	}
	return objs, nil
}

// programSpec is parsed once; it is not to be changed.
//
// The maps go without their types, which only tools that print maps would read: a
// kernel refuses a sockmap with types, and takes a grace period of RCU to do so,
// some 20 ms for each segment; for the others each type is one more load.
var programSpec = sync.OnceValues(func() (*ebpf.CollectionSpec, error) {
	spec, err := loadProgram()
	if err != nil {
		return nil, err
	}
	for _, m := range spec.Maps {
		m.Key, m.Value = nil, nil
	}
	return spec, nil
})

func (k *skLookup) attach(program *ebpf.Program) (link.Link, error) {
	ns, err := k.socks.namespace()
	if err != nil {
		return nil, err
	}
	defer unix.Close(ns)
	l, err := link.AttachNetNs(ns, program)
	if err != nil {
		return nil, fmt.Errorf("attach BPF program: %w", err)
	}
	return l, nil
}

// pin gives the objects names; after an error none has one.
func (o *skObjects) pin() (skPaths, error) {
	if err := pins.hold(); err != nil {
		return skPaths{}, err
	}
	p := skPaths{link: pins.path("link"), addrs: pins.path("addrs"), ports: pins.path("ports")}
	if err := errors.Join(o.link.Pin(p.link), o.addrs.Pin(p.addrs), o.ports.Pin(p.ports)); err != nil {
		return skPaths{}, errors.Join(err, p.unpin())
	}
	return p, nil
}

func (p skPaths) unpin() error {
	return errors.Join(unpin(p.link, p.addrs, p.ports), pins.drop())
}

// objects opens link and tables; release closes what objects opened.
func (k *skLookup) objects() (*skObjects, error) {
	if k.held != nil {
		return k.held, nil
	}
	o := &skObjects{}
	var errs [3]error
	o.link, errs[0] = link.LoadPinnedLink(k.pinned.link, nil)
	o.addrs, errs[1] = ebpf.LoadPinnedMap(k.pinned.addrs, nil)
	o.ports, errs[2] = ebpf.LoadPinnedMap(k.pinned.ports, nil)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, errors.Join(fmt.Errorf("open pinned BPF objects: %w", err), o.close())
	}
	return o, nil
}

func (k *skLookup) release(o *skObjects) error {
	if o == k.held {
		return nil
	}
	return o.close()
}

func (o *skObjects) close() error {
	var errs []error
	if o.link != nil {
		errs = append(errs, o.link.Close())
	}
	errs = append(errs, o.addrs.Close(), o.ports.Close()) // nil maps close as well
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close BPF objects: %w", err)
	}
	return nil
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

func (k *skLookup) close() (err error) {
	// The link first: without its program the sockets are out of reach. It is
	// detached by name, as its last descriptor may live on in a child process
	// that is just being started.
	var errs []error
	if k.held == nil {
		defer func() { err = errors.Join(err, k.pinned.unpin()) }()
	}
	o, err := k.objects()
	if err != nil {
		return err
	}
	if err := o.link.Detach(); err != nil && !errors.Is(err, link.ErrNotSupported) {
		errs = append(errs, fmt.Errorf("detach BPF program: %w", err))
	}
	return errors.Join(append(errs, o.close())...)
}

// grow makes room for n port entries, by way of a second program with a larger
// table that takes the place of the first one: no lookup finds either without.
// Where the limit is reached, the entries that do not fit will fail one by one.
func (k *skLookup) grow(o *skObjects, cur *state, n int) error {
	room := k.room
	for room < n && room < 2*k.lim.slots {
		room = min(2*room, 2*k.lim.slots)
	}
	if room == k.room {
		return nil
	}
	objs, err := k.load(room, o.addrs)
	if err != nil {
		return fmt.Errorf("grow the port table to %d entries: %w", room, err)
	}
	defer objs.DecoynetSteer.Close()
	defer objs.DecoynetSocks.Close()
	defer objs.DecoynetAddrs.Close()
	if err := k.replace(o, cur, objs); err != nil {
		return errors.Join(fmt.Errorf("grow the port table to %d entries: %w", room, err), objs.DecoynetPorts.Close())
	}
	old := o.ports
	o.ports, k.room = objs.DecoynetPorts, room
	return old.Close()
}

// replace fills the new program's port table, then puts the program in place.
func (k *skLookup) replace(o *skObjects, cur *state, objs *programObjects) error {
	for t, set := range cur.ports {
		for at, bits := range set {
			if err := objs.DecoynetPorts.Update(blockOf(portEntry{tag: t, slot: at}), bits, ebpf.UpdateAny); err != nil {
				return fmt.Errorf("copy ports: %w", err)
			}
		}
	}
	path := ""
	if k.held == nil {
		path = pins.path("ports")
		if err := objs.DecoynetPorts.Pin(path); err != nil {
			return fmt.Errorf("pin ports: %w", err)
		}
	}
	if err := o.link.Update(objs.DecoynetSteer); err != nil {
		return errors.Join(fmt.Errorf("replace BPF program: %w", err), unpin(path))
	}
	old := k.pinned.ports
	k.pinned.ports = path
	_ = unpin(old) // a name too many does no harm
	return nil
}

// apply writes the change in its order. A group whose ports are not all in gets
// none of its new prefixes; and ports stay while a prefix leads to them.
func (k *skLookup) apply(ctx context.Context, cur *state, c change) (writes int, err error) {
	run := progress{ctx: ctx, failed: map[uint32]*GroupError{}}
	cur.last = c.last
	w := skWriter{skObjects: &skObjects{}, progress: &run, cur: cur, noBatch: &k.noBatch}
	if !c.empty() {
		if w.skObjects, err = k.objects(); err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, k.release(w.skObjects)) }()
		if ctx.Err() == nil {
			// Where memory is short, the groups that do not fit say so.
			err = k.grow(w.skObjects, cur, cur.slots()+len(c.openPorts))
		}
	}
	w.writePorts(c.openPorts)
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
	w.writePrefixes(prefixes)
	w.deletePrefixes(c.dropPrefixes)
	if len(c.setPrefixes)+len(c.dropPrefixes) > 0 && len(c.dropPorts) > 0 {
		awaitLookups()
	}
	w.deletePorts(unused(cur, c, run.failed))
	if run.err == nil {
		for group := range cur.tags {
			if _, stays := c.tags[group]; !stays {
				delete(cur.tags, group)
			}
		}
	}
	return run.writes, errors.Join(err, run.errors())
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
