package proxyheader

import (
	"bufio"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pires/go-proxyproto"
	"pgregory.net/rapid"

	"decoynet/deception"
)

// What another implementation writes is read, and every beginning of it asks
// for more.
func TestText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		four := rapid.Bool().Draw(t, "IPv4")
		source, destination := drawAddr(t, four), drawAddr(t, four)
		peer := proxyproto.Header{
			Version: 1, Command: proxyproto.PROXY, TransportProtocol: proxyproto.TCPv6,
			SourceAddr: net.TCPAddrFromAddrPort(source), DestinationAddr: net.TCPAddrFromAddrPort(destination),
		}
		if four {
			peer.TransportProtocol = proxyproto.TCPv4
		}
		b, err := peer.Format()
		if err != nil {
			t.Fatal(err)
		}
		for i := range b {
			if _, _, err := ParseText(b[:i]); !errors.Is(err, ErrShort) {
				t.Fatalf("%q: %v, want %v", b[:i], err, ErrShort)
			}
		}
		want := Header{Transport: deception.TCP, Source: source, Destination: destination}
		got, n, err := ParseText(append(b, "GET /"...))
		if err != nil || n != len(b) || got != want {
			t.Fatalf("%q is %+v, %d bytes, %v", b, got, n, err)
		}
	})
}

func TestTextRefused(t *testing.T) {
	for _, bad := range []string{
		"GET / HTTP/1.1\r\n", "PROXY\r\n", "PROXY TCP4\r\n", "PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n", "PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
		"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n", "PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n", "PROXY TCP4 ::1 ::2 1 2\r\n",
		"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n", "PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n", "PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n",
		"PROXY TCP4 192.0.2.1  192.0.2.2 1 2\r\n", "PROXY TCP6 fe80::1%eth0 ::2 1 2\r\n", "PROXY TCP6 ::ffff:192.0.2.1 ::2 1 2\r\n",
		"PROXY TCP4 " + strings.Repeat("1", 200),
	} {
		if h, n, err := ParseText([]byte(bad)); !errors.Is(err, ErrMalformed) || n != 0 || h != (Header{}) {
			t.Errorf("%q: %+v, %d, %v", bad, h, n, err)
		}
	}
	if h, n, err := ParseText([]byte("PROXY UNKNOWN ffff:: whatever\r\nx")); err != nil || !h.Local || n != 31 {
		t.Errorf("unknown: %+v, %d, %v", h, n, err)
	}
}

// Of a sender that gives our types other meanings the addresses are read.
func TestForeignTLVs(t *testing.T) {
	h := Header{Transport: deception.TCP, Source: netip.MustParseAddrPort("192.0.2.66:4711"), Destination: netip.MustParseAddrPort("192.0.2.10:80")}
	b := must(t, h)
	tlv := "\x05\x00\x03abc\xe0\x00\x08\x00\x01\x02\x03\x04\x05\x06\x07\xe0\x00\x01z\xe4\x00\x01z"
	b[fixedSize-1] += byte(len(tlv))
	b = append(b, tlv...)
	if _, _, err := Parse(b); !errors.Is(err, ErrMalformed) {
		t.Errorf("strictly read: %v", err)
	}
	h.Node = "z"
	got, n, err := ParseForeign(append(b, "data"...))
	if diff := cmp.Diff(h, got, same); err != nil || n != len(b) || diff != "" {
		t.Errorf("%d of %d bytes, %v (-want +got):\n%s", n, len(b), err, diff)
	}
	peer, err := proxyproto.Read(bufio.NewReader(strings.NewReader(string(b))))
	if err != nil || peer.SourceAddr.String() != h.Source.String() {
		t.Errorf("another reader: %v, %v", peer, err)
	}
}

func FuzzParseText(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.66 192.0.2.10 4711 80\r\nGET"))
	f.Add([]byte("PROXY TCP6 2001:db8::66 2001:db8::10 4711 80\r\n"))
	f.Add([]byte("PROXY UNKNOWN\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, n, err := ParseText(b)
		switch {
		case err == nil:
			if n > len(b) || n > maxText || h.Local == h.Source.IsValid() || h.Source.Addr().Is4() != h.Destination.Addr().Is4() {
				t.Fatalf("%+v, %d of %d bytes", h, n, len(b))
			}
		case errors.Is(err, ErrShort) && len(b) >= maxText:
			t.Fatalf("%d bytes are too few", len(b))
		}
	})
}
