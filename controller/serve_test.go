package controller

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"decoynet/internal/pki"
)

// A peer that keeps its connection and never says anything again is asked, and
// given up.
func TestDeadPeersAreNoticed(t *testing.T) {
	short := quick
	short.ping, short.pong = 100*time.Millisecond, 100*time.Millisecond
	s := newSite(t, options{timing: &short})
	cfg := pki.PinnedTLS(s.Pin())
	cfg.NextProtos = []string{"h2"}
	c, err := tls.Dial("tcp", strings.TrimPrefix(s.url, "https://"), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	// The preface and an empty SETTINGS frame (RFC 9113, sections 3.4 and 6.5).
	if _, err := c.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
		t.Fatal(err)
	}
	pings := 0
	for {
		var header [9]byte
		if _, err = io.ReadFull(c, header[:]); err != nil {
			break
		}
		if header[3] == 6 { // PING, RFC 9113, section 6.7
			pings++
		}
		length := binary.BigEndian.Uint32(header[:4]) >> 8
		if _, err = io.CopyN(io.Discard, c, int64(length)); err != nil {
			break
		}
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Error("the connection stands after a minute")
	}
	if pings == 0 {
		t.Error("nobody asked")
	}
}
