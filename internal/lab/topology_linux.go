package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Switch is an Ethernet segment: a bridge that learns and floods, without
// spanning tree and without multicast snooping, so that ARP, NDP and routing
// protocols get through from the first frame.
type Switch struct {
	machine *Machine
	bridge  string
	index   int
}

// SwitchBridge is the name of the bridge in a switch's own namespace.
const SwitchBridge = "br0"

// Switch makes a segment in a namespace of its own. The namespace is itself
// silent: it has no address and speaks no IPv6.
func (l *Lab) Switch(name string) *Switch {
	m := l.Machine(name)
	s := &Switch{machine: m, bridge: SwitchBridge}
	m.build("make a switch", func() error {
		for key, value := range map[string]string{
			"net.ipv6.conf.all.disable_ipv6":     "1",
			"net.ipv6.conf.default.disable_ipv6": "1",
			// A switch has no business with iptables (on by default where
			// br_netfilter is in the kernel).
			"net.bridge.bridge-nf-call-iptables":  "0",
			"net.bridge.bridge-nf-call-ip6tables": "0",
			"net.bridge.bridge-nf-call-arptables": "0",
		} {
			err := m.Do(func() error { return os.WriteFile(sysctlPath(key), []byte(value), 0) })
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return s.create(nil)
	})
	return s
}

// Bridge makes a bridge in the machine, with addresses of the machine's own, and
// returns the segment behind it for others to be plugged into.
func (m *Machine) Bridge(name string, addrs ...string) *Switch {
	s := &Switch{machine: m, bridge: name}
	m.build("make bridge "+name, func() error { return s.create(addrs) })
	return s
}

func (s *Switch) create(addrs []string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = s.bridge
	snooping := false
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := s.machine.links.LinkAdd(bridge); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	link, err := s.machine.links.LinkByName(s.bridge)
	if err != nil {
		return fmt.Errorf("find bridge: %w", err)
	}
	s.index = link.Attrs().Index
	return s.machine.configure(s.bridge, s.index, addrs)
}

// Machine returns the machine that the bridge is in (for a switch, its own
// namespace): the place to capture all of the segment's traffic.
func (s *Switch) Machine() *Machine { return s.machine }

// Bridge returns the name of the bridge in that machine.
func (s *Switch) Bridge() string { return s.bridge }

// Plug gives the machine a network card in the segment, with addresses as
// 192.0.2.1/24 and 2001:db8::1/64, and returns when frames get through. The
// card is a veth with all offloads as the kernel has them; duplicate address
// detection is off on it, so that IPv6 addresses work at once.
func (m *Machine) Plug(s *Switch, nic string, addrs ...string) {
	m.build("plug "+nic, func() error {
		if s.index == 0 {
			return fmt.Errorf("the switch was not made")
		}
		port := portName(m.name+"-"+nic, m.lab.next())
		attrs := netlink.NewLinkAttrs()
		attrs.Name = port
		attrs.MasterIndex = s.index
		attrs.Flags = net.FlagUp
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: nic, PeerNamespace: netlink.NsFd(m.netns.Fd())}
		if err := s.machine.links.LinkAdd(veth); err != nil {
			return fmt.Errorf("add veth: %w", err)
		}
		link, err := m.links.LinkByName(nic)
		if err != nil {
			return fmt.Errorf("find the card: %w", err)
		}
		index := link.Attrs().Index
		if err := m.configure(nic, index, addrs); err != nil {
			return err
		}
		return waitUp(
			func() (netlink.Link, error) { return s.machine.links.LinkByName(port) },
			func() (netlink.Link, error) { return m.links.LinkByIndex(index) },
			func() (netlink.Link, error) { return s.machine.links.LinkByIndex(s.index) },
		)
	})
}

// portName returns the name of a card's other end, which must fit IFNAMSIZ.
func portName(want string, serial int) string {
	if len(want) < unix.IFNAMSIZ {
		return want
	}
	return fmt.Sprintf("port%d", serial)
}

// configure sets the link up with its addresses.
func (m *Machine) configure(name string, index int, addrs []string) error {
	err := m.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/accept_dad", []byte("0"), 0)
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) { // not there: a kernel without IPv6
		return fmt.Errorf("turn duplicate address detection off: %w", err)
	}
	link := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
	if err := m.links.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	for _, a := range addrs {
		prefix, err := netip.ParsePrefix(a)
		if err != nil {
			return fmt.Errorf("bad address %q; as 192.0.2.1/24 or 2001:db8::1/64", a)
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{
			IP:   prefix.Addr().AsSlice(),
			Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen()),
		}}
		if prefix.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := m.links.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add address %s: %w", a, err)
		}
	}
	return nil
}

// waitUp waits until the kernel has seen the links' carrier, which it does in a
// work queue: before that a bridge port drops what it gets, and the first ARP
// request would be repeated only a second later.
func waitUp(links ...func() (netlink.Link, error)) error {
	deadline := time.Now().Add(5 * time.Second)
	for _, get := range links {
		for {
			link, err := get()
			if err != nil {
				return fmt.Errorf("wait for the carrier: %w", err)
			}
			if link.Attrs().OperState == netlink.OperUp {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%s got no carrier (state %s)", link.Attrs().Name, link.Attrs().OperState)
			}
			time.Sleep(200 * time.Microsecond)
		}
	}
	return nil
}

// Route adds a route to the main table. The destination is a prefix or
// "default"; via is the next hop's address or, for what is on the link, the
// name of an interface.
func (m *Machine) Route(destination, via string) {
	m.build("route "+destination+" via "+via, func() error {
		route := &netlink.Route{Protocol: unix.RTPROT_STATIC}
		hop, err := netip.ParseAddr(via)
		if err == nil {
			route.Gw = hop.AsSlice()
		} else {
			link, err := m.links.LinkByName(via)
			if err != nil {
				return fmt.Errorf("find %s: %w", via, err)
			}
			route.LinkIndex = link.Attrs().Index
			route.Scope = netlink.SCOPE_LINK
		}
		prefix, err := routePrefix(destination, hop)
		if err != nil {
			return err
		}
		route.Dst = &net.IPNet{
			IP:   prefix.Addr().AsSlice(),
			Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen()),
		}
		return m.links.RouteAdd(route)
	})
}

func routePrefix(destination string, hop netip.Addr) (netip.Prefix, error) {
	switch {
	case destination != "default":
		return netip.ParsePrefix(destination)
	case hop.Is6():
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0), nil
	default:
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0), nil
	}
}
