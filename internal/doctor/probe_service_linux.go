package doctor

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/health"
	"decoynet/internal/kernel/firewall"
	"decoynet/internal/kernel/survey"
)

// Bounds of what is asked of services.
const (
	maxPorts    = 16 // of one service
	maxSegments = 8  // whose addresses a service is asked from
	atOnce      = 64
)

// readServices asks every service as strangers would, and those that did not
// answer from this host's own address.
func (r *reader) readServices(ctx context.Context) {
	if r.facts.State == nil {
		return
	}
	r.facts.Routes = map[netip.Addr]survey.Route{}
	for _, s := range r.facts.State.Services {
		for _, a := range []netip.Addr{s.Addr4, s.Addr6} {
			if !a.IsValid() {
				continue
			}
			route, err := survey.RouteTo(r.host, a)
			switch {
			case err == nil:
				r.facts.Routes[a] = route
			case !errors.Is(err, survey.ErrUnreachable): // which sending will tell
				r.unread("zone", s.Zone, err)
			}
		}
	}
	probes := planProbes(r.facts.State)
	watch, err := openWatch(r.host)
	if err != nil {
		r.unread("service", "", err)
		return
	}
	defer watch.close()
	r.each(len(probes), func(i int) { r.probe(ctx, watch, &probes[i]) })
	r.each(len(probes), func(i int) { r.askOwn(ctx, &probes[i]) })
	r.facts.Services = append(probes, r.refusedUDP(ctx)...)
}

// each runs fn for 0 to n-1, some at once.
func (r *reader) each(n int, fn func(int)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			fn(i)
		})
	}
	wg.Wait()
}

// planProbes says who is to be asked what: each TCP port from an address of the
// world, the first one also from a decoy's address of every segment that leads
// there (a service may have a way of its own into that network), and an alias.
func planProbes(state *deception.State) []ServiceProbe {
	table := deception.NewTable(state)
	var out []ServiceProbe
	for i := range state.Services {
		s := &state.Services[i]
		if state.Zone(s.Zone) == nil {
			continue
		}
		for _, a := range []netip.Addr{s.Addr4, s.Addr6} {
			if a.IsValid() {
				out = append(out, planService(state, table, s, a)...)
			}
		}
	}
	return out
}

func planService(state *deception.State, table *deception.Table, s *deception.Service, a netip.Addr) []ServiceProbe {
	var out []ServiceProbe
	for _, p := range s.Ports {
		if p.Transport == deception.TCP && len(out) < maxPorts {
			out = append(out, ServiceProbe{
				Service: s.Name, Zone: s.Zone, Target: netip.AddrPortFrom(a, p.First), From: stranger(a), Range: p.First != p.Last,
			})
		}
	}
	if len(out) == 0 { // UDP only
		return []ServiceProbe{{Service: s.Name, Zone: s.Zone, Target: netip.AddrPortFrom(a, 0), From: stranger(a)}}
	}
	first := out[0]
	segments := map[string]bool{}
	aliased := false
	for i := range state.Decoys {
		d := &state.Decoys[i]
		for _, r := range d.Addresses {
			if r.From.Is4() != a.Is4() {
				continue
			}
			target, ok := boundPort(table, d, r.From, s.Name)
			if !ok {
				continue
			}
			if !segments[d.Segment] && len(segments) < maxSegments {
				segments[d.Segment] = true
				p := first
				p.From = r.From
				out = append(out, p)
			}
			// Answers of the kernel path's aliases belong to the segment.
			if target.Alias && !aliased && d.Path == deception.PathRelay {
				aliased = true
				out = append(out, ServiceProbe{Service: s.Name, Zone: s.Zone, Target: target.Address, From: stranger(a), Alias: true, Range: first.Range})
			}
		}
	}
	return out
}

// boundPort returns where the decoy's first TCP port for the service leads.
func boundPort(table *deception.Table, d *deception.Decoy, a netip.Addr, service string) (deception.Target, bool) {
	for _, b := range d.Bind {
		for _, p := range b.Ports {
			if b.Service != service || p.Transport != deception.TCP {
				continue
			}
			if t, ok := table.Lookup(d.Segment, deception.TCP, netip.AddrPortFrom(a, p.First)); ok && t.Service.Name == service {
				return t, true
			}
		}
	}
	return deception.Target{}, false
}

// probe asks one port as a stranger and notes where the answer was seen.
func (r *reader) probe(ctx context.Context, w *watch, p *ServiceProbe) {
	if p.Target.Port() == 0 {
		r.knockUDP(ctx, w, p)
		return
	}
	fd, source, err := knock(r.host, p.From, p.Target)
	if err != nil {
		p.Sent = err
		return
	}
	defer unix.Close(fd)
	until(ctx, answerWait, func() bool { return len(w.find(p.Target, source)) > 0 })
	if len(w.find(p.Target, source)) > 0 {
		// A bridge's port sees it before the bridge does, and both before it is
		// delivered.
		until(ctx, 250*time.Millisecond, func() bool { return r.atZone(p, w.find(p.Target, source)) })
		until(ctx, 100*time.Millisecond, func() bool { n, known := dropsOf(fd); return n > 0 || !known })
	}
	n, known := dropsOf(fd)
	p.Delivered = n > 0 || !known
	seen := w.find(p.Target, source)
	for _, s := range seen {
		switch {
		case s.flags&(flagSYN|flagACK) == flagSYN|flagACK:
			p.Answer = Accepts
		case s.flags&flagRST != 0 && p.Answer == NoAnswer:
			p.Answer = Refuses
		}
	}
	if p.Range && p.Answer == Refuses {
		p.Answer = Accepts // any answer counts; the port is one of many
	}
	r.place(p, seen)
	if err := hangUp(r.host, w, source, p.Target); err != nil {
		r.unread("service", p.Service, err)
	}
}

