//go:build linux

package gateway

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"decoynet/deception"
	"decoynet/internal/health"
)

// edge is what an egress serves at one address, made from the document. It is
// immutable.
type edge struct {
	listen netip.AddrPort
	zones  []edgeZone
	owners map[netip.Addr]edgeService // by the services' own addresses
}

type edgeZone struct {
	name     string
	from     []netip.Prefix
	services []*deception.Service
}

// edgeService is a service with the index of its zone.
type edgeService struct {
	*deception.Service
	zone int
}

// Why an egress turns a peer or a flow away, in words for Status.
var (
	errNoTarget = errors.New("header names no target")
	errTarget   = errors.New("target is none of the zone's")
	errFamily   = errors.New("source and target of two families")
)

// edgesOf returns what the state's node serves as an egress.
func edgesOf(state *deception.State) map[netip.AddrPort]*edge {
	edges := map[netip.AddrPort]*edge{}
	for i := range state.Zones {
		z := &state.Zones[i]
		if z.Egress == nil || z.Egress.Node != state.Node || !z.IsLocal() {
			continue
		}
		e := edges[z.Egress.Listen]
		if e == nil {
			e = &edge{listen: z.Egress.Listen, owners: map[netip.Addr]edgeService{}}
			edges[z.Egress.Listen] = e
		}
		zone := edgeZone{name: z.Name, from: z.Egress.From}
		for j := range state.Services {
			s := &state.Services[j]
			if s.Zone != z.Name {
				continue
			}
			zone.services = append(zone.services, s)
			for _, a := range []netip.Addr{s.Addr4, s.Addr6} {
				if a.IsValid() {
					e.owners[a] = edgeService{s, len(e.zones)}
				}
			}
		}
		e.zones = append(e.zones, zone)
	}
	return edges
}

// allows tells whether the peer may speak to any of the edge's zones.
func (e *edge) allows(peer netip.Addr) bool {
	return slices.ContainsFunc(e.zones, func(z edgeZone) bool { return z.allows(peer) })
}

func (z *edgeZone) allows(peer netip.Addr) bool {
	return slices.ContainsFunc(z.from, func(p netip.Prefix) bool { return p.Contains(peer) })
}

// service returns whose address and port, or alias and port, the target is. The
// peer must be one of that zone's.
func (e *edge) service(peer netip.Addr, t deception.Transport, target netip.AddrPort) (*deception.Service, error) {
	if !target.IsValid() {
		return nil, errNoTarget
	}
	s, ok := e.owner(target.Addr())
	if !ok {
		return nil, fmt.Errorf("%w: no service of %s is at %s", errTarget, e.zoneNames(), target.Addr())
	}
	if !e.zones[s.zone].allows(peer) {
		return nil, fmt.Errorf("%w: %s is in zone %s, whose egress.from does not name %s", errTarget, target, s.Zone, peer)
	}
	if !slices.ContainsFunc(s.Ports, func(r deception.PortRange) bool { return r.Contains(t, target.Port()) }) {
		return nil, fmt.Errorf("%w: service %s has no port %s", errTarget, s.Name, deception.Port(t, target.Port()))
	}
	return s.Service, nil
}

func (e *edge) owner(a netip.Addr) (edgeService, bool) {
	if s, ok := e.owners[a]; ok {
		return s, true
	}
	for i := range e.zones {
		for _, s := range e.zones[i].services {
			if p, ok := s.AliasPrefix(a); ok && p.Contains(a) {
				return edgeService{s, i}, true
			}
		}
	}
	return edgeService{}, false
}

func (e *edge) names() []string {
	out := make([]string, len(e.zones))
	for i := range e.zones {
		out[i] = e.zones[i].name
	}
	return out
}

// zoneNames names the zones in messages.
func (e *edge) zoneNames() string {
	if len(e.zones) == 1 {
		return "zone " + e.zones[0].name
	}
	return "zones " + strings.Join(e.names(), ", ")
}

// ports returns the units of health that the peer may know of.
func (e *edge) ports(peer netip.Addr) []health.Port {
	var out []health.Port
	for i := range e.zones {
		if !e.zones[i].allows(peer) {
			continue
		}
		for _, s := range e.zones[i].services {
			out = append(out, portsOfService(s)...)
		}
	}
	return out
}

// portsOfService returns every unit of health that a service has.
func portsOfService(s *deception.Service) []health.Port {
	var out []health.Port
	for _, a := range []netip.Addr{s.Addr4, s.Addr6} {
		for _, r := range s.Ports {
			if p, ok := health.PortOf(s, r.Transport, r.First, a); ok && a.IsValid() {
				out = append(out, p)
			}
		}
	}
	return out
}
