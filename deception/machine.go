package deception

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Interface is a network interface of a machine with its addresses, each with
// the length of its network's prefix. The loopback interface is one as well.
type Interface struct {
	Name      string
	Addresses []netip.Prefix
}

// OnMachine fills in what a document leaves to the machine: the interface of a
// zone whose link is LinkAuto, and the network that an egress serves where it
// names none. Where the machine has no such interface, or several, the error
// says so and that one thing stays as it is: a link named LinkAuto that nothing
// has, an egress that serves nobody.
func (s *State) OnMachine(interfaces []Interface) (State, error) {
	out := *s
	out.Zones = slices.Clone(s.Zones)
	var errs []error
	for i := range out.Zones {
		z := &out.Zones[i]
		if z.Link == LinkAuto {
			link, err := linkOf(z, interfaces)
			errs = append(errs, err)
			if err == nil {
				z.Link = link
			}
		}
		if e := z.Egress; e != nil && z.IsLocal() && len(e.From) == 0 {
			from, err := networkOf(e.Listen.Addr(), interfaces)
			if err != nil {
				errs = append(errs, fmt.Errorf("egress of zone %s: %w", z.Name, err))
				continue
			}
			z.Egress = &Egress{Node: e.Node, Listen: e.Listen, From: []netip.Prefix{from}}
		}
	}
	return out, errors.Join(errs...)
}

// linkOf returns the one interface that holds a subnet of the zone: one with an
// address in it or, where there is none, one whose network takes the subnet in.
func linkOf(z *Zone, interfaces []Interface) (string, error) {
	within := func(a, subnet netip.Prefix) bool { return subnet.Contains(a.Addr()) }
	around := func(a, subnet netip.Prefix) bool { return a.Bits() <= subnet.Bits() && a.Contains(subnet.Addr()) }
	for _, holds := range []func(a, subnet netip.Prefix) bool{within, around} {
		var found []string
		for _, l := range interfaces {
			if slices.ContainsFunc(l.Addresses, func(a netip.Prefix) bool {
				return !a.Addr().IsLoopback() && slices.ContainsFunc(z.Subnets, func(p netip.Prefix) bool { return holds(a, p) })
			}) {
				found = append(found, l.Name)
			}
		}
		switch len(found) {
		case 0:
		case 1:
			return found[0], nil
		default:
			return "", fmt.Errorf("zone %s: the interfaces %s all hold a subnet of it; say in the document which one leads to the services, as link: %s",
				z.Name, strings.Join(found, ", "), found[0])
		}
	}
	var subnets []string
	for _, p := range z.Subnets {
		subnets = append(subnets, p.String())
	}
	return "", fmt.Errorf("zone %s: no interface has an address in %s; give the one that leads to the services an address there, or name it in the document as link",
		z.Name, strings.Join(subnets, " or "))
}

// networkOf returns the network of the interface that has the address.
func networkOf(addr netip.Addr, interfaces []Interface) (netip.Prefix, error) {
	for _, l := range interfaces {
		for _, a := range l.Addresses {
			if a.Addr() == addr.WithZone("") {
				return a.Masked(), nil
			}
		}
	}
	return netip.Prefix{}, fmt.Errorf("no interface has the address %s that it listens on; give one that address, or say in the document which gateways it serves, as from", addr)
}
