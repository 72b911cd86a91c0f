//go:build linux

package e2e

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"decoynet/internal/lab"
)

// puppet is a service whose end of each connection the test holds in its own
// hands.
type puppet struct {
	conns chan *net.TCPConn
}

func newPuppet(t *testing.T, m *lab.Machine, port int) *puppet {
	t.Helper()
	p := &puppet{conns: make(chan *net.TCPConn, 2048)}
	l, err := m.Listen(t.Context(), "tcp", fmt.Sprintf(":%d", port))
	check(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
			p.conns <- conn.(*net.TCPConn)
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
		p.drain()
	})
	return p
}

// take returns the next connection that the service has accepted.
func (p *puppet) take(t *testing.T) *net.TCPConn {
	t.Helper()
	select {
	case conn := <-p.conns:
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	case <-time.After(5 * time.Second):
		t.Fatal("the service got no connection")
		return nil
	}
}

func (p *puppet) drain() {
	for {
		select {
		case conn := <-p.conns:
			_ = conn.Close()
		default:
			return
		}
	}
}

// remoteAddr is the peer as a service's socket sees it.
func remoteAddr(conn net.Conn) netip.AddrPort {
	ap := netip.MustParseAddrPort(conn.RemoteAddr().String())
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// pair connects the intruder to the puppet through a decoy.
func (o *relayOffice) pair(address string) (client, service *net.TCPConn) {
	o.t.Helper()
	client = o.dial(address)
	service = o.script.take(o.t)
	if got := remoteAddr(service); got != localAddr(client) {
		o.t.Errorf("the service sees %s, the intruder is %s", got, localAddr(client))
	}
	return client, service
}

// say writes a text at one end and wants it at the other.
func say(t *testing.T, from, to net.Conn, text string) {
	t.Helper()
	_, err := io.WriteString(from, text)
	check(t, err)
	got := make([]byte, len(text))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != text {
		t.Fatalf("%q arrived as %q, %v", text, got, err)
	}
}

// sendAll writes a lot at one end, closes that direction, and returns what
// came out at the other until its end.
func sendAll(t *testing.T, from, to *net.TCPConn, size int) {
	t.Helper()
	text := strings.Repeat("0123456789abcde\n", size/16)
	failed := make(chan error, 1)
	go func() {
		_, err := io.WriteString(from, text)
		if err == nil {
			err = from.CloseWrite()
		}
		failed <- err
	}()
	got, err := io.ReadAll(to)
	check(t, err)
	check(t, <-failed)
	if string(got) != text {
		t.Errorf("%d bytes were sent, %d arrived", len(text), len(got))
	}
}
