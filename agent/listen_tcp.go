package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"decoynet/deception"
	"decoynet/internal/pump"
)

// listenTCP opens a TCP port and serves it.
func (l *Listen) listenTCP(ctx context.Context, network string, at netip.AddrPort) (part, error) {
	// Keep-alives would be packets that no intruder expects of the service; the
	// idle time ends dead flows.
	cfg := net.ListenConfig{Control: exclusive, KeepAlive: -1}
	cfg.SetMultipathTCP(false) // Go's listeners speak MPTCP by default, which few services do
	listener, err := cfg.Listen(ctx, network, at.String())
	if err != nil {
		return nil, bindError(err)
	}
	p := &tcpPart{listen: l, listener: listener.(*net.TCPListener), done: make(chan struct{})}
	l.wg.Go(p.serve)
	return p, nil
}

// bindError takes what package net says around the system's error away: the
// address is named by whoever reports it.
func bindError(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// tcpPart is a listening socket and its goroutine.
type tcpPart struct {
	listen   *Listen
	listener *net.TCPListener
	done     chan struct{}
}

// Pauses after a connection could not be accepted: there are no descriptors, or
// no memory.
const (
	firstPause = 5 * time.Millisecond
	longPause  = time.Second
)

func (p *tcpPart) serve() {
	pause := firstPause
	for {
		conn, err := p.listener.AcceptTCP()
		switch {
		case err == nil:
			pause = firstPause
			p.listen.accept(conn)
			continue
		case errors.Is(err, net.ErrClosed):
			return
		}
		p.listen.turnedAway.Add(1)
		select {
		case <-p.done:
			return
		case <-time.After(pause):
			pause = min(2*pause, longPause)
		}
	}
}

func (p *tcpPart) close() {
	close(p.done)
	_ = p.listener.Close() // it is open; closing a socket that listens cannot fail
}

func (p *tcpPart) flows() int { return 0 }

// accept hands a connection to the carrier.
func (l *Listen) accept(conn *net.TCPConn) {
	source, destination := addrPort(conn.RemoteAddr()), addrPort(conn.LocalAddr())
	s, idle, ok := l.session(deception.TCP, source, destination)
	intruder, err := pump.NewTCP(conn)
	if !ok || err != nil {
		l.turnedAway.Add(1)
		_ = conn.SetLinger(0)
		_ = conn.Close()
		return
	}
	if l.cfg.Carrier.Carry(intruder, &s, idle) == nil {
		intruder.Reset(deception.EndOverload)
	}
}

// addrPort reads a socket's address: IPv4 unmapped, and without the zone, which
// means something on this machine only.
func addrPort(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.TCPAddr:
		return plainAddr(a.AddrPort())
	case *net.UDPAddr:
		return plainAddr(a.AddrPort())
	}
	panic(fmt.Sprintf("agent: address of type %T", a))
}

func plainAddr(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}
