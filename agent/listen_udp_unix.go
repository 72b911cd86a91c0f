//go:build unix

package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"decoynet/internal/pump"
)

// datagramBuffers are taken when a datagram is there, so that open ports cost
// none.
var datagramBuffers = sync.Pool{New: func() any { return &datagramBuffer{} }}

type datagramBuffer struct {
	data [pump.DatagramSize]byte
	oob  [controlSize]byte
}

// udpReader reads the socket of a udpPart.
type udpReader struct {
	raw  syscall.RawConn
	buf  *datagramBuffer // of the datagram that was read last
	try  func(fd uintptr) bool
	n    int
	oobn int
	from unix.Sockaddr
	err  error
}

func (p *udpPart) open() error {
	raw, err := p.conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("open socket for reading: %w", err)
	}
	p.raw, p.try = raw, p.attempt
	return nil
}

// attempt reads once; false where there is nothing.
func (r *udpReader) attempt(fd uintptr) bool {
	r.buf = datagramBuffers.Get().(*datagramBuffer)
	for {
		r.n, r.oobn, _, r.from, r.err = unix.Recvmsg(int(fd), r.buf.data[:], r.buf.oob[:], 0)
		if !errors.Is(r.err, unix.EINTR) {
			break
		}
	}
	if !errors.Is(r.err, unix.EAGAIN) {
		return true
	}
	r.release()
	return false
}

func (r *udpReader) release() {
	if r.buf != nil {
		datagramBuffers.Put(r.buf)
		r.buf = nil
	}
}

// receive waits for the next datagram.
func (p *udpPart) receive() (datagram, error) {
	p.release()
	if err := p.raw.Read(p.try); err != nil {
		return datagram{}, err
	}
	if p.err != nil {
		return datagram{}, p.err
	}
	d := datagram{data: p.buf.data[:p.n]}
	switch from := p.from.(type) {
	case *unix.SockaddrInet4:
		d.source = netip.AddrPortFrom(netip.AddrFrom4(from.Addr), uint16(from.Port))
	case *unix.SockaddrInet6:
		a := netip.AddrFrom16(from.Addr)
		if from.ZoneId != 0 {
			a = a.WithZone(zoneName(from.ZoneId))
		}
		d.source = netip.AddrPortFrom(a, uint16(from.Port))
	}
	if !d.source.IsValid() || !p.readControl(&d, p.buf.oob[:p.oobn]) {
		return datagram{}, errNoDestination
	}
	return d, nil
}

// zoneName returns the name by which package net finds an interface again.
func zoneName(index uint32) string {
	if i, err := net.InterfaceByIndex(int(index)); err == nil {
		return i.Name
	}
	return strconv.Itoa(int(index))
}
