package health

import (
	"net/netip"

	"decoynet/deception"
)

// PortOf returns the unit of health that a service's port belongs to, at its
// address of one family: the port itself, or the whole range it was declared
// in. Asking every port of a large range each second would be a scan of our own
// network, so a range counts as open when its first port answers at all.
// False where the service has no such port or no address of that family.
func PortOf(s *deception.Service, t deception.Transport, port uint16, family netip.Addr) (Port, bool) {
	address := s.Addr(family)
	for _, r := range s.Ports {
		if address.IsValid() && r.Contains(t, port) {
			return Port{
				Service: s.Name, Transport: t, Range: r.First != r.Last,
				Address: netip.AddrPortFrom(address, r.First),
			}, true
		}
	}
	return Port{}, false
}

// PortsOf returns what is to be looked at for a state, in the document's order:
// each declared port or range of a service that some decoy leads to, at the
// addresses of the families that its decoys have; of a zone that other machines
// come to (Zone.Egress), whose decoys are not all known here, every one. Services
// of zones that are not behind a link of this machine are looked at where they
// are.
func PortsOf(state *deception.State) []Port {
	used := familiesUsed(state)
	var out []Port
	for i := range state.Services {
		s := &state.Services[i]
		zone := state.Zone(s.Zone)
		if zone != nil && !zone.IsLocal() {
			continue
		}
		all := zone != nil && zone.Egress != nil
		for _, address := range []netip.Addr{s.Addr4, s.Addr6} {
			if !address.IsValid() || !all && !used[use{s.Name, address.Is4()}] {
				continue
			}
			for _, r := range s.Ports {
				if p, ok := PortOf(s, r.Transport, r.First, address); ok {
					out = append(out, p)
				}
			}
		}
	}
	return out
}

// use is a service by one family of addresses.
type use struct {
	service string
	v4      bool
}

// familiesUsed tells by which families decoys lead to services.
func familiesUsed(state *deception.State) map[use]bool {
	used := map[use]bool{}
	for i := range state.Decoys {
		d := &state.Decoys[i]
		for _, b := range d.Bind {
			for _, a := range d.Addresses {
				used[use{b.Service, a.From.Is4()}] = true
			}
			if d.Any {
				used[use{b.Service, true}], used[use{b.Service, false}] = true, true
			}
		}
	}
	return used
}
