package gateway

import (
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/proxyheader"
	"decoynet/internal/relay"
)

// post is one address at which the egress waits for ingress gateways.
type post struct {
	egress   *Egress
	listener relay.Listener
	edge     atomic.Pointer[edge]
	tcp      int
	udp      []int
	flows    atomic.Int64
	taken    atomic.Uint64
	refused  refusals
}

func newPost(e *Egress, at *edge) *post {
	p := &post{egress: e, tcp: -1}
	p.edge.Store(at)
	cfg := &e.gateway.cfg
	p.refused = refusals{kind: deception.EventPeerRefused, node: cfg.Node, tell: cfg.Recorder.Event}
	p.listener = relay.Listener{
		Name: at.listen.String(), Abortive: true,
		Allowed: p.allowed, Header: p.header, Failed: p.failed,
	}
	return p
}

// The causes by which refusals are counted.
const (
	causePeer    = "peer"    // not in egress.from
	causeHeader  = "header"  // no PROXY v2 header, or one that is wrong
	causeTimeout = "timeout" // no whole header within relay.HeaderTimeout
	causeSize    = "size"    // a header beyond the limit
	causeEnd     = "ended"   // ended within the header
	causeTarget  = "target"  // leads to no service of the zone
)

func causeOf(err error) string {
	switch {
	case errors.Is(err, relay.ErrHeaderTimeout):
		return causeTimeout
	case errors.Is(err, relay.ErrHeaderSize), errors.Is(err, proxyheader.ErrSize):
		return causeSize
	case errors.Is(err, relay.ErrHeaderEnd):
		return causeEnd
	case errors.Is(err, errTarget), errors.Is(err, errNoTarget), errors.Is(err, errFamily):
		return causeTarget
	}
	return causeHeader
}

// allowed is relay.Listener.Allowed.
func (p *post) allowed(peer netip.AddrPort) bool {
	e := p.edge.Load()
	if e.allows(peer.Addr()) {
		return true
	}
	p.refused.note(time.Now(), peer, e.listen, causePeer,
		fmt.Sprintf("refused %s at the egress of %s: not one of its ingress gateways; if it is one, add it to zones[].egress.from", peer.Addr(), e.zoneNames()))
	return false
}

// failed is relay.Listener.Failed.
func (p *post) failed(peer netip.AddrPort, err error) {
	e := p.edge.Load()
	p.refused.note(time.Now(), peer, e.listen, causeOf(err),
		fmt.Sprintf("refused a flow from %s at the egress of %s: %v", peer.Addr(), e.zoneNames(), err))
}

// header is relay.Listener.Header: it reads what the ingress says of the flow,
// and refuses what leads out of the zone.
func (p *post) header(b []byte, f *relay.Flow) (int, error) {
	h, n, err := proxyheader.Parse(b)
	switch {
	case errors.Is(err, proxyheader.ErrShort):
		return 0, relay.ErrShort
	case err != nil:
		return 0, err
	}
	f.Value = p
	if h.Local {
		return n, nil
	}
	service, err := p.edge.Load().service(f.Peer.Addr(), h.Transport, h.Target)
	if err != nil {
		return 0, err
	}
	if h.Source.Addr().Is4() != h.Target.Addr().Is4() {
		return 0, fmt.Errorf("%w: %s and %s", errFamily, h.Source, h.Target)
	}
	s := &f.Session
	s.ID, s.Transport, s.Source, s.Destination, s.DestinationNAT = h.Session, h.Transport, h.Source, h.Destination, h.Target
	s.Node, s.Segment, s.Decoy, s.Service, s.Path = h.Node, h.Segment, h.Decoy, service.Name, deception.PathRelay
	return n, nil
}

// egressFlows is the egress as its relay sees it: the steps of flow.go behind
// the hop.
type egressFlows Egress

