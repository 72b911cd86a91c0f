package link

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"decoynet/internal/kernel/netns"
)

// takeoverWait is how long a link of ours in a namespace that was deleted may
// take to vanish.
const takeoverWait = 2 * time.Second

// Desired is what the links of one segment are to be.
type Desired struct {
	Segment string // the segment's name
	Parent  string // NIC in the host namespace that carries the segment's frames
	// VLAN is the IEEE 802.1Q tag that the frames carry there, 1 to 4094; 0: none.
	VLAN uint16
	// Trunk is the namespace of VLAN devices (see PrepareTrunk); nil without VLAN.
	Trunk *netns.NS
	// Shared names the host's own device of the VLAN, where lan0 has stood on one
	// before. While it is away the VLAN is left free: the host could not make it again.
	Shared string
	// Node tells apart several nodes that share one machine identity (in a lab,
	// or cloned machines): it goes into the MAC addresses. May be empty.
	Node string
	// Uplink asks for the veth pair to the host namespace, for the kernel path,
	// and makes the segment namespace forward between the two.
	Uplink bool
}

// segment is one Apply at work: both namespaces and what is to become of them.
type segment struct {
	Desired
	ctx         context.Context
	host, seg   *netns.NS
	hostH, segH *netlink.Handle
	ipv6        bool
	parent      nic
	lower       lower
	status      Status
}

// Apply makes the segment's links as desired. It is idempotent: links that stand
// and are right are adopted, with their interface index, whoever made them.
// The namespace seg is ours alone; in host only the segment's own veth end is
// touched. Errors wrap one of this package's sentinels where one fits.
func Apply(ctx context.Context, host, seg *netns.NS, d Desired) (Status, error) {
	s := &segment{Desired: d, ctx: ctx, host: host, seg: seg, status: Status{Parent: d.Parent}}
	err := s.apply()
	return s.status, err
}

