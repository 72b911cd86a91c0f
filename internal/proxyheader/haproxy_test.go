//go:build linux

package proxyheader

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"decoynet/deception"
)

const patience = 20 * time.Second

// What HAProxy sends is read: IPv4 and IPv6, a checksum, an identifier, its
// health check.
func TestHAProxy(t *testing.T) {
	front4, front6 := freePort(t, "127.0.0.1:0"), freePort(t, "[::1]:0")
	plain, options, checks := listen(t), listen(t), listen(t)
	runHAProxy(t, fmt.Sprintf(`defaults
 mode tcp
 timeout connect 5s
 timeout client 20s
 timeout server 20s
listen plain
 bind %s
 server s %s send-proxy-v2
listen options
 bind %s
 unique-id-format 0123456789abcdef
 server s %s send-proxy-v2 proxy-v2-options crc32c,unique-id
backend checks
 server s %s send-proxy-v2 check inter 200ms
`, front4, plain.Addr(), front6, options.Addr(), checks.Addr()))

	client := dialUntil(t, front4)
	want := Header{Transport: deception.TCP, Source: addrOf(client.LocalAddr()), Destination: front4}
	if got := hear(t, plain); got != want {
		t.Errorf("over IPv4 HAProxy said %+v, want %+v", got, want)
	}
	client = dialUntil(t, front6)
	want = Header{
		Transport: deception.TCP, Source: addrOf(client.LocalAddr()), Destination: front6,
		Session: deception.SessionID([]byte("0123456789abcdef")),
	}
	if got := hear(t, options); got != want {
		t.Errorf("over IPv6, with options, HAProxy said %+v, want %+v", got, want)
	}
	if got := hear(t, checks); got != (Header{Local: true}) {
		t.Errorf("HAProxy's health check said %+v, want LOCAL", got)
	}
}

func runHAProxy(t *testing.T, config string) {
	t.Helper()
	program, err := exec.LookPath("haproxy")
	if err != nil {
		program = "/usr/sbin/haproxy" // not in everybody's PATH
	}
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program, "-db", "-f", file)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // killed
	})
}

func listen(t *testing.T) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return l.(*net.TCPListener)
}

func freePort(t *testing.T, at string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return addrOf(l.Addr())
}

func addrOf(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }

// dialUntil dials until HAProxy is up.
func dialUntil(t *testing.T, at netip.AddrPort) net.Conn {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", at.String())
		if err == nil {
			t.Cleanup(func() { c.Close() })
			return c
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// hear reads the header of the next connection byte by byte, as it comes.
func hear(t *testing.T, l *net.TCPListener) Header {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	var b []byte
	one := make([]byte, 1)
	for {
		if _, err := c.Read(one); err != nil {
			t.Fatalf("read after %x: %v", b, err)
		}
		b = append(b, one...)
		h, n, err := Parse(b)
		if err == nil && n == len(b) {
			return h
		}
		if !errors.Is(err, ErrShort) {
			t.Fatalf("parse %x: %v", b, err)
		}
	}
}