// Accept takes a flow whose header has named its service already; a connection
// of the ingress's own (LOCAL) is one that asks for the services' health.
func (e *egressFlows) Accept(f *relay.Flow) bool {
	p := f.Value.(*post)
	if !f.Session.Source.IsValid() {
		peer := f.Peer.Addr()
		f.Take = func(fd int) { e.watchers.join(p, peer, fd) }
		return f.Session.Transport == deception.TCP
	}
	if f.Session.Transport == deception.UDP {
		f.Idle = udpIdle // over TCP the ingress decides, and keepalives notice its death
	}
	p.flows.Add(1)
	p.taken.Add(1)
	return true
}

// Open dials the service as the intruder.
func (e *egressFlows) Open(f *relay.Flow, last bool) (int, error) {
	f.Abortive = f.Session.Transport == deception.TCP
	return e.gateway.services.open(&f.Session, last, f.Abortive)
}

// Opened tells the recorder what only the egress knows: that the service sees
// another port than the intruder's.
func (e *egressFlows) Opened(f *relay.Flow) {
	s := &f.Session
	if s.SourceMode == deception.SourceKept || s.ID.IsZero() {
		return
	}
	e.gateway.cfg.Recorder.SourceSeen(&deception.SourceSeen{
		Session: s.ID, SourceNAT: s.SourceNAT, SourceMode: s.SourceMode, DestinationNAT: s.DestinationNAT,
	})
}

// Close gives back what the flow held, and has a service that refused looked at.
func (e *egressFlows) Close(f *relay.Flow) {
	e.gateway.services.closed(&f.Session)
	if f.Session.Reason == deception.EndRefused {
		e.gateway.cfg.Suspect(f.Session.Service)
	}
	f.Value.(*post).flows.Add(-1)
}

// listenEdge opens the listening sockets of an egress: one for TCP, and one for
// UDP a loop, among which the kernel spreads the peers.
func listenEdge(at netip.AddrPort, loops int) (tcp int, udp []int, err error) {
	if tcp, err = listenTCP(at); err != nil {
		return -1, nil, fmt.Errorf("TCP: %w", err)
	}
	for range loops {
		fd, err := listenUDP(at)
		if err != nil {
			closeAll(append(udp, tcp))
			return -1, nil, fmt.Errorf("UDP: %w", err)
		}
		udp = append(udp, fd)
	}
	return tcp, udp, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

func (p *post) close() {
	closeAll(append(p.udp, p.tcp))
	p.tcp, p.udp = -1, nil
}

// option is one setsockopt(2) with an integer.
type option struct{ level, name, value int }

func listenTCP(at netip.AddrPort) (int, error) {
	fd, err := boundSocket(unix.SOCK_STREAM, at, []option{
		{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		// Accepted sockets inherit these: an ingress that is gone without a word
		// is noticed after a minute and a half.
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.SOL_TCP, unix.TCP_KEEPIDLE, 60},
		{unix.SOL_TCP, unix.TCP_KEEPINTVL, 10},
		{unix.SOL_TCP, unix.TCP_KEEPCNT, 3},
	})
	if err != nil {
		return -1, err
	}
	// Likewise: see relay.Listener.Abortive.
	err = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 0})
	if err == nil {
		err = unix.Listen(fd, 4096)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// udpBuffer is what may wait at a UDP socket, bytes; the kernel grants less
// where it has to.
const udpBuffer = 4 << 20

func listenUDP(at netip.AddrPort) (int, error) {
	options := []option{{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1}, {unix.SOL_IP, unix.IP_RECVORIGDSTADDR, 1}}
	if at.Addr().Is6() {
		options = append(options, option{unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR, 1})
	}
	fd, err := boundSocket(unix.SOCK_DGRAM, at, options)
	if err == nil && unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, udpBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, udpBuffer)
	}
	return fd, err
}

func boundSocket(typ int, at netip.AddrPort, options []option) (int, error) {
	family := unix.AF_INET
	var sa unix.Sockaddr
	if at.Addr().Is4() {
		sa = &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	} else {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open socket: %w", err)
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("set socket option %d/%d: %w", o.level, o.name, err)
		}
	}
	if err := unix.Bind(fd, sa); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("bind: %w", err)
	}
	return fd, nil
}
