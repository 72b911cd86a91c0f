package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// The servers in this file are Go code of this process with its sockets in the
// machine; like the programs, they note in a log file who came.

// TCPPeer starts a server that speaks first: one line "peer ADDRESS PORT" with
// the peer as it sees it, then whatever it is sent, back again. It closes its
// side when the client has closed its own. Its usual port is 7.
func TCPPeer(ctx context.Context, m *Machine, listen Listen) (*Server, error) {
	return goServer(ctx, m, "tcp", listen, func(ctx context.Context, at netip.AddrPort, log *os.File) (io.Closer, func(), error) {
		l, err := m.Listen(ctx, "tcp"+family(at), at.String())
		if err != nil {
			return nil, nil, err
		}
		t := &tcpPeer{listener: l, log: log, open: map[net.Conn]struct{}{}}
		return t, t.serve, nil
	})
}

// UDPEcho starts a responder that answers each datagram with a line
// "peer ADDRESS PORT" and then the datagram, from the address it was sent to.
// Its usual port is 161 (SNMP's).
func UDPEcho(ctx context.Context, m *Machine, listen Listen) (*Server, error) {
	if len(listen.Ports) == 0 {
		listen.Ports = []uint16{161}
	}
	return goServer(ctx, m, "udp", listen, func(_ context.Context, at netip.AddrPort, log *os.File) (io.Closer, func(), error) {
		conn, err := m.listenUDP(at)
		if err != nil {
			return nil, nil, err
		}
		return conn, func() { serveUDP(conn, log) }, nil
	})
}

func family(at netip.AddrPort) string {
	if at.Addr().Is4() {
		return "4"
	}
	return "6"
}

// opener opens one socket: what closes it, and what serves it until then.
type opener func(ctx context.Context, at netip.AddrPort, log *os.File) (io.Closer, func(), error)

func goServer(ctx context.Context, m *Machine, name string, listen Listen, open opener) (*Server, error) {
	s, err := newServer(m, name, parseGo)
	if err != nil {
		return nil, err
	}
	at, err := sockets(listen.Addrs, orUsual(listen.Ports, 7)...)
	if err != nil {
		return nil, err
	}
	return s.begin(ctx, &routine{open: open, at: at, logFile: s.logFile})
}

// parseGo reads "peer 192.0.2.66 4711 at 10.1.0.2 80".
func parseGo(line string) (Contact, bool) {
	f := strings.Fields(line)
	if len(f) != 6 || f[0] != "peer" {
		return Contact{}, false
	}
	peer, ok1 := addrPort(f[1], f[2])
	local, ok2 := addrPort(f[4], f[5])
	return Contact{Peer: peer, Local: local}, ok1 && ok2
}

func logContact(log *os.File, peer, at netip.AddrPort) {
	// One write a line: the file is in append mode, so lines never mix. A full
	// disk is for the reader of the log to notice.
	_, _ = fmt.Fprintf(log, "peer %s %d at %s %d\n", peer.Addr(), peer.Port(), at.Addr(), at.Port())
}

// routine is a service that is Go code.
type routine struct {
	open    opener
	at      []netip.AddrPort
	logFile string

	log     *os.File
	closers []io.Closer
	serving sync.WaitGroup
}

func (r *routine) start(ctx context.Context) error {
	var err error
	if r.log, err = os.OpenFile(r.logFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644); err != nil {
		return err
	}
	for _, at := range r.at {
		closer, serve, err := r.open(ctx, at, r.log)
		if err != nil {
			return errors.Join(fmt.Errorf("listen on %s: %w", at, err), r.stop(ctx))
		}
		r.closers = append(r.closers, closer)
		r.serving.Go(serve)
	}
	return nil
}

func (r *routine) stop(context.Context) error {
	var errs []error
	for _, c := range r.closers {
		errs = append(errs, c.Close())
	}
	r.closers = nil
	r.serving.Wait()
	return errors.Join(append(errs, r.log.Close())...)
}

type tcpPeer struct {
	listener net.Listener
	log      *os.File

	mu     sync.Mutex // guards what follows
	open   map[net.Conn]struct{}
	closed bool
}

