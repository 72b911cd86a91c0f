package pki

import (
	"errors"
	"net"
	"sync/atomic"
)

// KeepAlert wraps the connection below a TLS client, so that why a server refused
// the client's certificate is not lost. With TLS 1.3 the client's handshake ends
// before the server has looked at the certificate (RFC 8446, section 2): the
// refusal meets whatever the client writes first, and where the write fails first,
// "broken pipe" is all that is heard. So a write that fails because the peer is
// gone is left to the reader to tell: it finds the alert, or else the same failure.
// Whoever uses the connection must be reading from it, as HTTP/2 does.
func KeepAlert(conn net.Conn) net.Conn { return &alertKeeper{Conn: conn} }

type alertKeeper struct {
	net.Conn
	gone atomic.Bool
}

func (c *alertKeeper) Write(b []byte) (int, error) {
	if c.gone.Load() {
		return len(b), nil
	}
	n, err := c.Conn.Write(b)
	if errors.Is(err, errPipe) || errors.Is(err, errReset) || errors.Is(err, errAborted) {
		c.gone.Store(true)
		return len(b), nil
	}
	return n, err
}

// CloseWrite ends this side's direction.
func (c *alertKeeper) CloseWrite() error {
	w, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return w.CloseWrite()
}
