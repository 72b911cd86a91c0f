package link

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"decoynet/internal/kernel/netns"
)

// VLAN is one VLAN of a trunk port.
type VLAN struct {
	Parent string // NIC in the host namespace
	ID     uint16 // IEEE 802.1Q VLAN identifier, 1 to 4094
}

// DeviceName returns the name of our device of the VLAN, in the trunk namespace.
func (v VLAN) DeviceName() string {
	name := fmt.Sprintf("v%d-%s", v.ID, v.Parent)
	if len(name) >= unix.IFNAMSIZ {
		sum := sha256.Sum256([]byte(v.Parent))
		name = fmt.Sprintf("v%d-%s", v.ID, hex.EncodeToString(sum[:4]))
	}
	return name
}

// lower is the link that a segment's macvlan stands on.
type lower struct {
	nic
	ns *netns.NS
	h  *netlink.Handle
}

// applyLower finds or makes what the macvlan stands on: the parent itself, or
// the VLAN's device. A parent has one device a VLAN, so where the host has made
// one for itself that is the one; it is not changed.
func (s *segment) applyLower() error {
	if s.VLAN == 0 {
		s.lower = lower{s.parent, s.host, s.hostH}
		return nil
	}
	links, err := list(s.hostH)
	if err != nil {
		return err
	}
	if own := hostVLAN(links, s.parent, s.VLAN); own != nil {
		if !own.Up {
			return fmt.Errorf("%s, this machine's own interface of VLAN %d, %w; ip link set %s up", own.Name, s.VLAN, ErrParentDown, own.Name)
		}
		s.lower = lower{*own, s.host, s.hostH}
		return nil
	}
	if s.Shared != "" {
		return fmt.Errorf("%s, this machine's own interface of VLAN %d, %w; make it again, or restart decoynet if the VLAN is to be the decoys' alone",
			s.Shared, s.VLAN, ErrParentMissing)
	}
	if s.Trunk == nil {
		return errors.New("no namespace for VLAN devices")
	}
	h, err := s.Trunk.Handle()
	if err != nil {
		return err
	}
	s.lower = lower{ns: s.Trunk, h: h}
	return s.applyVLAN()
}

// hostVLAN returns the host's own device of a parent's VLAN, or nil.
func hostVLAN(links []nic, parent nic, id uint16) *nic {
	i := slices.IndexFunc(links, func(n nic) bool {
		return n.Kind == "vlan" && n.VLAN == int(id) && n.Lower == parent.Index && n.LowerNS == -1
	})
	if i < 0 {
		return nil
	}
	return &links[i]
}

// applyVLAN makes or adopts our device of the VLAN in the trunk namespace.
func (s *segment) applyVLAN() error {
	name := VLAN{s.Parent, s.VLAN}.DeviceName()
	found, err := byNames(s.lower.h, name)
	if err != nil {
		return err
	}
	if len(found) > 0 {
		n := found[0]
		// After the look-up, which makes the kernel assign an id to the host's.
		host, err := s.lower.h.GetNetNsIdByFd(s.host.FD())
		if err != nil {
			return fmt.Errorf("look up the host namespace's id: %w", err)
		}
		if n.Kind == "vlan" && n.VLAN == int(s.VLAN) && n.Lower == s.parent.Index && n.LowerNS == host && n.MAC == s.parent.MAC {
			s.lower.nic = n
			return s.adjust(s.lower.h, n, s.parent.MTU)
		}
		if err := remove(s.lower.h, n); err != nil {
			return err
		}
		s.changed("%s removed: it belonged to another parent or VLAN", name)
	}
	if err := s.createVLAN(name); err != nil {
		return err
	}
	s.changed("%s made on %s", name, s.Parent)
	return s.adjust(s.lower.h, s.lower.nic, s.parent.MTU)
}

// createVLAN makes the device directly in the trunk namespace, so that nothing
// in the host namespace (a network manager, an address by autoconfiguration)
// ever gets hold of it.
func (s *segment) createVLAN(name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.ParentIndex = s.parent.Index
	attrs.MTU = s.parent.MTU
	attrs.Alias = Alias
	attrs.Namespace = netlink.NsFd(s.lower.ns.FD())
	err := s.hostH.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: int(s.VLAN), VlanProtocol: netlink.VLAN_PROTOCOL_8021Q})
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("make a device for VLAN %d: 802.1Q is %w (modprobe 8021q; Debian's package linux-image-%s has the module)",
			s.VLAN, ErrNotSupported, debianArch())
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("parent %s %w; its VLAN %d already has a device in another network namespace (ip -all netns exec ip -d link show type vlan)",
			s.Parent, ErrParentBusy, s.VLAN)
	case err != nil:
		return fmt.Errorf("make a device for VLAN %d on %s: %w", s.VLAN, s.Parent, err)
	}
	made, err := claim(s.lower.h, name)
	if err != nil {
		return err
	}
	s.lower.nic = *made
	return nil
}

// PrepareTrunk makes a namespace fit for VLAN devices: dark. Without addresses,
// routes and IPv6 the kernel answers nothing there, whatever arrives; macvlans
// take their frames before it looks.
func PrepareTrunk(trunk *netns.NS) error {
	s := sysctls{
		must: map[string]string{"net/ipv4/ip_forward": "0"},
		may:  map[string]string{}, // booted with ipv6.disable=1 there are no such keys
	}
	for _, conf := range []string{"all", "default"} {
		s.must["net/ipv4/conf/"+conf+"/arp_ignore"] = "8" // answer for no address
		s.may["net/ipv6/conf/"+conf+"/disable_ipv6"] = "1"
	}
	if err := set(trunk, s); err != nil {
		return fmt.Errorf("prepare the namespace of VLAN devices: %w", err)
	}
	return nil
}

// KeepVLANs removes the VLAN devices of ours that are not listed, with what
// stands on them.
func KeepVLANs(ctx context.Context, trunk *netns.NS, keep []VLAN) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	wanted := make(map[string]bool, len(keep))
	for _, v := range keep {
		wanted[v.DeviceName()] = true
	}
	links, err := ownedLinks(trunk)
	if err != nil {
		return fmt.Errorf("list VLAN devices: %w", err)
	}
	return removeAll(trunk, slices.DeleteFunc(links, func(n nic) bool { return wanted[n.Name] }))
}

// debianArch is how Debian names its kernel packages for this machine.
func debianArch() string {
	var u unix.Utsname
	if unix.Uname(&u) == nil && unix.ByteSliceToString(u.Machine[:]) == "aarch64" {
		return "arm64"
	}
	return "amd64"
}
