package gateway

import (
	"net/netip"

	"decoynet/deception"
	"decoynet/internal/health"
	"decoynet/internal/notice"
)

// NoteHealth tells the agents which of their ports have a healthy service, after
// that has changed.
func (in *Ingress) NoteHealth() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.closed {
		in.noteHealth()
	}
}

// noteHealth must be called with mu held. Each node is told of its own decoys
// only.
func (in *Ingress) noteHealth() {
	told := map[string][]byte{}
	for node, n := range noticesOf(in.state.Load(), in.cfg.Up) {
		told[node] = n.Append(nil)
	}
	in.notices.Store(&told)
	if in.server != nil {
		in.server.TellEach(in.noticeFor)
	}
}

// noticeFor returns what a connection of that name is told; nil for nothing.
func (in *Ingress) noticeFor(name string) []byte {
	node, _ := nodeOf(name)
	return (*in.notices.Load())[node]
}

// Up tells whether a decoy's port has a healthy service, at the decoy's addresses
// of one family.
func (in *Ingress) Up(d *deception.Decoy, t deception.Transport, port uint16, ipv6 bool) bool {
	b := d.Lookup(t, port)
	if b == nil {
		return false
	}
	s := in.state.Load().Service(b.Service)
	if s == nil {
		return false
	}
	unit, ok := health.PortOf(s, t, b.TargetPort(port), anyOf(ipv6))
	return ok && in.cfg.Up(unit)
}

// anyOf returns some address of the family.
func anyOf(ipv6 bool) netip.Addr {
	if ipv6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// noticesOf returns, for each node without a gateway of its own, which ports of
// its decoys are to be closed: those whose service is down, and those whose
// service has no address of the family.
func noticesOf(state *deception.State, up func(health.Port) bool) map[string]*notice.Notice {
	out := map[string]*notice.Notice{}
	for i := range state.Decoys {
		d := &state.Decoys[i]
		if d.Node == state.Node || d.Node == "" {
			continue
		}
		n := out[d.Node]
		if n == nil {
			n = &notice.Notice{Node: d.Node}
			out[d.Node] = n
		}
		for _, ipv6 := range [...]bool{false, true} {
			if !hasFamily(d, ipv6) {
				continue
			}
			for b := range d.Bind {
				for _, ports := range d.Bind[b].Ports {
					for _, r := range downPorts(state.Service(d.Bind[b].Service), &d.Bind[b], ports, ipv6, up) {
						n.Down = append(n.Down, notice.Down{
							Segment: d.Segment, Decoy: d.Name, Transport: r.Transport.String(), First: r.First, Last: r.Last, IPv6: ipv6,
						})
					}
				}
			}
		}
	}
	return out
}

func hasFamily(d *deception.Decoy, ipv6 bool) bool {
	if d.Any {
		return true
	}
	for _, r := range d.Addresses {
		if r.From.Is6() == ipv6 {
			return true
		}
	}
	return false
}

// downPorts returns those of a binding's ports that lead to no open port of the
// service, as few ranges.
func downPorts(s *deception.Service, b *deception.Binding, ports deception.PortRange, ipv6 bool, up func(health.Port) bool) []deception.PortRange {
	var out []deception.PortRange
	for port := int(ports.First); port <= int(ports.Last); port++ {
		if s != nil {
			unit, ok := health.PortOf(s, ports.Transport, b.TargetPort(uint16(port)), anyOf(ipv6))
			if ok && up(unit) {
				continue
			}
		}
		if n := len(out); n > 0 && int(out[n-1].Last)+1 == port {
			out[n-1].Last = uint16(port)
			continue
		}
		out = append(out, deception.Port(ports.Transport, uint16(port)))
	}
	return out
}
