package agent

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"decoynet/deception"
	"decoynet/internal/pump"
)

// listenUDP opens a UDP port and serves it. It returns errSplit where a socket
// for every address cannot tell which of them a datagram was sent to.
func (l *Listen) listenUDP(ctx context.Context, network string, at netip.AddrPort) (part, error) {
	cfg := net.ListenConfig{Control: exclusive}
	conn, err := cfg.ListenPacket(ctx, network, at.String())
	if err != nil {
		return nil, bindError(err)
	}
	p := &udpPart{listen: l, conn: conn.(*net.UDPConn), at: plainAddr(at), known: map[udpKey]*udpFlow{}}
	if at.Addr().IsUnspecified() && !p.askDestination() {
		return nil, errors.Join(errSplit, conn.Close())
	}
	if err := p.open(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	l.wg.Go(p.serve)
	return p, nil
}

// udpPart is a UDP socket, its goroutine and its flows. A flow is what runs
// between one intruder's address and port and one of ours.
type udpPart struct {
	listen *Listen
	conn   *net.UDPConn
	at     netip.AddrPort // the address is unspecified where the socket takes all
	udpReader

	mu    sync.Mutex // guards the rest
	known map[udpKey]*udpFlow
}

// udpKey is a flow's two ends. The source may have a zone.
type udpKey struct{ source, destination netip.AddrPort }

type udpFlow struct {
	*pump.Packets
	handle pump.Handle // set when the carrier has the flow
}

// askDestination has the kernel tell the address that each datagram was sent to
// (IP_PKTINFO, RFC 3542's IPV6_RECVPKTINFO). False where this system cannot.
func (p *udpPart) askDestination() bool {
	if p.at.Addr().Is4() {
		return ipv4.NewPacketConn(p.conn).SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true) == nil
	}
	return ipv6.NewPacketConn(p.conn).SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true) == nil
}

// datagram is one that has come in. The data is good until the next one is read.
type datagram struct {
	data    []byte
	source  netip.AddrPort // with a zone where it is link-local
	to      netip.Addr
	ifIndex int
}

// controlSize is room for the control messages that askDestination asks for.
const controlSize = 128

// readControl fills in where a datagram was sent to. False where that is not
// said.
func (p *udpPart) readControl(d *datagram, oob []byte) bool {
	switch {
	case !p.at.Addr().IsUnspecified():
		d.to = p.at.Addr()
	case p.at.Addr().Is4():
		var c ipv4.ControlMessage
		if c.Parse(oob) != nil {
			return false
		}
		d.to, _ = netip.AddrFromSlice(c.Dst.To4())
	default:
		var c ipv6.ControlMessage
		if c.Parse(oob) != nil {
			return false
		}
		d.to, _ = netip.AddrFromSlice(c.Dst.To16())
		d.ifIndex = c.IfIndex
	}
	return d.to.IsValid()
}

// answerControl makes answers leave from the address that was contacted.
func (p *udpPart) answerControl(d *datagram) []byte {
	switch {
	case !p.at.Addr().IsUnspecified():
		return nil
	case d.to.Is4():
		return (&ipv4.ControlMessage{Src: d.to.AsSlice()}).Marshal()
	}
	c := ipv6.ControlMessage{Src: d.to.AsSlice()}
	if d.to.IsLinkLocalUnicast() {
		c.IfIndex = d.ifIndex
	}
	return c.Marshal()
}

// errNoDestination is returned by receive for a datagram of which it cannot be
// told where it was sent to.
var errNoDestination = errors.New("the datagram's destination is not known")

func (p *udpPart) serve() {
	defer p.endFlows()
	pause := firstPause
	for {
		d, err := p.receive()
		switch {
		case err == nil:
			pause = firstPause
			p.take(&d)
		case errors.Is(err, net.ErrClosed):
			return
		case errors.Is(err, errNoDestination):
			p.listen.turnedAway.Add(1)
		default:
			// An ICMP error that an earlier answer earned, mostly. What stays is
			// asked for less and less often.
			time.Sleep(pause)
			pause = min(2*pause, longPause)
		}
	}
}

// take hands a datagram to its flow.
func (p *udpPart) take(d *datagram) {
	if _, toAll := (*p.listen.broadcasts.Load())[d.to]; toAll || d.to.IsMulticast() {
		return // for everybody, as colleagues' machines send all the time
	}
	key := udpKey{d.source, netip.AddrPortFrom(d.to, p.at.Port())}
	p.mu.Lock()
	f := p.known[key]
	p.mu.Unlock()
	if f == nil {
		f = p.begin(key, d)
	}
	if f != nil {
		f.Push(append([]byte(nil), d.data...))
	}
}

// begin makes a flow; nil where it is for nobody. Only serve's goroutine calls
// it.
func (p *udpPart) begin(key udpKey, d *datagram) *udpFlow {
	s, idle, ok := p.listen.session(deception.UDP, plainAddr(key.source), key.destination)
	if !ok {
		p.listen.turnedAway.Add(1)
		return nil
	}
	control := p.answerControl(d)
	f := &udpFlow{}
	write := func(b []byte) error {
		// As with any datagram: what cannot be sent is lost.
		if control == nil {
			_, _ = p.conn.WriteToUDPAddrPort(b, key.source)
		} else {
			_, _, _ = p.conn.WriteMsgUDPAddrPort(b, control, key.source)
		}
		return nil
	}
	f.Packets = pump.NewPackets(write, func() { p.forget(key, f) })
	p.mu.Lock()
	p.known[key] = f
	p.mu.Unlock()
	handle := p.listen.cfg.Carrier.Carry(f, &s, idle)
	p.mu.Lock()
	f.handle = handle
	p.mu.Unlock()
	if handle == nil {
		f.Reset(deception.EndOverload)
		return nil
	}
	return f
}

func (p *udpPart) forget(key udpKey, f *udpFlow) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known[key] == f {
		delete(p.known, key)
	}
}

// close closes the socket; serve ends and with it the flows, which cannot be
// answered any more.
func (p *udpPart) close() { _ = p.conn.Close() }

func (p *udpPart) endFlows() {
	reason := deception.EndUnbound
	select {
	case <-p.listen.done:
		reason = deception.EndShutdown
	default:
	}
	p.mu.Lock()
	var handles []pump.Handle
	for _, f := range p.known {
		if f.handle != nil {
			handles = append(handles, f.handle)
		}
	}
	p.mu.Unlock()
	for _, h := range handles {
		h.End(reason)
	}
}

func (p *udpPart) flows() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.known)
}
