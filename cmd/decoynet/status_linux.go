package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"decoynet/deception"
)

// status adds what is true of the kernel's roles.
func (l *localRoles) status(ctx context.Context, s *status) {
	k := l.made.Load()
	if k == nil {
		return
	}
	segments, zones := k.agent.Status(), k.zones.Status(ctx)
	for _, g := range segments {
		s.Ready = s.Ready && g.Ready
	}
	for _, z := range zones {
		s.Ready = s.Ready && z.Contained
	}
	// Plain structs: Marshal cannot fail.
	s.Segments, _ = json.Marshal(segments)
	s.Zones, _ = json.Marshal(zones)
	s.Relay = k.relayStatus()
	if len(segments) > 0 {
		s.Sensing, _ = json.Marshal(k.agent.Sensing())
	}
	if st := k.inspect.Status(); st != nil {
		s.Inspect, _ = json.Marshal(st)
		s.Problems = append(s.Problems, st.Problems...)
	}
	l.node.mu.Lock()
	services := l.node.now.state.Services
	l.node.mu.Unlock()
	s.Services = k.serviceStatus(services)
	if ingress := k.ingress.Status(); len(ingress.Listen)+len(ingress.Problems) > 0 {
		s.Ingress, _ = json.Marshal(ingress)
		if l.node.cfg.identity == nil { // else they are errors of apply as well
			s.Problems = append(s.Problems, ingress.Problems...)
		}
	}
	if egress := k.egress.Status(); len(egress) > 0 {
		s.Egress, _ = json.Marshal(egress)
	}
	if links := k.links.Status(); len(links) > 0 {
		s.Egresses, _ = json.Marshal(links)
		for _, far := range links {
			if far.Err != "" {
				s.Problems = append(s.Problems, fmt.Sprintf("egress %s of %s: %s", far.Egress, strings.Join(far.Zones, ", "), far.Err))
			}
		}
	}
}

func (k *kernelRoles) serviceStatus(services []deception.Service) []serviceStatus {
	states := k.checker.States()
	for p, st := range k.links.States() {
		states[p] = st
	}
	ports := map[string][]portStatus{}
	for p, st := range states {
		name := fmt.Sprintf("%d/%s", p.Address.Port(), p.Transport)
		if p.Range {
			name += " (range)"
		}
		ports[p.Service] = append(ports[p.Service], portStatus{
			Port: name, At: p.Address.Addr().String(), Up: st.Up, Since: st.Since, Error: st.Err,
		})
	}
	out := make([]serviceStatus, 0, len(services))
	for _, v := range services {
		list := ports[v.Name]
		slices.SortFunc(list, func(a, b portStatus) int { return strings.Compare(a.At+" "+a.Port, b.At+" "+b.Port) })
		out = append(out, serviceStatus{Name: v.Name, Zone: v.Zone, Ports: list})
	}
	return out
}

func (k *kernelRoles) relayStatus() relayStatus {
	r := k.engine.Stats()
	return relayStatus{
		Flows: r.Active, UDPFlows: r.ActiveUDP, Accepted: r.Accepted, Refused: r.Refused, Overload: r.Overload,
		Retries: r.Retries, MovedPorts: k.gateway.MovedPorts(), Spliced: r.Spliced, Truncated: r.Truncated,
	}
}
