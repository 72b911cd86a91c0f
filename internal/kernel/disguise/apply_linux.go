package disguise

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"

	"decoynet/internal/kernel/netns"
)

// Disguise keeps the looks of one segment's decoys. The zero value is ready to
// use. It is not safe for concurrent use.
type Disguise struct {
	lower   place // where frames were readdressed last
	promisc *promiscuity
	bare    [2]int // the devices at which nothing of ours stands: lan0 and the one below
}

// place is a device below a segment.
type place struct {
	ns    *netns.NS
	index int
}

// is tells whether two places are one, however their namespace was opened.
func (p place) is(o place) bool {
	if p.index != o.index || p.ns == nil || o.ns == nil {
		return false
	}
	same, err := p.ns.Same(o.ns)
	return err == nil && same
}

// Apply makes the decoys look as desired. It is idempotent: what stands is told
// by its name, whoever made it, and left. Without policies nothing of ours
// stands.
//
// Frames to a MAC address are taken before the first frame tells of it, and until
// after the last one did.
func (d *Disguise) Apply(ctx context.Context, want Desired) (Status, error) {
	table, faults := compile(want.Policies)
	st := Status{Prefixes: len(table), MACs: table.any(func(l look) bool { return l.HasMAC != 0 })}
	err := d.apply(ctx, want, table, &st)
	if err = errors.Join(faults, err); err != nil {
		err = fmt.Errorf("segment %s: %w", want.Segment, err)
	}
	return st, err
}

func (d *Disguise) apply(ctx context.Context, want Desired, t table, st *Status) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	devices := [2]int{want.Link, want.Lower}
	if len(t) == 0 && d.bare == devices {
		return nil
	}
	d.bare = [2]int{}
	hooks, err := hooksOf(want, t)
	if err != nil {
		return err
	}
	lower := hooks[0].link
	if st.MACs && lower.Type() == "macvlan" {
		return fmt.Errorf("%w: %s is a macvlan, which takes no frames for other MAC addresses; as the parent name the device that it stands on",
			ErrInvalid, lower.Attrs().Name)
	}
	if err := d.leaveOld(want, st); err != nil {
		return err
	}
	if err := offerWindow(want.NS, t, st); err != nil {
		return err
	}
	if err := attach(want, t, hooks, st); err != nil {
		return err
	}
	if !st.MACs {
		d.lower = place{}
		err := d.receiveOwn(want.LowerNS, lower)
		if err == nil && len(t) == 0 {
			d.bare = devices
		}
		return err
	}
	d.lower = place{want.LowerNS, want.Lower}
	return d.receiveAll(want, lower, st)
}

// hooksOf returns where frames of the segment pass, in the order in which
// filters are put there; the first is the device below. Each says whether this
// table needs it.
func hooksOf(want Desired, t table) ([]hook, error) {
	hooks := []hook{
		{
			program: func(o *programObjects) *ebpf.Program { return o.DecoynetIn },
			parent:  netlink.HANDLE_MIN_INGRESS, wanted: t.any(func(l look) bool { return l.HasMAC != 0 }),
		},
		{
			program: func(o *programObjects) *ebpf.Program { return o.DecoynetHear },
			parent:  netlink.HANDLE_MIN_INGRESS, wanted: t.any(look.windows),
		},
		{
			program: func(o *programObjects) *ebpf.Program { return o.DecoynetOut },
			parent:  netlink.HANDLE_MIN_EGRESS, wanted: len(t) > 0,
		},
	}
	for i := range hooks {
		ns, index := want.NS, want.Link
		if i == 0 {
			ns, index = want.LowerNS, want.Lower
		}
		if err := hooks[i].find(ns, index, want.Segment); err != nil {
			return nil, err
		}
	}
	return hooks, nil
}

