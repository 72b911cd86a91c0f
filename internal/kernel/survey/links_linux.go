package survey

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"decoynet/internal/kernel/netns"
)

// Links lists the interfaces of the namespace with their addresses.
func Links(ns *netns.NS) ([]Link, error) {
	h, err := ns.Handle()
	if err != nil {
		return nil, err
	}
	list, err := netns.Dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	addrs, err := netns.Dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	byIndex := map[int]netlink.Link{}
	for _, l := range list {
		byIndex[l.Attrs().Index] = l
	}
	out := make([]Link, 0, len(list))
	for _, l := range list {
		a := l.Attrs()
		n := Link{
			Index: a.Index, Name: a.Name, Kind: l.Type(), Alias: a.Alias, MAC: a.HardwareAddr, MTU: a.MTU,
			Up: a.RawFlags&unix.IFF_UP != 0, Carrier: a.RawFlags&unix.IFF_LOWER_UP != 0,
			Loopback: a.RawFlags&unix.IFF_LOOPBACK != 0,
			Ethernet: a.EncapType == "ether", Wireless: wireless(a.Name, a.Index),
		}
		if v, ok := l.(*netlink.Vlan); ok {
			n.VLAN = uint16(v.VlanId)
		}
		if a.NetNsID == -1 {
			n.Parent = a.ParentIndex
		}
		if m := byIndex[a.MasterIndex]; a.MasterIndex != 0 && m != nil {
			n.Master, n.MasterKind = m.Attrs().Name, m.Type()
		}
		for _, ad := range addrs {
			if ip, ok := netip.AddrFromSlice(ad.IP); ok && ad.LinkIndex == a.Index {
				bits, _ := ad.Mask.Size()
				n.Addrs = append(n.Addrs, netip.PrefixFrom(ip.Unmap(), bits))
			}
		}
		out = append(out, n)
	}
	return out, nil
}

// wireless looks into sysfs, which shows the interfaces of the namespace that it
// was mounted in; the index makes sure that it is the same interface.
func wireless(name string, index int) bool {
	dir := filepath.Join("/sys/class/net", name)
	found, err := os.ReadFile(filepath.Join(dir, "ifindex"))
	if err != nil || strings.TrimSpace(string(found)) != strconv.Itoa(index) {
		return false
	}
	_, err = os.Stat(filepath.Join(dir, "phy80211"))
	return err == nil
}

// ErrUnreachable is returned by RouteTo where the namespace has no way to the
// address.
var ErrUnreachable = errors.New("no route")

// RouteTo asks the kernel how it would send a packet of this host to the
// address.
func RouteTo(ns *netns.NS, to netip.Addr) (Route, error) {
	h, err := ns.Handle()
	if err != nil {
		return Route{}, err
	}
	routes, err := h.RouteGet(to.AsSlice())
	if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || err == nil && len(routes) == 0 {
		return Route{}, fmt.Errorf("%w to %s", ErrUnreachable, to)
	}
	if err != nil {
		return Route{}, fmt.Errorf("look up the route to %s: %w", to, err)
	}
	r := Route{Local: routes[0].Type == unix.RTN_LOCAL}
	if via, ok := netip.AddrFromSlice(routes[0].Gw); ok {
		r.Via = via.Unmap()
	}
	l, err := h.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return Route{}, fmt.Errorf("look up the link of the route to %s: %w", to, err)
	}
	r.Dev = l.Attrs().Name
	return r, nil
}

// Neighbours lists what the namespace knows of the neighbours at a link, or, for
// index 0, at all its links.
func Neighbours(ns *netns.NS, index int) ([]Neighbour, error) {
	h, err := ns.Handle()
	if err != nil {
		return nil, err
	}
	list, err := netns.Dump(func() ([]netlink.Neigh, error) { return h.NeighList(index, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list neighbours: %w", err)
	}
	var out []Neighbour
	for _, e := range list {
		addr, ok := netip.AddrFromSlice(e.IP)
		if !ok || e.Flags&netlink.NTF_PROXY != 0 {
			continue
		}
		out = append(out, Neighbour{Addr: addr.Unmap(), MAC: e.HardwareAddr, State: states[e.State]})
	}
	return out, nil
}

var states = map[int]string{
	netlink.NUD_INCOMPLETE: "INCOMPLETE", netlink.NUD_REACHABLE: "REACHABLE", netlink.NUD_STALE: "STALE",
	netlink.NUD_DELAY: "DELAY", netlink.NUD_PROBE: "PROBE", netlink.NUD_FAILED: "FAILED",
	netlink.NUD_NOARP: "NOARP", netlink.NUD_PERMANENT: "PERMANENT",
}
