package agent

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	"decoynet/deception"
)

// Up tells whether a decoy's port is to be open now, at its addresses of one
// family.
type Up func(d *deception.Decoy, t deception.Transport, port uint16, ipv6 bool) bool

// endpointKey names a port that is to be listened on.
type endpointKey struct {
	transport deception.Transport
	// addr is the unspecified address of its family where every address of the
	// machine is meant.
	addr netip.Addr
	port uint16
}

// every tells whether the key stands for all addresses of its family.
func (k endpointKey) every() bool { return k.addr.IsUnspecified() }

// String writes the key for people: 445/tcp on 192.0.2.7, 161/udp on every IPv6
// address.
func (k endpointKey) String() string { return portName(k.transport, k.port) + " on " + k.where() }

func (k endpointKey) where() string {
	switch {
	case !k.every():
		return k.addr.String()
	case k.addr.Is4():
		return "every IPv4 address"
	}
	return "every IPv6 address"
}

func portName(t deception.Transport, port uint16) string {
	return strconv.Itoa(int(port)) + "/" + t.String()
}

// network returns what package net calls the key's kind of socket. Named by
// family, an IPv6 socket takes no IPv4.
func (k endpointKey) network() string {
	if k.addr.Is4() {
		return k.transport.String() + "4"
	}
	return k.transport.String() + "6"
}

// planEndpoints returns what is to be listened on for the node's decoys in the
// segment host, each with the first decoy that wants it. Where some decoy wants
// a port at every address of a family, no single address of that family is
// listened on: one socket takes all, and which decoy a flow is for shows in its
// destination.
func planEndpoints(state *deception.State, up Up) map[endpointKey]string {
	out := map[endpointKey]string{}
	var single []endpointKey
	add := func(k endpointKey, d *deception.Decoy) {
		if _, known := out[k]; !known {
			out[k] = d.Name
			if !k.every() {
				single = append(single, k)
			}
		}
	}
	for i := range state.Decoys {
		d := &state.Decoys[i]
		if d.Segment != deception.HostSegment || d.Node != "" && d.Node != state.Node {
			continue
		}
		for b := range d.Bind {
			for _, ports := range d.Bind[b].Ports {
				for port := int(ports.First); port <= int(ports.Last); port++ {
					addEndpoints(d, ports.Transport, uint16(port), up, add)
				}
			}
		}
	}
	for _, k := range single {
		whole := k
		if whole.addr = netip.IPv6Unspecified(); k.addr.Is4() {
			whole.addr = netip.IPv4Unspecified()
		}
		if _, taken := out[whole]; taken {
			delete(out, k)
		}
	}
	return out
}

// addEndpoints adds one port of a decoy at all its addresses.
func addEndpoints(d *deception.Decoy, t deception.Transport, port uint16, up Up, add func(endpointKey, *deception.Decoy)) {
	open := func(ipv6 bool) bool { return up == nil || up(d, t, port, ipv6) }
	if d.Any {
		for _, every := range [...]netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			if open(every.Is6()) {
				add(endpointKey{t, every, port}, d)
			}
		}
	}
	for _, r := range d.Addresses {
		if !open(r.From.Is6()) {
			continue
		}
		for a := r.From; a.IsValid() && !r.To.Less(a); a = a.Next() {
			add(endpointKey{t, a, port}, d)
		}
	}
}

// sortedKeys puts keys into the order in which they are opened and shown.
func sortedKeys[V any](m map[endpointKey]V) []endpointKey {
	keys := make([]endpointKey, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b endpointKey) int {
		return cmp.Or(cmp.Compare(a.transport, b.transport), cmp.Compare(a.port, b.port), a.addr.Compare(b.addr))
	})
	return keys
}
