//go:build linux

package gateway

import (
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/relay"
)

// A connection's way, in five steps:
//
//	accept   relay.Engine took it at a steered socket; source and original
//	         destination are known                               (Accept)
//	bind     the table says which service that is                (Accept)
//	open     the egress dials the service as the intruder; one   (Open, Opened)
//	         on another machine is told whose flow it is
//	relay    relay.Engine carries bytes, half-closes and resets
//	close    the session is recorded                             (Close)
//
// All of them run on the flow's relay loop and never wait.

// udpIdle bounds the idle time of UDP flows, which have no other end.
const udpIdle = time.Minute

// Accept names the session and binds it. False where nothing is bound, which
// happens only in the moment between a change of the table and of the steering.
func (g *Gateway) Accept(f *relay.Flow) bool {
	s := &f.Session
	s.Node, s.Segment = g.cfg.Node, f.Listener.Name
	_, idle, ok := g.bind(s)
	if !ok {
		return false
	}
	s.ID, f.Idle = deception.NewSessionID(s.Start), idle
	if g.cfg.Feed != nil {
		f.Watch = g.cfg.Feed.Begin(s, f.Lane())
	}
	return true
}

// bind leads a session whose Node, Segment, Transport and Destination are known
// by the table of this moment, and says for how long it may be idle. False where
// nothing is bound; the session is not changed then.
func (g *Gateway) bind(s *deception.Session) (target deception.Target, idle time.Duration, ok bool) {
	target, ok = g.table.Load().Lookup(deception.SegmentKey(s.Node, s.Segment), s.Transport, s.Destination)
	if !ok {
		return target, 0, false
	}
	s.Path = deception.PathRelay
	s.Decoy, s.Service = target.Decoy.Name, target.Service.Name
	s.DestinationNAT = target.Address
	idle = target.Decoy.Idle
	if s.Transport == deception.UDP {
		idle = min(idle, udpIdle)
	}
	return target, idle, true
}

// Open dials the service as the intruder, or the egress that does so.
//
// Towards another machine, and for flows that came from one (without a
// listener), TCP sockets are abortive: the death of this process must not look
// there like an end in order. Where both sides of a flow are this machine's own,
// they see the same end as it is, and two system calls are spared.
func (g *Gateway) Open(f *relay.Flow, last bool) (fd int, err error) {
	egress, away := g.hop(f.Session.Service)
	f.Prelude, f.Abortive = f.Prelude[:0], f.Session.Transport == deception.TCP && (away || f.Listener == nil)
	if away {
		fd, f.Prelude, err = g.openHop(&f.Session, egress, f.Prelude)
		return fd, err
	}
	return g.services.open(&f.Session, last, f.Abortive)
}

// dialer opens flows towards services behind links of this machine.
type dialer struct {
	tuples udpTuples
	moved  atomic.Uint64 // flows that had to give up their source port
}

// open dials the service from the intruder's own address and port, by a socket
// that is abortive (relay.Flow.Abortive) if asked for. Where a closing connection
// still holds that port towards this service it asks to be called again; on the
// last attempt it gives up the port, never the address, and the session says so.
func (d *dialer) open(s *deception.Session, last, abortive bool) (int, error) {
	fd, err := d.dial(s, s.Source, abortive)
	if err == nil {
		s.SourceNAT, s.SourceMode = s.Source, deception.SourceKept
		return fd, nil
	}
	if !portTaken(err) {
		return -1, fmt.Errorf("dial service %s as %s: %w", s.Service, s.Source, err)
	}
	if !last && s.Transport == deception.TCP {
		return -1, relay.ErrAgain
	}
	if fd, err = d.dial(s, netip.AddrPortFrom(s.Source.Addr(), 0), abortive); err != nil {
		return -1, fmt.Errorf("dial service %s as %s from any port: %w", s.Service, s.Source.Addr(), err)
	}
	if s.SourceNAT, err = relay.LocalAddr(fd); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("read source port towards service %s: %w", s.Service, err)
	}
	s.SourceMode = deception.SourcePortMoved
	d.moved.Add(1)
	return fd, nil
}

func (d *dialer) dial(s *deception.Session, source netip.AddrPort, abortive bool) (int, error) {
	if s.Transport == deception.TCP {
		fd, err := relay.Dial(unix.SOCK_STREAM, source, s.DestinationNAT)
		if err != nil || !abortive {
			return fd, err
		}
		if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			unix.Close(fd)
			return -1, err
		}
		return fd, nil
	}
	tuple := udpTuple{source, s.DestinationNAT}
	if source.Port() != 0 && !d.tuples.take(tuple) {
		return -1, unix.EADDRINUSE
	}
	fd, err := relay.Dial(unix.SOCK_DGRAM, source, s.DestinationNAT)
	if err != nil && source.Port() != 0 {
		d.tuples.release(tuple)
	}
	return fd, err
}

// closed gives back what open booked for the flow.
func (d *dialer) closed(s *deception.Session) {
	if s.Transport == deception.UDP && s.SourceMode == deception.SourceKept && s.SourceNAT.IsValid() {
		d.tuples.release(udpTuple{s.Source, s.DestinationNAT})
	}
}

func portTaken(err error) bool {
	return errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EADDRINUSE)
}

// Opened records the start of the session: the service has it.
func (g *Gateway) Opened(f *relay.Flow) { g.cfg.Recorder.Started(&f.Session) }

// Close records its end, and has a service that refused looked at.
func (g *Gateway) Close(f *relay.Flow) {
	s := &f.Session
	if g.noHeads.Load() {
		s.SourceHead, s.DestinationHead = nil, nil
	}
	if len(f.Prelude) > 0 {
		g.closeHop(s)
		return
	}
	g.services.closed(s)
	if s.Reason == deception.EndRefused {
		g.cfg.Suspect(s.Service)
	}
	g.cfg.Recorder.Ended(s)
}