func (s *segment) apply() error {
	if err := s.open(); err != nil {
		return s.fail(err)
	}
	steps := []func() error{
		s.checkParent, // its errors are whole sentences already
		func() error { return s.fail(s.applyLower()) },
		func() error { return s.fail(s.prepareNamespace()) },
		func() error { return s.fail(s.applyLAN()) },
		func() error { return s.fail(s.applyUplink()) },
	}
	for _, step := range steps {
		if err := s.ctx.Err(); err != nil {
			return s.fail(err)
		}
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// fail names the segment in an error.
func (s *segment) fail(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("segment %s: %w", s.Segment, err)
}

func (s *segment) changed(format string, args ...any) {
	s.status.Changes = append(s.status.Changes, fmt.Sprintf(format, args...))
}

func (s *segment) open() (err error) {
	same, err := s.host.Same(s.seg)
	if err != nil {
		return err
	}
	if same {
		return errors.New("its namespace is the host's own")
	}
	if s.hostH, err = s.host.Handle(); err != nil {
		return err
	}
	if s.segH, err = s.seg.Handle(); err != nil {
		return err
	}
	// Booted with ipv6.disable=1 there is no such key.
	_, err = s.seg.ReadSysctl("net/ipv6/conf/all/disable_ipv6")
	s.ipv6 = err == nil
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return err
}

func (s *segment) checkParent() error {
	// The parent alone is nearly always enough; a machine may have hundreds of links.
	links, err := byNames(s.hostH, s.Parent)
	if err == nil && (len(links) == 0 || links[0].Master != 0) {
		links, err = list(s.hostH)
	}
	if err != nil {
		return s.fail(err)
	}
	if s.parent, err = checkParent(s.Segment, s.Parent, links, wireless); err != nil {
		return err
	}
	s.status.ParentIndex = s.parent.Index
	s.status.Carrier, s.status.CarrierChanges = s.parent.Carrier, carrierChanges(s.Parent)
	return nil
}

// carrierChanges reads what the netlink module does not parse
// (IFLA_CARRIER_CHANGES). A /sys of another namespace does not have the link, and
// then a short loss goes unnoticed.
func carrierChanges(link string) uint64 {
	text, err := os.ReadFile("/sys/class/net/" + link + "/carrier_changes")
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// prepareNamespace brings lo up, which local routes need, and sets what every
// interface made later inherits.
func (s *segment) prepareNamespace() error {
	lo, err := s.segH.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("look for lo: %w", err)
	}
	if lo.Attrs().RawFlags&unix.IFF_UP == 0 {
		if err := s.segH.LinkSetUp(lo); err != nil {
			return fmt.Errorf("set lo up: %w", err)
		}
		s.changed("lo set up")
	}
	if err := set(s.seg, forwardingSysctls(s.Uplink, s.ipv6)); err != nil {
		return err
	}
	return set(s.seg, namespaceSysctls(s.ipv6))
}

func (s *segment) applyLAN() error {
	links, err := list(s.segH)
	if err != nil {
		return err
	}
	mac, err := s.lanMAC()
	if err != nil {
		return err
	}
	want := lanSpec{Lower: s.lower.Index, MAC: mac.String()}
	if s.lower.Kind == "macvlan" {
		want.Lower, want.AnyNS = s.lower.Lower, true
	}
	// After the dump above, which makes the kernel assign an id if lan0 refers to
	// the lower link's namespace.
	if want.LowerNS, err = s.segH.GetNetNsIdByFd(s.lower.ns.FD()); err != nil {
		return fmt.Errorf("look up the id of %s: %w", s.lower.ns, err)
	}
	plan, err := planLAN(links, want)
	if err != nil {
		return err
	}
	lan, err := s.realiseLAN(plan, mac)
	if err != nil {
		return err
	}
	if err := set(s.seg, lanSysctls(s.ipv6)); err != nil {
		return err
	}
	if err := s.adjust(s.segH, lan, s.lower.MTU); err != nil {
		return err
	}
	s.status.Index, s.status.MTU, s.status.MAC = lan.Index, s.lower.MTU, mac
	s.status.Lower, s.status.LowerIndex, s.status.InTrunk = s.lower.Name, s.lower.Index, s.lower.ns == s.Trunk && s.VLAN != 0
	return nil
}

// realiseLAN carries out the plan. Where one stands, the new link is made under a
// temporary name, so that a parent which cannot carry it costs nothing. Else it has
// its name from the start: to change one costs a grace period of RCU, during which
// nothing else of the network can be configured, and there may be hundreds.
func (s *segment) realiseLAN(plan lanPlan, mac net.HardwareAddr) (nic, error) {
	var temp *nic
	if plan.Keep == nil {
		var err error
		name := LANName
		if len(plan.Replace) > 0 {
			name = temporaryName()
		}
		if temp, err = s.createMacvlan(name, mac); err != nil {
			return nic{}, err
		}
	}
	for _, old := range plan.Replace {
		if err := remove(s.segH, old); err != nil {
			if temp != nil {
				err = errors.Join(err, remove(s.segH, *temp))
			}
			return nic{}, err
		}
		if old.Name == LANName {
			s.changed("%s removed: %s", LANName, plan.Why)
		} else {
			s.changed("%s removed: left over", old.Name)
		}
	}
	if temp == nil {
		return *plan.Keep, nil
	}
	if temp.Name != LANName {
		if err := s.segH.LinkSetName(reference(*temp), LANName); err != nil {
			return nic{}, errors.Join(fmt.Errorf("name %s %s: %w", temp.Name, LANName, err), remove(s.segH, *temp))
		}
	}
	temp.Name, temp.MAC = LANName, mac.String()
	s.changed("%s made on %s", LANName, s.Parent)
	return *temp, nil
}

func temporaryName() string {
	var tag [4]byte
	rand.Read(tag[:]) // never fails
	return tempPrefix + hex.EncodeToString(tag[:])
}

// createMacvlan makes the macvlan directly in the segment namespace: the request
// goes to the namespace of the lower link, and names the other one.
func (s *segment) createMacvlan(name string, mac net.HardwareAddr) (*nic, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.ParentIndex = s.lower.Index
	attrs.HardwareAddr = mac
	attrs.MTU = s.lower.MTU
	attrs.Namespace = netlink.NsFd(s.seg.FD())
	err := s.lower.h.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE})
	if err != nil {
		links, _ := list(s.lower.h) // for the explanation only
		return nil, explainCreate(err, s.lower.nic, links)
	}
	return claim(s.segH, attrs.Name)
}

// claim marks a link that was just made as ours.
func claim(h *netlink.Handle, name string) (*nic, error) {
	l, err := h.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("look for %s: %w", name, err)
	}
	n := describe(l)
	if err := h.LinkSetAlias(l, Alias); err != nil {
		return nil, errors.Join(fmt.Errorf("mark %s: %w", name, err), remove(h, n))
	}
	n.Alias = Alias
	return &n, nil
}

// adjust sets what may change on a link that stays: MTU and the up flag.
func (s *segment) adjust(h *netlink.Handle, n nic, mtu int) error {
	if n.MTU != mtu {
		if err := h.LinkSetMTU(reference(n), mtu); err != nil {
			return fmt.Errorf("set the MTU of %s to %d: %w", n.Name, mtu, err)
		}
		s.changed("%s: MTU %d", n.Name, mtu)
	}
	if !n.Up {
		if err := s.setUp(h, n); err != nil {
			return err
		}
		s.changed("%s set up", n.Name)
	}
	return nil
}

