package disguise

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"decoynet/internal/kernel/netns"
)

// madeQdisc ends the name of a filter whose clsact qdisc we made: it goes with
// our last filter, unless others have put filters there meanwhile.
const madeQdisc = " qdisc"

// hook is a place where frames pass a filter of ours: one direction of a device.
type hook struct {
	handle  *netlink.Handle
	link    netlink.Link
	parent  uint32 // netlink.HANDLE_MIN_INGRESS or HANDLE_MIN_EGRESS
	owner   string // the segment
	program func(*programObjects) *ebpf.Program
	wanted  bool
}

// find fills in the device.
func (h *hook) find(ns *netns.NS, index int, segment string) (err error) {
	if h.handle, err = ns.Handle(); err != nil {
		return err
	}
	if h.link, err = h.handle.LinkByIndex(index); err != nil {
		return fmt.Errorf("look for interface %d in %s: %w", index, ns, err)
	}
	h.owner = segment
	return nil
}

func (h hook) device() string { return h.link.Attrs().Name }

// nameOf returns the name of a filter of the segment that holds what the
// fingerprint stands for.
func nameOf(segment, fingerprint string) string {
	return Name + " " + segment + " " + fingerprint
}

// ours tells whether a filter is the segment's; any segment's where it is "".
func ours(f netlink.Filter, segment string) (*netlink.BpfFilter, bool) {
	bpf, ok := f.(*netlink.BpfFilter)
	if !ok || bpf.Priority != Priority {
		return nil, false
	}
	words := strings.Fields(bpf.Name)
	return bpf, len(words) >= 3 && words[0] == Name && (segment == "" || words[1] == segment)
}

func (h hook) list(parent uint32) ([]netlink.Filter, error) {
	all, err := netns.Dump(func() ([]netlink.Filter, error) { return h.handle.FilterList(h.link, parent) })
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil, nil // no qdisc
	}
	if err != nil {
		return nil, fmt.Errorf("list filters of %s: %w", h.device(), err)
	}
	return all, nil
}

// standing returns the segment's filters at the hook.
func (h hook) standing() ([]*netlink.BpfFilter, error) {
	all, err := h.list(h.parent)
	var out []*netlink.BpfFilter
	for _, f := range all {
		if bpf, ok := ours(f, h.owner); ok {
			out = append(out, bpf)
		}
	}
	return out, err
}

// has tells whether exactly the filter of that name stands.
func (h hook) has(name string) (bool, error) {
	standing, err := h.standing()
	if err != nil || len(standing) != 1 {
		return false, err
	}
	return strings.TrimSuffix(standing[0].Name, madeQdisc) == name, nil
}

// attach puts the program in the place of what stands, in one step.
func (h hook) attach(fd int, name string) error {
	made, err := h.ensureQdisc()
	if err != nil {
		return err
	}
	standing, err := h.standing()
	if err != nil {
		return err
	}
	f := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: h.link.Attrs().Index, Parent: h.parent,
			Priority: Priority, Protocol: unix.ETH_P_ALL,
		},
		Fd: fd, Name: name, DirectAction: true,
	}
	add := h.handle.FilterAdd
	if len(standing) > 0 {
		f.Handle, add = standing[0].Handle, h.handle.FilterReplace
		made = made || strings.HasSuffix(standing[0].Name, madeQdisc)
	}
	if made {
		f.Name += madeQdisc
	}
	if err := add(f); err != nil {
		return h.explain(fmt.Errorf("attach BPF program to %s: %w", h.device(), err))
	}
	for _, extra := range standing[min(1, len(standing)):] {
		if err := h.handle.FilterDel(extra); err != nil {
			return fmt.Errorf("remove an old filter of %s: %w", h.device(), err)
		}
	}
	return nil
}

// ensureQdisc makes the place for filters. It says that the place is ours, if we
// made it now or earlier for another segment on the same device.
func (h hook) ensureQdisc() (made bool, err error) {
	list, err := netns.Dump(func() ([]netlink.Qdisc, error) { return h.handle.QdiscList(h.link) })
	if err != nil {
		return false, fmt.Errorf("list queueing disciplines of %s: %w", h.device(), err)
	}
	for _, q := range list {
		if q.Attrs().Handle == clsactHandle && (q.Type() == "clsact" || h.parent == netlink.HANDLE_MIN_INGRESS) {
			return h.ownQdisc()
		}
		if q.Attrs().Handle == clsactHandle {
			return false, fmt.Errorf("%s has a qdisc %s where clsact belongs; tc qdisc del dev %s ingress", h.device(), q.Type(), h.device())
		}
	}
	err = h.handle.QdiscAdd(&netlink.Clsact{QdiscAttrs: h.qdisc()})
	if err != nil {
		return false, h.explain(fmt.Errorf("add a clsact qdisc to %s: %w", h.device(), err))
	}
	// With any qdisc the kernel takes a queue of no length for a mistake of older
	// programs and mends it (qdisc_create). The device is not ours to mend.
	if h.link.Attrs().TxQLen == 0 {
		if err := h.handle.LinkSetTxQLen(h.link, 0); err != nil {
			return true, fmt.Errorf("keep the queue length of %s: %w", h.device(), err)
		}
	}
	return true, nil
}

// clsactHandle is the one that clsact and ingress always have.
var clsactHandle = netlink.MakeHandle(0xffff, 0)

func (h hook) qdisc() netlink.QdiscAttrs {
	return netlink.QdiscAttrs{LinkIndex: h.link.Attrs().Index, Handle: clsactHandle, Parent: netlink.HANDLE_CLSACT}
}

func (h hook) ownQdisc() (bool, error) {
	all, err := h.list(h.parent)
	for _, f := range all {
		if bpf, ok := ours(f, ""); ok && strings.HasSuffix(bpf.Name, madeQdisc) {
			return true, err
		}
	}
	return false, err
}

// detach removes the segment's filters, every segment's where the hook has no
// owner, and the qdisc if it was ours and nobody else uses it. It says whether
// anything stood.
func (h hook) detach() (bool, error) {
	standing, err := h.standing()
	if err != nil || len(standing) == 0 {
		return false, err
	}
	made, err := h.ownQdisc()
	if err != nil {
		return false, err
	}
	for _, f := range standing {
		if err := h.handle.FilterDel(f); err != nil && !errors.Is(err, unix.ENOENT) {
			return false, fmt.Errorf("remove the filter of %s: %w", h.device(), err)
		}
	}
	if !made {
		return true, nil
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		if rest, err := h.list(parent); err != nil || len(rest) > 0 {
			return true, err
		}
	}
	if err := h.handle.QdiscDel(&netlink.Clsact{QdiscAttrs: h.qdisc()}); err != nil && !errors.Is(err, unix.ENOENT) {
		return true, fmt.Errorf("remove the clsact qdisc of %s: %w", h.device(), err)
	}
	return true, nil
}

// explain turns the kernel's answer to a filter into words.
func (h hook) explain(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: %w (modprobe sch_ingress cls_bpf)", ErrNotSupported, err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EEXIST):
		return fmt.Errorf("%w (has something else priority %d there? tc filter show dev %s ingress)", err, Priority, h.device())
	}
	return err
}
