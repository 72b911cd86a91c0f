package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// secure is a TLS connection over a wire.
type secure struct {
	*tls.Conn
	wire *wire
}

func (s secure) Flush() error     { return s.wire.Flush() }
func (s secure) Received() uint64 { return s.wire.Received() }
func (s secure) Tune()            { s.wire.Tune() }

// Close cuts the connection at once, whatever waits on it. TLS's own farewell
// adds nothing to a bye frame.
func (s secure) Close() error { return s.wire.Conn.Close() }

// tunnelTLS is a configuration for the tunnel: TLS 1.3 and our protocol only,
// full records from the first one, and no resumption, so that every connection
// shows a certificate that is good now.
func tunnelTLS(cfg *tls.Config) *tls.Config {
	cfg = cfg.Clone()
	cfg.MinVersion = tls.VersionTLS13
	cfg.NextProtos = []string{protocol}
	cfg.DynamicRecordSizingDisabled = true
	cfg.SessionTicketsDisabled = true
	cfg.ClientSessionCache = nil
	if each := cfg.GetConfigForClient; each != nil {
		cfg.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			own, err := each(h)
			if own == nil || err != nil {
				return own, err
			}
			own = tunnelTLS(own)
			own.GetConfigForClient = nil
			return own, nil
		}
	}
	return cfg
}

// shake does the TLS handshake and exchanges hellos until the deadline. Not
// before the peer's hello does a client know that its certificate was taken
// (RFC 8446, section 4.6.2: it has finished by then). In between admit may
// refuse the peer; its error is told to the peer.
func shake(ctx context.Context, t secure, own hello, patience time.Duration, admit func(tls.ConnectionState) error) (hello, *scanner, error) {
	if err := t.wire.SetDeadline(time.Now().Add(patience)); err != nil {
		return hello{}, nil, fmt.Errorf("set a deadline: %w", err)
	}
	if err := t.HandshakeContext(ctx); err != nil {
		return hello{}, nil, handshakeError(err)
	}
	state := t.ConnectionState()
	if state.NegotiatedProtocol != protocol {
		return hello{}, nil, fmt.Errorf("%w: it names no version at all, so it is no part of decoynet", ErrVersion)
	}
	b := own.append(nil)
	refused := admit(state)
	if refused != nil {
		text := refused.Error()
		text = text[:min(len(text), maxBye)]
		b = make([]byte, headerSize, headerSize+len(text))
		putHeader(b, frameBye, 0, 0, len(text))
		b = append(b, text...)
	}
	if _, err := t.Write(b); err != nil {
		return hello{}, nil, fmt.Errorf("write the hello: %w", err)
	}
	if refused != nil {
		return hello{}, nil, refused
	}
	in := newScanner(t)
	f, err := in.next()
	if err == nil {
		var peer hello
		if peer, err = parseHello(f); err == nil {
			if err = t.wire.SetDeadline(time.Time{}); err == nil {
				t.wire.cork()
				return peer, in, nil
			}
		}
	}
	in.close()
	return hello{}, nil, handshakeError(err)
}

// handshakeError says in our words what a person meets often.
func handshakeError(err error) error {
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("the peer accepts but does not answer: %w", err)
	case strings.Contains(err.Error(), "application protocol"):
		// crypto/tls has no error value for what ALPN finds.
		return fmt.Errorf("%w: %w", ErrVersion, err)
	case errors.Is(err, ErrProtocol), errors.Is(err, ErrVersion), errors.Is(err, errGone):
		return err
	}
	if read := readError(err); errors.Is(read, errGone) {
		return fmt.Errorf("%w during the handshake: %w", errGone, err)
	}
	return fmt.Errorf("TLS handshake: %w", err)
}
