package link

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"decoynet/deception"
	"decoynet/internal/kernel/netns"
)

// Interfaces lists the links of a namespace with their addresses. It asks the
// kernel twice, however many there are; net.Interface.Addrs reads all addresses
// for each.
func Interfaces(ns *netns.NS) ([]deception.Interface, error) {
	h, err := ns.Handle()
	if err != nil {
		return nil, err
	}
	links, err := list(h)
	if err != nil {
		return nil, err
	}
	addrs, err := netns.Dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	out := make([]deception.Interface, len(links))
	at := make(map[int]int, len(links))
	for i, n := range links {
		out[i].Name, at[n.Index] = n.Name, i
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		bits, _ := a.Mask.Size()
		if i, known := at[a.LinkIndex]; ok && known {
			out[i].Addresses = append(out[i].Addresses, netip.PrefixFrom(ip.Unmap(), bits))
		}
	}
	return out, nil
}
