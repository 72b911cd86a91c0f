package health

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/frame"
)

// ErrNoAnswer is a port that said nothing within the timeout.
var ErrNoAnswer = errors.New("no answer")

func refused(err error) bool { return errors.Is(err, unix.ECONNREFUSED) }

// Probe asks ports, all of one service, and returns an error for each that is
// not open: unix.ECONNREFUSED, ErrNoAnswer, or why it could not be asked.
func Probe(ctx context.Context, ports []Port, timeout time.Duration, mark uint32) map[Port]error {
	errs := map[Port]error{}
	tcp := map[netip.Addr][]Port{}
	for _, p := range ports {
		if p.Transport == deception.TCP {
			tcp[p.Address.Addr()] = append(tcp[p.Address.Addr()], p)
			continue
		}
		if err := probeUDP(ctx, p.Address, timeout/4, mark); err != nil && !(p.Range && refused(err)) {
			errs[p] = err
		}
	}
	for target, ports := range tcp {
		answers, err := probeTCP(ctx, target, ports, timeout)
		for _, p := range ports {
			switch answer, ok := answers[p.Address.Port()]; {
			case err != nil:
				errs[p] = err
			case !ok:
				errs[p] = fmt.Errorf("%w from %s within %s", ErrNoAnswer, p.Address, timeout)
			case !answer && !p.Range:
				errs[p] = fmt.Errorf("%s: %w", p.Address, unix.ECONNREFUSED)
			}
		}
	}
	return errs
}

// probeTCP sends a SYN to each port and collects who says SYN-ACK (true) or RST
// (false). The raw socket is bound to our own address and connected to the
// service's, so that the kernel copies it nothing of the relayed flows, which
// run under intruders' addresses.
func probeTCP(ctx context.Context, target netip.Addr, ports []Port, timeout time.Duration) (map[uint16]bool, error) {
	local, err := localAddr(target)
	if err != nil {
		return nil, err
	}
	family := unix.AF_INET
	if target.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
	if err != nil {
		return nil, fmt.Errorf("open raw socket (needs CAP_NET_RAW): %w", err)
	}
	file := os.NewFile(uintptr(fd), "health probe")
	defer file.Close()
	if err := unix.Bind(fd, sockaddr(local)); err != nil {
		return nil, fmt.Errorf("bind raw socket to %s: %w", local, err)
	}
	if err := unix.Connect(fd, sockaddr(target)); err != nil {
		return nil, fmt.Errorf("reach %s: %w", target, err)
	}
	deadline := time.Now().Add(timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	_ = file.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { _ = file.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	// A port above the usual ephemeral range, another one each time.
	source := uint16(61000 + rand.IntN(4000))
	sequence := rand.Uint32()
	for _, p := range ports {
		if _, err := file.Write(syn(local, target, source, p.Address.Port(), sequence)); err != nil {
			return nil, fmt.Errorf("send SYN to %s: %w", p.Address, err)
		}
	}
	return collect(file, family, source, sequence, len(ports)), nil
}

// collect reads answers to our SYNs until all are in or the deadline has come.
func collect(file *os.File, family int, source uint16, sequence uint32, want int) map[uint16]bool {
	answers := map[uint16]bool{}
	var b [256]byte
	for len(answers) < want {
		n, err := file.Read(b[:])
		if err != nil {
			return answers
		}
		segment := b[:n]
		if family == unix.AF_INET && n > 0 { // IPv4 raw sockets deliver the IP header, IPv6 ones do not
			segment = segment[min(n, int(b[0]&0xf)*4):]
		}
		const minHeader = 20
		if len(segment) < minHeader || binary.BigEndian.Uint16(segment[2:]) != source ||
			binary.BigEndian.Uint32(segment[8:]) != sequence+1 {
			continue
		}
		const finSynRstAck = 0x17
		switch segment[13] & finSynRstAck {
		case 0x12: // SYN, ACK
			answers[binary.BigEndian.Uint16(segment)] = true
		case 0x14, 0x04: // RST
			answers[binary.BigEndian.Uint16(segment)] = false
		}
	}
	return answers
}

// syn builds a TCP segment (RFC 9293, section 3.1) with SYN and an MSS option.
func syn(from, to netip.Addr, source, destination uint16, sequence uint32) []byte {
	b := make([]byte, 24)
	binary.BigEndian.PutUint16(b[0:], source)
	binary.BigEndian.PutUint16(b[2:], destination)
	binary.BigEndian.PutUint32(b[4:], sequence)
	b[12], b[13] = 6<<4, 0x02
	binary.BigEndian.PutUint16(b[14:], 64240)
	copy(b[20:], []byte{2, 4, 0x05, 0xb4}) // MSS 1460
	binary.BigEndian.PutUint16(b[16:], frame.PacketChecksum(from, to, unix.IPPROTO_TCP, b))
	return b
}

// probeUDP sends an empty datagram, which servers pass over, and waits a moment
// for an ICMP port unreachable.
func probeUDP(ctx context.Context, target netip.AddrPort, wait time.Duration, mark uint32) error {
	dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		if mark == 0 {
			return nil
		}
		var failed error
		if err := c.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark))
		}); err != nil {
			return err
		}
		return failed
	}}
	conn, err := dialer.DialContext(ctx, "udp", target.String())
	if err != nil {
		return fmt.Errorf("reach %s: %w", target, err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(wait))
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := conn.Write(nil); err != nil {
		return fmt.Errorf("ask %s: %w", target, err)
	}
	var b [1]byte
	if _, err := conn.Read(b[:]); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("ask %s: %w", target, err)
	}
	return nil
}

// localAddr returns the address of this host that speaks to target.
func localAddr(target netip.Addr) (netip.Addr, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(target, 9)))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find route to %s: %w", target, err)
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}