func (t *tcpPeer) serve() {
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		conn, err := t.listener.Accept()
		if err != nil {
			return // closed; the kernel's own errors are retried by package net
		}
		if !t.keep(conn) {
			continue
		}
		conns.Go(func() { t.talk(conn) })
	}
}

// keep notes the connection for Close; false where that has been.
func (t *tcpPeer) keep(conn net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		_ = conn.Close()
		return false
	}
	t.open[conn] = struct{}{}
	return true
}

func (t *tcpPeer) talk(conn net.Conn) {
	defer func() {
		t.mu.Lock()
		delete(t.open, conn)
		t.mu.Unlock()
		_ = conn.Close()
	}()
	peer, at := connAddr(conn.RemoteAddr()), connAddr(conn.LocalAddr())
	logContact(t.log, peer, at)
	if _, err := fmt.Fprintf(conn, "peer %s %d\n", peer.Addr(), peer.Port()); err != nil {
		return
	}
	// Wrapped, or io.Copy would splice, through pipes that stay in a pool.
	if _, err := io.Copy(struct{ io.Writer }{conn}, struct{ io.Reader }{conn}); err != nil {
		return // reset by the client, or closed by us
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
	}
}

// Close closes the listener and resets no connection: they are closed in order.
func (t *tcpPeer) Close() error {
	err := t.listener.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for conn := range t.open {
		_ = conn.Close()
	}
	return err
}

func connAddr(a net.Addr) netip.AddrPort {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// listenUDP opens a socket that tells the address of each datagram and may
// answer from it, also where the machine owns it by a local route only.
func (m *Machine) listenUDP(at netip.AddrPort) (*net.UDPConn, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		ctlErr := raw.Control(func(fd uintptr) {
			if at.Addr().Is4() {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
				return
			}
			// IPv6 lets a datagram choose a source that is no interface address
			// only where the socket may bind to such.
			err = errors.Join(
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1),
			)
		})
		return errors.Join(ctlErr, err)
	}}
	var conn *net.UDPConn
	err := m.Do(func() error {
		c, err := config.ListenPacket(context.Background(), "udp"+family(at), at.String())
		if err == nil {
			conn = c.(*net.UDPConn)
		}
		return err
	})
	return conn, err
}

func serveUDP(conn *net.UDPConn, log *os.File) {
	port := connAddr(conn.LocalAddr()).Port()
	data, oob := make([]byte, 65536), make([]byte, 256)
	for {
		n, oobn, _, peer, err := conn.ReadMsgUDPAddrPort(data, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error that an earlier answer earned
		}
		peer = netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port())
		to, control := answerFrom(oob[:oobn])
		logContact(log, peer, netip.AddrPortFrom(to, port))
		answer := append(fmt.Appendf(nil, "peer %s %d\n", peer.Addr(), peer.Port()), data[:n]...)
		// As with any datagram: what cannot be sent is lost.
		_, _, _ = conn.WriteMsgUDPAddrPort(answer, control, peer)
	}
}

// answerFrom returns where a datagram was sent to, and the control message that
// makes the answer come from there.
func answerFrom(oob []byte) (netip.Addr, []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.Addr{}, nil
	}
	for _, msg := range messages {
		switch {
		case msg.Header.Level == unix.IPPROTO_IP && msg.Header.Type == unix.IP_PKTINFO && len(msg.Data) >= unix.SizeofInet4Pktinfo:
			// struct in_pktinfo: ifindex, spec_dst, addr; addr is the header's
			// destination, spec_dst is what the answer comes from.
			to := netip.AddrFrom4([4]byte(msg.Data[8:12]))
			return to, unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: to.As4()})
		case msg.Header.Level == unix.IPPROTO_IPV6 && msg.Header.Type == unix.IPV6_PKTINFO && len(msg.Data) >= unix.SizeofInet6Pktinfo:
			to := netip.AddrFrom16([16]byte(msg.Data[:16]))
			info := &unix.Inet6Pktinfo{Addr: to.As16()}
			if to.IsLinkLocalUnicast() {
				info.Ifindex = binary.NativeEndian.Uint32(msg.Data[16:20])
			}
			return to, unix.PktInfo6(info)
		}
	}
	return netip.Addr{}, nil
}