// place notes at which links an answer was seen. One that reached the zone's
// link was seen below it as well (a port of the bridge, the NIC of a VLAN).
func (r *reader) place(p *ServiceProbe, seen []sighting) {
	zone := r.facts.State.Zone(p.Zone).Link
	for _, s := range seen {
		l := r.linkAt(s.index)
		if l == nil || s.kind == unix.PACKET_OUTGOING {
			continue
		}
		to := &p.Links
		if s.kind == unix.PACKET_OTHERHOST || l.Master != "" {
			to = &p.Passed
		}
		if !slices.Contains(*to, l.Name) {
			*to = append(*to, l.Name)
		}
	}
	if slices.Contains(p.Links, zone) {
		p.Links, p.Passed = []string{zone}, nil
	}
}

// atZone tells whether an answer was seen at the link of the service's zone.
func (r *reader) atZone(p *ServiceProbe, seen []sighting) bool {
	zone := r.facts.State.Zone(p.Zone).Link
	return slices.ContainsFunc(seen, func(s sighting) bool {
		l := r.linkAt(s.index)
		return l != nil && l.Name == zone
	})
}

func (r *reader) linkAt(index int) *survey.Link {
	i := slices.IndexFunc(r.facts.Links, func(l survey.Link) bool { return l.Index == index })
	if i < 0 {
		return nil
	}
	return &r.facts.Links[i]
}

// closedPort is one at which hardly anybody listens: where traceroute begins.
const closedPort = 33434

// knockUDP sends an empty datagram to a port that is closed, as a stranger: the
// service's machine says so, and that comes back the way answers would, without
// a server noticing.
func (r *reader) knockUDP(ctx context.Context, w *watch, p *ServiceProbe) {
	target := netip.AddrPortFrom(p.Target.Addr(), closedPort)
	source := netip.AddrPortFrom(p.From, uint16(20000+rand.IntN(12000)))
	fd, err := foreignSocket(r.host, unix.SOCK_DGRAM, 0, source)
	if err != nil {
		p.Sent = err
		return
	}
	defer unix.Close(fd)
	if p.Sent = unix.Connect(fd, sockaddr(target)); p.Sent != nil {
		return
	}
	for range 2 { // machines say it once a second at most
		if p.Sent = unix.Send(fd, nil, 0); p.Sent != nil && !errors.Is(p.Sent, unix.ECONNREFUSED) {
			return
		}
		p.Sent = nil
		until(ctx, answerWait, func() bool {
			p.Delivered = p.Delivered || refusedTo(fd)
			return p.Delivered && len(w.find(target, source)) > 0
		})
		if seen := w.find(target, source); len(seen) > 0 {
			p.Answer = Accepts
			r.place(p, seen)
			return
		}
	}
}

// refusedTo tells whether a socket was told that its peer's port is closed.
func refusedTo(fd int) bool {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	return err == nil && unix.Errno(n) == unix.ECONNREFUSED
}

// askOwn asks from this host's own address, where a stranger got no answer.
func (r *reader) askOwn(ctx context.Context, p *ServiceProbe) {
	if p.Answer != NoAnswer || p.Sent != nil {
		return
	}
	if p.Target.Port() == 0 {
		r.askOwnUDP(ctx, p)
		return
	}
	port := health.Port{Service: p.Service, Transport: deception.TCP, Address: p.Target, Range: p.Range}
	err := health.Probe(ctx, []health.Port{port}, answerWait, firewall.MarkSelf)[port]
	switch {
	case err == nil:
		p.Own = Accepts
	case errors.Is(err, unix.ECONNREFUSED):
		p.Own = Refuses
	default:
		p.OwnErr = err.Error()
	}
}

// askOwnUDP sends to the closed port under this host's own address.
func (r *reader) askOwnUDP(ctx context.Context, p *ServiceProbe) {
	target := netip.AddrPortFrom(p.Target.Addr(), closedPort)
	port := health.Port{Service: p.Service, Transport: deception.UDP, Address: target}
	err := health.Probe(ctx, []health.Port{port}, 2*answerWait, firewall.MarkSelf)[port]
	if p.OwnErr = "it does not say that a port is closed"; errors.Is(err, unix.ECONNREFUSED) {
		p.Own, p.OwnErr = Accepts, ""
	}
}

// refusedUDP returns a probe for each UDP port that is refused.
func (r *reader) refusedUDP(ctx context.Context) []ServiceProbe {
	byService := map[string][]health.Port{}
	for _, p := range health.PortsOf(r.facts.State) {
		if p.Transport == deception.UDP && !p.Range {
			byService[p.Service] = append(byService[p.Service], p)
		}
	}
	var out []ServiceProbe
	for _, ports := range byService {
		for p, err := range health.Probe(ctx, ports, answerWait, firewall.MarkSelf) {
			if errors.Is(err, unix.ECONNREFUSED) {
				out = append(out, ServiceProbe{
					Service: p.Service, Zone: r.facts.State.Service(p.Service).Zone, Target: p.Address, UDP: true, Own: Refuses,
				})
			}
		}
	}
	slices.SortFunc(out, func(a, b ServiceProbe) int { return a.Target.Compare(b.Target) })
	return out
}