// attach loads the programs and hangs them up, unless they hang there already,
// and takes down what is not wanted, in the opposite order.
func attach(want Desired, t table, hooks []hook, st *Status) error {
	for _, h := range slices.Backward(hooks) {
		if h.wanted {
			continue
		}
		if err := detach(st, h); err != nil {
			return err
		}
	}
	name := nameOf(want.Segment, t.fingerprint(_ProgramBytes, want.MAC))
	stands := true
	for _, h := range hooks {
		has, err := h.has(name)
		if err != nil {
			return err
		}
		stands = stands && (has || !h.wanted)
	}
	if stands {
		return nil
	}
	objs, err := load(want, t)
	if err != nil {
		return explainLoad(err)
	}
	defer objs.Close() // the filters hold the programs, and those the maps
	for _, h := range hooks {
		if !h.wanted {
			continue
		}
		if err := h.attach(h.program(objs).FD(), name); err != nil {
			return err
		}
	}
	st.Changes = append(st.Changes, fmt.Sprintf("%d prefixes of decoys disguised", len(t)))
	return nil
}

func load(want Desired, t table) (*programObjects, error) {
	spec, err := loadProgram()
	if err != nil {
		return nil, fmt.Errorf("read BPF programs: %w", err)
	}
	// Kernels before 5.11 charge maps to the locked memory of the process.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lift the limit on locked memory: %w", err)
	}
	if len(want.MAC) != 6 {
		return nil, fmt.Errorf("%w: %q is no MAC address of lan0", ErrInvalid, want.MAC)
	}
	spec.Maps[programMapDecoynetLooks].MaxEntries = uint32(len(t))
	if err := spec.Variables[programVarDecoynetLan].Set([6]byte(want.MAC)); err != nil {
		return nil, fmt.Errorf("set lan0's MAC address in the BPF programs: %w", err)
	}
	objs := &programObjects{}
	if err := spec.LoadAndAssign(objs, nil); err != nil {
		return nil, fmt.Errorf("load BPF programs: %w", err)
	}
	if err := fill(objs.DecoynetLooks, t); err != nil {
		return nil, errors.Join(fmt.Errorf("fill the table of looks: %w", err), objs.Close())
	}
	return objs, nil
}

func fill(m *ebpf.Map, t table) error {
	keys, looks := t.entries()
	if _, err := m.BatchUpdate(keys, looks, nil); !errors.Is(err, ebpf.ErrNotSupported) {
		return err
	}
	for i := range keys { // before 5.14 the trie takes one entry a call
		if err := m.Update(keys[i], looks[i], ebpf.UpdateAny); err != nil {
			return err
		}
	}
	return nil
}

// explainLoad tells a kernel without the feature from other failures, by probing
// for it: load errors alone are ambiguous.
func explainLoad(err error) error {
	if missing := features.HaveProgramType(ebpf.SchedCLS); errors.Is(missing, ebpf.ErrNotSupported) {
		return fmt.Errorf("%w: %w (CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_BPF are needed)", ErrNotSupported, err)
	}
	return err
}

func detach(st *Status, h hook) error {
	stood, err := h.detach()
	if stood {
		st.Changes = append(st.Changes, "filter of "+h.device()+" removed")
	}
	return err
}

// leaveOld takes back what stands on a device that is below the segment no more.
func (d *Disguise) leaveOld(want Desired, st *Status) error {
	if d.lower.ns == nil || d.lower.is(place{want.LowerNS, want.Lower}) {
		return nil
	}
	old := d.lower
	d.lower = place{}
	err := d.letGo()
	h := hook{parent: netlink.HANDLE_MIN_INGRESS}
	if h.find(old.ns, old.index, want.Segment) != nil {
		return err // the device or its namespace is gone, and all that hung there
	}
	return errors.Join(err, detach(st, h), d.receiveOwn(old.ns, h.link))
}

// Remove takes away what the segment needed on the device below; what is in the
// segment's namespace goes with that. It is to be called before the namespace of
// that device is closed.
func (d *Disguise) Remove(segment string) error {
	err := d.leaveOld(Desired{Segment: segment}, &Status{})
	if err != nil {
		return fmt.Errorf("segment %s: %w", segment, err)
	}
	return nil
}

// RemoveOwned takes away every filter of ours in the namespace, and says of
// which interfaces.
func RemoveOwned(ns *netns.NS) (devices []string, err error) {
	handle, err := ns.Handle()
	if err != nil {
		return nil, err
	}
	links, err := netns.Dump(handle.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, l := range links {
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			stood, err := hook{handle: handle, link: l, parent: parent}.detach()
			errs = append(errs, err)
			if stood {
				devices = append(devices, l.Attrs().Name)
			}
		}
	}
	return devices, errors.Join(errs...)
}