// setUp brings a link up. A macvlan whose MAC address another one on the parent
// has gets EADDRINUSE (macvlan_open). After a restart that may be our own of the
// run before: the kernel destroys the links of a deleted namespace some time
// later.
func (s *segment) setUp(h *netlink.Handle, n nic) error {
	for deadline := time.Now().Add(takeoverWait); ; {
		err := h.LinkSetUp(reference(n))
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return fmt.Errorf("set %s up: %w", n.Name, err)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("parent %s %w; another macvlan on it has the MAC address %s: the segment stands in another namespace too",
				s.lower.Name, ErrParentBusy, n.MAC)
		}
		select {
		case <-s.ctx.Done():
			return s.ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// explainCreate turns the kernel's answer to a new macvlan into words.
func explainCreate(err error, parent nic, links []nic) error {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("make a macvlan: %w (modprobe macvlan)", ErrNotSupported)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("parent %s %w; %s", parent.Name, ErrParentBusy, holder(parent, links))
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("parent %s %w; the kernel refuses a macvlan in bridge mode on it: %s",
			parent.Name, ErrParentUnsuitable, holder(parent, links))
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("make a macvlan on %s: %w (CAP_NET_ADMIN is needed)", parent.Name, err)
	}
	return fmt.Errorf("make a macvlan on %s: %w", parent.Name, err)
}

// lanMAC derives lan0's MAC address from this machine and the segment. The
// parent's own address stands in where the machine has no identity.
func (s *segment) lanMAC() (net.HardwareAddr, error) {
	return SegmentMAC(s.parent.MAC, s.Node, s.Segment)
}

// SegmentMAC returns the MAC address that lan0 of the segment has, or will have.
// parent is the address of its NIC, node as in Desired.
func SegmentMAC(parent, node, segment string) (net.HardwareAddr, error) {
	id, err := MachineID()
	if err != nil {
		return nil, err
	}
	if id == "" {
		id = parent
	}
	return hardwareAddr("lan", id, node, segment), nil
}

// machineID returns the first identity found, or "" if there is none: see
// machine-id(5), which also explains "uninitialized".
func machineID(files ...string) (string, error) {
	for _, file := range files {
		data, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("read the machine's identity: %w", err)
		}
		if id := strings.TrimSpace(string(data)); id != "" && id != "uninitialized" {
			return id, nil
		}
	}
	return "", nil
}

// wireless looks into sysfs, which shows the interfaces of the namespace that it
// was mounted in; the index makes sure that it is the same interface.
func wireless(n nic) bool {
	dir := filepath.Join("/sys/class/net", n.Name)
	index, err := os.ReadFile(filepath.Join(dir, "ifindex"))
	if err != nil || strings.TrimSpace(string(index)) != strconv.Itoa(n.Index) {
		return false
	}
	_, err = os.Stat(filepath.Join(dir, "phy80211"))
	return err == nil
}

// set writes the settings; those that a kernel may lack are tried only.
func set(ns *netns.NS, s sysctls) error {
	err := ns.Sysctl(s.must)
	for key, value := range s.may {
		if e := ns.Sysctl(map[string]string{key: value}); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

func list(h *netlink.Handle) ([]nic, error) {
	links, err := netns.Dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	out := make([]nic, len(links))
	for i, l := range links {
		out[i] = describe(l)
	}
	return out, nil
}

// byNames returns those of the links that there are.
func byNames(h *netlink.Handle, names ...string) ([]nic, error) {
	var out []nic
	for _, name := range names {
		l, err := h.LinkByName(name)
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look for %s: %w", name, err)
		}
		out = append(out, describe(l))
	}
	return out, nil
}

func describe(l netlink.Link) nic {
	a := l.Attrs()
	n := nic{
		Index: a.Index, Name: a.Name, Kind: l.Type(), Alias: a.Alias,
		MAC: a.HardwareAddr.String(), MTU: a.MTU,
		Up:       a.RawFlags&unix.IFF_UP != 0,
		Promisc:  a.RawFlags&unix.IFF_PROMISC != 0,
		Carrier:  a.RawFlags&unix.IFF_LOWER_UP != 0,
		Ethernet: a.EncapType == "ether",
		Lower:    a.ParentIndex, LowerNS: a.NetNsID, Master: a.MasterIndex,
	}
	switch l := l.(type) {
	case *netlink.Macvlan:
		n.Mode = macvlanModes[l.Mode]
	case *netlink.Vlan:
		n.VLAN = l.VlanId
	}
	return n
}

var macvlanModes = map[netlink.MacvlanMode]string{
	netlink.MACVLAN_MODE_PRIVATE:  "private",
	netlink.MACVLAN_MODE_VEPA:     "vepa",
	netlink.MACVLAN_MODE_BRIDGE:   "bridge",
	netlink.MACVLAN_MODE_PASSTHRU: "passthru",
	netlink.MACVLAN_MODE_SOURCE:   "source",
}

// reference is a link by its index, as the netlink package wants it.
func reference(n nic) netlink.Link {
	return &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: n.Index, Name: n.Name}}
}

// remove deletes a link; that it is gone already is fine. The kernel (6.1) does not
// take back from the NIC what a promiscuous VLAN device has asked of it when that
// is deleted: the NIC would be promiscuous for ever.
func remove(h *netlink.Handle, n nic) error {
	var err error
	if n.Promisc {
		err = h.SetPromiscOff(reference(n))
	}
	if err == nil {
		err = h.LinkDel(reference(n))
	}
	if err == nil || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return fmt.Errorf("remove %s: %w", n.Name, err)
}
