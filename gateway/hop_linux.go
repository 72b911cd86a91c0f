package gateway

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/proxyheader"
	"decoynet/internal/relay"
)

// The ingress's half of a hop: to the egress of a zone whose edge is another
// machine, over TCP or in datagrams, with a header that says whose flow it is.

// hopsOf returns where the services of zones that are not behind a link of this
// machine are reached.
func hopsOf(state *deception.State) map[string]netip.AddrPort {
	hops := map[string]netip.AddrPort{}
	for i := range state.Services {
		zone := state.Zone(state.Services[i].Zone)
		if zone != nil && !zone.IsLocal() && zone.Egress != nil {
			hops[state.Services[i].Name] = zone.Egress.Listen
		}
	}
	return hops
}

// hop returns the egress that the service is reached through, or false where
// the service is behind a link of this machine.
func (g *Gateway) hop(service string) (netip.AddrPort, bool) {
	hops := *g.hops.Load()
	if len(hops) == 0 {
		return netip.AddrPort{}, false
	}
	egress, away := hops[service]
	return egress, away
}

// hopAttempts is how many source ports are tried before the kernel is asked for
// one. A port fails where a connection of the same tuple stands, which a walk
// over all of them meets rarely.
const hopAttempts = 8

// openHop dials the egress and appends to header what is to be sent there
// first, before each datagram over UDP. That the egress keeps the intruder's
// port is taken for granted; where it cannot, it says so to the recorder
// (deception.SourceSeen).
func (g *Gateway) openHop(s *deception.Session, egress netip.AddrPort, header []byte) (int, []byte, error) {
	h := proxyheader.Header{
		Transport: s.Transport, Source: s.Source, Destination: s.Destination, Session: s.ID,
		Node: s.Node, Segment: s.Segment, Decoy: s.Decoy, Service: s.Service, Target: s.DestinationNAT,
	}
	header, err := h.Append(header)
	if err != nil {
		return -1, header, fmt.Errorf("write the header for service %s: %w", s.Service, err)
	}
	fd, err := g.dialHop(s.Transport, egress)
	if err != nil {
		return -1, header, fmt.Errorf("dial egress %s of service %s: %w", egress, s.Service, err)
	}
	s.SourceNAT, s.SourceMode = s.Source, deception.SourceKept
	return fd, header, nil
}

func (g *Gateway) dialHop(t deception.Transport, egress netip.AddrPort) (int, error) {
	if t == deception.UDP {
		return relay.Connect(unix.SOCK_DGRAM, 0, egress)
	}
	for range hopAttempts {
		fd, err := relay.Connect(unix.SOCK_STREAM, g.ports.next(), egress)
		if err == nil || !portTaken(err) {
			return fd, err
		}
	}
	return relay.Connect(unix.SOCK_STREAM, 0, egress)
}

// verdictAfter is how long the record of a flow that an egress has reset waits. An
// egress that is killed resets all its connections, in any order: only then is it
// known whether the one that tells of its health was among them.
const verdictAfter = 200 * time.Millisecond

// closeHop records a flow of an egress, and of one that ended in disorder says
// what this side can know: the egress did not take it, or was lost with it. What
// the service did the egress carries over, as reset or FIN.
func (g *Gateway) closeHop(s *deception.Session) {
	egress, away := g.hop(s.Service)
	switch {
	case s.Reason == deception.EndRefused:
		g.lose(s, egress)
	case s.Reason == deception.EndServiceReset && away:
		later := *s
		later.SourceHead, later.DestinationHead = bytes.Clone(s.SourceHead), bytes.Clone(s.DestinationHead)
		g.unclear.Add(1)
		time.AfterFunc(verdictAfter, func() {
			defer g.unclear.Done()
			if g.cfg.Links.lost(egress) {
				g.lose(&later, egress)
			}
			g.cfg.Recorder.Ended(&later)
		})
		return
	}
	g.cfg.Recorder.Ended(s)
}

// lose marks a flow as lost with its egress, which is looked at now.
func (g *Gateway) lose(s *deception.Session, egress netip.AddrPort) {
	s.Reason = deception.EndGateway
	g.cfg.Links.suspect(egress)
}

// Settle waits until every flow that has ended is recorded. It is for the end of
// the process, after the flows and before the recorder.
func (g *Gateway) Settle() { g.unclear.Wait() }

// sourcePorts walks over the ports that this machine's own connections use.
// With a port named, a tuple in TIME_WAIT is no obstacle (see relay.Connect).
type sourcePorts struct {
	at    atomic.Uint32
	ports []uint16
}

// read takes the machine's range, without what is reserved for others. It runs
// before the first flow.
func (p *sourcePorts) read() {
	const path = "/proc/sys/net/ipv4/"
	span, _ := os.ReadFile(path + "ip_local_port_range")
	reserved, _ := os.ReadFile(path + "ip_local_reserved_ports")
	p.ports = localPorts(string(span), string(reserved))
}

// localPorts reads the two settings as the kernel writes them ("32768\t60999",
// "40000,50000-50010"); what cannot be read counts as Linux's default.
func localPorts(span, reserved string) []uint16 {
	first, last := uint64(32768), uint64(60999)
	if fields := strings.Fields(span); len(fields) == 2 {
		a, errA := strconv.ParseUint(fields[0], 10, 16)
		b, errB := strconv.ParseUint(fields[1], 10, 16)
		if errA == nil && errB == nil && 0 < a && a <= b {
			first, last = a, b
		}
	}
	var ports []uint16
	for port := first; port <= last; port++ {
		ports = append(ports, uint16(port))
	}
	for part := range strings.SplitSeq(strings.TrimSpace(reserved), ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		a, errA := strconv.ParseUint(from, 10, 16)
		b, errB := strconv.ParseUint(to, 10, 16)
		if errA != nil || errB != nil {
			continue
		}
		kept := ports[:0]
		for _, port := range ports {
			if uint64(port) < a || uint64(port) > b {
				kept = append(kept, port)
			}
		}
		ports = kept
	}
	return ports
}

// next returns the port to try, 0 (any) where all are reserved.
func (p *sourcePorts) next() uint16 {
	if len(p.ports) == 0 {
		return 0
	}
	return p.ports[p.at.Add(1)%uint32(len(p.ports))]
}
